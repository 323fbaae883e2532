"""What can be done with a run that has ended."""

import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from deepcluster.clustering.cut import outlier_distances, place
from deepcluster.display import Display, Silent
from deepcluster.errors import DeepClusterError, UsageError
from deepcluster.grouping import (
    Rows,
    check_groups,
    found_again,
    groups_of,
    suggested,
    write_groups,
    write_map,
    write_report,
    write_tree,
)
from deepcluster.images.source import Images, Source, find, find_in_parts
from deepcluster.images.store import check_alike, nothing_readable, read_once
from deepcluster.processes import ALONE, Processes
from deepcluster.records import Clustering
from deepcluster.storage import drawn
from deepcluster.storage import model as models
from deepcluster.storage import run_folder as files
from deepcluster.storage.edits import Edits, carried_over, edited
from deepcluster.storage.model import Model
from deepcluster.storage.run_folder import RunFolder


def recut(run: Path, n_clusters: int | None, display: Display | None = None, source: Source | None = None) -> RunFolder:
    """Cut the features of a run into another number of groups (None: one is suggested); nothing is trained, the cluster
    numbers are new. ``source``: the images for the report, where the caller has them at hand."""
    folder = files.open_run(run)
    with files.locked(run):
        _recut(folder, n_clusters, display or Silent())
        with folder.believed():
            write_report(folder, source or found_again(folder))
    return folder


def _recut(folder: RunFolder, n_clusters: int | None, display: Display) -> None:
    record, model, rows = read_run(folder)
    check_groups(n_clusters, len(rows.paths))
    n_clusters = n_clusters or suggested(rows.reduced, record, display)
    before = model.place(rows.reduced)
    sizes = torch.bincount(before.fine_cluster, minlength=len(model.fine_centroids))
    fine = Clustering(before.fine_cluster, model.fine_centroids, sizes, math.nan, 0, 0)
    groups = groups_of(rows.reduced, fine, n_clusters, record["seed"], folder.read_graph(len(rows.paths)))
    after = place(rows.reduced, groups, model.fine_centroids)
    names, junk = carried_over(model, before.cluster, after.cluster, groups.count)
    _write(folder, replace(model, groups=groups, names=names, junk=junk), rows, record, {})


def apply(run: Path, edits: Edits) -> RunFolder:
    """Merge, name and mark clusters of a run. UsageError where the edits are not for its present clusters."""
    folder = files.open_run(run)
    with files.locked(run):
        record, model, rows = read_run(folder)
        if edits.cut and edits.cut != record.get("cut"):
            raise UsageError(f"the edits are for other clusters than {run} has now: edit those of its report.html")
        _write(folder, edited(model, edits), rows, record, {} if edits.merge else _baseline(folder))
        with folder.believed():
            write_report(folder, found_again(folder))
    return folder


def read_run(folder: RunFolder) -> tuple[dict[str, Any], Model, Rows]:
    """run.json, the model, and the images with their reduced features."""
    record = folder.read_json("run.json", files.RECORD | {"rounds": int})
    model = models.load(folder.path)
    table = folder.read_rows("clusters.csv", files.CLUSTERS)
    used = [row for row in table if row["status"] == "ok"]
    dims = model.reduction.projection.shape[1]
    rows = Rows(
        paths=[row["path"] for row in used],
        labels=[row["label"] for row in used] if any(row["label"] for row in used) else None,
        skipped=[(row["path"], "") for row in table if row["status"] == "skipped"],
        reduced=torch.from_numpy(folder.read_array("features.npy", len(used), dims)),
        lengths=_lengths(folder, len(used)),
    )
    return record, model, rows


def _lengths(folder: RunFolder, rows: int) -> Tensor | None:
    if not (folder.path / files.LENGTHS).is_file():
        return None
    return torch.from_numpy(folder.read_array(files.LENGTHS, rows, 1)).squeeze(1)


