"""Small square pictures inside the page, and the budget of bytes that all of them share.

A picture is made of pixels and nothing else: a photo's place and time, its comments and its colour profile stay behind.
"""

import base64
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from PIL import Image, ImageOps

# Base64 of all thumbnails together. The page stays below 5 MB: the sheet of tiny pictures takes up to 1,000,000, what
# the script needs up to 900,000, and names in the page some 700,000.
PICTURE_CHARACTERS = 2_300_000
FILTER_CHARACTERS = 900_000  # of these, for sheets of filters
THUMBNAIL = 88  # pixels a side
TINY = 32  # pictures up to this side keep their very pixels: they cost little, and enlarging shows every flaw


def fair_share(places: int, taken: int = 0) -> int:
    """Bytes for each of the places of a page, so that all pictures together stay in the budget, of which others have
    ``taken`` so many characters."""
    return (PICTURE_CHARACTERS - taken) * 3 // 4 // max(1, places)  # base64 writes 3 bytes as 4 characters


def data_uri(image: Image.Image, share: int, *, scale: int) -> str:
    """A thumbnail ``scale`` places wide and as many high, for the bytes of as many places, as the source of an img."""
    data = thumbnail(image, scale * THUMBNAIL, scale * scale * share)
    return "data:image/webp;base64," + base64.b64encode(data).decode("ascii")


def thumbnail(image: Image.Image, side: int, limit: int) -> bytes:
    """The central square as WebP of at most ``limit`` bytes (if at all possible), from the pixels and nothing else."""
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
    """Large pictures as sources of an img, all together of at most ``FILTER_CHARACTERS`` (if at all possible)."""
    limit = (FILTER_CHARACTERS // max(1, len(sheets)) - 40) * 3 // 4
    found = []
    for image in sheets:
        for scale, quality in ((1.0, 80), (1.0, 50), (0.7, 40), (0.5, 20), (0.25, 10)):
            smaller = image.convert("RGB").resize([max(1, round(side * scale)) for side in image.size])
            data = webp(Image.frombytes("RGB", smaller.size, smaller.tobytes()), quality=quality)
            if len(data) <= limit:
                break
        found.append("data:image/webp;base64," + base64.b64encode(data).decode("ascii"))
    return found


def webp(image: Image.Image, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, "WEBP", **options)
    return file.getvalue()
