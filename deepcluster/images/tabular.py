"""Rows of numbers as images: how the usual input of an estimator becomes uint8 pixels."""

import math
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class PixelScale:
    """How a row of numbers becomes an image.

    Attributes:
        shape: Of an image: H x W or H x W x C.
        width: Numbers in a row: the first pixels of the image. The others are black.
        low: Becomes 0, and so does everything below.
        high: Becomes 255, and so does everything above.
    """

    shape: tuple[int, ...]
    width: int
    low: float
    high: float

    def images(self, rows: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
        """N x ``shape`` of N x ``width``."""
        # Halves, because the difference of two floats may overflow.
        span = self.high / 2 - self.low / 2
        share = (rows.astype(np.float64) / 2 - self.low / 2) / span if span > 0 else np.zeros(rows.shape)
        pixels = np.zeros((len(rows), math.prod(self.shape)), np.uint8)
        pixels[:, : self.width] = np.rint(255 * share.clip(0, 1))
        return pixels.reshape(len(rows), *self.shape)


def pixel_scale(rows: npt.NDArray[np.generic], shape: tuple[int, ...] | None) -> PixelScale:
    """How to render N rows of finite numbers: uint8 unchanged, other types scaled from [min, max] to [0, 255].

    Args:
        rows: N x width.
        shape: Of the images; default: the smallest square that holds a row.

    Raises:
        ValueError: The shape is not that of an image, or does not hold exactly one row.
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
        raise ValueError(f"image_shape={shape} holds {math.prod(shape)} numbers, but X has {width} features")
    if rows.dtype == np.uint8:
        return PixelScale(shape, width, 0.0, 255.0)
    return PixelScale(shape, width, float(rows.min()), float(rows.max()))
