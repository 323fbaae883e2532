"""From final features to the clusters that the user sees, and the place of any image among them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from deepcluster.clustering import blocks
from deepcluster.clustering.agreement import ari
from deepcluster.clustering.kmeans import assigner, best_of, kmeans
from deepcluster.groups.graph import CURVES, Layouts, graph_rows, modularity
from deepcluster.records import Clustering
from deepcluster.seeding import derive

if TYPE_CHECKING:
    from scipy.sparse import csr_array

KMEANS_STARTS = 10  # of k-means, in every layout
LAYOUTS = 4  # ten are no better on 18 sets (benchmarks/log); of more than 3,750 rows there are fewer
MIN_REPEATED = 0.1  # share of all starts with nearly the same clusters
MIN_AGREEMENT = 0.8  # adjusted Rand index of nearly the same clusters
LAYOUT_ROWS = 15_000  # of all layouts together: with more rows there are fewer, for time, but one by each curve
CENTROIDS = 2500  # at most, and one for ROWS_EACH rows; a new image is compared with all of them
ROWS_EACH = 10
ROWS_AT_ONCE = 1024  # rows placed at a time
SAME = 1e-12  # a square of a distance below this is the rounding of a float64 product: the row is on the centroid
PINNED_AT_ONCE = 256  # pinned images that become centroids at a time: near images need no centroid of their own


@dataclass(frozen=True)
class Cut:
    """Clusters made of centroids, numbered 0..K-1 by descending size when first made, and fixed from then on."""

    centroids: Tensor  #: float32, M x d
    cluster_of: Tensor  #: int64, M, the clusters of the centroids

    @property
    def count(self) -> int:
        """One more than the largest number of a cluster; merged clusters leave gaps in the numbers."""
        return int(self.cluster_of.max()) + 1


@dataclass(frozen=True)
class Placement:
    """Places of N images among the clusters."""

    cluster: Tensor  #: int64, the cluster
    fine_cluster: Tensor  #: int64, the pseudo-label
    distance: Tensor  #: to the nearest centroid
    margin: Tensor  #: 1 - distance / distance to the nearest other cluster, so 0 on the border and 1 on the centroid
    centroid: Tensor  #: int64, the nearest centroid of the clusters
    other: Tensor  #: distance to the nearest other cluster, infinite if there is none
    rival: Tensor  #: int64, its nearest centroid


def cut_features(reduced: Tensor, k: int, *, seed: int = 0, layouts: Layouts | None = None) -> Cut:
    """Cut N x d features (rows of length 1) into ``k`` clusters, by k-means of a layout of their neighbour graph.

    The layout (graph.py) makes clusters of any shape compact. It differs with its seed, so the graph chooses among
    several: the clusters that hold most of its ties. k-means inside a cluster, in the features, makes the centroids
    that stand for it, so a new image needs nothing but the nearest one. With fewer than ``ROWS_EACH`` distinct rows
    per cluster, k-means of the features makes the clusters.

    Args:
        seed: For the sample, the layouts and the k-means.
        layouts: May know the graph and the layouts of the rows.
    """
    layouts = Layouts() if layouts is None else layouts
    seed = derive(seed, "cut")
    rows = reduced[graph_rows(reduced, seed)]
    if k < 2 or len(rows) < ROWS_EACH * k:
        return as_clusters(best_of(KMEANS_STARTS, reduced, k, seed))
    labels = _labels(positions_of(rows, LAYOUTS, seed, layouts), k, layouts.ties(rows), seed)
    sizes = torch.bincount(labels, minlength=k)
    parts = [
        _inside(rows, labels == cluster, derive(seed, "inside", cluster))
        for cluster in torch.argsort(sizes, descending=True, stable=True).tolist()
        if sizes[cluster] > 0
    ]
    cut = Cut(torch.cat(parts), torch.repeat_interleave(torch.tensor([len(part) for part in parts])))
    placed = torch.bincount(nearest_clusters(reduced, cut), minlength=cut.count)  # clusters are numbered by it
    return Cut(cut.centroids, torch.argsort(torch.argsort(placed, descending=True, stable=True))[cut.cluster_of])


def positions_of(rows: Tensor, most: int, seed: int, layouts: Layouts) -> Tensor:
    """Return up to ``most`` layouts of the distinct rows of a cut; the more rows, the fewer."""
    count = min(most, max(len(CURVES), LAYOUT_ROWS // len(rows)))
    return layouts(rows, [derive(seed, "embedding", i) for i in range(count)])


def _labels(layouts: Tensor, k: int, ties: "csr_array", seed: int) -> Tensor:
    """Return the clusters (int64) of rows by k-means of their layouts.

    All starts of all layouts compete. The largest modularity wins, unless few other starts give nearly the same
    clusters: another seed would not repeat such a lucky start.
    """
    starts = product(enumerate(layouts), range(KMEANS_STARTS))
    labelings = [best_of(1, positions, k, derive(seed, "starts", i, start)).labels for (i, positions), start in starts]
    best_first = sorted(labelings, key=lambda labels: -modularity(ties, labels.numpy()))

    def is_repeated(labels: Tensor) -> bool:
        return sum(ari(labels, other) >= MIN_AGREEMENT for other in labelings) >= MIN_REPEATED * len(labelings)

    return next(filter(is_repeated, best_first), best_first[0])


def _inside(rows: Tensor, members: Tensor, seed: int) -> Tensor:
    """Return the centroids of the cluster of some rows (a mask), none of them without a row."""
    share = min(CENTROIDS / len(rows), 1 / ROWS_EACH)
    clustering = kmeans(rows[members], max(1, round(share * int(members.sum()))), seed=seed)
    return clustering.centroids[clustering.sizes > 0]


def recentred(cut: Cut, rows: Tensor, before: Tensor, after: Tensor) -> Cut:
    """Give the clusters whose rows change new centroids, as :func:`cut_features` does; a cluster without rows is gone.

    ``before``, ``after``: The clusters of N distinct ``rows`` (int64).
    """
    clusters = [*{*cut.cluster_of.tolist(), *after.tolist()}]
    changed = {*before[before != after].tolist(), *after[before != after].tolist()}
    parts = [
        _inside(rows, after == cluster, derive(0, "inside", cluster))
        if cluster in changed and (after == cluster).any()
        else cut.centroids[(cut.cluster_of == cluster) & (cluster not in changed)]
        for cluster in clusters
    ]
    return Cut(torch.cat(parts), torch.tensor(clusters).repeat_interleave(torch.tensor([len(part) for part in parts])))


def as_clusters(clustering: Clustering) -> Cut:
    """Return the clusters that are not empty, numbered by size."""
    order = torch.argsort(clustering.sizes, descending=True, stable=True)
    order = order[clustering.sizes[order] > 0]
    return Cut(clustering.centroids[order], torch.arange(len(order)))


def nearest_clusters(reduced: Tensor, cut: Cut) -> Tensor:
    """Return the cluster (int64, N) of the centroid nearest to each of N x d features, for statistics only.

    One matrix product makes it fast; the last bits may differ from :func:`placement_of`.
    """
    return cut.cluster_of[assigner(cut.centroids)(reduced)]


def placement_of(
    reduced: Tensor, cut: Cut, fine_centroids: Tensor, before: tuple[Cut, Placement] | None = None
) -> Placement:
    """Assign N x d reduced features to their nearest centroids. A row has the same bits alone and among others.

    ``before``: Another cut and the places of the same rows in it: most places follow from these, bit for bit.
    """
    if before is not None:
        return _placed_again(reduced, cut, *before)
    order = torch.argsort(cut.cluster_of, stable=True)
    cluster_of = cut.cluster_of[order]
    distances_of, fine = distances_to(cut.centroids[order]), assigner(fine_centroids)
    parts = []
    for rows in reduced.split(ROWS_AT_ONCE):
        distances = distances_of(rows).numpy()
        first = distances.argmin(1)
        near = distances[range(len(rows)), first]
        distances[cluster_of.numpy() == cluster_of[first].numpy()[:, None]] = np.inf
        second = distances.argmin(1)
        far = distances[range(len(rows)), second]
        parts.append((*map(torch.from_numpy, (near, first, far, second)), fine(rows)))
    distance, nearest, other, rival, fine_cluster = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return _placement(cut, fine_cluster, distance, order[nearest], other, order[rival])


def _placement(
    cut: Cut, fine_cluster: Tensor, distance: Tensor, centroid: Tensor, other: Tensor, rival: Tensor
) -> Placement:
    margin = 1 - distance / other.clamp(min=torch.finfo(torch.float32).tiny)
    return Placement(cut.cluster_of[centroid], fine_cluster, distance, margin, centroid, other, rival)


def _placed_again(reduced: Tensor, cut: Cut, former: Cut, before: Placement) -> Placement:
    """Do the work of :func:`placement_of` by the places in a ``former`` cut.

    A row is compared with the new centroids alone, unless its nearest centroid, or that of another cluster, is gone.
    """
    number = {key: i for i, key in reversed([*enumerate(_keys(cut))])}
    now = torch.tensor([number.get(key, -1) for key in _keys(former)])
    new = torch.from_numpy(np.setdiff1d(np.arange(len(cut.centroids)), now.numpy()))
    centroid, rival = now[before.centroid], now[before.rival].masked_fill(before.other.isinf(), 0)
    distance, other = before.distance.clone(), before.other.clone()
    gone = (centroid < 0) | (rival < 0)
    place = torch.empty_like(cut.cluster_of)  # of equally near centroids the first one counts, in the order of clusters
    place[torch.argsort(cut.cluster_of, stable=True)] = torch.arange(len(place))

    def first(distances: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
        least = distances.amin(1, keepdim=True)
        at = place[among].masked_fill(distances > least, len(place)).argmin(1, keepdim=True)
        return least.squeeze(1), among.gather(1, at).squeeze(1)

    distances_of = distances_to(cut.centroids[new])
    for rows in torch.nonzero(~gone).flatten().split(ROWS_AT_ONCE) if len(new) else ():
        known = torch.stack([distance[rows], other[rows]], 1)
        distances = torch.cat([known, distances_of(reduced[rows])], 1)
        among = torch.cat([torch.stack([centroid[rows], rival[rows]], 1), new.expand(len(rows), -1)], 1)
        distance[rows], centroid[rows] = first(distances, among)
        is_own = cut.cluster_of[among] == cut.cluster_of[centroid[rows]].unsqueeze(1)
        other[rows], rival[rows] = first(distances.masked_fill(is_own, torch.inf), among)
    if gone.any():
        again = placement_of(reduced[gone], cut, cut.centroids[:1])
        distance[gone], centroid[gone], other[gone], rival[gone] = (
            again.distance, again.centroid, again.other, again.rival,
        )  # fmt: skip
    return _placement(cut, before.fine_cluster, distance, centroid, other, rival)


def _keys(cut: Cut) -> Iterator[tuple[bytes, int]]:
    rows = (cut.centroids + 0.0).numpy()
    return zip((row.tobytes() for row in rows), cut.cluster_of.tolist(), strict=True)


def distances_to(centroids: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the map from rows (N x d, of length 1) to their distances to M centroids (float32, N x M).

    By a product in float64: in float32 an image would be 3e-4 away from a centroid that it lies on, and not 0.
    """
    weight = centroids.double()
    products = blocks.product(-2 * weight, weight.square().sum(1))

    def distances(rows: Tensor) -> Tensor:
        rows = rows.double()
        squares = products(rows) + rows.square().sum(1, keepdim=True)
        return squares.masked_fill_(squares < SAME, 0).float().sqrt_()

    return distances


