"""How many groups there are: candidates from the neighbour graph, and how far each can be trusted."""

from dataclasses import dataclass
from itertools import combinations
from statistics import mean

import numpy as np
import torch
from sklearn.metrics import silhouette_score
from torch import Tensor

from deepcluster.clustering.agreement import ari
from deepcluster.clustering.kmeans import first_occurrences
from deepcluster.groups.cut import cut, place
from deepcluster.groups.neighbour_graph import TIES, leading_eigenvectors, neighbour_ties
from deepcluster.seeding import derive, generator

MOST = 30
ROWS = 3000  # of a sample: its graph and its cuts take seconds
CUTS = 3
SHARE = 0.8  # of the sample, for each cut
HALVES = 3  # most images fall into halves first (animals and vehicles): two groups need a gap as many times as large


@dataclass(frozen=True)
class Candidate:
    """A number of groups.

    k: The number.
    gap: From the k-th eigenvalue v of the neighbour graph to the next, as a share of the root of 1 - v.
    stability: Mean adjusted Rand index between cuts of several samples with several seeds, at most 1.
    silhouette: Mean over these cuts, -1 to 1.
    """

    k: int
    gap: float
    stability: float
    silhouette: float


def candidates(reduced: Tensor, *, seed: int = 0, count: int = 3, most: int = MOST) -> list[Candidate]:
    """Up to ``count`` numbers of groups from 2 to ``most`` for N x d features, the best first.

    They are where the eigenvalues of the normalised neighbour graph fall most (the eigengap, von Luxburg 2007): k parts
    that are hardly tied to each other have k eigenvalues near 1. The labels that a person would give may follow another
    level of detail, so it stays a guess. Empty where there are fewer than 4 distinct rows.
    """
    random = generator(seed, "number of groups")
    rows = reduced[torch.randperm(len(reduced), generator=random)[:ROWS]]
    rows = rows[first_occurrences(rows)]
    if len(rows) < 4:
        return []
    values, _ = leading_eigenvectors(neighbour_ties(rows), min(most, len(rows) - 2) + 1, derive(seed, "eigenvectors"))
    # Behind the second, the third, ...: between the fall itself, which favours many groups, and the fall as a share of
    # the distance from 1, which favours few.
    gaps = (values[1:-1] - values[2:]) / np.sqrt(1 - values[1:-1] + TIES)
    trusted = gaps / np.where(np.arange(len(gaps)) == 0, HALVES, 1)
    numbers = [int(i) + 2 for i in np.argsort(-trusted, kind="stable")[:count]]
    return [Candidate(k, float(gaps[k - 2]), *stability(rows, k, derive(seed, "stability", k))) for k in numbers]


def stability(rows: Tensor, k: int, seed: int) -> tuple[float, float]:
    """The agreement of cuts of samples, each of which places all rows; and their mean silhouette."""
    labelings = []
    for i in range(CUTS):
        part = torch.randperm(len(rows), generator=generator(seed, "part", i))[: max(k, round(SHARE * len(rows)))]
        groups = cut(rows[part], k, seed=derive(seed, "cut", i))
        labelings.append(place(rows, groups, groups.centroids[:1]).cluster)
    agreement = mean(ari(one, other) for one, other in combinations(labelings, 2))
    proper = [labels for labels in labelings if 1 < len(labels.unique()) < len(rows)]
    silhouette = mean(float(silhouette_score(rows.numpy(), labels.numpy())) for labels in proper) if proper else 0.0
    return agreement, silhouette
