"""The neighbour graph of features, and what its eigenvectors say of the groups in it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import eigh
from scipy.sparse import csr_array, diags_array
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor
from torch.nn import functional as F

from deepcluster.clustering.kmeans import best_of, first_occurrences
from deepcluster.clustering.nearest import nearest
from deepcluster.seeding import generator

STARTS = 10  # of k-means on the eigenvectors; the best counts
SAMPLE = 50_000  # rows in a graph
NEIGHBOURS = 15
MORE = (0.2, 0.5)  # eigenvectors beyond one for each group, as a share of the groups: at least and at most
CLEAR = 1.25  # between two eigenvalues there is a gap where their distance from 1 grows by a quarter
DENSE = 2000  # up to so many rows all eigenvectors are as fast as a few, and never fail to converge
TIES = 1e-3  # share of all ties that is spread over all pairs, so that a few isolated rows do not become a group
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Graph:
    """How close images are.

    Attributes:
        rows: the images in the graph, out of all N (int64, M, ascending).
        ties: the closeness of each pair of them (M x M, 0 to 1).
    """

    rows: Tensor
    ties: csr_array


def graph_rows(reduced: Tensor, seed: int = 0) -> Tensor:
    """The rows of N x d features that are in their graph: the distinct ones, or a sample of ``SAMPLE`` of them."""
    rows = first_occurrences(reduced)  # equal rows would be each other's neighbours, and nobody else's
    if len(rows) > SAMPLE:
        rows = rows[torch.randperm(len(rows), generator=generator(seed, "sample"))[:SAMPLE].sort().values]
    return rows


def neighbour_graph(reduced: Tensor, seed: int = 0) -> Graph:
    """The graph of N x d features (rows of length 1)."""
    rows = graph_rows(reduced, seed)
    return Graph(rows, neighbour_ties(reduced[rows]))


def joined_graphs(first: Graph, others: Sequence[Graph], weights: Sequence[float]) -> Graph:
    """The mean of ``first`` and of the weighted mean of the ``others``, between the images that all of them have.

    Args:
        first: counts as much as all others together where their weights are 1.
        others: further graphs.
        weights: of the others, 0 to 1; where all are 0 the first graph stays as it is.
    """
    if not any(weights):
        return first
    rows = first.rows
    for other in others:
        rows = rows[torch.isin(rows, other.rows)]
    ties = _between(first, rows)
    for other, weight in zip(others, weights, strict=True):
        ties = ties + weight / len(others) * _between(other, rows)
    ties = csr_array(ties / (1 + sum(weights) / len(others)))
    return Graph(rows, csr_array(ties.astype(np.float32).astype(np.float64)))  # as a file has it


def inside(graph: Graph, rows: Tensor, groups: Tensor) -> float:
    """The share of the ties between ``rows`` that are inside their ``groups`` (int64): 0 by chance, at most 1."""
    group_of, ties = groups.numpy(), _between(graph, rows)
    pairs = ties.tocoo()
    total = float(pairs.data.sum())
    alike = float(pairs.data[group_of[pairs.row] == group_of[pairs.col]].sum()) / total
    chance = float((np.bincount(group_of, ties.sum(1)) ** 2).sum()) / total**2
    return (alike - chance) / max(1e-12, 1 - chance)  # one group of all


def _between(graph: Graph, rows: Tensor) -> csr_array:
    if len(rows) == len(graph.rows):
        return graph.ties
    kept = torch.isin(graph.rows, rows).nonzero().flatten().numpy()
    return csr_array(graph.ties[kept][:, kept])


def neighbour_ties(rows: Tensor) -> csr_array:
    """The closeness (N x N, 0 to 1) of N distinct rows of length 1 to their nearest neighbours.

    UMAP's weights (McInnes et al. 2018, sections 3.1 and 4): exp((rho - d) / sigma) with d the distance, rho the one to
    the nearest row, and sigma such that the weights of a row sum to log2 of the number of neighbours. So a row's
    neighbourhood is near to it in dense and in sparse regions alike. The two directions a, b of a tie become
    a + b - a b.
    """
    size = len(rows)
    if size < 2:
        return csr_array((size, size))
    count = min(size - 1, NEIGHBOURS)
    cosines, neighbours = nearest(rows, count)
    weights = _weights((2 - 2 * cosines.double()).clamp(min=0).sqrt()).flatten().numpy()
    one = csr_array((weights, neighbours.flatten().numpy(), np.arange(0, size * count + 1, count)), shape=(size, size))
    other = csr_array(one.T)
    return csr_array(one + other - one * other)


def _weights(distances: Tensor) -> Tensor:
    """The weights of each row's neighbours, of N x n ascending ``distances``; sigma by bisection."""
    beyond = distances - distances[:, :1]
    total = math.log2(distances.shape[1])
    low, high = torch.zeros(len(beyond), 1).double(), torch.full((len(beyond), 1), 1e3).double()
    for _ in range(60):
        middle = (low + high) / 2
        too_much = torch.exp(-beyond / middle).sum(1, keepdim=True) > total
        low, high = torch.where(too_much, low, middle), torch.where(too_much, middle, high)
    return torch.exp(-beyond / high)


