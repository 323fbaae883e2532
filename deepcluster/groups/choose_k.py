"""The number of groups: candidates from the neighbour graph, and how stable a cut into so many groups is."""

from collections.abc import Callable
from itertools import combinations
from statistics import mean

import numpy as np
import numpy.typing as npt
import torch
from scipy.cluster.hierarchy import cut_tree, linkage
from torch import Tensor

from deepcluster.clustering.agreement import ari
from deepcluster.clustering.kmeans import first_occurrences
from deepcluster.groups.cut import DIMENSIONS, ROWS_EACH, Cut, cut, placement_of
from deepcluster.groups.graph import embedding, modularity, neighbour_ties
from deepcluster.records import Candidate
from deepcluster.seeding import derive, generator

MAX_GROUPS, MAX_CANDIDATES = 30, 3
ROWS = 3000  # of a sample: its graph and its cuts take seconds
FINER = 0.98  # share of the best score from which the finest candidate comes first: people merge more easily than split
CUTS = 3
SHARE = 0.8  # of the sample, in a cut
MIN_IMAGES = 300  # of fewer, the agreement of two cuts is noise (docs/decisions.md)
CutRows = Callable[[Tensor, int, int], Cut]  # rows, number of groups, seed


def cut_once(rows: Tensor, k: int, seed: int) -> Cut:
    """Cut rows by one embedding, which takes a fifth of the time of a result's cut."""
    return cut(rows, k, embeddings=1, seed=seed)


def candidates(reduced: Tensor, *, seed: int = 0, cut_rows: CutRows = cut_once) -> list[Candidate]:
    """Return up to three numbers of groups from 2 to ``MAX_GROUPS`` for N x d features, the most plausible first.

    Ward's tree of an embedding (graph.py) is cut into all these numbers. The score of a cut is its silhouette there
    (Lowe et al. 2024) times its modularity (Newman and Girvan 2004): the silhouette alone often prefers two groups, the
    modularity alone too many. A number beside a better one is no candidate: three levels of detail tell more than three
    numbers that are nearly the same. Of candidates with nearly the best score the finest comes first. The list is empty
    for fewer than 4 distinct rows.

    Args:
        reduced: N x d features (rows of length 1).
        seed: For the samples, the embedding and the cuts.
        cut_rows: How to cut a sample, for the stability.
    """
    from sklearn.metrics import silhouette_score  # here, as in clustering/agreement.py

    rows = sample(reduced, seed)
    rows = rows[first_occurrences(rows)]
    if len(rows) < 4:
        return []
    ties = neighbour_ties(rows)
    places = embedding(ties, DIMENSIONS, derive(seed, "embedding"))
    numbers = np.arange(2, min(MAX_GROUPS, len(rows) - 2) + 1)
    labelings = cut_tree(linkage(places, "ward"), numbers).T
    silhouettes = np.array([silhouette_score(places, labels) for labels in labelings])
    modularities = np.array([modularity(ties, labels) for labels in labelings])
    return [
        Candidate(
            int(numbers[i]),
            float(silhouettes[i]),
            float(modularities[i]),
            stability(reduced, int(numbers[i]), seed=seed, cut_rows=cut_rows),
        )
        for i in ranked(silhouettes * modularities.clip(0), MAX_CANDIDATES)
    ]


def ranked(scores: npt.NDArray[np.float64], count: int) -> list[int]:
    """Return the places of the ``count`` best scores: the last of the nearly best ones, the other peaks, the rest."""
    beside = np.pad(scores, 1, constant_values=-np.inf)
    peaks = (scores > beside[:-2]) & (scores >= beside[2:])
    best = np.lexsort((-scores, ~peaks))[:count].tolist()
    nearly_best = [i for i in best if scores[i] >= FINER * scores[best[0]]]
    return sorted(best, key=lambda i: i != max(nearly_best))


def stability(reduced: Tensor, k: int, *, seed: int = 0, cut_rows: CutRows = cut_once) -> float | None:
    """Return the mean adjusted Rand index (at most 1) between cuts of samples of N x d features, which place all rows.

    None for fewer than two groups, ``MIN_IMAGES`` images or ``ROWS_EACH`` images per group: then it tells nothing.
    """
    rows = sample(reduced, seed)
    if k < 2 or len(rows) < max(MIN_IMAGES, ROWS_EACH * k):
        return None
    seed, labelings = derive(seed, "stability", k), []
    for i in range(CUTS):
        part = torch.randperm(len(rows), generator=generator(seed, "part", i))[: round(SHARE * len(rows))]
        groups = cut_rows(rows[part], k, derive(seed, "cut", i))
        labelings.append(placement_of(rows, groups, groups.centroids[:1]).cluster)
    return mean(ari(one, other) for one, other in combinations(labelings, 2))


def sample(reduced: Tensor, seed: int) -> Tensor:
    """Return at most ``ROWS`` of the rows."""
    return reduced[torch.randperm(len(reduced), generator=generator(seed, "number of groups"))[:ROWS]]
