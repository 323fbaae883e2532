"""The images of a neighbour graph in a space where neighbours are together and all others apart."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array

from deepcluster.groups.neighbour_graph import leading_eigenvectors
from deepcluster.seeding import derive, generator

STEPS = 200
OTHERS = 64  # rows of each step that all rows are pushed away from
PUSH = 10  # weight of all pushes relative to all pulls
LONGEST_MOVE = 4.0  # of a row in a step, in each direction
WIDTH = 10.0  # of the space at the start, in its widest direction, either way
Points = npt.NDArray[Any]  # float32


def embedding(ties: csr_array, dims: int, seed: int) -> Points:
    """Positions (float32, N x d, d at most ``dims``) of the N images of a graph.

    UMAP's objective (McInnes et al. 2018) with the similarity 1 / (1 + d^2), from the leading eigenvectors of the graph
    on, moving all rows at once: tied rows pull each other, and a few random rows push all. So groups of any shape
    become compact, and a k-means or Ward's tree of the positions finds them.
    """
    size = ties.shape[0]
    random = generator(seed, "embedding")
    _, vectors = leading_eigenvectors(ties, dims + 1, derive(seed, "start"))
    start = vectors[:, 1:]  # the first says no more than how well tied a row is
    places = (WIDTH * start / max(1e-12, np.abs(start).max(initial=0))).astype(np.float32)
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
        move = inward + outward.clip(-LONGEST_MOVE, LONGEST_MOVE)
        places = places + np.float32(1 - step / STEPS) * move.clip(-LONGEST_MOVE, LONGEST_MOVE)
    centred: Points = places - places.mean(0)
    return centred
