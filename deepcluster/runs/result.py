"""The result of a run: all ranks compute it together, then the main rank alone writes its files."""

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from deepcluster import algorithm
from deepcluster.algorithm import conclude
from deepcluster.clustering.agreement import NMI_AVERAGE, pair_counts, scores
from deepcluster.clustering.kmeans import means
from deepcluster.errors import DeepClusterWarning
from deepcluster.groups.cut import Cut, Placement
from deepcluster.groups.tree import Tree, distances_to, least_of_each
from deepcluster.images import Source
from deepcluster.model import Model
from deepcluster.nets.network import Network
from deepcluster.recipe import Recipe
from deepcluster.records import FINAL
from deepcluster.report.text import Row, agreement, count
from deepcluster.runs.build import kmeans_of_result, reduction_of
from deepcluster.runs.groups import choose_number, groups_of, place_rows, stability_of
from deepcluster.runs.page import Shown, Tables, shown_of, tree_of, write_page
from deepcluster.runs.plan import ImagesRead, Job
from deepcluster.runs.predict import placement_rows
from deepcluster.runs.rows import Rows, sample_of
from deepcluster.runtime.console import Display, Silent
from deepcluster.runtime.partition import BLOCK, Partition
from deepcluster.storage import report_files
from deepcluster.storage import run_folder as files
from deepcluster.storage.run_folder import LockedFolder, RunFolder
from deepcluster.storage.run_record import RunRecord
from deepcluster.storage.table import Table

COLLAPSED = 0.5  # share of the images in one fine cluster
MIN_COLLAPSED = 30  # images: of fewer, one cluster may have most of them by chance


@dataclass(frozen=True)
class Result:
    """All that the files of a run say of its groups: on the main rank of all images, on the others nothing.

    Attributes:
        model: The model with these groups.
        rows: The images.
        placement: The place of each image (integers are int32).
        residuals: Of each image.
        summary: Rows of cluster_summary.csv.
        metrics: Measures against the true labels; empty without labels.
        tree: The merge tree of the groups; None if there are too many.
        shown: The images of the page.
    """

    model: Model
    rows: Rows
    placement: Placement
    residuals: Tensor
    summary: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, float]
    tree: Tree | None
    shown: Shown

    @property
    def baseline(self) -> dict[str, float]:
        """The metrics as a baseline of later results."""
        return {**self.metrics, "clusters": len(self.summary)} if self.metrics else {}


# ---- computed by all ranks ------------------------------------------------------------------------------------------


def conclude_run(
    job: Job, network: Network, images: ImagesRead, record: RunRecord, features: Tensor
) -> tuple[Result, RunRecord]:
    """Compute the result of the network as it is now. A collective.

    Args:
        job: The fit.
        network: The network.
        images: Its images and recipe.
        record: run.json so far, with the number of rounds and the kind of result.
        features: This rank's, N x D: those of one pass over the images.

    Returns:
        The result, and run.json with the candidates for the number of groups.
    """
    recipe, store, is_final = images.recipe, images.store, record.result == FINAL
    final = conclude(
        network,
        store.images,
        clusters=recipe.pseudo_labels,
        seed=job.request.seed,
        size=recipe.image_size,
        batch_size=recipe.batch_size,
        reduction=reduction_of(recipe, network.feature_dim),
        clustering=kmeans_of_result(recipe),
        processes=job.processes,
        features=features,
    )
    if is_final and record.rounds and (text := collapse(final)):
        warnings.warn(text, DeepClusterWarning, stacklevel=2)
    rows = Rows(
        paths=[job.source.paths[i] for i in store.kept],
        labels=job.truth(store.kept),
        skipped=store.skipped,
        reduced=final.reduced,
        sample=sample_of(final.reduced, store.partition, job.request.seed),
        partition=store.partition,
        residuals=final.residuals,
    )
    return group_images(network, final, rows, recipe, record, job.display if is_final else Silent())


def group_images(
    network: Network, final: algorithm.Result, rows: Rows, recipe: Recipe, record: RunRecord, display: Display
) -> tuple[Result, RunRecord]:
    """Cut the final features into groups. A collective. Returns are those of :func:`conclude_run`."""
    n_clusters = 0
    if rows.is_main:
        n_clusters, record = choose_number(record.n_clusters, rows.sample.reduced, record, recipe, display)

    def cut() -> dict[str, Tensor]:
        groups = groups_of(rows.sample.reduced, final.clustering, n_clusters, record.seed, recipe)
        if groups.count < n_clusters and record.result == FINAL:
            warnings.warn(
                f"only {groups.count} of {n_clusters} clusters are not empty: the features have no more distinct values"
                " (are many equal?)",
                DeepClusterWarning,
                stacklevel=2,
            )
        return {"centroids": groups.centroids, "groups": groups.groups}

    groups = Cut(**rows.partition.processes.broadcast_tensors(cut))
    groups, placement = place_rows(groups, rows.reduced, final.clustering.centroids, rows.sample, rows.partition)
    model = Model(
        network=network,
        reduction=final.reduction,
        fine_centroids=final.clustering.centroids,
        groups=groups,
        outliers=final.outliers,
        names=("",) * groups.count,
        image_size=recipe.image_size,
        store_size=recipe.store_size,
        batch_size=recipe.batch_size,
    )
    return describe(model, rows, placement), record


