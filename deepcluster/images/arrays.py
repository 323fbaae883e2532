"""Images by number: arrays, .npy and .npz files, ``Dataset`` objects, lists of images, and rows of numbers."""

import io
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from numbers import Integral
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from deepcluster.errors import DataError, DeepClusterError
from deepcluster.images.decode import Undecodable, as_rgb, decode, explain, is_empty, one_line, upright
from deepcluster.images.source import Origin, Source, numbered, real
from deepcluster.runtime.memory import check_fits

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
    """Recognise a tensor without importing torch (a second or more): no tensor exists before somebody has."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_unit(array: npt.NDArray[Any]) -> bool:
    """Tell if the numbers can only be pixels: uint8, or floats in [0, 1]."""
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


HOLDS_OBJECTS = ValueError("it holds Python objects and not numbers: save numbers of type uint8")
MAGICS = (b"\x93NUMPY", b"PK")


def load_array(file: Path, mmap_mode: Literal["r"] | None = None) -> Any:
    """``np.load`` of numbers only. Raises ValueError with a reason that advises nobody to unpickle."""
    with file.open("rb") as stream:
        start = stream.read(6)
    if not start.startswith(MAGICS):
        raise ValueError(f"it is not a numpy file: it begins with {start!r}")
    try:
        return np.load(file, mmap_mode=mmap_mode, allow_pickle=False)
    except ValueError as error:
        raise _without_advice(error) from None


def _without_advice(error: ValueError) -> ValueError:
    """numpy's error, or ours where it is about unpickling."""
    return HOLDS_OBJECTS if "pickle" in str(error) or "Python objects" in str(error) else error


class NumpyFile:
    """The uint8 images of an .npy file, by number; each is read when asked for.

    It is not mapped, because the process would die of SIGBUS if the file shrank. Reading raises DataError instead.

    Args:
        array: ``file`` as numpy maps it; only its shape and offset are used.
    """

    def __init__(self, file: Path, array: np.memmap[Any, Any]):
        self.file = file
        self.shape = array.shape
        self._begin = array.offset
        self._stream = file.open("rb", buffering=0)

    def __getitem__(self, i: int) -> npt.NDArray[np.uint8]:
        size = int(np.prod(self.shape[1:]))
        data = os.pread(self._stream.fileno(), size, self._begin + i * size)
        if len(data) != size:
            raise DataError(
                f"{one_line(str(self.file))} became shorter while it was read: wait until it is complete, then run the"
                " same command again"
            )
        return np.frombuffer(data, np.uint8).reshape(self.shape[1:])


@contextmanager
def reading(what: str, file: Path) -> Iterator[None]:
    """Around what reads a file that is not empty: numpy, zipfile and pyarrow raise many kinds for a damaged one."""
    try:
        if is_empty(file):
            raise EOFError("an empty file")
        yield
    except (DeepClusterError, MemoryError):
        raise
    except Exception as error:
        reason = explain(_without_advice(error) if isinstance(error, ValueError) else error)
        raise DataError(f"cannot read {what} {one_line(str(file))}: {reason}") from error


def from_numpy_file(file: Path) -> Source:
    with reading("the array", file):
        if file.suffix.lower() == ".npy":
            mapped = load_array(file, mmap_mode="r")
            images = NumpyFile(file, mapped) if mapped.flags.c_contiguous else load_array(file)
            return from_array(mapped, file.stem, str(file), images=images)
        with load_array(file) as loaded:  # an .npz has to be unpacked
            headers = {name: _header(loaded, name) for name in _members_to_read(loaded.files)}
            image_header, label_header = _images_and_labels(headers, file)
            _check_members(image_header, label_header, file)
            images = loaded[image_header.name]
            labels = None if label_header is None else loaded[label_header.name]
    return from_array(images, file.stem, str(file), labels)


def _members_to_read(names: list[str]) -> list[str]:
    usual = [name for name in names if name in ("images", "x", "labels", "y")]
    return usual if {"images", "x"} & set(usual) else names