def normalised_cut(ties: csr_array, k: int, seed: int) -> Tensor:
    """The group (int64, N) of each row, by k-means on the leading eigenvectors of the normalised ties."""
    values, vectors = leading_eigenvectors(ties, k + _more(k)[1] + 1, seed)
    leading = np.ascontiguousarray(vectors[:, : _pieces(values, k)])
    embedding = F.normalize(torch.from_numpy(leading).float(), dim=1)
    return best_of(STARTS, embedding, k, seed).labels


def leading_eigenvectors(ties: csr_array, count: int, seed: int) -> tuple[Numbers, Numbers]:
    """The ``count`` largest eigenvalues of the normalised ties, descending from 1, and their vectors (N x count).

    As many of them are close to 1 as the graph has parts that are hardly tied to each other.
    """
    size = ties.shape[0]
    count = min(size - 1, count)
    degrees = np.asarray(ties.sum(1)).ravel()
    spread = TIES * degrees.mean()
    scale = 1 / np.sqrt((1 - TIES) * degrees + spread)
    weighted = diags_array(scale * (1 - TIES)) @ ties @ diags_array(scale)

    def multiply(vector: Numbers) -> Numbers:
        vector = vector.ravel()
        product: Numbers = weighted @ vector + (spread / size * (scale @ vector)) * scale
        return product

    if size <= DENSE:
        whole = weighted.toarray() + spread / size * np.outer(scale, scale)
        values, vectors = eigh(whole, subset_by_index=[size - count, size - 1], overwrite_a=True)
    else:
        start = torch.randn(size, generator=generator(seed, "eigenvectors"), dtype=torch.float64).numpy()
        operator = LinearOperator((size, size), matvec=multiply, dtype=np.float64)
        # Separate groups have nearly equal eigenvalues, apart by about TIES: the tolerance is far below it.
        values, vectors = eigsh(operator, k=count, ncv=max(3 * count, 40), which="LA", v0=start, tol=TIES * 1e-3)
    order = np.argsort(-values)
    return values[order], vectors[:, order]


def _pieces(values: Numbers, k: int) -> int:
    """The number of pieces in the graph of ``k`` groups, by the clearest gap between its descending eigenvalues.

    A class may consist of several pieces (two ways to write a digit); with too few eigenvectors two classes share one.
    """
    least, most = _more(k)
    below = 1 - values[k + least - 1 : k + most + 1]
    ratios = below[1:] / np.maximum(below[:-1], 1e-12)
    return k + least + (int(np.argmax(ratios)) if ratios.max() >= CLEAR else 0)


def _more(k: int) -> tuple[int, int]:
    """The least and the most eigenvectors beyond ``k``: none for two groups, where a third would split a ring."""
    least, most = (max(1, round(share * k)) for share in MORE)
    return (least, most) if k > 2 else (0, 0)