def describe(model: Model, rows: Rows, placement: Placement) -> Result:
    """Describe the groups of a model. A collective. ``placement``: The place of each of this rank's ``rows``."""
    partition, truth = rows.partition, rows.labels
    summary = summary_rows(model.groups, placement, rows.reduced, partition)
    measured = metrics(truth[partition.local], placement.cluster, partition) if truth and any(truth) else {}
    tree = tree_of(rows, model.groups, placement.centroid)
    shown = shown_of(rows, model.groups, placement.centroid)
    numbers = [column.int() for column in (placement.cluster, placement.fine_cluster, placement.centroid)]
    lengths = [column.float().view(torch.int32) for column in (placement.distance, placement.margin, rows.residuals)]
    cluster, fine, centroid, *lengths = partition.gather(torch.stack([*numbers, *lengths], 1)).T.contiguous()
    distance, margin, residuals = (column.view(torch.float32) for column in lengths)
    placement = Placement(cluster, fine, distance, margin, centroid)
    return Result(model, rows, placement, residuals, summary, measured, tree, shown)


def collapse(result: algorithm.Result) -> str:
    """Return a warning if most images are in one fine cluster or the features differ in one direction only, else ""."""
    share, rank, sizes = result.clustering.largest_share, result.reduced.shape[1], result.clustering.sizes
    is_crowded = share > COLLAPSED and sizes.sum() >= MIN_COLLAPSED
    if len(sizes) <= 2 or not (is_crowded or rank == 1):
        return ""
    what = f"{share:.0%} of the images are in one fine cluster" if is_crowded else "all features are alike"
    return f"training has collapsed ({what}): lower --lr, or give --rounds 0 for the network before training"


def metrics(truth: Sequence[str], cluster: Tensor, partition: Partition) -> dict[str, float]:
    """Measure the groups against the true labels: on the main rank; none on the others. A collective.

    Args:
        truth: The labels of this rank's rows; an empty one is none.
        cluster: Their groups (int64).
        partition: Which rank has which rows.
    """
    words = sorted({label for part in partition.processes.all_gather_json(sorted(set(truth))) for label in part})
    labels, known = label_numbers(truth, words)
    pairs = pair_counts(labels[known], cluster[known], partition.processes)
    if not partition.processes.is_main:
        return {}
    one, other, counts = pairs.T
    measures = scores(one.repeat_interleave(counts), other.repeat_interleave(counts))
    return {name: round(float(value), 5) for name, value in measures.items()}


