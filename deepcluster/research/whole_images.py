"""Whole images in a store, which else keeps the central square of each: for protocols whose crops lie anywhere."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from deepcluster.images import Source


def whole(source: Source, side: int) -> tuple[Source, npt.NDArray[np.int64]]:
    """The source with each image scaled so that its longer side is ``side`` px, in the upper left corner of a square
    that its last row and column fill up; and N x 2 heights and widths of the images, known once they are read.

    ``read_once`` with the same ``side`` stores these squares as they are.
    """
    extents = np.zeros((len(source.paths), 2), np.int64)

    def read(i: int, size: int | None = None) -> Image.Image:
        image = source.read(i, side)
        scale = side / max(image.size)
        width, height = (max(1, round(scale * each)) for each in image.size)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        extents[i] = height, width
        return Image.fromarray(np.pad(np.asarray(image), ((0, side - height), (0, side - width), (0, 0)), mode="edge"))

    return replace(source, read=read), extents
