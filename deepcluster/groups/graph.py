"""The neighbour graph of features, and its layout in a space with neighbours together and all others apart.

cut.py cuts clusters from the layout in ten dimensions; in two dimensions it is the map of the report.
"""

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import scipy  # the parts at first use: `predict` waits for none
import torch
from torch import Tensor

from deepcluster.clustering.blocks import nearest
from deepcluster.clustering.starts import first_occurrences
from deepcluster.runtime.threads import in_threads
from deepcluster.seeding import derive, generator

if TYPE_CHECKING:
    from scipy.sparse import csr_array

MAX_GRAPH_ROWS = 50_000  # rows in a graph
NEIGHBOURS = 15
DENSE = 2000  # up to so many rows all eigenvectors are as fast as a few, and never fail to converge
TIES = 1e-3  # share of all ties that is spread over all pairs, so that a few isolated rows do not become a cluster

DIMENSIONS = 10  # as people give UMAP; 3 to 10 differ by less than .01 NMI (benchmarks/log)
# a and b: rows at a distance d have the similarity 1 / (1 + a d^2b). Clusters of photographs are better with the second
# curve, UMAP's for a least distance of 0, but on six kinds of steel it splits one and merges two (benchmarks/log).
CURVES = ((1.0, 1.0), (1.93, 0.79))
ITERATIONS = 200
OTHERS = 256  # rows of an iteration that all rows are pushed away from
PUSH = 10  # weight of all pushes relative to all pulls
NO_DISTANCE = 1e-6  # the second curve pulls rows at a distance of 0 without a limit
MAX_MOVE = 4.0  # of a row in an iteration, along an axis
WIDTH = 10.0  # of the space at the start, in its widest direction, either way
LANDMARKS = 10_000  # rows of the map whose positions are optimised, in 2 s
BETWEEN = 5  # landmarks that determine the position of another row
Points = npt.NDArray[Any]  # float32
Numbers = npt.NDArray[np.float64]


def graph_rows(reduced: Tensor, seed: int = 0, most: int = MAX_GRAPH_ROWS) -> Tensor:
    """Return the rows of N x d features that are in their graph: the distinct ones, or a sample of ``most`` of them."""
    rows = first_occurrences(reduced)  # equal rows would have no other neighbours
    if len(rows) > most:
        rows = rows[torch.randperm(len(rows), generator=generator(seed, "sample"))[:most].sort().values]
    return rows


def neighbour_ties(rows: Tensor) -> "csr_array":
    """Return the closeness (N x N, 0 to 1) of N distinct rows of length 1 to their nearest neighbours.

    UMAP's weights (McInnes et al. 2018, sections 3.1 and 4): exp((rho - d) / sigma) with d the distance, rho the one to
    the nearest row, and sigma such that the weights of a row sum to log2 of the number of neighbours. So dense and
    sparse regions have similar ties. The two directions a, b of a tie become a + b - a b.
    """
    size = len(rows)
    if size < 2:
        return scipy.sparse.csr_array((size, size))
    count = min(size - 1, NEIGHBOURS)
    cosines, neighbours = nearest(rows, count)
    distances = (2 - 2 * cosines.double()).clamp(min=0).sqrt()
    beyond = distances - distances[:, :1]
    low, high = torch.zeros(size, 1).double(), torch.full((size, 1), 1e3).double()
    for _ in range(60):  # sigma by bisection
        middle = (low + high) / 2
        too_much = torch.exp(-beyond / middle).sum(1, keepdim=True) > math.log2(count)
        low, high = torch.where(too_much, low, middle), torch.where(too_much, middle, high)
    weights = torch.exp(-beyond / high).flatten().numpy()
    one = scipy.sparse.csr_array(
        (weights, neighbours.flatten().numpy(), np.arange(0, size * count + 1, count)), shape=(size, size)
    )
    other = scipy.sparse.csr_array(one.T)
    return scipy.sparse.csr_array(one + other - one * other)


def modularity(ties: "csr_array", labels: npt.NDArray[np.int64]) -> float:
    """Return the share of ``ties`` inside clusters, less the share of random ties inside (Newman and Girvan 2004)."""
    pairs = ties.tocoo()
    total = float(pairs.data.sum())
    within = float(pairs.data[labels[pairs.row] == labels[pairs.col]].sum()) / total
    return within - float((np.bincount(labels, ties.sum(1)) ** 2).sum()) / total**2


