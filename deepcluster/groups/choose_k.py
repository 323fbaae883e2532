"""The number of groups: candidates from the neighbour graph, and how stable a cut into so many groups is."""

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from statistics import mean

import numpy as np
import numpy.typing as npt
import scipy  # the parts at first use: `predict` waits for none
import torch
from torch import Tensor

from deepcluster.clustering.agreement import ari
from deepcluster.clustering.kmeans import best_of, first_occurrences
from deepcluster.groups.cut import KMEANS_STARTS, ROWS_EACH, as_groups, cut_features, nearest_groups
from deepcluster.groups.graph import Embeddings, modularity
from deepcluster.records import Candidate
from deepcluster.seeding import derive, generator

MAX_CANDIDATES = 3
MAX_GROUPS = 30
MAX_FINEST = 60  # if the finest number is the guess
ROWS = 3000  # of a sample: its graph and its cuts take seconds
FINER = 0.98  # share of the best score from which the finest candidate comes first: people merge more easily than split
FINEST = 0.9  # share of the best score from which a number is plausible (docs/decisions.md)
REFINES = 2  # least ratio of groups to coarse groups: below it the second level shows nothing new
CUTS = 3
SHARE = 0.8  # of the sample, in a cut
MIN_IMAGES = 300  # of fewer, the agreement of two cuts is noise (benchmarks/LOG.md)
Scores = npt.NDArray[np.float64]  # by the number of groups


def plausible_numbers(
    reduced: Tensor,
    *,
    seed: int = 0,
    by_kmeans: bool = False,
    finest: bool = False,
    embed: Embeddings | None = None,
) -> list[Candidate]:
    """Return up to three numbers of groups, 2 to ``MAX_GROUPS``, for N x d rows of length 1, the most plausible first.

    Ward's tree of an embedding (graph.py) is cut into all these numbers. The score of a cut is its silhouette there
    (Lowe et al. 2024) times its modularity (Newman and Girvan 2004): the silhouette alone often prefers two groups, the
    modularity alone too many. A number beside a better one is no candidate: three levels of detail tell more than three
    numbers that are nearly the same. Of candidates with nearly the best score the finest comes first. The list is empty
    for fewer than 4 distinct rows.

    Args:
        by_kmeans: Measure the stability of cuts by k-means of the features.
        finest: Put the finest plausible number (up to ``MAX_FINEST``) first, because photographs have more kinds than
            the clearest cut has groups.
        embed: May know the graph and the embeddings of these rows.
    """
    embed = Embeddings() if embed is None else embed
    from sklearn.metrics import silhouette_score  # here, as in clustering/agreement.py

    rows = sample(reduced, seed)
    rows = rows[first_occurrences(rows)]
    if len(rows) < 4:
        return []
    ties = embed.ties(rows)
    positions = embed(rows, [derive(seed, "embedding")])[0].numpy()
    numbers = np.arange(2, min(MAX_FINEST if finest else MAX_GROUPS, len(rows) - 2) + 1)
    labelings = scipy.cluster.hierarchy.cut_tree(scipy.cluster.hierarchy.linkage(positions, "ward"), numbers).T
    silhouettes = np.array([silhouette_score(positions, labels) for labels in labelings])
    modularities = np.array([modularity(ties, labels) for labels in labelings]).clip(0)
    scores = silhouettes * modularities
    chosen = ranked_finest(scores) if finest else ranked(scores, MAX_CANDIDATES)
    columns = (column[chosen].tolist() for column in (numbers, silhouettes, modularities))
    stable = partial(stability, reduced, seed=seed, by_kmeans=by_kmeans, embed=embed)
    return [Candidate(k, apart, tied, stable(k)) for k, apart, tied in zip(*columns, strict=True)]


def coarse_number(numbers: Sequence[int]) -> int:
    """Return the number of coarse groups, 0 without any, from plausible ``numbers`` of clusters, the finest first.

    It is the most plausible number that the finest one refines.
    """
    return next((number for number in numbers[1:] if REFINES * number <= numbers[0]), 0)


def ranked(scores: Scores, count: int) -> list[int]:
    """Return up to ``count`` indices of scores, peaks and best first; the last within ``FINER`` of the best leads."""
    beside = np.pad(scores, 1, constant_values=-np.inf)
    peaks = (scores > beside[:-2]) & (scores >= beside[2:])
    best = np.lexsort((-scores, ~peaks))[:count].tolist()
    nearly_best = [i for i in best if scores[i] >= FINER * scores[best[0]]]
    return sorted(best, key=lambda i: i != max(nearly_best))


def ranked_finest(scores: Scores) -> list[int]:
    """Return the index of the finest plausible number, and the indices of :func:`ranked` that are not beside it."""
    first = int(np.flatnonzero(scores >= FINEST * scores.max())[-1])
    others = [i for i in ranked(scores, MAX_CANDIDATES) if abs(i - first) > 1]
    return [first, *others][:MAX_CANDIDATES]


def stability(
    reduced: Tensor, k: int, *, seed: int = 0, by_kmeans: bool = False, embed: Embeddings | None = None
) -> float | None:
    """Return the mean adjusted Rand index (at most 1) between cuts of samples of N x d features, which place all rows.

    A cut is by k-means of the features, or by one embedding, which takes a fifth of the time of a result's cut.
    The samples are the same for any number of groups, so that their embeddings serve all numbers. None for fewer than
    two groups, ``MIN_IMAGES`` images or ``ROWS_EACH`` images per group: then it tells nothing.
    """
    embed = Embeddings() if embed is None else embed
    rows = sample(reduced, seed)
    if k < 2 or len(rows) < max(MIN_IMAGES, ROWS_EACH * k):
        return None
    seed = derive(seed, "stability")
    labelings = []
    for i in range(CUTS):
        part = torch.randperm(len(rows), generator=generator(seed, "part", i))[: round(SHARE * len(rows))]
        cut_seed = derive(seed, "cut", i)
        if by_kmeans:
            cut = as_groups(best_of(KMEANS_STARTS, rows[part], k, cut_seed))
        else:
            cut = cut_features(rows[part], k, embeddings=1, seed=cut_seed, embed=embed)
        labelings.append(nearest_groups(rows, cut))
    return mean(ari(first, second) for first, second in combinations(labelings, 2))


def sample(reduced: Tensor, seed: int) -> Tensor:
    """Return at most ``ROWS`` of the rows."""
    return reduced[torch.randperm(len(reduced), generator=generator(seed, "number of groups"))[:ROWS]]
