"""Images by number from other libraries: a ``Dataset`` of torch or Hugging Face, or a list of images."""

import sys
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from deepcluster.errors import DataError
from deepcluster.images.decode import Undecodable, decode, explain, one_line, upright

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import TypeIs

CHANNELS = (1, 3, 4)
IMAGE_KEY = "image"  # where the items of a data set are dicts: torch's and Hugging Face's usual name


def reader(dataset: Any) -> Callable[..., Image.Image]:
    """``read(i, size)`` for anything with ``dataset[i]``: the i-th image in mode RGB.

    An item is a PIL image, an array or tensor (uint8, or floats in [0, 1]), a tuple that begins with one (the rest,
    labels, is ignored), or a dict with one under ``image``. A data set of Hugging Face must have one column of images,
    which are decoded as files are. ``read`` raises ``Undecodable`` or ``OSError`` for an item that is not an image.

    Raises:
        DataError: There is no such column, or more than one.
    """
    if hasattr(dataset, "cast_column"):
        return _of_hugging_face(dataset)
    lock = Lock()  # a data set need not be thread-safe

    def read(i: int, size: int | None = None) -> Image.Image:
        try:
            with lock:
                return picture(dataset[i])
        except (MemoryError, OSError, Undecodable):
            raise
        except Exception as error:  # it is somebody else's code
            raise Undecodable(explain(error)) from error

    return read


def picture(item: Any) -> Image.Image:
    """The item of a data set as an image in mode RGB."""
    if isinstance(item, Mapping):
        if IMAGE_KEY not in item:
            raise Undecodable(f"a dict with the keys {', '.join(map(repr, item))} and no {IMAGE_KEY!r}")
        item = item[IMAGE_KEY]
    if isinstance(item, tuple | list) and item:
        item = item[0]
    if isinstance(item, Image.Image):
        return upright(item)
    if is_tensor(item):
        item = item.detach().cpu().numpy()
    if isinstance(item, np.ndarray):
        return upright(Image.fromarray(pixels(item)))
    raise Undecodable(f"not an image but of type {type(item).__name__}")


def is_tensor(value: object) -> "TypeIs[Tensor]":
    """Whether it is a tensor. There is none before somebody has imported torch, which takes a second or more."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_unit(array: npt.NDArray[Any]) -> bool:
    """Whether the numbers can only be pixels: uint8, or floats in [0, 1]."""
    if array.dtype.kind != "f" or not array.size:
        return array.dtype == np.uint8
    return bool(array.min() >= 0 and array.max() <= 1)  # False for NaN, too


def as_uint8(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Pixels of [0, 1] as 0..255; uint8 unchanged."""
    return array if array.dtype == np.uint8 else np.rint(array.astype(np.float32) * 255).astype(np.uint8)


def value_range(array: npt.NDArray[Any]) -> str:
    """The smallest and the largest number, for messages."""
    return f" from {array.min():.3g} to {array.max():.3g}" if array.size and array.dtype.kind in "iuf" else ""


def pixels(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """H x W, or H x W x 3 or 4, of H x W, H x W x C or C x H x W (the last axis is asked first)."""
    if not is_unit(array):
        raise Undecodable(
            f"{array.dtype}{value_range(array)}, and neither uint8 nor floats in [0, 1]: leave out Normalize, or scale"
            " it to 0..255"
        )
    array = as_uint8(array)
    if array.ndim == 3 and array.shape[2] not in CHANNELS and array.shape[0] in CHANNELS:
        array = array.transpose(1, 2, 0)
    if 0 in array.shape or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in CHANNELS):
        raise Undecodable(f"shape {array.shape}; it must be H x W, H x W x C or C x H x W with C one of 1, 3, 4")
    return np.ascontiguousarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def _of_hugging_face(dataset: Any) -> Callable[..., Image.Image]:
    columns = [name for name, feature in dataset.features.items() if type(feature).__name__ == "Image"]
    if len(columns) != 1:
        names = ", ".join(map(one_line, columns or dataset.features))
        what = "several columns of images," if columns else "no column of type Image, but"
        raise DataError(f"the data set has {what} {names}: pass one with exactly one (cast_column, select_columns)")
    column = columns[0]
    # Undecoded, so that these images pass the one decoder too; other columns are not read at all.
    encoded = dataset.with_format(None).select_columns(columns)
    encoded = encoded.cast_column(column, type(dataset.features[column])(decode=False))

    def read(i: int, size: int | None = None) -> Image.Image:
        item = encoded[i][column]
        if not item or (item["bytes"] is None and not item["path"]):
            raise Undecodable("no image in this row")
        return decode(Path(item["path"]) if item["bytes"] is None else BytesIO(item["bytes"]), size=size)

    return read
