"""Whole images in a store, which otherwise keeps their central squares: for protocols with crops from anywhere."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from deepcluster.images import Source


def whole(source: Source, side: int) -> tuple[Source, npt.NDArray[np.int64]]:
    """A source of squares that hold whole images.

    Args:
        source: N images.
        side: The longer side of an image and the side of its square, px. ``read_once`` must be given the same.

    Returns:
        The source, with each image in the upper left corner and the rest filled by its last row and column; and the N x
        2 heights and widths of the images, which are set as they are read.
    """
    extents = np.zeros((len(source.paths), 2), np.int64)

    def read(i: int, size: int | None = None) -> Image.Image:
        image = source.read(i, side)
        scale = side / max(image.size)
        width, height = (max(1, round(scale * length)) for length in image.size)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        extents[i] = height, width
        return Image.fromarray(np.pad(np.asarray(image), ((0, side - height), (0, side - width), (0, 0)), mode="edge"))

    return replace(source, read=read), extents
