"""Which images one epoch draws: as many from every cluster, so that none can dominate (paper, section 3.3)."""

import torch
from torch import Tensor


def uniform_over_clusters(labels: Tensor, draws: int, random: torch.Generator) -> Tensor:
    """``draws`` image indices (int64) in random order, the same number from every cluster that is not empty, +-1.

    Within a cluster the images are taken in a random order, and again from the start when they are used up: so each
    comes as often as any other, +-1. The indices are those of ``labels`` itself. (The released DeepCluster code indexes
    a list sorted by cluster with indices of the unsorted one; its draws follow the sizes of the clusters.)
    """
    shuffled = torch.randperm(len(labels), generator=random)
    members = by_cluster(labels, shuffled)  # in random order within a cluster
    sizes = torch.bincount(labels)
    starts = sizes.cumsum(0) - sizes
    occupied = torch.nonzero(sizes).flatten()
    quota = torch.full((len(occupied),), draws // len(occupied))
    quota[torch.randperm(len(occupied), generator=random)[: draws % len(occupied)]] += 1
    cluster = occupied.repeat_interleave(quota)
    turn = torch.arange(draws) - (quota.cumsum(0) - quota).repeat_interleave(quota)
    chosen = members[starts[cluster] + turn % sizes[cluster]]
    return chosen[torch.randperm(draws, generator=random)]


def by_cluster(labels: Tensor, order: Tensor) -> Tensor:
    """The indices in ``order``, sorted by cluster."""
    return order[torch.argsort(labels[order], stable=True)]


def official_draws(labels: Tensor, draws: int, random: torch.Generator) -> Tensor:
    """What the released DeepCluster code draws, for the record: it does not balance.

    It draws image numbers uniformly over clusters and takes them for places in the list of all images sorted by
    cluster. A place says nothing about the cluster of the image that was drawn, so large clusters get as many draws as
    they have images, some images come many times, and others never.
    """
    return by_cluster(labels, torch.arange(len(labels)))[uniform_over_clusters(labels, draws, random)]


def each_once(labels: Tensor, draws: int, random: torch.Generator) -> Tensor:
    """``draws`` image indices without balancing: every image once in random order, repeated as far as needed."""
    epochs = -(-draws // len(labels))
    return torch.cat([torch.randperm(len(labels), generator=random) for _ in range(epochs)])[:draws]
