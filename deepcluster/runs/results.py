"""Every file of a run that depends on its groups."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from deepcluster.clustering.agreement import NMI_AVERAGE
from deepcluster.groups.confidence import signs, verdict
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

MOST_IN_TREE = 500


@dataclass(frozen=True)
class Rows:
    """The images of a run: those that were used, in row order, and those that were not."""

    paths: Sequence[str]
    labels: Sequence[str] | None
    skipped: Sequence[tuple[str, str]]
    reduced: Tensor
    lengths: Tensor | None = None  # of the whitened features; no run of version 0.1 has them


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


def write_groups(
    folder: RunFolder, model: Model, rows: Rows, record: dict[str, Any], baseline: Mapping[str, float]
) -> None:
    """Everything that depends on the groups: the model, clusters.csv, cluster_summary.csv, metrics.json, tree.json and
    run.json. What can fail is computed before the first file is written."""
    placement = model.place(rows.reduced)
    found = signs(rows.reduced, placement.cluster, seed=derive(record["seed"], "verdict"))
    said = {name: round_to(value, 4) for name, value in asdict(found).items()} if found else {}
    labels = rows.labels if rows.labels is not None else [""] * len(rows.paths)
    used = [
        {"path": path, "status": "ok", "fine_cluster": fine, "label": label, **place_row}
        for path, fine, label, place_row in zip(
            rows.paths,
            placement.fine_cluster.tolist(),
            labels,
            tables.placement_rows(model, placement, rows.lengths),
            strict=True,
        )
    ]
    unused = [{"path": path, "status": "skipped"} for path, _ in rows.skipped]
    rows_written = [*used, *unused]
    folder.write_rows("clusters.csv", files.CLUSTERS, rows_written)
    summary = tables.summary_rows(model, placement, rows.reduced, rows.paths)
    metrics = tables.metrics(rows.labels, placement) if rows.labels is not None and any(rows.labels) else {}
    folder.write_rows("cluster_summary.csv", files.SUMMARY, summary)
    if metrics:
        baseline = baseline or (metrics if record["rounds"] == 0 else {})
        folder.write_json(
            "metrics.json",
            {
                **metrics,
                **{f"baseline_{name}": value for name, value in baseline.items()},
                "nmi_average": NMI_AVERAGE,
                "labelled": sum(1 for label in rows.labels or () if label),
            },
        )
    write_tree(folder, model, rows.reduced, record["seed"])
    # What edits are for: this assignment, and no later one.
    record["cut"] = files.cut_digest(rows_written)
    record["rows"] = files.rows_digest(rows_written)
    record["clusters"] = len(summary)
    record |= {"signs": said, "verdict": verdict(found)}
    folder.write_json("run.json", record)


def write_tree(folder: RunFolder, model: Model, reduced: Tensor, seed: int) -> None:
    """The merge tree of up to ``MOST_IN_TREE`` groups; more are nothing to look at, and would take minutes."""
    if model.groups.count > MOST_IN_TREE:
        folder.remove(drawn.TREE)
        return
    tree, piece = merge_tree(reduced, model.groups)
    drawn.write_tree(folder, tree, levels(reduced, tree, piece, seed=derive(seed, "levels")))


def write_map(folder: RunFolder, reduced: Tensor, seed: int) -> None:
    drawn.write_map(folder, layout(reduced, derive(seed, "map")))
