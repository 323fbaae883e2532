"""Features at random: of length 1 in groups that are known, and without groups."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from deepcluster.seeding import generator


def blobs(counts: Sequence[int], width: int = 8, seed: int = 0, spread: float = 0.1) -> torch.Tensor:
    """Rows of length 1 around as many directions at right angles."""
    random = torch.Generator().manual_seed(seed)
    rows = [torch.eye(width)[i] + spread * torch.randn(n, width, generator=random) for i, n in enumerate(counts)]
    return F.normalize(torch.cat(rows))


def normal(rows: int, width: int, *index: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=generator(0, "test", rows, width, *index))
