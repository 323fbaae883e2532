"""The number of clusters: candidates from the neighbour graph."""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import scipy  # the parts at first use: `predict` waits for none
import torch
from torch import Tensor

from deepcluster.groups.cut import LAYOUTS, positions_of
from deepcluster.groups.graph import (
    CURVES,
    Layouts,
    Points,
    graph_rows,
    leading_eigenvectors,
    modularity,
    neighbour_ties,
)
from deepcluster.records import Candidate
from deepcluster.seeding import derive, generator

if TYPE_CHECKING:
    from scipy.sparse import csr_array

MAX_CLUSTERS = 60
ROWS = 3000  # of a sample: its graph and its cuts take seconds
FINEST = 0.9  # share of the best score from which a number is plausible; like CLOSE by leaving one set out (the log)
CLOSE = 0.8  # eigenvalue of the neighbour graph from which it counts as one of a cluster
SPECTRUM_ROWS = 400  # of a graph whose eigenvalues count: with more rows more of them are close to 1
SPECTRA = 5  # samples of so many rows
# With more nouns than so many there are more kinds than the graph shows, in proportion to this power of their number
# (chosen on half of the collections and judged on the others: benchmarks/log).
MANY_NOUNS = 40
NOUN_POWER = 0.6
Scores = npt.NDArray[np.float64]  # by the number of clusters


def plausible_numbers(
    reduced: Tensor,
    nouns: Iterable[tuple[str, float]] = (),
    *,
    seed: int = 0,
    shared: bool = True,
    layouts: Layouts | None = None,
) -> list[Candidate]:
    """Return up to four numbers of clusters for N x d rows of length 1: the guess (2 to ``MAX_CLUSTERS``) first.

    The guess is the geometric mean of the finest plausible number of cuts and the :func:`spectral_number`: the first is
    often too large, the second too small. Ward's trees of the layouts (graph.py) are cut into all numbers. The score
    of a number is the mean silhouette of its cuts there (Lowe et al. 2024) times their mean modularity (Newman and
    Girvan 2004): the silhouette alone often prefers two clusters, the modularity alone too many. The guess is
    larger if the network sees more than ``MANY_NOUNS`` nouns, because of many kinds the graph shows too few. Half of
    it, twice and four times follow. The list is empty for fewer than 4 distinct rows.

    Args:
        nouns: A noun that the network sees in each of many images, and its probability; none if it knows no nouns.
        seed: As of the cut, which may need the same layouts.
        shared: Compute the layouts that the cut needs; False if the cut is by k-means of the features.
        layouts: May know the graph and the layouts of these rows.
    """
    layouts = Layouts() if layouts is None else layouts
    rows = reduced[graph_rows(reduced, derive(seed, "cut"), ROWS)]
    if len(rows) < 4:
        return []
    count = LAYOUTS if shared and len(rows) < ROWS else len(CURVES)
    positions = positions_of(rows, count, derive(seed, "cut"), layouts).numpy()
    ties = layouts.ties(rows)

    def measured(numbers: npt.NDArray[np.int64]) -> Scores:
        means: Scores = np.mean([cut_measures(points, ties, numbers) for points in positions], 0)
        return means

    silhouettes, modularities = measured(np.arange(2, min(MAX_CLUSTERS, len(rows) - 2) + 1))
    scores = silhouettes.clip(0) * modularities.clip(0)
    guess = math.sqrt(finest_plausible(scores) * spectral_number(rows, seed))
    guess *= max(1, noun_count(nouns) / MANY_NOUNS) ** NOUN_POWER
    chosen = candidates(guess, len(rows) - 2)
    measures = dict(zip(sorted(chosen), measured(np.array(sorted(chosen))).T.tolist(), strict=True))
    return [Candidate(k, *measures[k]) for k in chosen]


def cut_measures(positions: Points, ties: "csr_array", numbers: npt.NDArray[np.int64]) -> tuple[Scores, Scores]:
    """Return the silhouette and the modularity of the cuts of Ward's tree of N rows into ascending ``numbers``."""
    tree = scipy.cluster.hierarchy.linkage(positions, "ward")
    cuts = scipy.cluster.hierarchy.cut_tree(tree, numbers)
    silhouettes = silhouettes_of(positions, scipy.cluster.hierarchy.leaves_list(tree), cuts)
    return silhouettes, np.array([modularity(ties, labels) for labels in cuts.T])


def silhouettes_of(positions: Points, order: npt.NDArray[np.int32], cuts: npt.NDArray[np.int64]) -> Scores:
    """Return the mean silhouette (Rousseeuw 1987) of each cut (a column of labels, the finest last) of a tree.

    ``order``: The leaves of the tree. The clusters of every cut are contiguous there, so the distances are summed once.
    """
    begins = np.flatnonzero(np.diff(cuts[order, -1], prepend=-1))
    sums = np.add.reduceat(scipy.spatial.distance.cdist(positions, positions[order]), begins, axis=1)
    row = np.arange(len(positions))
    means = []
    for labels in cuts.T:
        clusters = labels[order[begins]]
        starts = np.flatnonzero(np.diff(clusters, prepend=-1))
        own_cluster = np.argsort(clusters[starts])[labels]
        sizes = np.bincount(own_cluster)
        distances = np.add.reduceat(sums, starts, axis=1)
        inside = distances[row, own_cluster] / (sizes[own_cluster] - 1).clip(1)
        distances /= sizes
        distances[row, own_cluster] = np.inf
        outside = distances.min(1)
        apart = (outside - inside) / np.maximum(inside, outside).clip(np.finfo(float).tiny)
        means.append(apart[sizes[own_cluster] > 1].sum() / len(row))
    return np.array(means)


def spectral_number(rows: Tensor, seed: int) -> int:
    """Return the number of eigenvalues above ``CLOSE`` of the neighbour graph of distinct rows, at least 2.

    Each cluster with few ties to the others has one (von Luxburg 2007). The eigenvalues are means of samples.
    """
    parts = [
        rows[torch.randperm(len(rows), generator=generator(seed, "spectrum", i))[:SPECTRUM_ROWS]]
        for i in range(SPECTRA if len(rows) > SPECTRUM_ROWS else 1)
    ]
    spectra = [leading_eigenvectors(neighbour_ties(part), MAX_CLUSTERS, seed)[0] for part in parts]
    return max(2, int((np.mean(spectra, 0) > CLOSE).sum()))


def finest_plausible(scores: Scores) -> int:
    """Return the finest number of clusters whose score (of 2 clusters, 3 and so on) is nearly the best."""
    last = -1 if scores.any() else 0  # if all are 0, the coarsest
    return int(np.flatnonzero(scores >= FINEST * scores.max())[last]) + 2


def candidates(guess: float, most: int) -> list[int]:
    """Return the guess, then half, twice and four times as many clusters, if these are 2 to ``most``."""
    number = min(max(2, round(guess)), most, MAX_CLUSTERS)
    return [number, *(k for k in (number // 2, 2 * number, 4 * number) if 2 <= k <= most)]


def noun_count(nouns: Iterable[tuple[str, float]]) -> float:
    """Return the perplexity of the nouns of images (each with its probability); 1 without nouns.

    It is the exponential of the entropy of the nouns' shares of all probability: n equally frequent ones have n.
    """
    sums: dict[str, float] = defaultdict(float)
    for noun, probability in nouns:
        sums[noun] += probability
    shares = np.array([*sums.values()]) / max(sum(sums.values()), np.finfo(float).tiny)
    return math.exp(scipy.special.entr(shares).sum())
