"""Embeddings of neighbour graphs. They take most of the time of a cut, and serve cuts into any number of groups."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deepcluster.groups.graph import embedding, neighbour_ties, spectral_start
from deepcluster.seeding import derive

DIMENSIONS = 5  # 3 to 30 differ by .01 NMI at most; 5 moves least with the seed (docs/decisions.md)
# From N distinct rows and one seed per embedding to positions, float32, number of seeds x N x DIMENSIONS.
Embed = Callable[[Tensor, Sequence[int]], Tensor]


def embedded(rows: Tensor, seeds: Sequence[int]) -> Tensor:
    """Embed the graph of the rows once per seed; the embeddings share the eigenvectors from which they begin."""
    ties = neighbour_ties(rows)
    start = spectral_start(ties, DIMENSIONS, derive(seeds[0], "start"))
    return torch.stack([torch.from_numpy(embedding(ties, DIMENSIONS, seed, start)) for seed in seeds])


@dataclass(frozen=True)
class Embeddings:
    """An :data:`Embed` that computes every embedding once.

    Attributes:
        known: Positions by the digest of their rows and seeds, so those of other rows are never taken.
    """

    known: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, rows: Tensor, seeds: Sequence[int]) -> Tensor:
        digest = hashlib.sha256(repr((DIMENSIONS, *seeds, rows.shape)).encode())
        digest.update(rows.contiguous().numpy().data)
        key = digest.hexdigest()
        if key not in self.known or self.known[key].shape != (len(seeds), len(rows), DIMENSIONS):
            self.known[key] = embedded(rows, seeds)
        return self.known[key]
