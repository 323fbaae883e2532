"""Every file of a run that depends on its groups."""

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from deepcluster.clustering.agreement import NMI_AVERAGE
from deepcluster.groups.cut import Placement
from deepcluster.groups.embedding import layout
from deepcluster.groups.merge_tree import merge_tree
from deepcluster.model import Model
from deepcluster.recipe import Recipe, read_toml
from deepcluster.report.text import count
from deepcluster.runs.groups import percent, stability_of
from deepcluster.runs.sample import Sample, sample_of
from deepcluster.runtime.partition import Partition
from deepcluster.seeding import derive
from deepcluster.storage import csv_rows as tables
from deepcluster.storage import model_files as models
from deepcluster.storage import report_files as drawn
from deepcluster.storage import run_folder as files
from deepcluster.storage.csv_rows import round_to
from deepcluster.storage.run_folder import LockedFolder, RunFolder
from deepcluster.storage.run_record import RunRecord
from deepcluster.storage.table import Table

MOST_IN_TREE = 500


@dataclass(frozen=True)
class Rows:
    """The images of a run: those that were used, in row order, and those that were not.

    paths, labels, skipped: Of all ranks' images.
    reduced: Their features (N x d); with several processes, this rank's.
    sample: What the main rank decides by.
    partition: Which rank has which rows.
    residuals: Of this rank's rows, by which an image is an outlier.
    added: Images that came after the fit, the last rows: they have a place, and no say in what the groups are.
    """

    paths: Sequence[str]
    labels: Sequence[str] | None
    skipped: Sequence[tuple[str, str]]
    reduced: Tensor
    sample: Sample
    partition: Partition
    residuals: Tensor
    added: int = 0

    @property
    def fitted(self) -> int:
        """How many images the fit had."""
        return self.partition.total - self.added


def read_run(folder: RunFolder, backbone: nn.Module | None = None) -> tuple[RunRecord, Model, Rows]:
    """run.json, the model (of the user's own ``backbone``), and the images with their reduced features."""
    model = models.load_of_run(folder, backbone=backbone)  # where the run has no result yet, it says so
    record = folder.read_record({"rounds": int})
    table = folder.read_clusters()
    used = table.where("status", "ok")
    dims = model.reduction.projection.shape[1]
    reduced = torch.from_numpy(folder.read_array("features.npy", len(used), dims))
    added = _added(folder, used)
    fitted = len(used) - added
    rows = Rows(
        paths=list(used.column("path")),
        labels=list(used.column("label")) if any(used.words("label")[0]) else None,
        skipped=[(path, "") for path in table.where("status", "skipped").column("path")],
        reduced=reduced,
        sample=sample_of(reduced[:fitted], Partition.single(fitted), record.seed),
        partition=Partition.single(len(used)),
        residuals=torch.from_numpy(folder.read_array(files.RESIDUALS, len(used), 1)).squeeze(1),
        added=added,
    )
    return record, model, rows


def recipe_of(folder: RunFolder) -> Recipe:
    """Return the recipe of a run."""
    options = read_toml(folder.file("recipe.toml"))[1] if folder.has("recipe.toml") else {}
    return Recipe(**options)


def _added(folder: RunFolder, used: Table) -> int:
    added = [row["path"] for row in folder.read_added()]
    with folder.as_disk_errors(files.ADDED):
        if len(added) >= len(used) or added != [row["path"] for row in used[len(used) - len(added) :]]:
            raise ValueError("its images are not the last ones of clusters.csv")
    return len(added)


def write_features(folder: LockedFolder | None, rows: Rows) -> None:
    """Write features.npy and residuals.npy in blocks. A collective; the main rank has the ``folder``."""
    for name, table in (("features.npy", rows.reduced), (files.RESIDUALS, rows.residuals.unsqueeze(1))):
        blocks = rows.partition.blocks(table)
        if folder:
            folder.write_blocks(name, (rows.partition.total, table.shape[1]), blocks)
        deque(blocks, maxlen=0)  # the other ranks only send