def _baseline(folder: RunFolder) -> dict[str, float]:
    """The figures of the network at the start, of which the groups at the end of the fit are the measure."""
    metrics = folder.read_json("metrics.json") if (folder.path / "metrics.json").is_file() else {}
    return {name.removeprefix("baseline_"): value for name, value in metrics.items() if name.startswith("baseline_")}


def _write(folder: RunFolder, model: Model, rows: Rows, record: dict[str, Any], baseline: Mapping[str, float]) -> None:
    """The model with other groups than before, and the files that depend on them."""
    model = replace(model, outlier_distance=outlier_distances(rows.reduced, model.groups))
    models.save(model, folder.model)
    write_groups(folder, model, rows, record, baseline)
    if not (folder.path / drawn.MAP).exists():
        write_map(folder, rows.reduced, record["seed"])


@dataclass(frozen=True)
class Prediction:
    """Some of the images of a source: the usable ones with their reduced features and the lengths that these had, and
    (path, reason) of the others."""

    paths: tuple[str, ...]
    reduced: Tensor
    lengths: Tensor
    skipped: tuple[tuple[str, str], ...]


def predict(
    model: Model,
    images: Images,
    *,
    display: Display | None = None,
    stdin: TextIO | None = None,
    processes: Processes = ALONE,
) -> Iterator[Prediction]:
    """Run images through a model, a batch at a time: what comes is handed on before the next batch is read.

    Several ``processes`` take the batches in turn; the first of them yields all, in order, and the others nothing.
    Raises ``DataError`` at the end where none was usable, and before the first where the processes see other images.
    """
    display = display or Silent()
    tried = used = 0
    reasons: list[tuple[str, str]] = []
    location = ""
    for parts in _by_turns(_parts(images, model.batch_size, stdin, processes), processes.count):
        own = _predict(model, parts[processes.rank]) if processes.rank < len(parts) else None
        for source, found in zip(parts, processes.every_at_first(own), strict=False):
            assert found is not None, "it had a part"
            tried, used, location = tried + len(source.paths), used + len(found.paths), source.location
            reasons += found.skipped[: 3 - len(reasons)]
            display.progress("images", tried, tried)
            yield found
    if processes.leads and not used:
        raise nothing_readable(location, tried, reasons)


def _parts(images: Images, count: int, stdin: TextIO | None, processes: Processes) -> Iterator[Source]:
    if processes.alone:
        return find_in_parts(images, count, stdin=stdin)
    source = find(images)
    check_alike(source, processes)
    return source.parts(count)


def _by_turns(parts: Iterator[Source], count: int) -> Iterator[list[Source]]:
    while turn := list(islice(parts, count)):
        yield turn


def _predict(model: Model, source: Source) -> Prediction:
    with tempfile.TemporaryDirectory() as folder:
        store = read_once(source, model.store_size, folder=Path(folder), none_is_fine=True)
        nothing = torch.empty(0, model.reduction.projection.shape[1])
        reduced, lengths = model.measure(store.images) if store.kept else (nothing, torch.empty(0))
    return Prediction(tuple(source.paths[i] for i in store.kept), reduced, lengths, store.skipped)


def report(run: Path, source: Source | None = None) -> Path:
    """Write report.html of a run again, with the pictures of ``source``, or where the images are still at hand."""
    folder = files.open_run(run)
    with files.locked(run), folder.believed():
        if not all((folder.path / name).exists() for name in (drawn.MAP, drawn.TREE)):
            _draw(folder)
        return write_report(folder, source or found_again(folder))


def _draw(folder: RunFolder) -> None:
    """Map and tree of a run of version 0.1, which had none; without features or model the report does without."""
    with suppress(DeepClusterError):
        record, model, rows = read_run(folder)
        if not (folder.path / drawn.MAP).exists():
            write_map(folder, rows.reduced, record["seed"])
        write_tree(folder, model, rows.reduced, record["seed"])