@dataclass(frozen=True)
class _Header:
    """Header of a member of an .npz."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _header(archive: Any, name: str) -> _Header:
    """Reads at most the first 64 KiB of the member."""
    entry = archive.zip.getinfo(name if name in archive.zip.namelist() else f"{name}.npy")
    with archive.zip.open(entry) as member:
        start = io.BytesIO(member.read(1 << 16))
    version = np.lib.format.read_magic(start)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(start)
    if dtype.hasobject:
        raise HOLDS_OBJECTS
    return _Header(name, dtype, shape)


def _check_members(images: _Header, labels: _Header | None, file: Path) -> None:
    """Check the headers before anything is unpacked: a few kilobytes may become gigabytes."""
    where = one_line(str(file))
    _check_array(images.dtype, images.shape, f"the array {where}")
    if labels is not None:
        _check_labels(math.prod(labels.shape), images.shape[0], where)
    needed = images.bytes + (0 if labels is None else labels.bytes)
    check_fits(f"unpacking {where}", needed, "save the images with np.save as .npy, which is read from the disk")


def _images_and_labels(headers: dict[str, _Header], file: Path) -> tuple[_Header, _Header | None]:
    """The images of an .npz (called ``images`` or ``x``, or the only array besides the labels), and its labels."""
    labels = next((headers.pop(name) for name in ("labels", "y") if name in headers and len(headers) > 1), None)
    name = next((name for name in ("images", "x") if name in headers), None)
    if name is None and len(headers) != 1:
        names = ", ".join(map(one_line, headers)) or "none"
        raise DataError(f"which array of {one_line(str(file))} has the images? Call it 'images'; there are: {names}")
    return headers[name] if name else next(iter(headers.values())), labels


def as_images(images: "Tensor | npt.NDArray[Any]") -> "Tensor":
    """Pixels as the loop takes them.

    Args:
        images: N x 3 x S x S or N x S x S x 3, an array or a tensor; uint8, or floats in [0, 1].

    Returns:
        uint8, N x 3 x S x S; the same tensor where it is so already.

    Raises:
        DataError: Another shape, or other numbers.
    """
    import torch

    if is_tensor(images) and images.dtype != torch.uint8:
        images = images.detach().cpu().numpy()
    if not is_tensor(images):
        if not all(map(is_unit, images)):
            raise DataError(f"images of {images.dtype}{value_range(images)}: pass uint8, or floats in [0, 1]")
        images = torch.from_numpy(np.ascontiguousarray(as_uint8(images)))
    if images.ndim == 4 and images.shape[1] != 3 and images.shape[3] == 3:
        images = images.permute(0, 3, 1, 2).contiguous()
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise DataError(f"images of shape {tuple(images.shape)}: pass N x 3 x S x S or N x S x S x 3")
    return images


def from_array(
    array: npt.NDArray[Any],
    name: str,
    location: str,
    labels: npt.NDArray[Any] | None = None,
    images: NumpyFile | npt.NDArray[Any] | None = None,
) -> Source:
    """The images of an array.

    Args:
        array: N x H x W, N x H x W x C or N x C x H x W with C in 1, 3, 4 (the last axis is looked at first); uint8, or
            in memory also floats in [0, 1].
        labels: One for each image.
        images: The images to read; default: the array itself.

    Raises:
        DataError: Another type, another shape, or another number of labels.
    """
    where = "the array" if location == "python:array" else f"the array {one_line(location)}"
    in_memory_floats = images is None and array.dtype.kind == "f"
    _check_array(np.dtype(np.uint8) if in_memory_floats else array.dtype, array.shape, where)
    if in_memory_floats and not all(map(is_unit, array)):
        raise DataError(f"{where} has {array.dtype} numbers{value_range(array)}: pass uint8, or floats in [0, 1]")
    if labels is not None:
        _check_labels(labels.size, len(array), where)
    rows = array if images is None else images
    place = real(location)

    def read(i: int, size: int | None = None) -> Image.Image:
        return as_rgb(Image.fromarray(pixels(rows[i])))

    return Source(
        name=name,
        location=location,
        paths=numbered(len(array)),
        read=read,
        labels=None if labels is None else tuple(map(str, labels.ravel().tolist())),
        skipped=(),
        place=lambda i: Origin(place, str(i)),
    )


def _check_array(dtype: np.dtype[Any], shape: tuple[int, ...], where: str) -> None:
    if dtype != np.uint8:
        raise DataError(f"{where} has dtype {dtype}, not uint8: scale it to 0..255 and use .astype('uint8')")
    if 0 in shape or len(shape) not in (3, 4) or (len(shape) == 4 and not {shape[1], shape[3]} & set(CHANNELS)):
        raise DataError(
            f"{where} has shape {shape}; it must be N x H x W, N x H x W x C or N x C x H x W with C one of 1, 3, 4"
        )


def _check_labels(count: int, images: int, where: str) -> None:
    if count != images:
        raise DataError(f"{where} has {count} labels for {images} images")


@dataclass(frozen=True)
class PixelScale:
    """How a row of numbers becomes an image.

    Attributes:
        shape: Shape of an image: H x W or H x W x C.
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
        shape: Shape of the images; default: the smallest square that holds a row.

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