def leading_eigenvectors(ties: "csr_array", count: int, seed: int) -> tuple[Numbers, Numbers]:
    """Return the ``count`` largest eigenvalues of the normalised ties, from 1 on, and their vectors (N x count).

    A graph of n parts with hardly any ties between them has n eigenvalues close to 1.
    """
    size = ties.shape[0]
    count = min(size - 1, count)
    degrees = np.asarray(ties.sum(1)).ravel()
    spread = TIES * degrees.mean()
    scale = 1 / np.sqrt((1 - TIES) * degrees + spread)
    weighted = scipy.sparse.diags_array(scale * (1 - TIES)) @ ties @ scipy.sparse.diags_array(scale)

    if size <= DENSE:
        whole = weighted.toarray() + spread / size * np.outer(scale, scale)
        values, vectors = scipy.linalg.eigh(whole, subset_by_index=[size - count, size - 1], overwrite_a=True)
    else:

        def multiply(vector: Numbers) -> Any:
            return weighted @ vector.ravel() + (spread / size * (scale @ vector.ravel())) * scale

        start = torch.randn(size, generator=generator(seed, "eigenvectors"), dtype=torch.float64).numpy()
        operator = scipy.sparse.linalg.LinearOperator((size, size), matvec=multiply, dtype=np.float64)
        # Separate clusters have nearly equal eigenvalues, apart by about TIES: the tolerance is far below it.
        values, vectors = scipy.sparse.linalg.eigsh(
            operator, k=count, ncv=max(3 * count, 40), which="LA", v0=start, tol=TIES * 1e-3
        )
    order = np.argsort(-values)
    return values[order], vectors[:, order]


def spectral_positions(ties: "csr_array", dims: int, seed: int) -> Points:
    """Return positions (float32, N x dims) of the N images of a graph by its leading eigenvectors."""
    size = ties.shape[0]
    if size < 3:
        return np.eye(size, dims, dtype=np.float32)
    vectors = leading_eigenvectors(ties, dims + 1, seed)[1][:, 1:]  # the first says no more than how well tied a row is
    positions = np.zeros((size, dims), np.float32)
    positions[:, : vectors.shape[1]] = WIDTH * vectors / max(1e-12, np.abs(vectors).max(initial=0))
    return positions


def graph_layout(
    ties: "csr_array", dims: int, seed: int, start: Points | None = None, curve: tuple[float, float] = CURVES[0]
) -> Points:
    """Return positions (float32, N x dims) of the N images of a graph.

    UMAP's objective (McInnes et al. 2018) with a ``curve``, one of ``CURVES``, beginning at the leading eigenvectors
    (``start``: their positions, if these are known). All rows move at once: tied rows attract, and a few random rows
    repel all. So clusters of any shape become compact, which k-means needs.
    """
    size = ties.shape[0]
    start = spectral_positions(ties, dims, derive(seed, "start")) if start is None else start
    if size < 3:
        return start
    random = generator(seed, "embedding")
    positions = start + 1e-3 * torch.randn(start.shape, generator=random).numpy()
    weights = ties.data.astype(np.float32)
    columns = ties.indices
    ends = ties.indptr
    rows = np.repeat(np.arange(size), np.diff(ends))
    a, b = map(np.float32, curve)
    push = np.float32(PUSH / OTHERS * weights.sum() / size) * b / a
    ones = np.ones(size, np.float32)
    for iteration in range(ITERATIONS):
        squares = np.einsum("ij,ij->i", positions, positions)
        extended = np.column_stack([positions, squares, ones])  # products with it give sums and distances, too
        products = np.einsum("ij,ij->i", positions.take(rows, 0), positions.take(columns, 0))
        tied = (squares[rows] + squares[columns] - 2 * products).clip(NO_DISTANCE)
        strengths = 2 * a * b * weights * tied ** (b - 1) / (1 + a * tied**b)
        pulled = scipy.sparse.csr_array((strengths, columns, ends), (size, size)) @ extended
        inward = pulled[:, :dims] - pulled[:, -1:] * positions
        others = torch.randint(size, (OTHERS,), generator=random).numpy()
        apart = (extended @ np.column_stack([-2 * positions[others], ones[others], squares[others]]).T).clip(0)
        pushes = push / ((np.float32(1e-2) + apart) * (1 / a + apart**b))
        pushes[others, np.arange(OTHERS)] = 0  # nothing pushes itself
        pushed = pushes @ extended[others]
        outward = pushed[:, -1:] * positions - pushed[:, :dims]
        move = inward.clip(-MAX_MOVE, MAX_MOVE) + outward.clip(-MAX_MOVE, MAX_MOVE)
        positions = positions + np.float32(1 - iteration / ITERATIONS) * move.clip(-MAX_MOVE, MAX_MOVE)
    centred: Points = positions - positions.mean(0)
    return centred


