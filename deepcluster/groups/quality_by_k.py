"""How good each number of groups is: two curves over the cuts of a merge tree."""

from dataclasses import dataclass
from itertools import combinations
from statistics import mean

import numpy as np
import numpy.typing as npt
import torch
from scipy.cluster.hierarchy import cut_tree, linkage
from torch import Tensor

from deepcluster.clustering.agreement import ari
from deepcluster.groups.merge_tree import Tree
from deepcluster.seeding import generator

ROWS = 1500  # of a sample: distances and trees of them take a second
SAMPLES, SHARE = 3, 0.8  # trees, and the share of the sample that each is of
ROWS_EACH = 5  # fewer in a group on average, and no stability is told


@dataclass(frozen=True)
class Level:
    """``k`` groups: the mean ``silhouette`` (-1 to 1) of a sample in that cut of the tree, and the ``stability``: the
    mean adjusted Rand index (at most 1) of Ward's trees of samples, cut into k. None where there are too few images."""

    k: int
    silhouette: float | None
    stability: float | None


def levels(reduced: Tensor, tree: Tree, piece: Tensor, *, seed: int = 0) -> list[Level]:
    """A level for each number of groups from 2 to the pieces of the ``tree`` of N x d features; ``piece``: int64, N."""
    chosen = torch.randperm(len(reduced), generator=generator(seed, "levels"))[:ROWS]
    rows = reduced[chosen].numpy()
    numbers = range(2, len(tree.groups) + 1)
    apart = silhouettes(rows, piece[chosen].numpy(), tree)
    steady = stabilities(rows, [k for k in numbers if k * ROWS_EACH <= SHARE * len(rows)], seed)
    return [Level(k, apart.get(k), steady.get(k)) for k in numbers]


def silhouettes(rows: npt.NDArray[np.float32], piece: npt.NDArray[np.int64], tree: Tree) -> dict[int, float]:
    """The mean silhouette (Rousseeuw, 1987) for each k: sums of distances to pieces are added up as these merge."""
    pieces = len(tree.groups)
    likeness = rows @ rows.T
    squared = likeness.diagonal()[:, None] + likeness.diagonal() - 2 * likeness
    np.fill_diagonal(squared, 0)
    member = np.eye(pieces, dtype=np.float32)[piece]
    sums, counts = np.sqrt(squared.clip(0)) @ member, member.sum(0)
    own, place = piece.copy(), list(range(pieces))  # the column of each row, and of each node
    each = np.arange(len(rows))
    found = {}
    for k in range(pieces, 1, -1):
        if np.count_nonzero(counts) > 1:
            averages = np.where(counts > 0, sums / counts.clip(1), np.inf)
            averages[each, own] = np.inf
            within = sums[each, own] / (counts[own] - 1).clip(1)
            between = averages.min(1)
            width = (between - within) / np.maximum(between, within).clip(1e-12)
            found[k] = float(np.where(counts[own] > 1, width, 0).mean())
        a, b = (place[node] for node in tree.merges[pieces - k])
        sums[:, a] += sums[:, b]
        counts[a] += counts[b]
        counts[b] = 0
        own[own == b] = a
        place.append(a)
    return found


def stabilities(rows: npt.NDArray[np.float32], numbers: list[int], seed: int) -> dict[int, float]:
    """How far Ward's trees of random samples agree on the rows that they share, for each of the ``numbers``."""
    if not numbers:
        return {}
    found = []
    for i in range(SAMPLES):
        part = torch.randperm(len(rows), generator=generator(seed, "tree", i))[: round(SHARE * len(rows))].numpy()
        labels = np.full((len(rows), len(numbers)), -1)
        labels[part] = cut_tree(linkage(rows[part], "ward"), numbers)
        found.append(labels)
    both = [(one, other, (one[:, 0] >= 0) & (other[:, 0] >= 0)) for one, other in combinations(found, 2)]
    return {k: mean(ari(one[in_, i], other[in_, i]) for one, other, in_ in both) for i, k in enumerate(numbers)}
