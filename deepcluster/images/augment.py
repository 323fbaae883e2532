"""Batches as a network sees them: the fixed view for features, and per-image random views for training.

Every image of a batch gets its own crop, flip, rotation and colour, and the whole batch is computed at once: one affine
map of the sampling grid and one affine map of the colours.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, what Pillow's convert("L") uses


@dataclass(frozen=True)
class Augmentation:
    """How far a training view may be from the image.

    crop: least and largest area of the crop, as a share of the image (above 1: the image shrinks inside the view).
    stretch: largest ratio of the crop's sides, to either side. flip: probability of mirroring left and right.
    rotation: largest angle in degrees. colour: largest relative change of brightness, contrast and saturation.
    grey: probability of losing the colours.
    """

    crop: tuple[float, float] = (0.08, 1.0)
    stretch: float = 4 / 3
    flip: float = 0.5
    rotation: float = 0.0
    colour: float = 0.0
    grey: float = 0.0


def fixed_view(images: Tensor, size: int) -> Tensor:
    """The central ``size`` x ``size`` pixels of B x 3 x S x S uint8 images, as float32 in [0, 1]."""
    edge = (images.shape[-1] - size) // 2
    return images[..., edge : edge + size, edge : edge + size].float() / 255


def random_views(images: Tensor, size: int, how: Augmentation, random: torch.Generator) -> Tensor:
    """A random ``size`` x ``size`` view of each of B x 3 x S x S uint8 images, as float32 in [0, 1]."""
    views = images.float() / 255
    grid = F.affine_grid(
        random_affine(len(images), how, random).to(views.device), [len(images), 3, size, size], align_corners=False
    )
    views = F.grid_sample(views, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if how.colour > 0 or how.grey > 0:
        views = random_colours(views, how, random)
    return views


def random_affine(count: int, how: Augmentation, random: torch.Generator) -> Tensor:
    """Maps (count x 2 x 3) from output to input coordinates, both in [-1, 1]."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=random) * (high - low) + low

    area = uniform(*how.crop)
    ratio = torch.exp(uniform(-math.log(how.stretch), math.log(how.stretch)))
    # A crop that is wider or higher than the image takes the whole side, but a view may be asked to show more than all.
    limit = max(1.0, math.sqrt(how.crop[1]))
    width, height = (area * ratio).sqrt().clamp(max=limit), (area / ratio).sqrt().clamp(max=limit)
    x, y = uniform(-1, 1) * (1 - width).abs(), uniform(-1, 1) * (1 - height).abs()
    mirror = 1.0 - 2.0 * (torch.rand(count, generator=random) < how.flip).float()
    angle = uniform(-how.rotation, how.rotation) * (math.pi / 180)
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.stack(
        [
            torch.stack([cos * width * mirror, -sin * height, x], 1),
            torch.stack([sin * width * mirror, cos * height, y], 1),
        ],
        1,
    )


def random_colours(views: Tensor, how: Augmentation, random: torch.Generator) -> Tensor:
    """Per-image saturation, contrast and brightness, in this order, clamped to [0, 1]."""
    count = len(views)

    def factor() -> Tensor:
        values = 1 + how.colour * (2 * torch.rand(count, generator=random) - 1)
        return values.view(-1, 1, 1, 1).to(views.device)

    saturation, contrast, brightness = factor(), factor(), factor()
    colourless = (torch.rand(count, generator=random) < how.grey).view(-1, 1, 1, 1).to(views.device)
    saturation = torch.where(colourless, torch.zeros_like(saturation), saturation)
    grey = (views * torch.tensor(GREY, device=views.device).view(1, 3, 1, 1)).sum(1, keepdim=True)
    level = grey.mean((2, 3), keepdim=True)
    views = grey + saturation * (views - grey)
    views = brightness * (level + contrast * (views - level))
    return views.clamp_(0, 1)
