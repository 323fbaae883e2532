"""A new run in the place of another one."""

import os
import shutil
import time
from contextlib import suppress
from filecmp import cmp
from functools import partial
from pathlib import Path

from deepcluster.errors import DiskError, UsageError
from deepcluster.runtime import signals
from deepcluster.runtime.console import Display, Several
from deepcluster.runtime.log import warn
from deepcluster.runtime.plain_files import RUN
from deepcluster.storage.content import LOG
from deepcluster.storage.files import changing, new_folder, write_whole
from deepcluster.storage.run_folder import LockedFolder, RunFolder, locked, open_run
from deepcluster.storage.state import FOLDERS, HIDDEN, LOCK, own_files
from deepcluster.texts import some


def promote(new: Path, old: Path, display: Display | None = None, *, force: bool = False) -> None:
    """Put a finished run in the place of another one, which is kept in a folder beside it.

    The old folder gets a next state, as in every command: a reader sees the old run or the new one. Other files in the
    two folders stay there. If a promotion was killed, the same call completes it.

    Raises UsageError if the new run is not finished, is the old one, or lacks a name of the old one's clusters (unless
    ``force``); DiskError or ModelError if one of its files is missing, damaged or a link.
    """
    for run in (new, old):
        open_run(run)
    if new.samefile(old):
        raise UsageError(f"{new} and {old} are one folder: name the new run, and then the old one")
    with locked(new) as source, locked(old) as place:
        for run in (new, old):
            if links := [name for name in own_files(run) if (run / name).is_symlink()]:
                raise DiskError(f"{run / links[0]} is a link, which is not followed: put the file itself there")
        is_done = _has_all(old, new)  # by a promotion that was killed before it had removed NEW
        kept = "" if is_done else f". The old run is in {_replace(source, place, force)}"
        Several(display).say("Promoted", f"{old} is now the run of {new}{kept}")
        with signals.uninterrupted(), changing(new):
            for name in sorted(own_files(new), key=RUN.__eq__):  # without run.json it is no run, and cannot be named
                (new / name).unlink()
            with suppress(OSError):  # Windows removes no open file
                (new / LOCK).unlink()
    for folder in (*(new / name for name in (*FOLDERS, HIDDEN)), new):
        with suppress(OSError):  # not there, or not empty
            folder.rmdir()


def _replace(source: LockedFolder, place: LockedFolder, force: bool) -> Path:
    """Put one run in the place of another one, and return the folder that keeps the other one."""
    from deepcluster.runs.page import write_report  # these import torch
    from deepcluster.runs.run import read_run

    record = source.read_record()
    before = place.read_record()
    if record.status != "done":
        raise UsageError(f"{source.path} is not finished (status {record.status}): go on with its fit and --resume")
    read_run(source)
    named = set() if force or not place.has("cluster_summary.csv") else _names(place)
    if named and (lost := sorted(named - _names(source))):
        names = some([repr(name) for name in lost], 20)
        why = f"{source.path} has no clusters of these names, which {place.path} has: {names}"
        raise UsageError(f"{why}. Name them, or add --force")
    related = {(record.run, before.run), (record.like_run, before.run), (record.run, before.like_run)}
    if not any(new and new == old for new, old in related):
        why = f"{source.path} is no fit --like {place.path}, or was recut since"
        warn(f"{why}: the numbers of its clusters mean other clusters than before")
    with place.next_state(anew=True) as staged:
        _copy(source, staged.path_of(RUN).parent)
        write_report(staged)  # It reads the tables. The page has links from its folder.
        changed = time.localtime((place.path / RUN).stat().st_mtime)  # so the next try after a kill finds the copy
        here = Path(os.path.abspath(place.path))  # noqa: PTH100 (without following links)
        kept = here.with_name(f"{here.name}-until-{time.strftime('%Y%m%d-%H%M%S', changed)}")
        if not _has_all(kept, place.path):
            with new_folder(kept, ": make room") as beside:
                _copy(place, beside)
    return kept


def _names(run: RunFolder) -> set[str]:
    """Return the names of the clusters of a run."""
    return {row["name"] for row in run.read_rows("cluster_summary.csv") if row["name"]}


def _has_all(folder: Path, run: Path) -> bool:
    """Tell if a folder has the same files as a run, perhaps beside others; log and page name their folders."""
    names = {*own_files(run)} - {LOG, "report.html"}
    return all((folder / name).is_file() and cmp(run / name, folder / name, shallow=False) for name in names)


def _copy(run: RunFolder, folder: Path) -> None:
    for name in own_files(run.path):
        (folder / name).parent.mkdir(exist_ok=True)
        with run.as_disk_errors(name), run.file(name).open("rb") as file:
            write_whole(folder / name, partial(shutil.copyfileobj, file), binary=True)
