"""What a round and a result look like in the run folder's tables."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from deepcluster.clustering.agreement import compared, pair_counts, scores
from deepcluster.clustering.kmeans import means
from deepcluster.groups.cut import Cut, Placement
from deepcluster.groups.medoids import distances_to, least_of_each
from deepcluster.model import Model
from deepcluster.records import Round
from deepcluster.runtime.partition import Partition


def history_row(round: Round, truth: Sequence[str] | None) -> dict[str, Any]:
    def blank_if_nan(value: float) -> float | str:
        return "" if math.isnan(value) else round_to(value, 5)

    row: dict[str, Any] = {
        "round": round.index,
        "loss": round_to(round.loss, 5),
        "chance_loss": round_to(round.chance_loss, 5),
        "inertia": round_to(round.clustering.inertia, 3),
        "nmi_previous": blank_if_nan(round.nmi_previous),
        "changed": blank_if_nan(round.changed),
        "cluster_weight": round_to(round.cluster_weight, 5),
        "largest_share": round_to(round.clustering.largest_share, 5),
        "reseeded": round.clustering.reseeded,
        "lr": round_to(round.lr, 8),
        "features_seconds": round_to(round.features_seconds, 3),
        "clustering_seconds": round_to(round.clustering_seconds, 3),
        "training_seconds": round_to(round.training_seconds, 3),
        "images_per_second": round_to(round.images_per_second, 1),
    }
    if truth is not None:
        labels, known = _numbers(truth, sorted(set(truth)))
        row["nmi_labels"] = round_to(compared(labels[known], round.clustering.labels[known])[0], 5)
    return row


def _numbers(truth: Sequence[str], words: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The place of each label among the ``words`` (int64), and whether there is one (an empty label is none)."""
    number = {label: i for i, label in enumerate(words)}
    codes = torch.tensor([number[label] for label in truth], dtype=torch.int64)
    return codes, torch.tensor([bool(label) for label in words], dtype=torch.bool)[codes]


def metrics(truth: Sequence[str], cluster: Tensor, partition: Partition | None = None) -> dict[str, float]:
    """The measures against the true labels, on the main rank; none on the others.

    Args:
        truth: The labels of this rank's rows, empty where one has none.
        cluster: Their groups (int64).
        partition: Which rank has which rows (None: this one has all).
    """
    partition = partition or Partition.single(len(cluster))
    words = sorted({label for part in partition.processes.all_gather_json(sorted(set(truth))) for label in part})
    labels, known = _numbers(truth, words)
    pairs = pair_counts(labels[known], cluster[known], partition.processes)
    if not partition.processes.is_main:
        return {}
    one, other, counts = pairs.T
    found = scores(one.repeat_interleave(counts), other.repeat_interleave(counts))
    return {name: round_to(value, 5) for name, value in found.items()}


def placement_rows(
    model: Model, placement: Placement, residuals: Tensor, *, reject: bool = False
) -> Iterator[dict[str, Any]]:
    """The columns of predictions: cluster (-1 where ``reject`` leaves out outliers and junk), name, distance, margin,
    is_outlier: by the ``residuals`` that the model measured."""
    return prediction_rows(model, placement.cluster, placement.distance, placement.margin, residuals, reject=reject)


def prediction_rows(
    model: Model, cluster: Tensor, distance: Tensor, margin: Tensor, residuals: Tensor, *, reject: bool = False
) -> Iterator[dict[str, Any]]:
    """:func:`placement_rows` of the columns of a placement."""
    outlier = residuals > model.outliers.limit
    for group, away, ahead, out in zip(*(each.tolist() for each in (cluster, distance, margin, outlier)), strict=True):
        rejected = reject and (out or group in model.junk)
        yield {
            "cluster": -1 if rejected else group,
            "name": "" if rejected else model.names[group],
            "distance": f"{away:.6f}",
            "margin": f"{ahead:.6f}",
            "is_outlier": int(out),
        }


def summary_rows(groups: Cut, placement: Placement, reduced: Tensor, partition: Partition) -> list[dict[str, Any]]:
    """A row for each group, with the row of its medoid (None: it has none). A group may have many centroids: what
    stands for all of it is the mean of its features."""
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


def round_to(value: float, digits: int) -> float:
    """``value`` to ``digits`` decimals: what a person reads in a file."""
    return float(f"{value:.{digits}f}")
