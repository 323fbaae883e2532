"""A look at a few images, from which a run chooses its image size and whether colour matters."""

import hashlib
import os
from dataclasses import dataclass

import numpy as np
from PIL import Image

from deepcluster.errors import DataError
from deepcluster.images.decode import explain, pillow_limits
from deepcluster.images.source import Source, nothing_readable

_JPEG_NOISE = 2.0  # mean difference between the channels of a grey image that was saved as a colour JPEG, at most
_GREY_SHARE = 0.95
COUNT = 200  # images
_SIZE = 64  # px: enough to see colour; a large JPEG is decoded at an eighth of its size


@dataclass(frozen=True)
class Preview:
    """What a few images say about all.

    Attributes:
        short_side: The median shorter side, px.
        grey: The images have no colour.
    """

    short_side: int
    grey: bool


def preview(source: Source) -> Preview:
    """Decode the first ``COUNT`` usable images in the order of the SHA-256 of their path.

    So the choice is as good as random, the same on every machine, and the same with or without unusable files.
    Raises ``DataError`` if no image is usable.
    """
    sides: list[int] = []
    grey: list[bool] = []
    failures: list[tuple[str, str]] = []
    with pillow_limits():
        for i in sorted(range(len(source.paths)), key=lambda i: hashlib.sha256(os.fsencode(source.paths[i])).digest()):
            try:
                image = source.read(i, _SIZE)
                side = min(image.size) if source.short_side is None else source.short_side(i)
            except (MemoryError, DataError):  # a DataError concerns the whole source
                raise
            except Exception as error:
                failures.append((source.paths[i], explain(error)))
                continue
            sides.append(side)
            grey.append(_is_grey(image))
            if len(sides) == COUNT:
                break
    if not sides:
        raise nothing_readable(source.location, len(source.paths), failures)
    return Preview(int(np.median(sides)), sum(grey) >= _GREY_SHARE * len(grey))


def _is_grey(image: Image.Image) -> bool:
    red, green, blue = (np.asarray(band) for band in image.split())
    highest = np.maximum(np.maximum(red, green), blue)
    lowest = np.minimum(np.minimum(red, green), blue)
    return float((highest - lowest).mean()) <= _JPEG_NOISE
