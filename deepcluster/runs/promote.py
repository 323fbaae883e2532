"""Put a new run in the place of another one."""

import os
import shutil
import time
from pathlib import Path

from deepcluster.errors import DiskError, UsageError
from deepcluster.runtime.console import Display, Several
from deepcluster.runtime.log import warn
from deepcluster.storage import swap
from deepcluster.storage.files import put_in_place
from deepcluster.storage.lock import own_files
from deepcluster.storage.run_folder import RunFolder, locked, open_run
from deepcluster.texts import a_few


def promote(new: Path, old: Path, display: Display | None = None, *, force: bool = False) -> None:
    """Put a finished run in the place of another one, which is kept in a folder beside it.

    Both folders move as a whole. The same call completes a promotion that was killed between the two renames.

    Raises UsageError if the new run is not finished, is the old one, or lacks a name of the old one's clusters (unless
    ``force``); DiskError or ModelError if one of its files is missing, damaged or a link.
    """
    source = open_run(new)
    if os.path.lexists(old) or not _kept_before(old):
        place = open_run(old)
        if new.samefile(old):
            raise UsageError(f"{new} and {old} are one folder: name the new run, and then the old one")
        with locked(new), locked(old):
            _check(source, place, force)
            target = Path(os.path.abspath(old))  # noqa: PTH100 (without following links)
            old_run = target.with_name(f"{target.name}-until-{time.strftime('%Y%m%d-%H%M%S')}")
            put_in_place(beside := swap.moved_beside(new, target), target, old_run)
            if beside != new:
                shutil.rmtree(new)
    else:
        old_run = _kept_before(old)[-1]
        put_in_place(new, old)
    Several(display).say("Promoted", f"{old} is now the run of {new}. The old run is in {old_run}")
    from deepcluster.runs.views import report  # imports torch

    report(old)  # the page has links from its folder


def _kept_before(old: Path) -> list[Path]:
    """Return the folders of runs that were once at ``old``, the last one at the end."""
    return sorted(old.parent.glob(f"{old.name}-until-*")) if old.parent.is_dir() else []


def _check(source: RunFolder, place: RunFolder, force: bool) -> None:
    from deepcluster.runs.run import read_run  # imports torch

    record, before = source.read_record(), place.read_record()
    if record.status != "done":
        raise UsageError(f"{source.path} is not finished (status {record.status}): go on with its fit and --resume")
    if links := [name for name in own_files(source.path) if (source.path / name).is_symlink()]:
        raise DiskError(
            f"{source.path / links[0]} is a link, which may lead elsewhere from {place.path}: put the file itself there"
        )
    read_run(source)
    now, then = source.read_header(), None if force else place.read_header()
    if then and (lost := sorted({*filter(None, then.names)} - {*now.names})):
        names = a_few([repr(name) for name in lost], 20)
        why = f"{source.path} has no clusters of these names, which {place.path} has: {names}"
        raise UsageError(f"{why}. Name them, or add --force")
    related = {(record.run, before.run), (record.like_run, before.run), (record.run, before.like_run)}
    if now.facts.is_recut or not any(one and one == other for one, other in related):
        why = f"{source.path} is no fit --like {place.path}, or was recut since"
        warn(f"{why}: the numbers of its clusters mean other clusters than before")
