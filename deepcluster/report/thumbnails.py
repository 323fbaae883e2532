"""Small square pictures inside the page, and the budget of bytes that all of them share.

A picture is made of pixels and nothing else: a photo's place and time, its comments and its colour profile stay behind.
"""

import base64
from io import BytesIO
from typing import Any

from PIL import Image, ImageOps

# Base64 of all thumbnails together. The page stays below 5 MB: the sheet of tiny pictures takes up to 1,600,000
# characters, the data of the script up to 1,100,000, names in the page some 700,000.
PICTURE_CHARACTERS = 1_400_000
THUMBNAIL = 88  # pixels a side
TINY = 32  # smaller pictures are stored without loss: they cost little, and enlarging shows every flaw


def fair_share(places: int) -> int:
    """Bytes for each place of a page, such that all pictures stay in the budget."""
    return PICTURE_CHARACTERS * 3 // 4 // max(1, places)  # base64 writes 3 bytes as 4 characters


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


def _uri(data: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(data).decode("ascii")


def webp(image: Image.Image, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, "WEBP", **options)
    return file.getvalue()
