"""May a run go on, and from where? Its images and last checkpoint are compared with those of now."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deepcluster.errors import DataError, ModelError, UsageError
from deepcluster.images import Source
from deepcluster.runtime.log import warn
from deepcluster.runtime.plain_files import is_run
from deepcluster.storage.checkpoint import Checkpoint
from deepcluster.storage.content import IMAGES, RunRecord
from deepcluster.storage.run_folder import RunFolder, open_run
from deepcluster.texts import one_line, some


def check_like(record: RunRecord, like: str | None) -> None:
    """Raise UsageError if the run of ``--like`` is neither at ``like`` nor, without it, at its place of then."""
    there = Path(like or record.like or "")
    if (run := record.like_run) and (not is_run(there) or open_run(there).read_record().run != run):
        raise UsageError(f"this fit began --like run {run}, which is not in {there}: give its folder, --like RUN")


def check_paths(folder: RunFolder, source: Source) -> None:
    """Raise DataError if files were added or removed since the run began; no image is read for it."""
    if not folder.has(IMAGES):
        return
    images = folder.read_images()
    updates = images.rows.column("added") != ""
    updated = {*images.rows.at(np.flatnonzero(updates)).column("path")}
    then = {*images.rows.at(np.flatnonzero(~updates)).column("path")}
    used = {*images.used.column("path")} - updated
    now = {*source.paths, *(path for path, _ in source.skipped)} - updated
    if used - now or now - then:
        raise _differing(added=sorted(now - then), removed=sorted(used - now))


def _differing(**differences: Sequence[str]) -> DataError:
    shown = {kind: some([*map(one_line, paths)]) for kind, paths in differences.items() if paths}
    texts = [f"{len(differences[kind]):,} {kind} ({paths})" for kind, paths in shown.items()]
    return DataError(
        f"the run began with other images: {'; '.join(texts) or 'they are in another order'}: put them"
        " back, or begin anew with --overwrite"
    )


def check_same(
    folder: RunFolder, record: RunRecord, checkpoint: Checkpoint | None, images: Mapping[str, str]
) -> list[str] | None:
    """Compare a run that goes on with its beginning, and return the differences of machine, versions and threads.

    ``record``: Of the run now. ``checkpoint``: The run's last checkpoint, or None. ``images``: Digests of the images by
    path.

    Raises DataError if the images have changed, ModelError if the checkpoint is of another run.
    """
    if checkpoint and checkpoint.about.get("run") != record.run:
        raise ModelError(
            f"the last checkpoint in {folder.path / 'checkpoints'} is of run {checkpoint.about.get('run')}, and this is"
            f" run {record.run}: put back the checkpoints of this run"
        )
    rows = folder.read_images().used if folder.has(IMAGES) else None
    then = images if rows is None else {row["path"]: row["sha256"] for row in rows}
    if [*then.items()] != [*images.items()]:
        raise _differing(
            added=[path for path in images if path not in then],
            removed=[path for path in then if path not in images],
            changed=[path for path in images if path in then and then[path] != images[path]],
        )
    if not checkpoint:
        return None
    before = checkpoint.about["environment"]
    changed = {name: value for name, value in (record.environment or {}).items() if before.get(name) != value}
    differences = [f"{name} {before.get(name)} then, {value} now" for name, value in changed.items()]
    if differences:
        warn(f"the result may differ from that of an uninterrupted run: {'; '.join(differences)}")
    return differences
