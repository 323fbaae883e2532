"""Rows of numbers as images: how a table, the input of other estimators, becomes uint8 pixels."""

import math
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Table:
    """Rows of ``width`` numbers, the pixels of images of ``shape`` (H x W or H x W x C) in this order; what an image
    has beyond them is black. ``low`` becomes 0 and ``high`` 255, and what lies outside is cut off."""

    shape: tuple[int, ...]
    width: int
    low: float
    high: float

    def images(self, rows: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
        """N x ``shape`` of N x ``width``."""
        # Halves, because the difference of two numbers may be too large for a number.
        span = self.high / 2 - self.low / 2
        share = (rows.astype(np.float64) / 2 - self.low / 2) / span if span > 0 else np.zeros(rows.shape)
        pixels = np.zeros((len(rows), math.prod(self.shape)), np.uint8)
        pixels[:, : self.width] = np.rint(255 * share.clip(0, 1))
        return pixels.reshape(len(rows), *self.shape)


def table(rows: npt.NDArray[np.generic], shape: tuple[int, ...] | None) -> Table:
    """The table that N rows of finite numbers are: uint8 as it is, of others the least and the largest number are black
    and 255. Without a ``shape`` it is the smallest square that holds a row.

    ValueError where the shape is none of an image, or not of as many numbers as a row has.
    """
    width = rows.shape[1]
    if shape is None:
        side = math.isqrt(width - 1) + 1
        shape = (side, side)
    elif (
        not all(isinstance(side, Integral) for side in shape)
        or len(shape) not in (2, 3)
        or min(shape) < 1
        or (len(shape) == 3 and shape[2] not in (1, 3, 4))
    ):
        raise ValueError(f"image_shape={shape} must be (H, W), or (H, W, C) with C one of 1, 3, 4")
    elif math.prod(shape) != width:
        raise ValueError(f"image_shape={shape} is of {math.prod(shape)} numbers, and X has {width} features")
    if rows.dtype == np.uint8:
        return Table(shape, width, 0.0, 255.0)
    return Table(shape, width, float(rows.min()), float(rows.max()))
