"""All images on a plane, neighbours beside each other: the map of the report."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor

from deepcluster.clustering.kmeans import first_occurrences
from deepcluster.clustering.nearest import nearest
from deepcluster.groups.neighbour_graph import neighbour_ties
from deepcluster.seeding import generator

LANDMARKS = 10_000  # rows whose positions are optimised, in 4 s; the others are placed between them
BETWEEN = 5  # landmarks that determine the position of another row
STEPS = 300
NEGATIVES = 8  # rows that each row is pushed away from in a step
PUSH = 5  # weight of all pushes relative to all pulls
LONGEST_MOVE = 4.0  # of a row in a step, in each direction
Points = npt.NDArray[Any]  # float32


def layout(reduced: Tensor, seed: int = 0) -> Points:
    """Positions (float32, N x 2) of N x d rows of length 1 such that neighbours are near each other.

    The neighbour graph that groups are cut from is laid out by UMAP's objective (McInnes et al. 2018) with the
    similarity 1 / (1 + d^2), moving all rows at once. Only neighbourhoods have a meaning; the distances between groups
    and their apparent sizes have none. The same rows and seed give the same positions on one machine.
    """
    rows = first_occurrences(reduced)
    if len(rows) > LANDMARKS:
        rows = rows[torch.randperm(len(rows), generator=generator(seed, "landmarks"))[:LANDMARKS].sort().values]
    places = torch.zeros(len(reduced), 2)
    places[rows] = torch.from_numpy(_optimised(reduced[rows], generator(seed, "layout")))
    others = torch.ones(len(reduced), dtype=torch.bool)
    others[rows] = False
    if others.any():
        places[others] = between(reduced[others], reduced[rows], places[rows])
    return places.numpy()


def _optimised(rows: Tensor, random: torch.Generator) -> Points:
    """Positions of distinct rows: their principal components, optimised in steps that grow shorter."""
    size = len(rows)
    places = _start(rows) + 1e-3 * torch.randn(size, 2, generator=random).numpy()
    if size < 3:
        return places
    ties = neighbour_ties(rows)
    weights, columns, ends = ties.data.astype(np.float32), ties.indices, ties.indptr
    starts = np.repeat(np.arange(size), np.diff(ends))
    push = np.float32(PUSH / NEGATIVES * weights.sum() / size)
    for step in range(STEPS):
        pulls = csr_array((2 * weights / (1 + _squared(places[starts] - places[columns])), columns, ends), (size, size))
        inward = pulls @ places - np.asarray(pulls.sum(1))[:, None] * places
        away = places[:, None] - places[torch.randint(size, (size, NEGATIVES), generator=random).numpy()]
        squared = _squared(away)[..., None]
        outward = push * (2 * away / ((1e-3 + squared) * (1 + squared))).clip(-LONGEST_MOVE, LONGEST_MOVE).sum(1)
        places = places + np.float32(1 - step / STEPS) * (inward + outward).clip(-LONGEST_MOVE, LONGEST_MOVE)
    centred: Points = places - places.mean(0)
    return centred


def _squared(differences: Points) -> Points:
    squared: Points = np.einsum("...i,...i->...", differences, differences)
    return squared


def _start(rows: Tensor) -> Points:
    """The first two principal components, from -10 to 10."""
    centred = (rows - rows.mean(0)).double()
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    components = (centred @ vectors[:, -2:]).float().numpy()
    places = np.zeros((len(rows), 2), np.float32)
    places[:, : components.shape[1]] = 10 * components / max(1e-9, np.abs(components).max())
    return places


def between(rows: Tensor, landmarks: Tensor, places: Tensor) -> Tensor:
    """The mean position of each row's nearest landmarks, weighted by the inverse squared distance."""
    cosines, neighbours = nearest(rows, BETWEEN, landmarks)
    weights = 1 / (2 - 2 * cosines).clamp(min=1e-6).unsqueeze(2)
    return (weights * places[neighbours]).sum(1) / weights.sum(1)
