"""Ward's merge tree of the clusters: fewer or more of them, the parts of one, and the typical image of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deepcluster.clustering.kmeans import assigner, means
from deepcluster.groups.cut import Cut

ROWS_AT_ONCE = 1 << 14
MAX_PIECES = 30  # or twice the clusters, if that is more
MAX_CLUSTERS_IN_TWO = 50  # up to so many clusters have at least two pieces
MAX_IN_TREE = 500  # clusters: a larger tree is unreadable, and takes minutes
MAX_PARTS = 12  # more are no longer told apart at a glance
Numbers = npt.NDArray[np.float64]
Merge = tuple[int, int]


def medoids_of(cluster_means: Tensor, rows: Tensor, cluster_of: Tensor) -> Tensor:
    """Return the row (int64, K) nearest to the mean of every cluster, the first of equal ones; -1: it is empty."""
    parts = zip(rows.split(ROWS_AT_ONCE), cluster_of.split(ROWS_AT_ONCE), strict=True)
    distances = torch.cat([(part - cluster_means[numbers]).norm(dim=1) for part, numbers in parts])
    least = torch.full((len(cluster_means),), torch.inf).scatter_reduce(0, cluster_of, distances, "amin")
    nearest = torch.nonzero(distances == least[cluster_of]).flatten()
    none = torch.full((len(cluster_means),), -1)
    return none.scatter_reduce(0, cluster_of[nearest], nearest, "amin", include_self=False)


@dataclass(frozen=True)
class Tree:
    """P pieces of clusters and the order in which they merge; piece i is node i, and the last node holds all images."""

    clusters: tuple[int, ...]  # of the pieces (P); one of the cuts of the tree makes exactly these clusters
    merges: tuple[Merge, ...]  # merges[j] joins two nodes into node P + j
    sizes: tuple[int, ...]  # numbers of images in the nodes (2P - 1)
    medoids: tuple[int, ...]  # rows of the images nearest to the means of the nodes (2P - 1)


def merge_tree(reduced: Tensor, cut: Cut, nearest: Tensor | None = None, added: int = 0) -> Tree:
    """Make Ward's tree (1963) above the clusters of ``cut``: the centroids inside a cluster merge first, then clusters.

    So a cut into fewer clusters only merges the present ones, and a cut into more only splits them. Centroids that no
    row is ``nearest`` to are left out. ``added``: Number of rows added after the fit, the last ones: they decide no
    merge.
    """
    nearest = assigner(cut.centroids)(reduced) if nearest is None else nearest
    counts, all_counts = (
        torch.bincount(centroids, minlength=len(cut.centroids))
        for centroids in (nearest[: len(nearest) - added], nearest)
    )
    pieces, cluster_of, merges = _pieces(cut, counts, all_counts)
    sizes, medoids = _sizes_and_medoids(reduced, pieces[nearest], merges, len(cluster_of))
    return Tree(cluster_of, merges, sizes, medoids)


def _pieces(cut: Cut, counts: Tensor, all_counts: Tensor) -> tuple[Tensor, tuple[int, ...], tuple[Merge, ...]]:
    """Return the pieces of the centroids (-1: none), the clusters of the pieces, and the merges of the pieces."""
    stand_ins = torch.empty_like(cut.cluster_of)
    for cluster in cut.cluster_of.unique():
        members = torch.nonzero(cut.cluster_of == cluster).flatten()
        stand_ins[members] = _stand_ins(cut, counts, members)
    used = stand_ins[all_counts > 0].unique()
    cluster_of = cut.cluster_of[used].numpy()
    centroids = cut.centroids[used].double().numpy()
    weights = counts[used].double().clamp(min=1).numpy()
    parts = [np.flatnonzero(cluster_of == cluster) for cluster in np.unique(cluster_of)]
    inside = [(*merge, which) for which in parts for merge in ward(centroids[which], weights[which])]
    order = [(int(which[a]), int(which[b])) for _, a, b, which in sorted(inside, key=lambda merge: merge[0])]
    middles = np.array([np.average(centroids[which], axis=0, weights=weights[which]) for which in parts])
    totals = np.array([weights[which].sum() for which in parts])
    order += [(int(parts[a][0]), int(parts[b][0])) for _, a, b in ward(middles, totals)]
    count = len(parts)
    pieces = min(len(used), max(MAX_PIECES, 2 * count if count <= MAX_CLUSTERS_IN_TWO else count))
    piece_of, merges = numbered_merges(order, len(used), pieces)
    piece_of_centroid = torch.full((len(counts),), -1)
    piece_of_centroid[used] = torch.from_numpy(piece_of)
    cluster_of_piece = np.zeros(pieces, dtype=np.int64)
    cluster_of_piece[piece_of] = cluster_of
    return piece_of_centroid[stand_ins], tuple(cluster_of_piece.tolist()), merges


def _stand_ins(cut: Cut, counts: Tensor, members: Tensor) -> Tensor:
    """Return the nearest centroid with images of the fit for a cluster's centroids; the first one if all have none."""
    used = members[counts[members] > 0]
    used = used if len(used) else members[:1]
    nearest = torch.cdist(cut.centroids[members].double(), cut.centroids[used].double()).argmin(1)
    return members.where(counts[members] > 0, used[nearest])


def nodes_at(pieces: int, merges: Sequence[Merge], count: int) -> dict[int, list[int]]:
    """Return the nodes that are the ``count`` clusters of a tree, with the pieces inside them, ascending."""
    nodes = {piece: [piece] for piece in range(pieces)}
    for made, (a, b) in enumerate(merges[: pieces - count], pieces):
        nodes[made] = sorted(nodes.pop(a) + nodes.pop(b))
    return nodes


