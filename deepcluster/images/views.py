"""Batches for a network: the fixed view, and random views for training.

Every image of a batch gets its own crop, flip, rotation and colours; the whole batch is computed at once: one affine
map of the sampling grid and one affine map of the colours.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from deepcluster.runtime.ahead import to_device

PIXELS_AT_ONCE = 1 << 18  # pixels of stored images that become views at a time, on a CPU
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's convert("L") uses


@dataclass(frozen=True)
class Augmentation:
    """Range of the differences between a training view and its image.

    Examples:
        >>> Learning(views=(Augmentation(size=96), Augmentation(size=64, crop=(0.05, 0.3)))).views[1].size
        64
    """

    #: Least and largest area of the crop, as a share of the image (above 1 the image shrinks inside the view).
    crop: tuple[float, float] = (0.08, 1.0)
    stretch: float = 4 / 3  #: largest ratio of the crop's sides, either way
    flip: float = 0.5  #: probability of mirroring left and right
    rotation: float = 0.0  #: largest angle in degrees
    colour: float = 0.0  #: largest relative change of brightness, contrast and saturation
    grey: float = 0.0  #: probability of losing the colours
    size: int = 0  #: side of the view in px; 0 makes it as large as the fixed view


def centre_crop(images: Tensor, size: int) -> Tensor:
    """Return the central ``size`` x ``size`` pixels of B x 3 x S x S images."""
    edge = (images.shape[-1] - size) // 2
    return images[..., edge : edge + size, edge : edge + size]


def fixed_view(images: Tensor, size: int) -> Tensor:
    """Return the central ``size`` x ``size`` pixels of B x 3 x S x S uint8 images, as float32 in [0, 1]."""
    return centre_crop(images, size).float().div_(255)


def random_views(images: Tensor, size: int, how: Augmentation, random: torch.Generator) -> Tensor:
    """Return random ``size`` x ``size`` views of B x 3 x S x S uint8 images, as float32 in [0, 1], channels-last."""
    count = len(images)
    device = images.device
    transforms = random_affine(count, how, random)
    # Computed on the CPU, so that nothing waits for a GPU.
    shrinking = torch.linalg.det(transforms[:, :, :2]).abs().sqrt() * (images.shape[-1] / size)
    transforms = to_device(transforms, device)
    colours = to_device(random_colours(count, how, random), device)
    views = torch.empty(count, size, size, 3, device=device).permute(0, 3, 1, 2)
    # In parts, so that intermediate results stay in the cache and reuse their memory: a fresh page costs the system
    # more than its pixels cost here. 128 images of 112 px took 34 ms at once, 8 ms in parts.
    rows_at_once = max(1, PIXELS_AT_ONCE // images.shape[-1] ** 2) if device.type == "cpu" else max(1, count)
    for begin in range(0, count, rows_at_once):
        part = slice(begin, begin + rows_at_once)
        view = _sampled(images[part].float(), sampling_grid(transforms[part], size), shrinking[part])
        torch.div(view, 255, out=views[part])
        if how.colour > 0 or how.grey > 0:
            recolour(views[part], colours[part])
    return views


def _sampled(images: Tensor, grid: Tensor, shrinking: Tensor) -> Tensor:
    """Sample images (float32) at ``grid``: bilinear, or trilinear if they shrink.

    ``shrinking`` has their factors, on the CPU. Above 1 the view is mixed with a view of the image at half its size, so
    that details too small for it are averaged away.
    """
    views = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    smaller = torch.nonzero(shrinking > 1).flatten()
    side = images.shape[-1]
    if len(smaller) and side > 1:
        factors = shrinking[smaller]
        rows = smaller.to(images.device)
        points = grid[rows]
        if side % 2:  # the pooling drops the last row and column (an adaptive one needs even sides on a Mac)
            points = (points + 1) * (side / (side - 1)) - 1
        half = _sampled(F.avg_pool2d(images[rows], 2), points, factors / 2)
        weights = factors.log2().clamp(max=1).to(images.device).view(-1, 1, 1, 1)
        views[rows] = views[rows].lerp(half, weights)
    return views


def sampling_grid(transforms: Tensor, size: int) -> Tensor:
    """Return ``F.affine_grid`` of B x 2 x 3 maps, B x ``size`` x ``size`` x 2, but faster.

    A coordinate is a sum: a number of the row plus a number of the column.
    """
    centres = (2 * torch.arange(size, device=transforms.device) + 1) / size - 1
    grid = torch.empty(len(transforms), size, size, 2, device=transforms.device)
    for axis in range(2):
        along_x, along_y, shift = transforms[:, axis].unsqueeze(2).unbind(1)
        torch.add((along_y * centres + shift).unsqueeze(2), (along_x * centres).unsqueeze(1), out=grid[..., axis])
    return grid


def random_affine(count: int, how: Augmentation, random: torch.Generator) -> Tensor:
    """Return maps (count x 2 x 3) from output to input coordinates, both in [-1, 1]."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=random) * (high - low) + low

    area = uniform(*how.crop)
    ratio = torch.exp(uniform(-math.log(how.stretch), math.log(how.stretch)))
    # A crop wider or higher than the image takes the whole side, unless views may show more than the image.
    limit = max(1.0, math.sqrt(how.crop[1]))
    width, height = (area * ratio).sqrt().clamp(max=limit), (area / ratio).sqrt().clamp(max=limit)
    x, y = uniform(-1, 1) * (1 - width).abs(), uniform(-1, 1) * (1 - height).abs()
    mirror = 1.0 - 2.0 * (torch.rand(count, generator=random) < how.flip).float()
    angle = uniform(-how.rotation, how.rotation) * (math.pi / 180)
    cos, sin = torch.cos(angle), torch.sin(angle)
    to_x, to_y = [cos * width * mirror, -sin * height, x], [sin * width * mirror, cos * height, y]
    return torch.stack(to_x + to_y, 1).view(count, 2, 3)


def random_colours(count: int, how: Augmentation, random: torch.Generator) -> Tensor:
    """Return saturation, contrast and brightness (count x 3): factors around 1, saturation 0 for grey views."""
    factors = 1 + how.colour * (2 * torch.rand(3, count, generator=random) - 1)
    factors[0] = torch.where(torch.rand(count, generator=random) < how.grey, 0.0, factors[0])
    return factors.T


def recolour(views: Tensor, factors: Tensor) -> Tensor:
    """Change B x 3 x S x S views, in place, by B x 3 factors of saturation, contrast and brightness, in this order.

    Saturation s mixes with the grey image g, contrast c with its mean m, and brightness b scales:
    b (m + c (g + s (x - g) - m)) = bcs x + bc (1 - s) g + b (1 - c) m, clamped to 0 and 1.
    """
    saturation, contrast, brightness = factors.view(-1, 3, 1, 1, 1).unbind(1)
    red, green, blue = views.split(1, 1)
    grey = red * GREY[0]
    grey.add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])
    level = grey.mean((2, 3), keepdim=True)
    grey.mul_(brightness * contrast * (1 - saturation)).add_(brightness * (1 - contrast) * level)
    return views.mul_(brightness * contrast * saturation).add_(grey).clamp_(0, 1)
