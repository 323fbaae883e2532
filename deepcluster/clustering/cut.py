"""From final features to the groups that the user sees, and the place of any image among them."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import kmeans_plusplus
from sklearn.metrics import silhouette_score
from torch import Tensor

from deepcluster.clustering.assignment import assigner
from deepcluster.clustering.kmeans import kmeans
from deepcluster.records import Clustering
from deepcluster.seeding import derive, generator

STARTS = 10


@dataclass(frozen=True)
class Cut:
    """Groups made of centroids: ``centroids`` (float32, M x d) and the group (int64, M) that each belongs to.

    Group numbers are 0..K-1 by descending size when first made, and fixed from then on.
    """

    centroids: Tensor
    groups: Tensor

    @property
    def count(self) -> int:
        """The number of groups, K."""
        return int(self.groups.max()) + 1


@dataclass(frozen=True)
class Placement:
    """Where N images belong: ``cluster`` and ``fine_cluster`` (int64), ``distance`` (to the nearest centroid) and
    ``margin`` (1 - distance / distance to the nearest other group: 0 on the border, 1 on the centroid)."""

    cluster: Tensor
    fine_cluster: Tensor
    distance: Tensor
    margin: Tensor


def cut(reduced: Tensor, k: int, *, seed: int = 0) -> Cut:
    """Cut N x d features into ``k`` groups: the best of several k-means by inertia."""
    return as_groups(_best_of(STARTS, reduced, k, derive(seed, "cut")))


def _best_of(starts: int, rows: Tensor, k: int, seed: int) -> Clustering:
    """The k-means of least inertia. With few centroids spread starts (k-means++) are worth their time."""

    def once(start: int) -> Clustering:
        own = derive(seed, "start", start)
        spread, _ = kmeans_plusplus(rows.numpy(), k, random_state=own % 2**32)
        return kmeans(rows, k, start=torch.from_numpy(spread), seed=own, precision="fp32", iterations=50)

    return min(map(once, range(starts)), key=lambda clustering: clustering.inertia)


def as_groups(clustering: Clustering) -> Cut:
    """Every cluster that is not empty is a group, numbered by size."""
    order = torch.argsort(clustering.sizes, descending=True, stable=True)
    order = order[clustering.sizes[order] > 0]
    return Cut(clustering.centroids[order], torch.arange(len(order)))


def place(reduced: Tensor, groups: Cut, fine_centroids: Tensor) -> Placement:
    """Put N x d reduced features to their nearest centroids.

    Distances are summed row by row and not by a matrix product, so that an image gets the same numbers alone and among
    others.
    """
    parts = [_place(rows, groups, fine_centroids) for rows in reduced.split(4096)]
    return Placement(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _place(rows: Tensor, groups: Cut, fine_centroids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    distances = torch.cdist(rows, groups.centroids, compute_mode="donot_use_mm_for_euclid_dist")
    by_group = torch.full((len(rows), groups.count), torch.inf)
    by_group.scatter_reduce_(1, groups.groups.expand(len(rows), -1), distances, "amin")
    distance, cluster = by_group.min(1)
    others = by_group.scatter(1, cluster.unsqueeze(1), torch.inf).min(1).values
    margin = 1 - distance / others.clamp(min=torch.finfo(torch.float32).tiny)
    return cluster, assigner(fine_centroids)(rows), distance, margin


def outlier_distances(placement: Placement, count: int) -> Tensor:
    """The distance (float32, K) from which an image is an outlier of its group: Tukey's fence, Q3 + 1.5 (Q3 - Q1)."""
    fences = torch.full((count,), torch.inf)
    for group in range(count):
        inside = placement.distance[placement.cluster == group]
        if len(inside):
            lower, upper = np.quantile(inside.numpy(), [0.25, 0.75])  # torch's refuses more than 16 million numbers
            fences[group] = upper + 1.5 * (upper - lower)
    return fences


def suggest_k(reduced: Tensor, *, seed: int = 0, most: int = 30, sample: int = 2000) -> dict[int, float]:
    """Silhouette (-1 to 1) of k-means into 2..``most`` groups on a sample of the features: a guess at how many."""
    rows = reduced[torch.randperm(len(reduced), generator=generator(seed, "suggest"))[:sample]]
    values: dict[int, float] = {}
    for k in range(2, min(most, len(rows) - 1) + 1):
        labels = _best_of(3, rows, k, derive(seed, "suggest", k)).labels
        if len(labels.unique()) > 1:
            values[k] = float(silhouette_score(rows.numpy(), labels.numpy()))
    return values
