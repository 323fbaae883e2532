"""Clustering (step 4) by the paper's second choice: power iterations on the neighbour graph, and its local maxima."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor

from deepcluster.clustering.blocks import matrix, nearest
from deepcluster.clustering.kmeans import as_clustering
from deepcluster.errors import NonFiniteError
from deepcluster.records import Clustering
from deepcluster.runtime.partition import Partition

NEIGHBOURS = 5
SIGMA = 0.2  # the scale of distances, for rows of length 1
ALPHA = 0.001  # the share of a step that comes over the ties
ITERATIONS = 200
EXACT = 1 << 10  # rows whose distances are computed at a time
Numbers = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


def pic(x: Tensor | npt.NDArray[np.floating]) -> Clustering:
    """Group N rows of length 1 by power iteration clustering; it finds the number of clusters itself.

    Every row is tied to its 5 nearest ones by exp(-d^2 / 0.2^2), and ties count both ways (W, symmetric). Each row has
    a mass v, at first 1/N; a step of the power iteration is v = 0.001 W v + 0.999 / N, scaled to the sum 1. After 200
    of them a row points to the neighbour j with the largest W_ij (v_j - v_i) above 0. A row that points nowhere is a
    local maximum and makes a cluster with all rows that lead to it. A cluster of one row goes to that of its nearest
    row, so none is smaller than two (if N is not). The numbers are those of the code released with Caron et al. 2018;
    to which of its terms a step gives 0.001 changed the number of clusters by 1 to 2 % (docs/decisions.md).

    Takes N^2 d multiplications and memory for 5 N ties. Nothing is random.

    Args:
        x: N x d, of any floating type.

    Returns:
        ``centroids`` are the means of the clusters, and ``inertia`` is around them. Unlike after k-means, a row may be
        nearer to the mean of another cluster.

    Raises:
        ValueError: There are no rows.
        NonFiniteError: NaN or infinity in the rows.
    """
    x = matrix(x)
    clustering = as_clustering(_labels(x), x)
    tensors = {name: getattr(clustering, name).to(x.device) for name in ("labels", "centroids", "sizes")}
    return replace(clustering, iterations=ITERATIONS, **tensors)


def _labels(x: Tensor) -> Tensor:
    rows = len(x)
    if not rows:
        raise ValueError("there are no rows to group")
    if bad := int((~torch.isfinite(x).all(1)).sum()):
        raise NonFiniteError(f"{bad} of {rows} rows are not finite")
    neighbours, distances = _nearest(x, min(NEIGHBOURS, rows - 1))
    ties = _ties(neighbours, distances)
    tops = _leads_to(ties, _masses(ties))
    return torch.from_numpy(_without_singletons(tops, neighbours))


def _nearest(x: Tensor, count: int) -> tuple[Indices, Numbers]:
    """Return the ``count`` nearest other rows of every row, nearest first, and their squared distances: N x count."""
    x = x.float()
    _, numbers = nearest(x, count, offsets=x.square().sum(1) / 2)
    distances = torch.empty(len(x), count, dtype=torch.float64)
    for part, indices, squared in zip(x.split(EXACT), numbers.split(EXACT), distances.split(EXACT), strict=True):
        # As a sum of squares: as a difference of products it would be rounding errors if rows are close.
        exact = (x[indices.to(x.device)].double() - part.double().unsqueeze(1)).square().sum(2)
        exact, order = exact.sort(dim=1, stable=True)
        indices.copy_(indices.gather(1, order.cpu()))
        squared.copy_(exact)
    return numbers.numpy(), distances.numpy()


def _ties(neighbours: Indices, distances: Numbers) -> csr_array:
    rows, count = neighbours.shape
    weights = np.exp(-distances / SIGMA**2).ravel()
    one = csr_array((weights, neighbours.ravel(), count * np.arange(rows + 1)), (rows, rows))
    return csr_array(one + one.T)


def _masses(ties: csr_array) -> Numbers:
    rows = ties.shape[0]
    masses = np.full(rows, 1 / rows)
    for _ in range(ITERATIONS):
        masses = ALPHA * (ties @ masses) + (1 - ALPHA) / rows
        masses /= masses.sum()
    return masses


def _leads_to(ties: csr_array, masses: Numbers) -> Indices:
    """Return the local maxima that the rows lead to; a local maximum leads to itself."""
    pairs = ties.tocoo()
    gains = pairs.data * (masses[pairs.col] - masses[pairs.row])
    order = np.lexsort((pairs.col, -gains, pairs.row))  # of a row's neighbours the best first
    order = order[gains[order] > 0]
    climbing, first = np.unique(pairs.row[order], return_index=True)
    pointers = np.arange(len(masses))
    pointers[climbing] = pairs.col[order][first]
    while not np.array_equal(further := pointers[pointers], pointers):  # it only goes up, so there is no circle
        pointers = further
    return pointers


def _without_singletons(tops: Indices, neighbours: Indices) -> Indices:
    """Numbers 0 to K - 1 of the clusters, in order of their local maxima, after those of one row went to another."""
    labels = np.unique(tops, return_inverse=True)[1].astype(np.int64)
    sizes = np.bincount(labels)
    for row in np.flatnonzero(sizes[labels] == 1) if neighbours.shape[1] else ():
        if sizes[labels[row]] == 1:  # no other one has come to it meanwhile
            sizes[labels[row]] = 0
            labels[row] = labels[neighbours[row, 0]]
            sizes[labels[row]] += 1
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def power_iteration(
    rows: Tensor, clusters: Sequence[int], previous: Tensor | None, *, seed: int, round: int, partition: Partition
) -> tuple[Clustering, ...]:
    """Step 4 by :func:`pic` on the main rank. It finds the number of clusters itself."""
    gathered = partition.gather(rows)
    labels = partition.processes.broadcast_tensors(lambda: {"labels": _labels(gathered)})["labels"]
    return (replace(as_clustering(labels, rows, partition=partition), iterations=ITERATIONS),)
