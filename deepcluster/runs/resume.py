"""Whether a run may go on from a checkpoint: only with the images and options that it began with."""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from deepcluster.errors import DataError, DeepClusterWarning, DiskError, ModelError, UsageError
from deepcluster.images import Source
from deepcluster.images.decode import one_line
from deepcluster.images.run_folders import is_run
from deepcluster.images.store import Store
from deepcluster.storage.run_folder import LockedFolder, RunFolder, open_run
from deepcluster.storage.run_record import RunRecord

IMAGES_READ = "checkpoints/images.csv"
COLUMNS = ("path", "sha256")
SHOWN = 5


def digests(source: Source, store: Store) -> dict[str, str]:
    """The SHA-256 of the pixels of each image that is used, by its path; the main rank gets those of all."""
    of_rank = row_digests(store.images.permute(0, 2, 3, 1))
    of_all = (digest for part in store.partition.processes.gather_json(of_rank) for digest in part)
    return dict(zip((source.paths[i] for i in store.kept), of_all, strict=False))


def row_digests(rows: Tensor) -> list[str]:
    """The SHA-256 of each row: of features, or of images with the colours last."""
    return [hashlib.sha256(row.tobytes()).hexdigest() for row in rows.numpy()]


def fingerprint(images: Mapping[str, str]) -> str:
    """SHA-256 over the paths and pixels that the run was made of, by their :func:`digests`."""
    digest = hashlib.sha256()
    for path, pixels in images.items():
        digest.update(path.encode(errors="surrogateescape") + b"\0" + pixels.encode())
    return digest.hexdigest()


def remember(folder: LockedFolder, images: Mapping[str, str]) -> None:
    """Record which images a run begins with."""
    (folder.path / IMAGES_READ).parent.mkdir(exist_ok=True)
    folder.write_rows(IMAGES_READ, COLUMNS, [{"path": path, "sha256": digest} for path, digest in images.items()])


def has_begun(out: Path | None) -> bool:
    """Whether a run has settled which images it is of."""
    return out is not None and is_run(out) and RunFolder(out).has(IMAGES_READ)


def added(out: Path) -> list[str]:
    """The images that an update has added to the run at ``out``."""
    return _added(RunFolder(out)) if has_begun(out) else []


def _added(folder: RunFolder) -> list[str]:
    return [row["path"] for row in folder.read_added()]


def check_images(folder: RunFolder, now: Mapping[str, str], *, pixels: bool = True) -> None:
    """DataError with a list of what has changed since :func:`remember`; ``pixels``: also inside the images."""
    then = {row["path"]: row["sha256"] for row in folder.read_rows(IMAGES_READ, COLUMNS)}
    differences = {
        "added": [path for path in now if path not in then],
        "removed": [path for path in then if path not in now],
        "changed": [path for path in now if pixels and path in then and then[path] != now[path]],
    }
    if any(differences.values()) or list(then) != list(now):
        raise _differing(differences)


def _differing(differences: Mapping[str, Sequence[str]]) -> DataError:
    shown = "; ".join(f"{len(paths):,} {what} ({_some(paths)})" for what, paths in differences.items() if paths)
    return DataError(
        f"the images are not those that the run began with: {shown or 'some are others, or in another order'}: put them"
        " back, or begin anew with --overwrite"
    )


def _some(paths: Sequence[str]) -> str:
    return ", ".join([*map(one_line, paths[:SHOWN]), *(["..."] if len(paths) > SHOWN else [])])


def is_finished(out: Path, source: Source, n_clusters: int | None, seed: int) -> bool:
    """Whether the run at ``out`` has ended well. UsageError or DataError where it has another seed or other images."""
    if not is_run(out):
        return False
    folder = open_run(out)
    record = folder.read_record()
    if record.status != "done":
        return False
    check_options({"n_clusters": record.n_clusters, "seed": record.seed}, {"n_clusters": n_clusters, "seed": seed})
    table = folder.read_clusters()
    then, now = {*table.column("path")}, {*source.paths, *(path for path, _ in source.skipped)}
    used = {*table.where("status", "ok").column("path")} - {*_added(folder)}  # an update may have brought the others
    if used - now or now - then:
        raise _differing({"added": sorted(now - then), "removed": sorted(used - now)})
    return True


def is_untouched(source: Source, record: RunRecord) -> bool:
    """Whether the images lie where the run read them, as files that are older than it, or come from a data set."""
    scheme = source.location.partition(":")[0]
    if source.location != record.location or scheme in ("-", "python"):
        return False
    if scheme in ("sklearn", "torchvision", "hf"):
        return True
    place = Path(source.location)
    paths = [*source.files()] or [place]
    try:
        begun = datetime.fromisoformat(str(record.started)).timestamp()
        return place.exists() and all(path.is_file() and path.stat().st_mtime < begun for path in paths)
    except (OSError, ValueError):
        return False


def check_fingerprint(folder: RunFolder, now: Mapping[str, str]) -> None:
    """:func:`check_images` of a run that is finished, whose checkpoints somebody may have removed."""
    if folder.has(IMAGES_READ):
        check_images(folder, now)
    elif folder.read_record().fingerprint not in (None, "", fingerprint(now)):
        raise _differing({})


def check_run(checkpoints: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ModelError if a checkpoint is not of this run."""
    if then.get("run") != now["run"]:
        raise ModelError(
            f"the last checkpoint in {checkpoints} is of run {then.get('run')}, and this is run {now['run']}: put back"
            " the checkpoints of this run"
        )


def history(folder: RunFolder, columns: Sequence[str], rounds: int) -> list[Mapping[str, Any]]:
    """The rows of the first ``rounds`` rounds in history.csv. DiskError where they are not all there."""
    rows = folder.read_rows("history.csv", columns)
    numbers = [row["round"] for row in rows]
    if numbers[:rounds] != [str(number) for number in range(rounds)]:
        raise DiskError(
            f"{folder.path / 'history.csv'} has the rounds {', '.join(numbers[:10]) or 'of none'}, and the checkpoint"
            f" comes after {rounds}: restore the file from a copy"
        )
    return [*rows[:rounds]]


def check_options(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """UsageError where an option has another value than the run began with."""
    for name, value in now.items():
        if then.get(name) != value:
            raise UsageError(
                f"--resume: {name} was {then.get(name)!r} and is {value!r} now: give the options that the run began"
                " with, or --overwrite"
            )


def differing_environment(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """How the machine, the versions or the number of threads differ from those that the run began with; warns."""
    differences = [
        f"{name} {then.get(name)} then, {value} now" for name, value in now.items() if then.get(name) != value
    ]
    if differences:
        warnings.warn(
            f"the result may differ from that of an uninterrupted run: {'; '.join(differences)}",
            DeepClusterWarning,
            stacklevel=2,
        )
    return differences
