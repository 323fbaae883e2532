"""A sheet of tiny pictures of all images, for the map: one picture in the page instead of thousands."""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deepcluster.report.thumbnails import webp

MAX_PICTURES = 20_000  # images on a sheet, evenly chosen where there are more
PIXELS = 5_000_000  # of a sheet
SIDES = (16, 48)  # of a picture, at least and at most
BYTES = 750_000


def on_sheet(images: int) -> list[int]:
    """The rows of the images that have a picture on the sheet, row by row of it."""
    step = max(1, math.ceil(images / MAX_PICTURES))
    return list(range(0, images, step))


def tile(row: int, images: int) -> int:
    """The place of an image's picture on the sheet; -1 where it has none."""
    step = max(1, math.ceil(images / MAX_PICTURES))
    return row // step if row % step == 0 else -1


def columns(pictures: int) -> int:
    """How many pictures stand beside each other."""
    return max(1, math.ceil(math.sqrt(pictures)))


def tiny_pictures(images: Tensor, begin: int, total: int) -> Tensor:
    """Those of a sheet of ``total`` images that are among some of them (uint8, n x 3 x S x S, from row ``begin`` on):
    uint8, side x side x 3 each."""
    side = min(images.shape[2], SIDES[1], max(SIDES[0], math.isqrt(PIXELS // len(on_sheet(total)))))
    found = [
        Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())).resize((side,) * 2, Image.Resampling.BOX)
        for row, image in enumerate(images, begin)
        if tile(row, total) >= 0
    ]
    return torch.from_numpy(np.stack([np.asarray(each) for each in found])) if found else torch.empty(0)


def sprite_sheet(pictures: Tensor) -> bytes:
    """WebP of all the pictures, made of pixels and nothing else."""
    across, side = columns(len(pictures)), pictures.shape[1]
    table = np.zeros((math.ceil(len(pictures) / across) * side, across * side, 3), np.uint8)
    for i, picture in enumerate(pictures.numpy()):
        y, x = i // across * side, i % across * side
        table[y : y + side, x : x + side] = picture
    for quality in (75, 50, 30, 15, 5):
        data = webp(Image.fromarray(table), quality=quality, method=2)
        if len(data) <= BYTES:
            break
    return data
