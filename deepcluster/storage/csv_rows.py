"""What a round and a result look like in the run folder's tables."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from deepcluster.clustering.agreement import nmi, scores
from deepcluster.clustering.kmeans import means
from deepcluster.groups.cut import Placement
from deepcluster.model import Model
from deepcluster.records import Round


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
        known = [i for i, label in enumerate(truth) if label]
        row["nmi_labels"] = round_to(nmi([truth[i] for i in known], round.clustering.labels[known]), 5)
    return row


def metrics(truth: Sequence[str], placement: Placement) -> dict[str, float]:
    known = [i for i, label in enumerate(truth) if label]
    found = scores([truth[i] for i in known], placement.cluster[known])
    return {name: round_to(value, 5) for name, value in found.items()}


def placement_rows(
    model: Model, placement: Placement, lengths: Tensor | None = None, *, reject: bool = False
) -> Iterator[dict[str, Any]]:
    """The columns of predictions: cluster (-1 where ``reject`` leaves out outliers and junk), name, distance, margin,
    is_outlier: too far from its group, or by the ``lengths`` of its features from all images."""
    outlier = placement.distance > model.outlier_distance[placement.cluster]
    if lengths is not None:
        outlier |= lengths > model.outlier_length
    columns = (placement.cluster, placement.distance, placement.margin, outlier)
    for cluster, distance, margin, out in zip(*(column.tolist() for column in columns), strict=True):
        rejected = reject and (out or cluster in model.junk)
        yield {
            "cluster": -1 if rejected else cluster,
            "name": "" if rejected else model.names[cluster],
            "distance": f"{distance:.6f}",
            "margin": f"{margin:.6f}",
            "is_outlier": int(out),
        }


def summary_rows(
    model: Model, placement: Placement, reduced: Tensor, paths: Sequence[str], grades: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """A row for each group. A group may have many centroids: what stands for all of it is the mean of its features.

    ``grades``: the confidence in each, in a word.
    """
    middles = means(reduced, placement.cluster, model.groups.count)
    between = torch.cdist(middles, middles).fill_diagonal_(torch.inf)
    present = model.groups.groups.unique().tolist()
    between[:, [group for group in range(model.groups.count) if group not in present]] = torch.inf
    to_middle = (reduced - middles[placement.cluster]).norm(dim=1)
    summary = []
    for group in present:
        members = torch.nonzero(placement.cluster == group).flatten()
        distances = placement.distance[members]
        medoid = members[to_middle[members].argmin()].item() if len(members) else None
        summary.append(
            {
                "cluster": group,
                "name": model.names[group],
                "size": len(members),
                "share": f"{len(members) / len(paths):.6f}",
                "mean_distance": f"{distances.mean().item():.6f}" if len(members) else "",
                "nearest_cluster": between[group].argmin().item() if len(present) > 1 else "",
                "medoid_path": paths[int(medoid)] if medoid is not None else "",
                "junk": int(group in model.junk),
                "confidence": grades[group] if grades else "",
            }
        )
    return summary


def round_to(value: float, digits: int) -> float:
    """``value`` to ``digits`` decimals: what a person reads in a file."""
    return float(f"{value:.{digits}f}")
