"""A look at a few images, from which a run chooses its image size and whether colour matters."""

import hashlib
import os
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from deepcluster.errors import DataError
from deepcluster.images.decode import AT_ONCE, BYTES, MAX_PIXELS, explain, one_line, pillow_limits
from deepcluster.images.source import Source
from deepcluster.runtime.threads import cores

_JPEG_NOISE = 2.0  # mean difference between the channels of a grey image that was saved as a colour JPEG, at most
_GREY_SHARE = 0.95
COUNT = 200  # images
_SIZE = 64  # px, at least: enough to see colour; of a large JPEG an eighth is decoded


@dataclass(frozen=True)
class Preview:
    """``short_side`` is the median shorter side in pixels; ``grey`` says that the images have no colour; ``decoding``
    are the bytes that all threads together take for images as large as the largest."""

    short_side: int
    grey: bool
    decoding: int = field(default=0, compare=False)


def preview(source: Source) -> Preview:
    """Decode the first ``COUNT`` usable images in the order of the SHA-256 of their path.

    So the choice is as good as random, the same on every machine, and the same with or without unusable files.
    Raises ``DataError`` where no image is usable.
    """
    sides: list[int] = []
    grey: list[bool] = []
    each = alone = 0
    failures: list[str] = []
    with pillow_limits():
        for i in sorted(range(len(source.paths)), key=lambda i: _hash(source.paths[i])):
            try:
                image = source.read(i, _SIZE)
                side = min(image.size) if source.short_side is None else source.short_side(i)
            except (MemoryError, DataError):  # the second: of the whole source, and no image alone
                raise
            except Exception as error:
                failures.append(f"{one_line(source.paths[i])}: {explain(error)}")
                continue
            sides.append(side)
            grey.append(_is_grey(image))
            each = max(each, min(BYTES * image.width * image.height, AT_ONCE))
            if BYTES * side**2 > AT_ONCE:  # one at a time, and who knows how much larger others are
                alone = BYTES * MAX_PIXELS
            if len(sides) == COUNT:
                break
    if not sides:
        raise DataError(
            f"no readable image in {one_line(source.location)}: {len(source.paths)} tried ({'; '.join(failures[:3])}). "
            "Check that the files are images and that they may be read"
        )
    return Preview(int(np.median(sides)), sum(grey) >= _GREY_SHARE * len(grey), decoding=cores() * each + alone)


def _hash(path: str) -> bytes:
    return hashlib.sha256(os.fsencode(path)).digest()


def _is_grey(image: Image.Image) -> bool:
    red, green, blue = (np.asarray(band) for band in image.split())
    highest = np.maximum(np.maximum(red, green), blue)
    lowest = np.minimum(np.minimum(red, green), blue)
    return float((highest - lowest).mean()) <= _JPEG_NOISE
