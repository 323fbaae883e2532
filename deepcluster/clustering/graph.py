"""The neighbour graph of features, and what its eigenvectors say of the groups in it."""

import math

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import eigh
from scipy.sparse import csr_array, diags_array
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor
from torch.nn import functional as F

from deepcluster.clustering.kmeans import best_of
from deepcluster.seeding import generator

STARTS = 10
MORE = (0.2, 0.5)  # eigenvectors beyond one for each group, as a share of the groups, at least and at most
DENSE = 2000  # rows up to which all eigenvectors are as fast as a few, and never fail to converge
TIES = 1e-3  # share of all ties that is spread over all pairs, so that a few rows apart from all others are no group
Numbers = npt.NDArray[np.float64]


def neighbour_ties(rows: Tensor) -> csr_array:
    """N x N: 1 for a row and one of its nearest neighbours, 2 where that is mutual."""
    size = len(rows)
    count = min(size - 1, max(3, round(math.log(size))))  # about as many as keep a random graph in one piece
    nearest = torch.empty(size, count, dtype=torch.int64)
    for begin in range(0, size, 500):
        part = rows[begin : begin + 500]
        likeness = part @ rows.T
        likeness[torch.arange(len(part)), torch.arange(begin, begin + len(part))] = -torch.inf  # not itself
        nearest[begin : begin + 500] = likeness.topk(count, 1).indices
    ones = np.ones(size * count)
    ties = csr_array((ones, nearest.flatten().numpy(), np.arange(0, size * count + 1, count)), shape=(size, size))
    return csr_array(ties + ties.T)


def normalised_cut(ties: csr_array, k: int, seed: int) -> Tensor:
    """The group (int64, N) of each row, by k-means on the leading eigenvectors of the normalised ties."""
    values, vectors = leading_eigenvectors(ties, k + _more(k)[1] + 1, seed)
    leading = np.ascontiguousarray(vectors[:, : _pieces(values, k)])
    found = F.normalize(torch.from_numpy(leading).float(), dim=1)
    return best_of(STARTS, found, k, seed).labels


def leading_eigenvectors(ties: csr_array, count: int, seed: int) -> tuple[Numbers, Numbers]:
    """The ``count`` largest eigenvalues of the normalised ties, descending from 1, and their vectors, N x count.

    There are as many of about 1 as the graph has parts that are hardly tied to each other.
    """
    size = ties.shape[0]
    count = min(size - 1, count)
    degrees = np.asarray(ties.sum(1)).ravel()
    spread = TIES * degrees.mean()
    scale = 1 / np.sqrt((1 - TIES) * degrees + spread)
    weighted = diags_array(scale * (1 - TIES)) @ ties @ diags_array(scale)

    def multiply(vector: Numbers) -> Numbers:
        vector = vector.ravel()
        found: Numbers = weighted @ vector + (spread / size * (scale @ vector)) * scale
        return found

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


def _more(k: int) -> tuple[int, int]:
    """How many eigenvectors beyond ``k`` to take, at least and at most. With fewer than 3 groups there is none more: a
    third one splits a ring that is one group."""
    least, most = (max(1, round(share * k)) for share in MORE)
    return (least, most) if k > 2 else (0, 0)


def _pieces(values: Numbers, k: int) -> int:
    """How many pieces the graph of ``k`` groups has, by the largest gap in its descending eigenvalues.

    A class may come in several (two ways to write a digit), and with an eigenvector too few two classes share one.
    """
    least, most = _more(k)
    gaps = values[k + least - 1 : k + most] - values[k + least : k + most + 1]
    return k + least + int(np.argmax(gaps))
