"""May a run go on? Comparisons of its beginning with the options and images of now."""

from collections.abc import Mapping, Sequence
from typing import Any

from deepcluster.build import OWN
from deepcluster.errors import DataError, ModelError, UsageError
from deepcluster.images import Source
from deepcluster.runtime.log import warn
from deepcluster.storage import run_folder
from deepcluster.storage.checkpoint import Checkpoint
from deepcluster.storage.content import IMAGES_READ
from deepcluster.texts import one_line, some


def check_options(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise UsageError if an option has another value than the run began with."""
    for name, value in now.items():
        if then.get(name) != value:
            how = "give the options that the run began with, or --overwrite"
            if name.startswith(OWN):
                how = "resume from Python with the same steps: DeepCluster(...).fit(X, run=..., resume=True)"
            raise UsageError(f"--resume: {name} was {then.get(name)!r} and is {value!r} now: {how}")


def check_paths(folder: run_folder.RunFolder, source: Source) -> None:
    """Raise DataError if files were added or removed since the run began; no image is read for it."""
    updated = {row["path"] for row in folder.read_added()}
    if folder.has(IMAGES_READ):
        used = {row["path"] for row in folder.read_rows(IMAGES_READ)}
    elif folder.has("clusters.csv"):
        used = {*folder.read_clusters().where("status", "ok").column("path")} - updated
    else:
        return
    now = {*source.paths, *(path for path, _ in source.skipped)} - updated
    then = used | {row["path"] for row in folder.read_rows("skipped.csv")}
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
    folder: run_folder.RunFolder, checkpoint: Checkpoint | None, about: Mapping[str, Any], images: Mapping[str, str]
) -> list[str] | None:
    """Compare a run that goes on with its beginning, and return the differences of machine, versions and threads.

    ``checkpoint``: The run's last checkpoint, or None. ``about``: The facts about the run now, as a checkpoint has
    them. ``images``: As :func:`image_digests`.

    Raises DataError if the images have changed, ModelError if the checkpoint is of another run, UsageError if the
    options differ.
    """
    if checkpoint and checkpoint.about.get("run") != about["run"]:
        raise ModelError(
            f"the last checkpoint in {folder.path / 'checkpoints'} is of run {checkpoint.about.get('run')}, and this is"
            f" run {about['run']}: put back the checkpoints of this run"
        )
    if checkpoint:
        check_options(checkpoint.about["options"], about["options"])
    rows = folder.read_rows(IMAGES_READ) if folder.has(IMAGES_READ) else None
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
    changed = {name: value for name, value in (about["environment"] or {}).items() if before.get(name) != value}
    differences = [f"{name} {before.get(name)} then, {value} now" for name, value in changed.items()]
    if differences:
        warn(f"the result may differ from that of an uninterrupted run: {'; '.join(differences)}")
    return differences
