"""The neighbour graph of features, and its leading eigenvectors."""

import math

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import eigh
from scipy.sparse import csr_array, diags_array
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from deepcluster.clustering.blocks import nearest
from deepcluster.clustering.kmeans import first_occurrences
from deepcluster.seeding import generator

SAMPLE = 50_000  # rows in a graph
NEIGHBOURS = 15
DENSE = 2000  # up to so many rows all eigenvectors are as fast as a few, and never fail to converge
TIES = 1e-3  # share of all ties that is spread over all pairs, so that a few isolated rows do not become a group
Numbers = npt.NDArray[np.float64]


def graph_rows(reduced: Tensor, seed: int = 0, most: int = SAMPLE) -> Tensor:
    """Return the rows of N x d features that are in their graph: the distinct ones, or a sample of ``most`` of them."""
    rows = first_occurrences(reduced)  # equal rows would be each other's neighbours, and nobody else's
    if len(rows) > most:
        rows = rows[torch.randperm(len(rows), generator=generator(seed, "sample"))[:most].sort().values]
    return rows


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


def modularity(ties: csr_array, labels: npt.NDArray[np.int64]) -> float:
    """Return the share of the ``ties`` inside groups, less that of as many random ones (Newman and Girvan 2004)."""
    pairs = ties.tocoo()
    total = float(pairs.data.sum())
    within = float(pairs.data[labels[pairs.row] == labels[pairs.col]].sum()) / total
    return within - float((np.bincount(labels, ties.sum(1)) ** 2).sum()) / total**2


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
