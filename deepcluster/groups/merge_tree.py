"""The merge tree of the groups: which would merge if there were fewer, and which would split if there were more."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deepcluster.clustering.assignment import assigner
from deepcluster.clustering.kmeans import means
from deepcluster.groups.cut import Cut

MOST = 30  # pieces, or twice the groups where that is more
TWICE = 50  # groups up to which there are twice as many pieces
Numbers = npt.NDArray[np.float64]
Merge = tuple[int, int]


@dataclass(frozen=True)
class Tree:
    """P pieces of groups, and how they merge.

    Piece i is node i; ``merges[j]`` joins two nodes into node P + j, so the last node is everything. ``groups`` (P):
    the group that a piece is of; a cut of the tree makes exactly those groups. ``sizes`` and ``medoids`` (2P - 1): the
    images of each node, and the row of the one that is nearest to their mean.
    """

    groups: tuple[int, ...]
    merges: tuple[Merge, ...]
    sizes: tuple[int, ...]
    medoids: tuple[int, ...]


def merge_tree(reduced: Tensor, groups: Cut) -> tuple[Tree, Tensor]:
    """The tree of N x d features in ``groups``, and the piece (int64, N) of every row.

    It merges, at each step, what costs the least (Ward, 1963): first the centroids of each group until there is one
    piece for each, then the groups. So fewer groups than there are only merge, and more only split. Centroids that no
    row is nearest to are left out.
    """
    nearest = assigner(groups.centroids)(reduced)
    counts = torch.bincount(nearest, minlength=len(groups.centroids))
    used = counts.nonzero().flatten()
    centroids, weights = groups.centroids[used].double().numpy(), counts[used].double().numpy()
    own = groups.groups[used].numpy()
    order = _order(centroids, weights, own)
    count = len(np.unique(own))
    pieces = min(len(used), max(MOST, 2 * count if count <= TWICE else count))
    piece_of, merges = _numbered(order, len(used), pieces)
    where = torch.full((len(counts),), -1)
    where[used] = torch.from_numpy(piece_of)
    piece = where[nearest]
    groups_of = torch.zeros(pieces, dtype=torch.int64).scatter(0, torch.from_numpy(piece_of), torch.from_numpy(own))
    sizes, medoids = _described(reduced, piece, merges, pieces)
    return Tree(tuple(groups_of.tolist()), merges, sizes, medoids), piece


def cuts(tree: Tree) -> Iterator[tuple[int, ...]]:
    """For P, P - 1, ..., 1 groups: the node that each piece is in."""
    nodes = list(range(len(tree.groups)))
    yield tuple(nodes)
    for i, pair in enumerate(tree.merges):
        nodes = [len(nodes) + i if node in pair else node for node in nodes]
        yield tuple(nodes)


def ward(points: Numbers, weights: Numbers) -> list[tuple[float, int, int]]:
    """Ward's tree of n x d points that count ``weights``: (cost, a, b) for each merge of the clusters that the points a
    and b are in, in ascending order of the cost, which is the rise of the sum of squares.

    By the chain of nearest neighbours (Murtagh, 1983): n^2 d steps.
    """
    centres, sizes = points.copy(), weights.copy()
    alive = np.ones(len(points), bool)
    chain: list[int] = []
    found: list[tuple[float, int, int]] = []
    while len(found) < len(points) - 1:
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
        found.append((float(costs[other]), other, last))
        centres[other] = np.average(centres[[other, last]], axis=0, weights=sizes[[other, last]])
        sizes[other] += sizes[last]
        alive[last] = False
    return sorted(found, key=lambda merge: merge[0])


def _order(centroids: Numbers, weights: Numbers, own: npt.NDArray[np.int64]) -> list[Merge]:
    """Pairs of centroids whose clusters merge: those inside the groups by their cost, then those of the groups."""
    numbers = np.unique(own)
    inside: list[tuple[float, int, int]] = []
    middles, totals, firsts = [], [], []
    for number in numbers:
        which = np.flatnonzero(own == number)
        inside += [(cost, int(which[a]), int(which[b])) for cost, a, b in ward(centroids[which], weights[which])]
        middles.append(np.average(centroids[which], axis=0, weights=weights[which]))
        totals.append(weights[which].sum())
        firsts.append(int(which[0]))
    above = [(firsts[a], firsts[b]) for _, a, b in ward(np.array(middles), np.array(totals))]
    return [(a, b) for _, a, b in sorted(inside, key=lambda merge: merge[0])] + above


def _numbered(order: Sequence[Merge], count: int, pieces: int) -> tuple[npt.NDArray[np.int64], tuple[Merge, ...]]:
    """The piece of each of ``count`` centroids, and the merges of the pieces' nodes."""
    cluster = np.arange(count)
    for a, b in order[: count - pieces]:
        cluster[cluster == cluster[b]] = cluster[a]
    _, piece_of = np.unique(cluster, return_inverse=True)
    node, merges = piece_of.copy(), []
    for a, b in order[count - pieces :]:
        merges.append((int(node[a]), int(node[b])))
        node[(node == node[a]) | (node == node[b])] = pieces + len(merges) - 1
    return piece_of, tuple(merges)


def _described(
    reduced: Tensor, piece: Tensor, merges: Sequence[Merge], pieces: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The size of every node and its medoid."""
    sizes = torch.bincount(piece, minlength=pieces).tolist()
    middles = list(means(reduced, piece, pieces))
    rows = [(piece == i).nonzero().flatten() for i in range(pieces)]
    for a, b in merges:
        sizes.append(sizes[a] + sizes[b])
        middles.append((sizes[a] * middles[a] + sizes[b] * middles[b]) / sizes[-1])
        rows.append(torch.cat([rows[a], rows[b]]))
    nearest = [(reduced[inside] - middle).norm(dim=1).argmin() for inside, middle in zip(rows, middles, strict=True)]
    return tuple(sizes), tuple(int(inside[i]) for inside, i in zip(rows, nearest, strict=True))
