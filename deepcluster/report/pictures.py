"""Small pictures for the page: thumbnails, and one sheet of tiny pictures of all images for the map.

A picture is made of pixels and nothing else: a photo's place and time, its comments and its colour profile stay behind.
"""

import base64
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from deepcluster.errors import DataError
from deepcluster.images import Source
from deepcluster.images.decode import Undecodable, pillow_limits

Picture = Callable[[str], Image.Image | None]  # from a path to its image
Thumbnails = Callable[[str, int], str]  # from a path and a limit of bytes to the source of an img

# Base64 of all thumbnails together. The page stays below 5 MB: the sheet of tiny pictures takes up to 1,600,000
# characters, the data of the script up to 1,100,000, names in the page some 700,000.
PICTURE_CHARACTERS = 1_350_000
THUMBNAIL = 88  # pixels a side
QUALITIES = ((1.0, 75), (1.0, 40), (0.75, 20), (0.5, 10))  # scales and qualities; the first that is small enough
LOSSLESS_SIDE = 32  # smaller pictures are stored without loss: they cost little, and enlarging shows every flaw


def thumbnails(picture: Picture) -> Thumbnails:
    """Return a function from a path and a limit of bytes to the source of an img; empty without a picture."""

    def source(path: str, limit: int) -> str:
        if (image := picture(path)) is None:
            return ""
        return "data:image/webp;base64," + base64.b64encode(thumbnail(image, THUMBNAIL, limit)).decode("ascii")

    return source


def thumbnail(image: Image.Image, side: int, limit: int) -> bytes:
    """Return the central square as WebP of at most ``limit`` bytes (if possible), from its pixels and nothing else."""
    side = min(side, *image.size)
    square = ImageOps.fit(image.convert("RGB"), (side, side))
    # A new image has no EXIF, comment or colour profile that an encoder could copy, whatever the version of Pillow.
    bare = Image.frombytes("RGB", square.size, square.tobytes())
    steps: list[tuple[float, dict[str, Any]]] = [(1.0, {"lossless": True})] if side <= LOSSLESS_SIDE else []
    # Method 4 takes twice the time for 3 % fewer bytes.
    steps += [(scale, {"quality": quality, "method": 2}) for scale, quality in QUALITIES]
    for scale, options in steps:
        smaller = max(1, round(side * scale))
        data = webp(bare.resize((smaller, smaller)), **options)
        if len(data) <= limit:
            break
    return data


def webp(image: Image.Image, **options: Any) -> bytes:
    file = BytesIO()
    from PIL import _webp  # noqa: F401 (an error with its reason; Pillow alone would go on without WebP)

    image.save(file, "WEBP", **options)
    return file.getvalue()


def pictures(source: Source | None, size: int, instead: Picture = lambda path: None) -> Picture:
    """Return a function from a path to its image, of at least ``size`` px if possible; ``instead``: if unreadable."""
    index = {path: i for i, path in enumerate(source.paths)} if source else {}

    def picture(path: str) -> Image.Image | None:
        with suppress(Undecodable, DataError, OSError), pillow_limits():
            if source and path in index:
                return source.read(index[path], size)
        return instead(path)

    return picture


MAX_PICTURES = 20_000  # images on a sheet, evenly chosen if there are more
MAX_SHEET_PIXELS = 8_000_000  # of a sheet
SIDES = (16, 72)  # least and greatest side of a picture, px
MAX_SHEET_BYTES = 1_200_000
GREY_LEVEL = 128  # in place of an image that is not at hand


def on_sheet(images: int) -> list[int]:
    """Return the rows of the images that have a picture on the sheet, in its order."""
    return list(range(0, images, sheet_step(images)))


def slot_of(row: int, images: int) -> int:
    """Return the position of an image's picture on the sheet; -1 if it has none."""
    step = sheet_step(images)
    return row // step if row % step == 0 else -1


def sheet_step(images: int) -> int:
    """Return the number of rows from one image on the sheet to the next."""
    return max(1, math.ceil(images / MAX_PICTURES))


