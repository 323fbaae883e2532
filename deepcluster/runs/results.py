"""Every file of a run that depends on its groups."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deepcluster.clustering.agreement import NMI_AVERAGE
from deepcluster.groups.confidence import confidence_of, confidence_text
from deepcluster.groups.cut import Placement
from deepcluster.groups.map2d import layout
from deepcluster.groups.merge_tree import merge_tree
from deepcluster.groups.quality_by_k import levels
from deepcluster.model import Model
from deepcluster.seeding import derive
from deepcluster.storage import csv_rows as tables
from deepcluster.storage import model_files as models
from deepcluster.storage import report_files as drawn
from deepcluster.storage import run_folder as files
from deepcluster.storage.csv_rows import round_to
from deepcluster.storage.run_folder import RunFolder
from deepcluster.storage.run_record import RunRecord

MOST_IN_TREE = 500


@dataclass(frozen=True)
class Rows:
    """The images of a run: those that were used, in row order, and those that were not."""

    paths: Sequence[str]
    labels: Sequence[str] | None
    skipped: Sequence[tuple[str, str]]
    reduced: Tensor
    lengths: Tensor | None = None  # of the whitened features; no run of version 0.1 has them
    added: int = (
        0  # images that came after the fit, the last rows: they have a place, and no say in what the groups are
    )

    @property
    def fitted(self) -> Tensor:
        """The features of the images of the fit."""
        return self.reduced[: len(self.reduced) - self.added]


def read_run(folder: RunFolder) -> tuple[RunRecord, Model, Rows]:
    """run.json, the model, and the images with their reduced features."""
    record = folder.read_record({"rounds": int})
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
        added=_added(folder, used),
    )
    return record, model, rows


def _added(folder: RunFolder, used: Sequence[Mapping[str, str]]) -> int:
    added = [row["path"] for row in folder.read_added()]
    with folder.as_disk_errors(files.ADDED):
        if len(added) >= len(used) or added != [row["path"] for row in used[len(used) - len(added) :]]:
            raise ValueError("its images are not the last ones of clusters.csv")
    return len(added)


def _lengths(folder: RunFolder, rows: int) -> Tensor | None:
    if not folder.has(files.LENGTHS):
        return None
    return torch.from_numpy(folder.read_array(files.LENGTHS, rows, 1)).squeeze(1)


def write_groups(
    folder: RunFolder, model: Model, placement: Placement, rows: Rows, record: RunRecord, baseline: Mapping[str, float]
) -> RunRecord:
    """Everything that depends on the groups: clusters.csv, cluster_summary.csv, metrics.json, tree.json and run.json.

    Args:
        folder: The run.
        model: The model with these groups.
        placement: Where it puts ``rows``.
        rows: The images.
        record: run.json so far.
        baseline: The metrics of the network at the start, where there are any.

    Returns:
        run.json as it was written.
    """
    confidence = confidence_of(rows.reduced, placement.cluster, seed=derive(record.seed, "verdict"))
    summary = tables.summary_rows(model, placement, rows.reduced, rows.paths)
    table = [*_used_rows(model, placement, rows), *({"path": path, "status": "skipped"} for path, _ in rows.skipped)]
    folder.write_rows("clusters.csv", files.CLUSTERS, table)
    folder.write_rows("cluster_summary.csv", files.SUMMARY, summary)
    if rows.labels is not None and any(rows.labels):
        metrics = tables.metrics(rows.labels, placement)
        baseline = baseline or (metrics if record.rounds == 0 else {})
        metrics_at_start = {f"baseline_{name}": value for name, value in baseline.items()}
        labelled = sum(1 for label in rows.labels if label)
        folder.write_json(
            "metrics.json", {**metrics, **metrics_at_start, "nmi_average": NMI_AVERAGE, "labelled": labelled}
        )
    write_tree(folder, model, rows.reduced, record.seed)
    record = replace(
        record,
        cut=files.cut_digest(table),  # what edits are for: this assignment, and no later one
        rows=files.rows_digest(table),
        clusters=len(summary),
        signs={name: round_to(value, 4) for name, value in asdict(confidence).items()} if confidence else {},
        verdict=confidence_text(confidence),
    )
    folder.write_record(record)
    return record


def _used_rows(model: Model, placement: Placement, rows: Rows) -> Iterator[dict[str, Any]]:
    labels = rows.labels if rows.labels is not None else [""] * len(rows.paths)
    placed = tables.placement_rows(model, placement, rows.lengths)
    for path, fine, label, columns in zip(rows.paths, placement.fine_cluster.tolist(), labels, placed, strict=True):
        yield {"path": path, "status": "ok", "fine_cluster": fine, "label": label, **columns}


def write_tree(folder: RunFolder, model: Model, reduced: Tensor, seed: int) -> None:
    """The merge tree of up to ``MOST_IN_TREE`` groups; larger trees are unreadable, and take minutes."""
    if model.groups.count > MOST_IN_TREE:
        folder.remove(drawn.TREE)
        return
    tree, piece = merge_tree(reduced, model.groups)
    drawn.write_tree(folder, tree, levels(reduced, tree, piece, seed=derive(seed, "levels")))


def write_map(folder: RunFolder, reduced: Tensor, seed: int) -> None:
    drawn.write_map(folder, layout(reduced, derive(seed, "map")))
