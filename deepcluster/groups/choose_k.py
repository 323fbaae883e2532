"""How many groups there are: candidates from the neighbour graph, and how far each can be trusted."""

from dataclasses import dataclass
from itertools import combinations
from statistics import mean

import numpy as np
import numpy.typing as npt
import torch
from scipy.cluster.hierarchy import cut_tree, linkage
from torch import Tensor

from deepcluster.clustering.agreement import ari
from deepcluster.clustering.kmeans import first_occurrences
from deepcluster.groups.cut import cut, place
from deepcluster.groups.embedding import embedding
from deepcluster.groups.neighbour_graph import modularity, neighbour_ties
from deepcluster.seeding import derive, generator

MOST = 30
DIMENSIONS = 30
ROWS = 3000  # of a sample: its graph and its cuts take seconds
CUTS = 3
SHARE = 0.8  # of the sample, for each cut


@dataclass(frozen=True)
class Candidate:
    """A number of groups.

    Attributes:
        k: The number.
        score: Silhouette times the root of the modularity.
        silhouette: Of that many groups in an embedding of the neighbour graph, -1 to 1: are they apart?
        modularity: The share of the graph's ties inside the groups, less that of random ties: do they hold together?
        stability: Mean adjusted Rand index between cuts of several samples with several seeds, at most 1.
    """

    k: int
    score: float
    silhouette: float
    modularity: float
    stability: float


def candidates(reduced: Tensor, *, seed: int = 0, count: int = 3, most: int = MOST) -> list[Candidate]:
    """Up to ``count`` numbers of groups from 2 to ``most`` for N x d features, the best first.

    They are those of the cuts of Ward's tree of an embedding (embedding.py) with the largest silhouette there (Lowe et
    al. 2024) times the root of the modularity (Newman and Girvan 2004): the silhouette alone often prefers two groups,
    the modularity alone too many. A number beside a better one is no candidate: three levels of detail tell more than
    three numbers that are nearly the same. The labels that a person would give may follow another level, so it stays a
    guess. Empty where there are fewer than 4 distinct rows.
    """
    from sklearn.metrics import silhouette_score  # here, as in clustering/agreement.py

    random = generator(seed, "number of groups")
    rows = reduced[torch.randperm(len(reduced), generator=random)[:ROWS]]
    rows = rows[first_occurrences(rows)]
    if len(rows) < 4:
        return []
    ties = neighbour_ties(rows)
    places = embedding(ties, DIMENSIONS, derive(seed, "embedding"))
    numbers = np.arange(2, min(most, len(rows) - 2) + 1)
    labelings = cut_tree(linkage(places, "ward"), numbers).T
    silhouettes = np.array([silhouette_score(places, labels) for labels in labelings])
    modularities = np.array([modularity(ties, labels) for labels in labelings])
    scores = silhouettes * np.sqrt(modularities.clip(0))
    return [
        Candidate(
            int(numbers[i]),
            float(scores[i]),
            float(silhouettes[i]),
            float(modularities[i]),
            stability(rows, int(numbers[i]), derive(seed, "stability", int(numbers[i]))),
        )
        for i in best_apart(scores, count)
    ]


def best_apart(scores: npt.NDArray[np.float64], count: int) -> list[int]:
    """The places of the ``count`` best scores: first those that are better than both beside them."""
    beside = np.pad(scores, 1, constant_values=-np.inf)
    peaks = (scores > beside[:-2]) & (scores >= beside[2:])
    return [int(i) for i in np.lexsort((-scores, ~peaks))[:count]]


def stability(rows: Tensor, k: int, seed: int) -> float:
    """Mean adjusted Rand index between cuts of samples, each of which places all rows."""
    labelings = []
    for i in range(CUTS):
        part = torch.randperm(len(rows), generator=generator(seed, "part", i))[: max(k, round(SHARE * len(rows)))]
        groups = cut(rows[part], k, seed=derive(seed, "cut", i))
        labelings.append(place(rows, groups, groups.centroids[:1]).cluster)
    return mean(ari(one, other) for one, other in combinations(labelings, 2))
