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

LANDMARKS = 10_000  # rows that find their places by moving; that takes 4 s, and the others are put between them
BETWEEN = 5
STEPS = 300
OTHERS = 8  # rows that each is pushed away from in a step
PUSH = 5  # how much all pushes weigh beside all pulls
FARTHEST = 4.0  # a row goes in a step, in each direction
Points = npt.NDArray[Any]  # float32


def layout(reduced: Tensor, seed: int = 0) -> Points:
    """A place (float32, N x 2) for each of N x d rows of length 1, such that nearest rows are near.

    The neighbour graph that groups are cut from is drawn by UMAP's objective (McInnes et al. 2018) with closeness
    1 / (1 + d^2), all rows moving at once. Only neighbourhoods mean something: how far groups are from each other, and
    how large they look, does not. The same for the same rows and seed on one machine.
    """
    rows = first_occurrences(reduced)
    if len(rows) > LANDMARKS:
        rows = rows[torch.randperm(len(rows), generator=generator(seed, "landmarks"))[:LANDMARKS].sort().values]
    places = torch.zeros(len(reduced), 2)
    places[rows] = torch.from_numpy(_drawn(reduced[rows], generator(seed, "layout")))
    others = torch.ones(len(reduced), dtype=torch.bool)
    others[rows] = False
    if others.any():
        places[others] = _between(reduced[others], reduced[rows], places[rows])
    return places.numpy()


def _drawn(rows: Tensor, random: torch.Generator) -> Points:
    """The places of distinct rows: from their principal components, in steps that grow shorter."""
    size = len(rows)
    places = _start(rows) + 1e-3 * torch.randn(size, 2, generator=random).numpy()
    if size < 3:
        return places
    ties = neighbour_ties(rows)
    weights, columns, ends = ties.data.astype(np.float32), ties.indices, ties.indptr
    own = np.repeat(np.arange(size), np.diff(ends))
    push = np.float32(PUSH / OTHERS * weights.sum() / size)
    for step in range(STEPS):
        pulls = csr_array((2 * weights / (1 + _squared(places[own] - places[columns])), columns, ends), (size, size))
        inward = pulls @ places - np.asarray(pulls.sum(1))[:, None] * places
        away = places[:, None] - places[torch.randint(size, (size, OTHERS), generator=random).numpy()]
        squared = _squared(away)[..., None]
        outward = push * (2 * away / ((1e-3 + squared) * (1 + squared))).clip(-FARTHEST, FARTHEST).sum(1)
        places = places + np.float32(1 - step / STEPS) * (inward + outward).clip(-FARTHEST, FARTHEST)
    centred: Points = places - places.mean(0)
    return centred


def _squared(differences: Points) -> Points:
    squared: Points = np.einsum("...i,...i->...", differences, differences)
    return squared


def _start(rows: Tensor) -> Points:
    """The first two principal components, from -10 to 10."""
    centred = (rows - rows.mean(0)).double()
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    found = (centred @ vectors[:, -2:]).float().numpy()
    places = np.zeros((len(rows), 2), np.float32)
    places[:, : found.shape[1]] = 10 * found / max(1e-9, np.abs(found).max())
    return places


def _between(rows: Tensor, landmarks: Tensor, places: Tensor) -> Tensor:
    """Each row at the mean of its nearest landmarks' places, weighted by 1 over the squared distance; so a row that
    equals a landmark stands where that does."""
    cosines, neighbours = nearest(rows, BETWEEN, landmarks)
    weights = 1 / (2 - 2 * cosines).clamp(min=1e-6).unsqueeze(2)
    return (weights * places[neighbours]).sum(1) / weights.sum(1)
