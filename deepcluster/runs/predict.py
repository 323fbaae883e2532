"""What can be done with a run that has ended."""

import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from deepcluster.errors import DeepClusterError, UsageError
from deepcluster.groups.cut import outlier_distances, place
from deepcluster.images import Images, Source, find, find_in_parts
from deepcluster.images.store import check_alike, nothing_readable, read_once
from deepcluster.images.webdataset import files_of, is_pattern
from deepcluster.records import Clustering
from deepcluster.runs.groups import (
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
from deepcluster.runtime.display import Display, Silent
from deepcluster.runtime.partition import shares
from deepcluster.runtime.processes import ALONE, Processes
from deepcluster.storage import model_files as models
from deepcluster.storage import report_files as drawn
from deepcluster.storage import run_folder as files
from deepcluster.storage.edits import Edits, carried_over, edited
from deepcluster.storage.model_files import Model
from deepcluster.storage.ownership import own_files
from deepcluster.storage.run_folder import RunFolder


def recut(run: Path, n_clusters: int | None, display: Display | None = None, source: Source | None = None) -> RunFolder:
    """Cut the features of a run into another number of groups (None: one is suggested); nothing is trained, the cluster
    numbers are new. ``source``: the images for the report, where the caller has them at hand."""
    files.open_run(run)
    with files.locked(run) as folder, folder.next_state() as staged:
        _recut(staged, n_clusters, display or Silent())
        with folder.believed():
            write_report(staged, source or found_again(staged))
    return files.open_run(run)


def _recut(folder: RunFolder, n_clusters: int | None, display: Display) -> None:
    record, model, rows = read_run(folder)
    check_groups(n_clusters, len(rows.paths))
    n_clusters = n_clusters or suggested(rows.reduced, record, display)
    before = model.place(rows.reduced)
    sizes = torch.bincount(before.fine_cluster, minlength=len(model.fine_centroids))
    fine = Clustering(before.fine_cluster, model.fine_centroids, sizes, math.nan, 0, 0)
    groups = groups_of(rows.reduced, fine, n_clusters, record["seed"], folder.read_graph(len(rows.paths)))
    after = place(rows.reduced, groups, model.fine_centroids)
    record.pop("edits", None)  # they were of the clusters before
    names, junk = carried_over(model, before.cluster, after.cluster, groups.count)
    _write(folder, replace(model, groups=groups, names=names, junk=junk), rows, record, {})


def apply(run: Path, edits: Edits) -> RunFolder:
    """Merge, name and mark clusters of a run; edits that it has already change nothing.

    UsageError where the edits are not for its present clusters.
    """
    files.open_run(run)
    with files.locked(run) as folder:
        record, model, rows = read_run(folder)
        if record.get("edits") == edits.digest:
            return folder
        if edits.cut and edits.cut != record.get("cut"):
            raise UsageError(f"the edits are for other clusters than {run} has now: edit those of its report.html")
        with folder.next_state() as staged:
            baseline = {} if edits.merge else _baseline(folder)
            _write(staged, edited(model, edits), rows, record | {"edits": edits.digest}, baseline)
            with folder.believed():
                write_report(staged, found_again(staged))
    return files.open_run(run)


def read_run(folder: RunFolder) -> tuple[dict[str, Any], Model, Rows]:
    """run.json, the model, and the images with their reduced features."""
    record = folder.read_json(files.RUN, {**files.RECORD, "rounds": int})
    model = models.load_of_run(folder)
    table = folder.read_clusters()
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
    if not folder.has(files.LENGTHS):
        return None
    return torch.from_numpy(folder.read_array(files.LENGTHS, rows, 1)).squeeze(1)


def _baseline(folder: RunFolder) -> dict[str, float]:
    """The figures of the network at the start, of which the groups at the end of the fit are the measure."""
    metrics = folder.read_json("metrics.json") if folder.has("metrics.json") else {}
    return {name.removeprefix("baseline_"): value for name, value in metrics.items() if name.startswith("baseline_")}


def _write(folder: RunFolder, model: Model, rows: Rows, record: dict[str, Any], baseline: Mapping[str, float]) -> None:
    """The model with other groups than before, and the files that depend on them."""
    model = replace(model, outlier_distance=outlier_distances(rows.reduced, model.groups))
    models.save_in_run(model, folder)
    write_groups(folder, model, rows, record, baseline)
    if not folder.has(drawn.MAP):
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
    model.check_room()
    display = display or Silent()
    tried = used = 0
    reasons: list[tuple[str, str]] = []
    location = ""
    for parts in _by_turns(_parts(images, model.batch_size, stdin, processes), processes.count):
        own = _predict(model, parts[processes.rank]) if processes.rank < len(parts) else None
        for source, found in zip(parts, _at_first(own, processes), strict=False):
            tried, used, location = tried + len(source.paths), used + len(found.paths), source.location
            reasons += found.skipped[: 3 - len(reasons)]
            display.progress("images", tried, tried)
            yield found
    if processes.leads and not used:
        raise nothing_readable(location, tried, reasons)


def files_read(run: Path, images: str) -> Iterator[Path]:
    """The files that :func:`predict` reads with the model of a run, as far as their names are known before: no output
    may be one of them. (Of ``-`` they come with the images.)"""
    yield from (run / name for name in own_files(run))
    place = Path(images)
    if is_pattern(images) and not os.path.lexists(place):
        yield from files_of(place).values()
    elif images != "-" and os.path.lexists(place):
        yield place
        source = find(place)
        if source.file is not None:
            yield from map(source.file, range(len(source.paths)))
        elif place.is_dir():
            yield from place.rglob("*.tar")


def _parts(images: Images, count: int, stdin: TextIO | None, processes: Processes) -> Iterator[Source]:
    if processes.alone:
        return find_in_parts(images, count, stdin=stdin)
    source = find(images)
    check_alike(source, processes)
    return source.parts(count)


def _by_turns(parts: Iterator[Source], count: int) -> Iterator[list[Source]]:
    while turn := list(islice(parts, count)):
        yield turn


def _at_first(own: Prediction | None, processes: Processes) -> list[Prediction]:
    """The predictions of all processes for the first of them, in their order."""
    if processes.alone:
        return [own] if own else []
    own = own or Prediction((), torch.empty(0), torch.empty(0), ())
    table = shares(processes, len(own.paths))
    reduced, lengths = table.at_first(own.reduced), table.at_first(own.lengths)
    told: list[Any] = processes.every_at_first([[*own.paths], [*own.skipped]])
    if not processes.leads:
        return []
    return [
        Prediction(tuple(paths), rows, length, tuple((path, reason) for path, reason in skipped))
        for (paths, skipped), rows, length in zip(
            told, reduced.split(table.sizes), lengths.split(table.sizes), strict=True
        )
    ]


def _predict(model: Model, source: Source) -> Prediction:
    # In memory, as the network would take far more than its batch.
    store = read_once(source, model.store_size, memory_budget=sys.maxsize, none_is_fine=True)
    nothing = torch.empty(0, model.reduction.projection.shape[1])
    reduced, lengths = model.measure(store.images) if store.kept else (nothing, torch.empty(0))
    return Prediction(tuple(source.paths[i] for i in store.kept), reduced, lengths, store.skipped)


def report(run: Path, source: Source | None = None) -> Path:
    """Write report.html of a run again, with the pictures of ``source``, or where the images are still at hand."""
    files.open_run(run)
    with files.locked(run) as folder, folder.next_state() as staged, folder.believed():
        if not (folder.has(drawn.MAP) and folder.has(drawn.TREE)):
            _draw(staged)
        write_report(staged, source or found_again(staged))
    return run / "report.html"


def _draw(folder: RunFolder) -> None:
    """Map and tree of a run of version 0.1, which had none; without features or model the report does without."""
    with suppress(DeepClusterError):
        record, model, rows = read_run(folder)
        if not folder.has(drawn.MAP):
            write_map(folder, rows.reduced, record["seed"])
        write_tree(folder, model, rows.reduced, record["seed"])
