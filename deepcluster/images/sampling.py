"""Which images an epoch draws: equally many from every cluster, so that none can dominate (paper, section 3.3)."""

import torch
from torch import Tensor


def uniform_over_clusters(labels: Tensor, draws: int, random: torch.Generator) -> Tensor:
    """``draws`` image indices (int64) in random order, the same number from every non-empty cluster, +-1.

    Within a cluster the images are taken in random order, and from the start again when they are used up, so each comes
    equally often, +-1. The indices are those of ``labels``; compare :func:`official_draws`.
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

    It draws image indices uniformly over clusters, but uses them as positions in the list of images sorted by cluster.
    So the draws follow the sizes of the clusters, some images come many times, and others never.
    """
    return by_cluster(labels, torch.arange(len(labels)))[uniform_over_clusters(labels, draws, random)]


def each_once(labels: Tensor, draws: int, random: torch.Generator) -> Tensor:
    """``draws`` image indices without balancing: all images in random order, repeated as often as needed."""
    epochs = -(-draws // len(labels))
    return torch.cat([torch.randperm(len(labels), generator=random) for _ in range(epochs)])[:draws]