def columns(pictures: int) -> int:
    """Return the number of pictures in a row of the sheet."""
    return max(1, math.ceil(math.sqrt(pictures)))


def tiny_pictures(images: Tensor, begin: int, total: int) -> Tensor:
    """Return the pictures (uint8, m x side x side x 3) of the images that the sheet of all ``total`` images shows.

    ``images`` (uint8, n x 3 x S x S) are the rows from ``begin`` on.
    """
    side = _side(images.shape[2], total)
    pictures = [_tiny(image, side) for row, image in enumerate(images, begin) if slot_of(row, total) >= 0]
    return torch.stack(pictures) if pictures else images.new_empty(0, side, side, 3)


def _tiny(image: Tensor, side: int) -> Tensor:
    whole = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    return torch.from_numpy(np.array(whole.resize((side, side), Image.Resampling.BOX)))


def _side(store: int, total: int) -> int:
    """Return the side of a picture on the sheet of ``total`` images, px; images of ``store`` px are not enlarged."""
    return min(store, SIDES[1], max(SIDES[0], math.isqrt(MAX_SHEET_PIXELS // len(on_sheet(total)))))


def pictures_on(sheet: bytes, images: int) -> Callable[[int], Image.Image | None]:
    """Return a function from a row to its picture on the sheet of ``images`` images; None if there is none, or grey."""
    mosaic = Image.open(BytesIO(sheet), formats=["WEBP"]).convert("RGB")
    across, side = columns(len(on_sheet(images))), _side_on(sheet, images)

    def picture(row: int) -> Image.Image | None:
        slot = slot_of(row, images)
        x, y = slot % across * side, slot // across * side
        image = mosaic.crop((x, y, x + side, y + side))
        distance = np.abs(np.asarray(image, np.int16) - GREY_LEVEL).max(2)
        return None if slot < 0 or (distance < 3).mean() > 0.5 else image  # of a grey one the border is not exact

    return picture


def _side_on(sheet: bytes, images: int) -> int:
    """Return the side of a picture on the sheet of ``images`` images, px."""
    return Image.open(BytesIO(sheet), formats=["WEBP"]).width // columns(len(on_sheet(images)))


def extended_sheet(sheet: bytes, total: int, more: Mapping[int, Tensor]) -> bytes:
    """Return the sheet (WebP) of ``total`` images, by that of the first ones.

    ``more``: By row, images (uint8, 3 x S x S) that it does not show; others stay grey.
    """
    images = images_of_sheet(sheet)
    old = pictures_on(sheet, images)
    side = _side(next((image.shape[1] for image in more.values()), _side_on(sheet, images)), total)
    pictures = torch.full((len(on_sheet(total)), side, side, 3), GREY_LEVEL, dtype=torch.uint8)
    for slot, row in enumerate(on_sheet(total)):
        if row < images and (picture := old(row)):
            pictures[slot] = torch.from_numpy(np.array(picture.resize((side, side), Image.Resampling.BOX)))
        elif row in more:
            pictures[slot] = _tiny(more[row], side)
    return sprite_sheet(pictures, total)


def images_of_sheet(sheet: bytes) -> int:
    """Return the number of images of which a sheet was made; an update was stopped if the run has more."""
    return int(Image.open(BytesIO(sheet), formats=["WEBP"]).info["xmp"])


def sprite_sheet(pictures: Tensor, images: int) -> bytes:
    """Return all pictures as one WebP, made of pixels and the number of ``images`` of which they are."""
    across = columns(len(pictures))
    side = pictures.shape[1]
    mosaic = np.zeros((math.ceil(len(pictures) / across) * side, across * side, 3), np.uint8)
    for i, picture in enumerate(pictures.numpy()):
        y, x = i // across * side, i % across * side
        mosaic[y : y + side, x : x + side] = picture
    for quality in (75, 50, 30, 15, 5):
        data = webp(Image.fromarray(mosaic), quality=quality, method=2, xmp=str(images).encode())
        if len(data) <= MAX_SHEET_BYTES:
            break
    return data
