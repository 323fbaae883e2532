"""The images of a neighbour graph in a space where neighbours are together and all others apart.

In five dimensions it is what groups are cut from (cut.py), in two it is the map of the report.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor

from deepcluster.clustering.blocks import nearest
from deepcluster.groups.graph import graph_rows, leading_eigenvectors, neighbour_ties
from deepcluster.seeding import derive, generator

STEPS = 200
OTHERS = 256  # rows of each step that all rows are pushed away from
PUSH = 10  # weight of all pushes relative to all pulls
MAX_MOVE = 4.0  # of a row in a step, in each direction
WIDTH = 10.0  # of the space at the start, in its widest direction, either way
LANDMARKS = 10_000  # rows of the map whose positions are optimised, in 2 s
BETWEEN = 5  # landmarks that determine the position of another row
Points = npt.NDArray[Any]  # float32


def embedding(ties: csr_array, dims: int, seed: int) -> Points:
    """Return positions (float32, N x dims) of the N images of a graph.

    UMAP's objective (McInnes et al. 2018) with the similarity 1 / (1 + d^2), from the leading eigenvectors of the graph
    on, moving all rows at once: tied rows pull each other, and a few random rows push all. So groups of any shape
    become compact, and k-means finds them.
    """
    size = ties.shape[0]
    if size < 3:
        return np.eye(size, dims, dtype=np.float32)
    random = generator(seed, "embedding")
    _, vectors = leading_eigenvectors(ties, dims + 1, derive(seed, "start"))
    start = vectors[:, 1:]  # the first says no more than how well tied a row is
    places = np.zeros((size, dims), np.float32)
    places[:, : start.shape[1]] = WIDTH * start / max(1e-12, np.abs(start).max(initial=0))
    places += 1e-3 * torch.randn(places.shape, generator=random).numpy()
    weights, columns, ends = ties.data.astype(np.float32), ties.indices, ties.indptr
    rows = np.repeat(np.arange(size), np.diff(ends))
    push = np.float32(PUSH / OTHERS * weights.sum() / size)
    for step in range(STEPS):
        squares = np.einsum("ij,ij->i", places, places)
        apart = squares[rows] + squares[columns] - 2 * np.einsum("ij,ij->i", places[rows], places[columns])
        pulls = csr_array((2 * weights / (1 + apart.clip(0)), columns, ends), (size, size))
        inward = pulls @ places - np.asarray(pulls.sum(1))[:, None] * places
        others = torch.randint(size, (OTHERS,), generator=random).numpy()
        apart = (squares[:, None] + squares[others] - 2 * places @ places[others].T).clip(0)
        pushes = push / ((1e-2 + apart) * (1 + apart))
        pushes[others, np.arange(OTHERS)] = 0  # nothing pushes itself
        outward = pushes.sum(1, keepdims=True) * places - pushes @ places[others]
        move = inward + outward.clip(-MAX_MOVE, MAX_MOVE)
        places = places + np.float32(1 - step / STEPS) * move.clip(-MAX_MOVE, MAX_MOVE)
    centred: Points = places - places.mean(0)
    return centred


def layout(reduced: Tensor, seed: int = 0) -> Points:
    """Return positions (float32, N x 2) of N x d rows of length 1 such that neighbours are near each other.

    Only neighbourhoods have a meaning; the distances between groups and their apparent sizes have none. The same rows
    and seed give the same positions on one machine.
    """
    rows = graph_rows(reduced, seed, LANDMARKS)
    places = torch.zeros(len(reduced), 2)
    places[rows] = torch.from_numpy(embedding(neighbour_ties(reduced[rows]), 2, seed))
    others = torch.ones(len(reduced), dtype=torch.bool)
    others[rows] = False
    if others.any():
        places[others] = between(reduced[others], reduced[rows], places[rows])
    return places.numpy()


def between(rows: Tensor, landmarks: Tensor, places: Tensor) -> Tensor:
    """Return the mean position of each row's nearest landmarks, weighted by the inverse squared distance."""
    cosines, neighbours = nearest(rows, BETWEEN, landmarks)
    weights = 1 / (2 - 2 * cosines).clamp(min=1e-6).unsqueeze(2)
    return (weights * places[neighbours]).sum(1) / weights.sum(1)


def extended_layout(places: Points, before: Sequence[int], after: Sequence[int], reduced: Tensor) -> Points:
    """Return a map of the rows ``after``: the rows ``before`` stay at their ``places``, others come between them."""
    known, rows = torch.tensor(before), torch.tensor(after)
    number = torch.full((len(reduced),), -1)
    number[known] = torch.arange(len(known))
    index = number[rows]
    extended = torch.from_numpy(places)[index.clamp_min(0)]
    others = index < 0
    if others.any():
        extended[others] = between(reduced[rows[others]], reduced[known], torch.from_numpy(places))
    return extended.numpy()
