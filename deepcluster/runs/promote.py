"""A run that takes the place of another one."""

import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from deepcluster.errors import UsageError
from deepcluster.runs.page import write_report
from deepcluster.runtime import signals
from deepcluster.runtime.console import Display, Log, Several
from deepcluster.runtime.plain_files import check_file, sha256
from deepcluster.storage import run_folder as files
from deepcluster.storage.files import changing, new_folder, write_whole
from deepcluster.storage.state import FOLDERS, HIDDEN, LOCK, own_files


def promote(new: Path, old: Path, display: Display | None = None) -> Path:
    """Put a finished run in the place of another one, and return the folder that keeps the other one.

    The old folder gets a next state, as in every command: a reader sees the old run or the new one. Other files in the
    two folders stay there.

    Raises UsageError if the new run is not finished, or is the old one.
    """
    for run in (new, old):
        files.open_run(run)
    if sha256(new / files.RUN) == sha256(old / files.RUN):
        raise UsageError(f"{old} is the run in {new} already: nothing is left to promote")
    here = Path(os.path.abspath(old))  # noqa: PTH100 (without following links)
    aside = here.with_name(f"{here.name}-until-{time.strftime('%Y%m%d-%H%M%S')}")
    with files.locked(new) as source, files.locked(old) as place:
        record = source.read_record()
        if record.status != "done":
            raise UsageError(f"{new} is not finished (its status is {record.status}): go on with its fit and --resume")
        with new_folder(aside) as beside:
            _copy(place, own_files(old), beside)
        with place.next_state(anew=True) as staged:
            names = own_files(new)
            _copy(source, names, staged.path_of(files.RUN).parent)
            if "report.html" in names:  # which names its folder, and has links from there
                write_report(staged)
        Several(Log(), display).say("Promoted", f"{old} is now the run of {new}. The old run is in {aside}")
        with signals.uninterrupted(), changing(new):
            for name in names:
                (new / name).unlink()
            with suppress(OSError):  # Windows removes no open file
                (new / LOCK).unlink()
    for folder in (*(new / name for name in (*FOLDERS, HIDDEN)), new):
        with suppress(OSError):  # not there, or not empty
            folder.rmdir()
    return aside


def _copy(run: files.RunFolder, names: Iterable[str], folder: Path) -> None:
    for name in names:
        with run.as_disk_errors(name):
            check_file(run.file(name), 1 << 62)
        (folder / name).parent.mkdir(exist_ok=True)
        with run.file(name).open("rb") as file:
            write_whole(folder / name, partial(shutil.copyfileobj, file), binary=True)
