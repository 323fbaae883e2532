"""Images in arrays: passed from Python, or in .npy and .npz files, whose images are read one by one."""

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from deepcluster.errors import DataError, DeepClusterError
from deepcluster.images.datasets import CHANNELS, as_uint8, is_tensor, is_unit, pixels, value_range
from deepcluster.images.decode import as_rgb, explain, is_empty, one_line
from deepcluster.images.source import Origin, Source, numbered, real
from deepcluster.runtime.memory import check_fits

if TYPE_CHECKING:
    from torch import Tensor

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
        file: The file.
        array: The same file as numpy maps it; only its shape and offset are used.
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
    """What an .npz says about one of its members."""

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
        name: As in ``Source``.
        location: As in ``Source``.
        labels: One for each image.
        images: Where the images are read from; default: the array itself.

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
