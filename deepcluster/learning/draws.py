"""The images that an epoch draws: uniformly over the clusters, as the released code does, or each once."""

import torch
from torch import Tensor


def uniform_over_clusters(labels: Tensor, draws: int, random: torch.Generator) -> Tensor:
    """Draw image indices (int64) in random order, the same number from every non-empty cluster, +-1.

    Within a cluster the images come in random order, and from the start again when they are used up, so all come
    equally often, +-1. The draws are indices into ``labels``; compare :func:`official_draws`.

    Examples:
        >>> labels = torch.tensor([0, 0, 0, 1])
        >>> drawn = uniform_over_clusters(labels, 6, torch.Generator())
        >>> labels[drawn].bincount()
        tensor([3, 3])
    """
    shuffled = torch.randperm(len(labels), generator=random)
    members = shuffled[torch.argsort(labels[shuffled], stable=True)]  # in random order within a cluster
    sizes = torch.bincount(labels)
    starts = sizes.cumsum(0) - sizes
    occupied = torch.nonzero(sizes).flatten()
    quota = torch.full((len(occupied),), draws // len(occupied))
    quota[torch.randperm(len(occupied), generator=random)[: draws % len(occupied)]] += 1
    cluster = occupied.repeat_interleave(quota)
    turn = torch.arange(draws) - (quota.cumsum(0) - quota).repeat_interleave(quota)
    chosen = members[starts[cluster] + turn % sizes[cluster]]
    return chosen[torch.randperm(draws, generator=random)]


def official_draws(labels: Tensor, draws: int, random: torch.Generator) -> Tensor:
    """Draw like the released DeepCluster code, for the record: it does not balance.

    It draws image indices uniformly over clusters, but uses them as positions in the list of images sorted by cluster.
    So the draws follow the sizes of the clusters, some images come many times, and others never.
    """
    return torch.argsort(labels, stable=True)[uniform_over_clusters(labels, draws, random)]


def each_once(labels: Tensor, draws: int, random: torch.Generator) -> Tensor:
    """Draw image indices without balancing: all images in random order, repeated as often as needed."""
    epochs = -(-draws // len(labels))
    return torch.cat([torch.randperm(len(labels), generator=random) for _ in range(epochs)])[:draws]