def write_groups(
    folder: LockedFolder | None,
    model: Model,
    placement: Placement,
    rows: Rows,
    record: RunRecord,
    baseline: Mapping[str, float],
) -> RunRecord:
    """Everything that depends on the groups: clusters.csv, cluster_summary.csv, metrics.json, tree.json and run.json.

    A collective; the main rank writes.

    Args:
        folder: The run, on the main rank.
        model: The model with these groups.
        placement: Where it puts this rank's ``rows``.
        rows: The images.
        record: run.json so far; with a ``cut`` if the images that it is of keep their clusters.
        baseline: The metrics of the network at the start, where there are any.

    Returns:
        run.json as it was written.
    """
    partition = rows.partition
    summary = tables.summary_rows(model.groups, placement, rows.reduced, partition)
    digest = write_clusters(folder, model, placement, rows)
    metrics = {}
    if rows.labels is not None and any(rows.labels):
        metrics = tables.metrics(rows.labels[partition.local], placement.cluster, partition)
    write_tree(folder, model, rows, placement.centroid)
    if folder is None:
        return record
    folder.write_rows("cluster_summary.csv", files.SUMMARY, (_described(row, model, rows) for row in summary))
    if metrics:
        baseline = baseline or ({**metrics, "clusters": len(summary)} if record.rounds == 0 else {})
        metrics_at_start = {f"baseline_{name}": value for name, value in baseline.items()}
        labelled = sum(1 for label in rows.labels or () if label)
        folder.write_json(
            "metrics.json", {**metrics, **metrics_at_start, "nmi_average": NMI_AVERAGE, "labelled": labelled}
        )
    record = replace(
        record,
        cut=record.cut or digest[:16],  # edits are for this assignment, and for no later one
        rows=digest,
        clusters=len(summary),
        **_judged(folder, rows, record, len(summary)),
    )
    folder.write_record(record)
    return record


def figures_at_start(folder: RunFolder) -> dict[str, float]:
    """Return the figures of the network at the start, of which the groups at the end of the fit are the measure."""
    metrics = folder.read_json("metrics.json") if folder.has("metrics.json") else {}
    return {name.removeprefix("baseline_"): value for name, value in metrics.items() if name.startswith("baseline_")}


def _described(row: Mapping[str, Any], model: Model, rows: Rows) -> dict[str, Any]:
    """Return a row of the summary as it is in the file."""
    row = dict(row)
    medoid = row.pop("medoid")
    group = row["cluster"]
    return {
        **row,
        "name": model.names[group],
        "medoid_path": "" if medoid is None else rows.paths[medoid],
        "junk": int(group in model.junk),
    }


def _judged(folder: RunFolder, rows: Rows, record: RunRecord, n_clusters: int) -> dict[str, Any]:
    """Return the entries of run.json on the stability of the groups."""
    if record.edits is not None and record.verdict is not None:  # it is still true: the edits were names alone
        return {}
    if record.edits is not None:
        return {"stability": None, "verdict": "The groups are as you edited them. Their stability is not measured."}
    stability = stability_of(rows.sample.reduced, record, recipe_of(folder), n_clusters)
    if stability is None:
        verdict = f"{count(rows.fitted, 'image')} are too few to tell how stable {count(n_clusters, 'group')} are."
        return {"stability": None, "verdict": verdict}
    verdict = (
        f"Cut from other samples of the images, the groups agree to {percent(stability)} (100%: the same groups,"
        " 0%: unrelated ones). Stable groups need not be the ones that you look for: see the report."
    )
    return {"stability": round_to(stability, 4), "verdict": verdict}


def write_clusters(folder: LockedFolder | None, model: Model, placement: Placement, rows: Rows) -> str:
    """Write clusters.csv, a block of rows at a time, and return its digest. A collective."""
    integers = [column.int() for column in (placement.cluster, placement.fine_cluster)]
    floats = [column.float().view(torch.int32) for column in (placement.distance, placement.margin, rows.residuals)]
    blocks = rows.partition.blocks(torch.stack([*integers, *floats], 1))
    digest = hashlib.sha256()
    if folder:
        skipped = ({"path": path, "status": "skipped"} for path, _ in rows.skipped)
        table = files.digested(chain(_used_rows(blocks, model, rows), skipped), digest)
        folder.write_rows("clusters.csv", files.CLUSTERS, table)
    deque(blocks, maxlen=0)  # the other ranks only send
    return digest.hexdigest()


def _used_rows(blocks: Iterator[Tensor], model: Model, rows: Rows) -> Iterator[dict[str, Any]]:
    row = 0
    for block in blocks:
        cluster, fine, *floats = block.T.contiguous()
        placed = tables.prediction_rows(model, cluster.long(), *(column.view(torch.float32) for column in floats))
        for number, columns in zip(fine.tolist(), placed, strict=True):
            label = "" if rows.labels is None else rows.labels[row]
            yield {"path": rows.paths[row], "status": "ok", "fine_cluster": number, "label": label, **columns}
            row += 1


def write_tree(folder: LockedFolder | None, model: Model, rows: Rows, nearest: Tensor | None) -> None:
    """The merge tree of up to ``MOST_IN_TREE`` groups; larger trees are unreadable, and take minutes. A collective.

    nearest: The centroid that each of this rank's rows is nearest to, where it is known.
    """
    if model.groups.count > MOST_IN_TREE:
        if folder:
            folder.remove(drawn.TREE)
        return
    tree = merge_tree(rows.reduced, model.groups, nearest, rows.partition)
    if folder:
        drawn.write_tree(folder, tree)


def write_map(folder: LockedFolder, reduced: Tensor, seed: int) -> None:
    """The map of the images on the sheet of tiny pictures, of these ``reduced`` features."""
    folder.write_array(drawn.MAP, layout(reduced, derive(seed, "map")))
