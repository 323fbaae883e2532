"""Several networks as one, written ``A+B``: the features of each, side by side."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Joined(nn.Module):
    """A body whose features are those of several bodies, each part divided by its length so that none counts more.

    Args:
        bodies: From normalised images to B x D_i features.
        means: Of each colour, for each body.
        stds: Likewise.
    """

    def __init__(self, bodies: Sequence[nn.Module], means: Sequence[Sequence[float]], stds: Sequence[Sequence[float]]):
        super().__init__()
        self.bodies = nn.ModuleList(bodies)
        self.means: Tensor
        self.stds: Tensor
        self.register_buffer("means", torch.tensor(means).view(-1, 3, 1, 1), persistent=False)
        self.register_buffer("stds", torch.tensor(stds).view(-1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        parts = zip(self.bodies, self.means, self.stds, strict=True)
        return torch.cat([F.normalize(body((images - mean) / std)) for body, mean, std in parts], 1)
