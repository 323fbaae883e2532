"""The groups of a neighbour graph that several ways to find them agree on."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import csr_array
from torch import Tensor

from deepcluster.clustering.kmeans import best_of
from deepcluster.clustering.nearest import nearest
from deepcluster.groups.embedding import Points, embedding
from deepcluster.groups.neighbour_graph import STARTS, normalised_cut
from deepcluster.seeding import derive, generator

DIMENSIONS = (10, 30)
MOST_ROWS = 20_000  # of a graph: the embeddings of more take minutes, and the normalised cut alone has to do
WARD_ROWS = 3000  # in a tree, which takes the square of it; the others follow the nearest of them


def consensus_cut(ties: csr_array, k: int, seed: int) -> Tensor:
    """The group (int64, N) of each image of a graph: its normalised cut, once others have had a say in the ties.

    The normalised cut finds groups of any shape, but decides by a few weak ties where groups touch. Ward's tree and
    k-means of embeddings (embedding.py) decide by many, but split a long group. Each tie counts by the share of these
    labelings that have both ends in one group (evidence accumulation, Fred and Jain 2005), and the normalised cut of
    that makes the groups.
    """
    labels = normalised_cut(ties, k, seed)
    if not k < ties.shape[0] <= MOST_ROWS:
        return labels
    labelings = [labels]
    for dims in DIMENSIONS:
        own = derive(seed, "embedding", dims)
        places = embedding(ties, dims, own)
        labelings += [best_of(STARTS, torch.from_numpy(places), k, own).labels, ward_labels(places, k, own)]
    return normalised_cut(agreed(ties, labelings), k, seed)


def agreed(ties: csr_array, labelings: Sequence[Tensor]) -> csr_array:
    """The ties, each times the share of the ``labelings``, and of one that has a single group, that it is inside of."""
    pairs = ties.tocoo()
    shares = np.ones(len(pairs.data))
    for labels in labelings:
        groups = labels.numpy()
        shares += groups[pairs.row] == groups[pairs.col]
    return csr_array((pairs.data * shares / (1 + len(labelings)), (pairs.row, pairs.col)), shape=ties.shape)


def ward_labels(places: Points, k: int, seed: int) -> Tensor:
    """The cut of Ward's tree (1963) into ``k`` groups."""
    size = len(places)
    chosen = torch.randperm(size, generator=generator(seed, "tree"))[:WARD_ROWS].sort().values
    labels = torch.from_numpy(fcluster(linkage(places[chosen.numpy()], "ward"), k, "maxclust").astype(np.int64) - 1)
    if len(chosen) == size:
        return labels
    rows = torch.from_numpy(places)
    among = rows[chosen]
    return labels[nearest(rows, 1, among, offsets=among.square().sum(1) / 2)[1].flatten()]