def graph_layouts(ties: "csr_array", seeds: Sequence[int]) -> Tensor:
    """Return a layout of a graph for each seed, by the curves in turn, from the same leading eigenvectors."""
    start = spectral_positions(ties, DIMENSIONS, derive(seeds[0], "start"))
    pairs = zip(seeds, itertools.cycle(CURVES), strict=False)
    positions = in_threads(lambda pair: graph_layout(ties, DIMENSIONS, pair[0], start, pair[1]), pairs)
    return torch.stack([*map(torch.from_numpy, positions)])


@dataclass(frozen=True)
class Layouts:
    """Computes graphs and layouts once: they take most of a cut's time and serve all cuts."""

    #: Positions by the digest of rows and seeds, and graphs by the digest of the rows, so other rows never get them.
    known: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, rows: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return positions (float32, number of seeds x N x ``DIMENSIONS``) of N distinct rows."""
        key = _digest(rows, DIMENSIONS, *seeds)
        if key not in self.known or self.known[key].shape != (len(seeds), len(rows), DIMENSIONS):
            self.known[key] = graph_layouts(self.ties(rows), seeds)
        return self.known[key]

    def ties(self, rows: Tensor) -> "csr_array":
        """Return the :func:`neighbour_ties` of the rows, rounded to float32."""
        key = _digest(rows)
        size = len(rows)
        if key not in self.known or self.known[key].dim() != 2 or (self.known[key][:, :2] >= size).any():
            above = scipy.sparse.triu(neighbour_ties(rows)).tocoo()  # the graph is symmetric
            self.known[key] = torch.from_numpy(np.stack([above.row, above.col, above.data], 1)).float()
        row, column, weight = self.known[key].double().numpy().T
        above = scipy.sparse.csr_array((weight, (row.astype(np.int32), column.astype(np.int32))), shape=(size, size))
        return scipy.sparse.csr_array(above + above.T)


def _digest(rows: Tensor, *numbers: int) -> str:
    digest = hashlib.sha256(repr((*numbers, rows.shape)).encode())
    digest.update(rows.contiguous().numpy().data)
    return digest.hexdigest()


def layout(reduced: Tensor, seed: int = 0) -> Points:
    """Return positions (float32, N x 2) of N x d rows of length 1 with neighbours close together.

    Only neighbourhoods have a meaning; the distances between clusters and their apparent sizes have none. The same rows
    and seed give the same positions on one machine.
    """
    rows = graph_rows(reduced, seed, LANDMARKS)
    positions = graph_layout(neighbour_ties(reduced[rows]), 2, seed)
    return extended_layout(positions, rows.tolist(), range(len(reduced)), reduced)


def extended_layout(positions: Points, before: Sequence[int], after: Sequence[int], reduced: Tensor) -> Points:
    """Return a map of the rows ``after``: the rows ``before`` stay at their ``positions``.

    Others come to the mean position of their nearest landmarks, weighted by the inverse squared distance.
    """
    known, rows = (torch.tensor(numbers, dtype=torch.int64) for numbers in (before, after))
    number = torch.full((len(reduced),), -1)
    number[known] = torch.arange(len(known))
    index = number[rows]
    landmarks = torch.from_numpy(positions)
    extended = landmarks[index.clamp_min(0)]
    others = index < 0
    if others.any():
        cosines, neighbours = nearest(reduced[rows[others]], BETWEEN, reduced[known])
        weights = 1 / (2 - 2 * cosines).clamp(min=1e-6).unsqueeze(2)
        extended[others] = (weights * landmarks[neighbours]).sum(1) / weights.sum(1)
    return extended.numpy()
