"""Every file of a run that depends on its groups."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deepcluster.clustering.agreement import NMI_AVERAGE
from deepcluster.groups.confidence import Confidence, confidence_of, confidence_text, next_step
from deepcluster.groups.cut import Placement
from deepcluster.groups.map2d import layout
from deepcluster.groups.merge_tree import merge_tree
from deepcluster.groups.quality_by_k import levels
from deepcluster.model import Model
from deepcluster.nets.given import FEATURES
from deepcluster.recipe import read_toml
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
    )
    return record, model, rows


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
    summary = tables.summary_rows(model, placement, rows.reduced, rows.paths, confidence.grades if confidence else ())
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
        **_judged(confidence, folder, record),
    )
    folder.write_record(record)
    return record


def _judged(confidence: Confidence | None, folder: RunFolder, record: RunRecord) -> dict[str, Any]:
    """What run.json says of the confidence: the signs, a grade, the verdict, and the command to type next."""
    text = confidence_text(confidence)
    if confidence is None:
        return {"signs": {}, "grade": None, "verdict": text, "next_step": None}
    signs = {name: round_to(value, 4) for name, value in asdict(confidence).items() if name != "by_group"}
    recipe = read_toml(folder.file("recipe.toml"))[1] if folder.has("recipe.toml") else {}
    advice, command = next_step(
        confidence.grade,
        pretrained=bool(recipe.get("weights")) or record.backbone == FEATURES,
        n_clusters=record.n_clusters or None,
        other=next((int(each["k"]) for each in (record.candidates or [])[1:]), None),
    )
    return {"signs": signs, "grade": confidence.grade.word, "verdict": f"{text} {advice}", "next_step": command}


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
