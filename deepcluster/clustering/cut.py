"""From final features to the groups that the user sees, and the place of any image among them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deepcluster.clustering.assignment import assigner
from deepcluster.clustering.graph import STARTS, Graph, graph_rows, neighbour_ties, normalised_cut
from deepcluster.clustering.kmeans import best_of, kmeans
from deepcluster.records import Clustering
from deepcluster.seeding import derive

CENTROIDS = 2500  # at most, and one for ROWS_EACH rows: they are what a new image is compared with
ROWS_EACH = 10


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


def cut(reduced: Tensor, k: int, *, seed: int = 0, graph: Graph | None = None) -> Cut:
    """Cut N x d features (rows of length 1) into ``k`` groups where their neighbour graph is thin.

    Every row is tied to its nearest ones (graph.py); the normalised cut of the ties (Shi and Malik, 2000; Ng, Jordan
    and Weiss, 2002) makes the groups, of any shape. k-means inside each makes the centroids that stand for it, so a new
    image needs nothing but the nearest one. With fewer than ``ROWS_EACH`` distinct rows a group it is the best of
    several k-means.
    """
    own = derive(seed, "cut")
    rows = reduced[graph_rows(reduced, own) if graph is None else graph.rows]
    if k < 2 or len(rows) < ROWS_EACH * k:
        return as_groups(best_of(STARTS, reduced, k, own))
    found = normalised_cut(neighbour_ties(rows) if graph is None else graph.ties, k, own)
    sizes = torch.bincount(found, minlength=k)
    parts = [
        _inside(rows[found == group], min(CENTROIDS / len(rows), 1 / ROWS_EACH), derive(own, "inside", group))
        for group in torch.argsort(sizes, descending=True, stable=True).tolist()
        if sizes[group] > 0
    ]
    groups = torch.repeat_interleave(torch.tensor([len(part) for part in parts]))
    return _numbered(Cut(torch.cat(parts), groups), reduced)


def _inside(rows: Tensor, share: float, seed: int) -> Tensor:
    """The centroids of one group, a ``share`` of its number of rows, none of them without a row."""
    clustering = kmeans(rows, max(1, round(share * len(rows))), seed=seed, precision="fp32")
    return clustering.centroids[clustering.sizes > 0]


def _numbered(groups: Cut, reduced: Tensor) -> Cut:
    """The same groups numbered by the rows that are placed in them."""
    sizes = torch.bincount(groups.groups[assigner(groups.centroids)(reduced)], minlength=groups.count)
    order = torch.argsort(sizes, descending=True, stable=True)
    return Cut(groups.centroids, torch.argsort(order)[groups.groups])


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
