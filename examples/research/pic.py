"""Power iteration clustering, the paper's second clustering, as a step 4 of your own.

Every row is tied to its 5 nearest ones by exp(-d^2 / 0.2^2), and ties count both ways. Each row has a mass, at first
1/N, and masses flow over the ties. Then every row points to its tied neighbour with the largest gain of mass. A row
without a gain makes a cluster with all rows that lead to it, so the method chooses the number of clusters itself. The
numbers are those of the code released with the paper. All pairs of images are compared: it suits tens of thousands.

python examples/research/pic.py IMAGES RUN [RECIPE]
"""

import sys

import numpy as np
from scipy.sparse import csr_array
from sklearn.neighbors import NearestNeighbors

from deepcluster import DeepCluster
from deepcluster.clustering import as_clustering

NEIGHBOURS = 5
SIGMA = 0.2  # the scale of distances, for rows of length 1
ALPHA = 0.001  # the share of a step that flows over the ties
ITERATIONS = 200


def power_iteration(rows, clusters, previous, *, seed, round):
    """Step 4, for one clustering. It needs no seed, no previous labels and no number of clusters."""
    return (as_clustering(labels_of(rows.cpu().numpy().astype(np.float64)), rows),)


def labels_of(rows):
    """Return the labels, numbers from 0, of at least two rows (N x d)."""
    search = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(rows) - 1)).fit(rows)
    distances, neighbours = search.kneighbors()  # nearest first, and without the row itself
    peaks = peaks_of(ties_of(distances, neighbours))
    return without_singletons(peaks, neighbours[:, 0])


def ties_of(distances, neighbours):
    """Return the ties of all rows: symmetric, N x N."""
    weights = np.exp(-((distances / SIGMA) ** 2))
    starts = np.arange(0, weights.size + 1, weights.shape[1])
    one_way = csr_array((weights.ravel(), neighbours.ravel(), starts), shape=(len(weights), len(weights)))
    return (one_way + one_way.T).tocsr()


def peaks_of(ties):
    """Return for every row the local maximum of mass that it leads to."""
    count = ties.shape[0]
    masses = np.full(count, 1 / count)
    for _ in range(ITERATIONS):
        masses = ALPHA * (ties @ masses) + (1 - ALPHA) / count
        masses /= masses.sum()
    leads_to = np.arange(count)
    for row in range(count):
        tied = slice(ties.indptr[row], ties.indptr[row + 1])
        others = ties.indices[tied]
        gains = ties.data[tied] * (masses[others] - masses[row])
        if gains.max(initial=0) > 0:  # a far row has no ties
            leads_to[row] = others[gains.argmax()]
    while (leads_to[leads_to] != leads_to).any():  # mass only grows on the way, so no row leads back to itself
        leads_to = leads_to[leads_to]
    return leads_to


def without_singletons(peaks, nearest):
    """Return the labels of the clusters after a cluster of one row has joined that of its nearest row."""
    _, labels, sizes = np.unique(peaks, return_inverse=True, return_counts=True)
    for row in np.flatnonzero(sizes[labels] == 1):
        if sizes[labels[row]] == 1:  # no other row has joined it meanwhile
            sizes[labels[row]] = 0
            labels[row] = labels[nearest[row]]
            sizes[labels[row]] += 1
    return np.unique(labels, return_inverse=True)[1]


if __name__ == "__main__":
    images, run, *recipe = sys.argv[1:]
    model = DeepCluster(recipe=recipe[0] if recipe else "v1", clustering=power_iteration, verbose=1)
    model.fit(images, run=run)
