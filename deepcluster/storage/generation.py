"""One state of a run at a time: new files are staged beside the old ones, and one rename makes all of them current.

A :class:`Stage` collects files. :meth:`Stage.commit` renames its folder to ``COMMIT``: from that moment on they are the
run's, and :func:`current` finds them there. Then :func:`finish` moves them to their places and removes what the new
state does without. It can be repeated: what a killed process leaves undone, the next one that has the lock completes.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from deepcluster.errors import DiskError
from deepcluster.images.run_folders import RUN
from deepcluster.runtime import signals
from deepcluster.storage.files import changing, sync_folder, write_whole
from deepcluster.storage.ownership import FOLDERS, NAMES, is_file_or_link, is_known, remove_own
from deepcluster.storage.safe_read import read_json

COMMIT = ".deepcluster-commit"
MANIFEST = "commit.json"
SCHEMA_VERSION = 1


class Stage:
    """The files of the next state of a run folder, in a scratch folder inside it."""

    def __init__(self, run: Path, folder: Path):
        self.run = run
        self.folder = folder
        self.removed: set[str] = set()
        folder.mkdir()

    def path(self, name: str) -> Path:
        """Where to write a file that will be called ``name`` in the run folder."""
        self.removed.discard(name)
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        return path

    def remove(self, name: str) -> None:
        """The next state has no such file."""
        (self.folder / name).unlink(missing_ok=True)
        self.removed.add(name)

    def commit(self) -> None:
        """Make the files current, all at once. DiskError where something that is not ours is in the way."""
        check_places(self.run)
        if os.path.lexists(self.run / COMMIT):
            raise _in_the_way(self.run / COMMIT)
        manifest = json.dumps({"schema_version": SCHEMA_VERSION, "removed": sorted(self.removed)}) + "\n"
        write_whole(self.folder / MANIFEST, lambda file: file.write(manifest))
        signals.check()
        with signals.uninterrupted(), changing(self.run):
            self.folder.rename(self.run / COMMIT)
            sync_folder(self.run)
            finish(self.run)


def check_places(run: Path) -> None:
    """DiskError where something that is not ours lies at the place of a file of ours."""
    for folder in (run / name for name in FOLDERS):
        if folder.is_symlink():
            raise DiskError(f"{folder} is a symbolic link, and nothing is written where it leads: remove it")
        if os.path.lexists(folder) and not folder.is_dir():
            raise _in_the_way(folder)
    for path in (run / name for name in sorted(NAMES)):
        if os.path.lexists(path) and not is_file_or_link(path):
            raise _in_the_way(path)


def _in_the_way(path: Path) -> DiskError:
    return DiskError(f"{path} is in the way of a file of this run: move it elsewhere, and try again")


def is_pending(run: Path) -> bool:
    """Whether files of the current state are not yet at their places."""
    return (run / COMMIT / MANIFEST).is_file() and not (run / COMMIT).is_symlink()


def current(run: Path, name: str) -> Path:
    """Where the file ``name`` of the current state is; there is none where the path does not exist."""
    staged = run / COMMIT / name
    if is_pending(run) and (staged.exists() or name in _removed(run)):
        return staged
    return run / name


def finish(run: Path) -> None:
    """Move the files of a committed state to their places. Only for whoever has the lock of ``run``."""
    folder = run / COMMIT
    if folder.is_symlink() or not folder.is_dir():
        return
    if is_pending(run):
        removed = _removed(run)
        check_places(run)
        for name in _staged(folder):
            (run / name).parent.mkdir(exist_ok=True)
            (folder / name).replace(run / name)
            sync_folder((run / name).parent)
        remove_own(run, removed)
        (folder / MANIFEST).unlink()
    for path in (*(path for path in folder.iterdir() if path.is_dir()), folder):
        with suppress(OSError):  # not empty: somebody put something there
            path.rmdir()


def _staged(folder: Path) -> Iterator[str]:
    """The names of the staged files. What is not called like a file of a run is not moved anywhere."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return (name for path in paths if is_known(name := path.relative_to(folder).as_posix()))


def _removed(run: Path) -> list[str]:
    """The names of the files that the committed state does without."""
    path = run / COMMIT / MANIFEST
    try:
        value: Any = read_json(path)
        if value["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"version {value['schema_version']}, and this program knows {SCHEMA_VERSION}")
        removed = [name for name in map(str, value["removed"]) if is_known(name)]
        if RUN in removed:
            raise ValueError(f"it removes {RUN}, without which there is no run")
        return removed
    except FileNotFoundError:  # finished by another process just now
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DiskError(f"{path} cannot be used ({error}): restore the run folder from a copy") from None
