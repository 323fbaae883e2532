"""A whole run folder in the place of another one, by two renames; a kill between them leaves both."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from deepcluster.errors import DiskError
from deepcluster.runtime import signals
from deepcluster.runtime.bounded import is_run
from deepcluster.storage.files import changing, sync_folder
from deepcluster.storage.lock import LOCK, SCRATCH, own_files


def new_place(run: Path) -> Path:
    """Return the place beside a run folder of the run that will replace it."""
    return run.with_name(f".{run.name}.new")


def old_place(run: Path) -> Path:
    """Return the place beside a run folder of the run that it has replaced, until its files are removed."""
    return run.with_name(f".{run.name}.old")


def moved_beside(new: Path, run: Path) -> Path:
    """Return the place of a whole run on the file system of ``run``, and copy it there if it lies on another one."""
    if new.stat().st_dev == run.parent.stat().st_dev:
        return new
    beside = new_place(run)
    with changing(beside):
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(new, beside, symlinks=True)
    return beside


def settle(run: Path) -> None:
    """Finish a replacement that was killed between its renames, or afterwards."""
    with changing(run):
        if not os.path.lexists(run) and is_run(new_place(run)):
            with suppress(FileNotFoundError):  # another process has just done it
                new_place(run).rename(run)
                sync_folder(run.parent)
    if is_run(run) and old_place(run).is_dir():
        with suppress(DiskError):  # another process does it, or nothing can be written here
            remove_old(run)


def remove_old(run: Path) -> None:
    """Remove the own files of the replaced run; other files that lay in its folder move to ``run``."""
    old = old_place(run)
    with signals.uninterrupted(), changing(old):
        for name in (*own_files(old), LOCK):
            (old / name).unlink(missing_ok=True)
        shutil.rmtree(old / SCRATCH, ignore_errors=True)
        for parent, _, names in os.walk(old, topdown=False):
            inside = Path(parent).relative_to(old)
            for name in names:
                (run / inside).mkdir(parents=True, exist_ok=True)
                if not os.path.lexists(run / inside / name):
                    (old / inside / name).rename(run / inside / name)
        for parent, _, _ in os.walk(old, topdown=False):
            with suppress(OSError):  # not empty
                Path(parent).rmdir()