def ward(points: Numbers, weights: Numbers) -> list[tuple[float, int, int]]:
    """Cluster n x d weighted points by Ward's method, with nearest-neighbour chains (Murtagh, 1983; O(n^2 d)).

    Return (cost, a, b) for every merge of the clusters of the points a and b, in ascending order of the cost, which is
    the rise of the sum of squares.
    """
    return [*_ward(points.tobytes(), weights.tobytes())]


@lru_cache(1024)  # the merge tree and the parts of a cluster are of one tree, and a name changes neither
def _ward(points: bytes, weights: bytes) -> tuple[tuple[float, int, int], ...]:
    sizes = np.frombuffer(weights).copy()
    centres = np.frombuffer(points).reshape(len(sizes), -1).copy()
    alive = np.ones(len(sizes), bool)
    chain: list[int] = []
    merges: list[tuple[float, int, int]] = []
    while len(merges) < len(sizes) - 1:
        if not chain:
            chain.append(int(alive.argmax()))
        last = chain[-1]
        costs = sizes * sizes[last] / (sizes + sizes[last]) * np.square(centres - centres[last]).sum(1)
        costs[~alive] = costs[last] = np.inf
        nearest = int(costs.argmin())
        if len(chain) < 2 or costs[nearest] < costs[chain[-2]]:
            chain.append(nearest)
            continue
        other = chain[-2]
        del chain[-2:]
        merges.append((float(costs[other]), other, last))
        centres[other] = (centres[other] * sizes[other] + centres[last] * sizes[last]) / (sizes[other] + sizes[last])
        sizes[other] += sizes[last]
        alive[last] = False
    return tuple(sorted(merges, key=lambda merge: merge[0]))


def numbered_merges(order: Sequence[Merge], count: int, pieces: int) -> tuple[npt.NDArray[np.int64], tuple[Merge, ...]]:
    """Return the pieces of ``count`` centroids, and the merges of the pieces as pairs of nodes."""
    cluster = np.arange(count)
    for a, b in order[: count - pieces]:
        cluster[cluster == cluster[b]] = cluster[a]
    _, piece_of = np.unique(cluster, return_inverse=True)
    node = piece_of.copy()
    merges = []
    for a, b in order[count - pieces :]:
        merges.append((int(node[a]), int(node[b])))
        node[(node == node[a]) | (node == node[b])] = pieces + len(merges) - 1
    return piece_of, tuple(merges)


def _sizes_and_medoids(
    reduced: Tensor, piece: Tensor, merges: Sequence[Merge], pieces: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the size and the medoid of every node."""
    sizes = torch.bincount(piece, minlength=pieces).tolist()
    middles = list(means(reduced, piece, pieces))
    inside = list(torch.eye(pieces, dtype=torch.bool))
    for a, b in merges:
        sizes.append(sizes[a] + sizes[b])
        middles.append((sizes[a] * middles[a] + sizes[b] * middles[b]) / sizes[-1])
        inside.append(inside[a] | inside[b])
    medoids = []
    for node, middle in enumerate(middles):
        images = inside[node][piece].nonzero().flatten()
        distances = torch.cat([(reduced[part] - middle).norm(dim=1) for part in images.split(ROWS_AT_ONCE)])
        medoids.append(int(images[distances.argmin()]))
    return tuple(sizes), tuple(medoids)


@dataclass(frozen=True)
class Parts:
    """P parts of a cluster, the finest that are offered, and the order in which they merge."""

    of_centroid: Tensor  # the parts of the centroids of the cut (int64, M); -1: it belongs to another cluster
    sizes: tuple[int, ...]  # numbers of images of the fit in the parts (P), by which the parts are ordered
    merges: tuple[Merge, ...]  # merges[j] joins two nodes into node P + j; part i is node i (P - 1)
    images: tuple[int, ...]  # numbers of all images in the parts, with the images added after the fit


def parts_of(cut: Cut, counts: Tensor, cluster: int, all_counts: Tensor | None = None) -> Parts:
    """Return the parts of ``cluster`` by Ward's tree of its centroids.

    ``counts``: Images of the fit by nearest centroid (int64, M); a centroid without any goes with the nearest one.
    ``all_counts``: The same with the images added after the fit (None: there are none).
    """
    members = torch.nonzero(cut.cluster_of == cluster).flatten()
    used, stand_in = _stand_ins(cut, counts, members).unique(return_inverse=True)
    weights = counts[used].double().clamp(min=1)
    order = [(a, b) for _, a, b in ward(cut.centroids[used].double().numpy(), weights.numpy())]
    part_of, merges = numbered_merges(order, len(used), min(MAX_PARTS, len(used)))
    of_centroid = torch.full((len(counts),), -1)
    of_centroid[members] = torch.from_numpy(part_of)[stand_in]
    sizes, images = (
        tuple(torch.bincount(of_centroid[members], of_images[members].double()).long().tolist())
        for of_images in (counts, counts if all_counts is None else all_counts)
    )
    return Parts(of_centroid, sizes, merges, images)


def split_cluster(cut: Cut, parts: Parts, count: int, first: int) -> Cut:
    """Split the cluster of ``parts`` into ``count``.

    The largest keeps the number, the others get numbers from ``first`` on. No image comes into a cluster it was not in.
    """
    numbers = cut.cluster_of.clone()
    nodes = nodes_at(len(parts.sizes), parts.merges, count).values()
    by_size = sorted(nodes, key=lambda inside: (-sum(parts.sizes[part] for part in inside), inside[0]))
    for number, inside in enumerate(by_size[1:], first):
        numbers[torch.isin(parts.of_centroid, torch.tensor(inside))] = number
    return Cut(cut.centroids, numbers)