def pinned(reduced: Tensor, cut: Cut, targets: Tensor, before: Placement) -> Cut:
    """Add rows as centroids until each row falls into its cluster of ``targets`` (int64, N), maybe a new one.

    The centroid of a moved image may attract images that stay: they then become centroids of their own cluster. Only an
    image that equals an image of another cluster may end up elsewhere: no centroid can tell them apart.

    ``before``: The places of the rows in the cut.
    """
    numbers = cut.cluster_of.clone()
    # A centroid that is an image itself, after an earlier move, goes with the image.
    moved = (before.distance == 0) & (before.cluster != targets)
    numbers[before.centroid[moved]] = targets[moved]
    inside, outside = before.distance.clone(), before.other.clone()
    renamed = numbers != cut.cluster_of
    looked_at = torch.nonzero((before.cluster != targets) | renamed[before.centroid] | renamed[before.rival]).flatten()
    inside[looked_at] = outside[looked_at] = torch.inf
    centroids, clusters_of = [cut.centroids], [numbers]
    added = torch.zeros(len(reduced), dtype=torch.bool)
    while True:
        distances_of = distances_to(centroids[-1])
        for rows in looked_at.split(ROWS_AT_ONCE):
            distances = distances_of(reduced[rows])
            same = clusters_of[-1] == targets[rows].unsqueeze(1)
            inside[rows] = inside[rows].minimum(distances.masked_fill(~same, torch.inf).amin(1))
            outside[rows] = outside[rows].minimum(distances.masked_fill(same, torch.inf).amin(1))
        misplaced = torch.nonzero((inside >= outside) & (outside > 0) & ~added).flatten()
        if not len(misplaced):
            return Cut(torch.cat(centroids), torch.cat(clusters_of))
        chosen = misplaced[:: max(1, len(misplaced) // PINNED_AT_ONCE)]
        added[chosen] = True
        centroids.append(reduced[chosen])
        clusters_of.append(targets[chosen])
        looked_at = torch.arange(len(reduced))


def move_rows(cut: Cut, moves: Mapping[int, int], reduced: Tensor, before: Placement) -> Cut:
    """Move rows to their clusters (``moves``), and return the cut; a cluster without rows is gone.

    ``before``: The places of all rows in the cut before the moves.
    """
    rows, goals = torch.tensor([*moves.items()], dtype=torch.int64).reshape(-1, 2).T
    targets = before.cluster.scatter(0, rows, goals)
    stays = torch.isin(cut.cluster_of, targets)
    left = Cut(cut.centroids[stays], cut.cluster_of[stays])
    if not stays.any():  # start from one row of every new cluster
        rows = torch.from_numpy(np.unique(targets.numpy(), return_index=True)[1])
        left = Cut(reduced[rows], targets[rows])
    if not stays.all():
        before = placement_of(reduced, left, left.centroids, (cut, before))
    return pinned(reduced, left, targets, before)