def label_numbers(truth: Sequence[str], words: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return the place of each label among the ``words`` (int64), and whether it is one (an empty label is none)."""
    number = {label: i for i, label in enumerate(words)}
    codes = torch.tensor([number[label] for label in truth], dtype=torch.int64)
    return codes, torch.tensor([bool(label) for label in words], dtype=torch.bool)[codes]


def summary_rows(groups: Cut, placement: Placement, reduced: Tensor, partition: Partition) -> list[dict[str, Any]]:
    """Return a row for each group, with the row number of its medoid (None: it has none). A collective.

    A group may have many centroids: the mean of its features stands for all of it.
    """
    cluster, all_reduce = placement.cluster, partition.processes.all_reduce
    sizes = all_reduce(torch.bincount(cluster, minlength=groups.count)).tolist()
    zeros = torch.zeros(groups.count, dtype=torch.float64)  # bincount with weights returns integers for no rows at all
    distances = all_reduce(zeros.index_add(0, cluster, placement.distance.double())).tolist()
    middles = means(reduced, cluster, groups.count, partition)
    medoids = least_of_each(distances_to(middles, reduced, cluster), cluster, groups.count, partition).tolist()
    between = torch.cdist(middles, middles).fill_diagonal_(torch.inf)
    present = groups.groups.unique().tolist()
    between[:, [group for group in range(groups.count) if group not in present]] = torch.inf
    return [
        {
            "cluster": group,
            "size": sizes[group],
            "share": f"{sizes[group] / partition.total:.6f}",
            "mean_distance": f"{distances[group] / sizes[group]:.6f}" if sizes[group] else "",
            "nearest_cluster": between[group].argmin().item() if len(present) > 1 else "",
            "medoid": medoids[group] if sizes[group] else None,
        }
        for group in present
    ]


# ---- written by the main rank ---------------------------------------------------------------------------------------


def write_result(
    folder: LockedFolder,
    result: Result,
    record: RunRecord,
    recipe: Recipe,
    *,
    baseline: Mapping[str, float],
    source: Source | None,
    features: Iterable[Tensor] | None = None,
    report: bool = True,
) -> RunRecord:
    """Write the files that depend on the groups, then run.json. The model is written by the caller if it is new.

    Args:
        folder: The run.
        result: The result.
        record: run.json so far; with a ``cut`` if the images that it is of keep their clusters.
        recipe: The recipe of the run.
        baseline: The metrics of the first result; empty if they are not known.
        source: The images, for the page; None if they are not at hand.
        features: Blocks of the features of all rows, if they are new.
        report: Also write report.html.

    Returns:
        run.json as it was written.
    """
    rows = result.rows
    if features is not None:
        folder.write_blocks("features.npy", (rows.partition.total, rows.reduced.shape[1]), features)
        folder.write_blocks(files.RESIDUALS, (rows.partition.total, 1), [result.residuals.unsqueeze(1)])
    clusters, digest = write_clusters(folder, result, keep=report)
    summary = [_summary_row(row, result) for row in result.summary]
    folder.write_rows("cluster_summary.csv", files.SUMMARY, summary)
    measures: dict[str, Any] = {}
    if result.metrics:
        baseline = baseline or (result.baseline if record.rounds == 0 else {})
        labelled = sum(1 for label in rows.labels or () if label)
        at_start = {f"baseline_{name}": int(value) if name == "clusters" else value for name, value in baseline.items()}
        measures = {**result.metrics, **at_start, "nmi_average": NMI_AVERAGE, "labelled": labelled}
        folder.write_json("metrics.json", measures)
    if result.tree:
        report_files.write_tree(folder, result.tree)
    else:
        folder.remove(report_files.TREE)
    record = replace(
        record,
        cut=record.cut or digest[:16],  # edits are for this assignment, and for no later one
        rows=digest,
        clusters=len(summary),
        **_stability(rows, record, recipe, len(summary)),
    )
    if clusters is not None:
        used = clusters.where("status", "ok")
        write_page(folder, source, Tables(record, used, summary, measures or None, result.tree), result.shown)
    folder.write_record(record)
    return record


def baseline_of(folder: RunFolder) -> dict[str, float]:
    """Read the metrics of the first result of a run, if it has any."""
    measures = folder.read_json("metrics.json") if folder.has("metrics.json") else {}
    return {name.removeprefix("baseline_"): value for name, value in measures.items() if name.startswith("baseline_")}


def write_clusters(folder: LockedFolder, result: Result, *, keep: bool = True) -> tuple[Table | None, str]:
    """Write clusters.csv, and return its rows if they are to be kept, and its digest."""
    skipped = ({"path": path, "status": "skipped"} for path, _ in result.rows.skipped)
    lines: Iterable[Row] = (
        {column: str(row.get(column, "")) for column in files.CLUSTERS} for row in chain(_used_rows(result), skipped)
    )
    table = Table.of(lines) if keep else None
    digest = hashlib.sha256()
    folder.write_rows("clusters.csv", files.CLUSTERS, files.digested(lines if table is None else table, digest))
    return table, digest.hexdigest()


def _used_rows(result: Result) -> Iterator[dict[str, Any]]:
    """Yield the rows of the usable images; numbers become objects a block at a time."""
    place, rows = result.placement, result.rows
    columns = (place.cluster, place.fine_cluster, place.distance, place.margin, place.centroid, result.residuals)
    row = 0
    for *block, residuals in zip(*(column.split(BLOCK) for column in columns), strict=True):
        part = Placement(*block)
        for fine, cells in zip(part.fine_cluster.tolist(), placement_rows(result.model, part, residuals), strict=True):
            label = "" if rows.labels is None else rows.labels[row]
            yield {"path": rows.paths[row], "status": "ok", "fine_cluster": fine, "label": label, **cells}
            row += 1


def _summary_row(row: Mapping[str, Any], result: Result) -> dict[str, str]:
    """Return a row of cluster_summary.csv as text."""
    medoid, group = row["medoid"], row["cluster"]
    cells = {
        **row,
        "name": result.model.names[group],
        "medoid_path": "" if medoid is None else result.rows.paths[medoid],
        "junk": int(group in result.model.junk),
    }
    return {column: str(cells[column]) for column in files.SUMMARY}


def _stability(rows: Rows, record: RunRecord, recipe: Recipe, n_clusters: int) -> dict[str, Any]:
    """Return the entries of run.json on the stability of the groups."""
    if record.edits is not None and record.verdict is not None:  # it is still true: the edits were names alone
        return {}
    if record.edits is not None:
        return {"stability": None, "verdict": "The groups are as you edited them. Their stability is not measured."}
    stability = stability_of(rows.sample.reduced, record, recipe, n_clusters)
    if stability is None:
        verdict = f"{count(rows.fitted, 'image')} are too few to tell how stable {count(n_clusters, 'group')} are."
        return {"stability": None, "verdict": verdict}
    verdict = (
        f"Cut from other samples of the images, the groups agree to {agreement(stability)} (100%: the same groups,"
        " 0%: unrelated ones). Stable groups need not be the ones that you look for: see the report."
    )
    return {"stability": round(float(stability), 4), "verdict": verdict}


def summary_line(result: Result, record: RunRecord) -> str:
    """Return a sentence on the groups and the rounds."""
    shares = [float(row["share"]) for row in result.summary]
    return (
        f"{count(len(shares), 'cluster')} (largest {max(shares):.0%}, smallest {min(shares):.1%}) after"
        f" {count(record.rounds or 0, 'round')}: {record.stopped_because}"
    )
