"""The conditions on which a run goes on: the options and images that it began with."""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from deepcluster.errors import DataError, DeepClusterWarning, ModelError, UsageError
from deepcluster.images import Source
from deepcluster.images.decode import one_line
from deepcluster.images.store import Store
from deepcluster.storage.checkpoint import Checkpoint
from deepcluster.storage.run_folder import LockedFolder, RunFolder

IMAGES_READ = "checkpoints/images.csv"
COLUMNS = ("path", "sha256")
MAX_SHOWN = 5


def digests(source: Source, store: Store) -> dict[str, str]:
    """Return the SHA-256 of the pixels of all ranks' usable images by path, on the main rank."""
    of_rank = row_digests(store.images.permute(0, 2, 3, 1))
    of_all = (digest for part in store.partition.processes.gather_json(of_rank) for digest in part)
    return dict(zip((source.paths[i] for i in store.kept), of_all, strict=False))


def row_digests(rows: Tensor) -> list[str]:
    """Return the SHA-256 of every row: of features, or of images with the colours last."""
    return [hashlib.sha256(row.tobytes()).hexdigest() for row in rows.numpy()]


def fingerprint(images: Mapping[str, str]) -> str:
    """Return the SHA-256 over the paths and pixels of a run, by their :func:`digests`."""
    digest = hashlib.sha256()
    for path, pixels in images.items():
        digest.update(path.encode(errors="surrogateescape") + b"\0" + pixels.encode())
    return digest.hexdigest()


def remember(folder: LockedFolder, images: Mapping[str, str]) -> None:
    """Record which images a run begins with."""
    folder.write_rows(IMAGES_READ, COLUMNS, [{"path": path, "sha256": digest} for path, digest in images.items()])


def check_options(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise UsageError if an option has another value than the run began with."""
    for name, value in now.items():
        if then.get(name) != value:
            raise UsageError(
                f"--resume: {name} was {then.get(name)!r} and is {value!r} now: give the options that the run began"
                " with, or --overwrite"
            )


def check_paths(folder: RunFolder, source: Source, updated: Sequence[str]) -> None:
    """Raise DataError if files were added or removed since the run began; no image is read for it."""
    if folder.has(IMAGES_READ):
        used = {row["path"] for row in folder.read_rows(IMAGES_READ, COLUMNS)}
    elif folder.has("clusters.csv"):
        used = {*folder.read_clusters().where("status", "ok").column("path")} - {*updated}
    else:
        return
    now = {*source.paths, *(path for path, _ in source.skipped)} - {*updated}
    then = used | {row["path"] for row in folder.read_rows("skipped.csv", COLUMNS[:1])}
    if used - now or now - then:
        raise _differing(added=sorted(now - then), removed=sorted(used - now))


def _differing(**differences: Sequence[str]) -> DataError:
    texts = [
        f"{len(paths):,} {kind} ({', '.join(map(one_line, paths[:MAX_SHOWN]))}{', ...' * (len(paths) > MAX_SHOWN)})"
        for kind, paths in differences.items()
        if paths
    ]
    return DataError(
        f"the images are not those that the run began with: {'; '.join(texts) or 'they are in another order'}: put them"
        " back, or begin anew with --overwrite"
    )


def check_same(
    folder: RunFolder, checkpoint: Checkpoint | None, about: Mapping[str, Any], images: Mapping[str, str]
) -> list[str] | None:
    """Compare a run that goes on with its beginning, and return the differences of machine, versions and threads.

    ``checkpoint``: Its last one, if it has any. ``about``: The facts about the run now, as a checkpoint has them.
    ``images``: As :func:`digests`.

    Raises DataError if the images have changed, ModelError if the checkpoint is of another run, UsageError if the
    options are others.
    """
    if checkpoint and checkpoint.about.get("run") != about["run"]:
        raise ModelError(
            f"the last checkpoint in {folder.path / 'checkpoints'} is of run {checkpoint.about.get('run')}, and this is"
            f" run {about['run']}: put back the checkpoints of this run"
        )
    if checkpoint:
        check_options(checkpoint.about["options"], about["options"])
    rows = folder.read_rows(IMAGES_READ, COLUMNS) if folder.has(IMAGES_READ) else None
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
        warnings.warn(
            f"the result may differ from that of an uninterrupted run: {'; '.join(differences)}",
            DeepClusterWarning,
            stacklevel=2,
        )
    return differences
