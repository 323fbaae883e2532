"""Small square pictures inside the page, and the budget of bytes that all of them share.

A picture is made of pixels and nothing else: a photo's place and time, its comments and its colour profile stay behind.
"""

import base64
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from PIL import Image, ImageOps

# Base64 of all thumbnails together. The page stays below 5 MB: the sheet of tiny pictures takes up to 1,600,000
# characters, the data of the script up to 1,100,000, names in the page some 700,000.
PICTURE_CHARACTERS = 1_400_000
FILTER_CHARACTERS = 600_000  # of these, for sheets of filters
THUMBNAIL = 88  # pixels a side
TINY = 32  # smaller pictures are stored without loss: they cost little, and enlarging shows every flaw


def fair_share(places: int, taken: int = 0) -> int:
    """Bytes for each place of a page, such that all pictures stay in the budget; others have ``taken`` characters."""
    return (PICTURE_CHARACTERS - taken) * 3 // 4 // max(1, places)  # base64 writes 3 bytes as 4 characters


def data_uri(image: Image.Image, share: int, *, scale: int) -> str:
    """A thumbnail ``scale`` places wide and high, with the bytes of as many places, as the source of an img."""
    return _uri(thumbnail(image, scale * THUMBNAIL, scale * scale * share))


def thumbnail(image: Image.Image, side: int, limit: int) -> bytes:
    """The central square as WebP of at most ``limit`` bytes (if possible), from the pixels and nothing else."""
    side = min(side, *image.size)
    square = ImageOps.fit(image.convert("RGB"), (side, side))
    # A new image has no EXIF, comment or colour profile that an encoder could copy, whatever the version of Pillow.
    bare = Image.frombytes("RGB", square.size, square.tobytes())
    if side <= TINY:
        data = webp(bare, lossless=True)
        if len(data) <= limit:
            return data
    for scale, quality in ((1.0, 75), (1.0, 40), (0.75, 20), (0.5, 10)):
        smaller = max(1, round(side * scale))
        data = webp(bare.resize((smaller, smaller)), quality=quality)
        if len(data) <= limit:
            break
    return data


def sheet_uris(sheets: Sequence[Image.Image]) -> list[str]:
    """Large pictures as sources of an img, of at most ``FILTER_CHARACTERS`` together (if possible)."""
    limit = (FILTER_CHARACTERS // max(1, len(sheets)) - 40) * 3 // 4
    uris = []
    for image in sheets:
        for scale, quality in ((1.0, 80), (1.0, 50), (0.7, 40), (0.5, 20), (0.25, 10)):
            smaller = image.convert("RGB").resize([max(1, round(side * scale)) for side in image.size])
            data = webp(Image.frombytes("RGB", smaller.size, smaller.tobytes()), quality=quality)
            if len(data) <= limit:
                break
        uris.append(_uri(data))
    return uris


def _uri(data: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(data).decode("ascii")


def webp(image: Image.Image, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, "WEBP", **options)
    return file.getvalue()
