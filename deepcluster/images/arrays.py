"""Images in arrays: passed from Python, or in .npy and .npz files, whose images are read one by one."""

import io
import math
import os
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from deepcluster.errors import DataError
from deepcluster.images.datasets import CHANNELS
from deepcluster.images.decode import as_rgb, explain, is_empty, one_line
from deepcluster.images.source import Source, numbered
from deepcluster.runtime.memory import check_fits

HOLDS_OBJECTS = ValueError("it holds Python objects and not numbers: save numbers of type uint8")
# An .npz of more than so many bytes unpacked is read where it takes at most so many times the bytes that it has in the
# file. Photographs have a ratio of 1 to 2, drawings of digits 5 to 20, and nothing but zeros 1,000.
UNPACKED = 100_000_000
DENSEST = 300
MAGICS = {".npy": b"\x93NUMPY", ".npz": b"PK"}


def load_array(file: Path, mmap_mode: Literal["r"] | None = None) -> Any:
    """``np.load`` of what holds numbers. ValueError with a reason that advises nobody to unpickle."""
    with file.open("rb") as stream:
        start = stream.read(6)
    if not start.startswith(tuple(MAGICS.values())):
        raise ValueError(f"it is no file of numpy: it begins with {start!r}")
    try:
        return np.load(file, mmap_mode=mmap_mode, allow_pickle=False)
    except ValueError as error:
        raise said_plainly(error) from None


def said_plainly(error: ValueError) -> ValueError:
    """numpy's message, or another where it is about unpickling."""
    return HOLDS_OBJECTS if "pickle" in str(error) or "Python objects" in str(error) else error


def _state(stream: FileIO) -> tuple[int, int]:
    status = os.fstat(stream.fileno())
    return status.st_size, status.st_mtime_ns


class Rows:
    """The images of an .npy file, uint8 with the number of an image first. Each is read when it is asked for, and not
    mapped: in a mapped file that shrinks the process would die of SIGBUS.

    DataError, where an image is read, if the file is no longer what it was.
    """

    def __init__(self, file: Path, array: np.memmap[Any, Any]):
        """``array``: the file as numpy maps it, of which only dtype, shape and place are looked at."""
        self.file = file
        self.shape, self.dtype = array.shape, array.dtype
        self._begin = array.offset
        self._stream = file.open("rb", buffering=0)
        self._before = _state(self._stream)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, i: int) -> npt.NDArray[np.uint8]:
        size = int(np.prod(self.shape[1:]))
        data = os.pread(self._stream.fileno(), size, self._begin + i * size)
        now = _state(self._stream)
        if now != self._before or len(data) != size:
            raise DataError(
                f"{one_line(str(self.file))} was written anew while it was read (it had {self._before[0]:,} bytes and"
                f" has {now[0]:,}): wait until it is written, and type the same again"
            )
        return np.frombuffer(data, np.uint8).reshape(self.shape[1:])


def from_numpy_file(file: Path) -> Source:
    try:
        if is_empty(file):
            raise EOFError("an empty file")
        if file.suffix.lower() == ".npy":
            mapped = load_array(file, mmap_mode="r")
            rows = Rows(file, mapped) if mapped.flags.c_contiguous else load_array(file)
            return from_array(mapped, file.stem, str(file), rows=rows)
        with load_array(file) as loaded:  # an .npz has to be unpacked
            headers = {name: _header(loaded, name) for name in _members_to_read(loaded.files)}
            image_header, label_header = _members(headers, file)
            _check_members(image_header, label_header, file)
            images = loaded[image_header.name]
            labels = None if label_header is None else loaded[label_header.name]
    except (DataError, MemoryError):
        raise
    except Exception as error:  # numpy and zipfile raise many kinds for a damaged file
        reason = explain(said_plainly(error) if isinstance(error, ValueError) else error)
        raise DataError(f"cannot read the array {one_line(str(file))}: {reason}") from error
    return from_array(images, file.stem, str(file), labels)


def _members_to_read(names: list[str]) -> list[str]:
    usual = [name for name in names if name in ("images", "x", "labels", "y")]
    return usual if {"images", "x"} & set(usual) else names


@dataclass(frozen=True)
class _Header:
    """What a member of an .npz says of itself: ``packed`` are the bytes that it has in the file."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    packed: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _header(archive: Any, name: str) -> _Header:
    """Read without unpacking more than the first 64 KiB."""
    entry = archive.zip.getinfo(name if name in archive.zip.namelist() else f"{name}.npy")
    with archive.zip.open(entry) as member:
        start = io.BytesIO(member.read(1 << 16))
    version = np.lib.format.read_magic(start)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(start)
    if dtype.hasobject:
        raise HOLDS_OBJECTS
    return _Header(name, dtype, shape, entry.compress_size)


def _check_members(images: _Header, labels: _Header | None, file: Path) -> None:
    """What the headers alone tell, before anything is unpacked: a few kilobytes may be gigabytes."""
    where = one_line(str(file))
    _check_array(images.dtype, images.shape, where)
    if labels is not None:
        _check_labels(math.prod(labels.shape), images.shape[0], where)
    for each in (images, labels):
        if each is not None and each.bytes > max(UNPACKED, DENSEST * each.packed):
            raise DataError(
                f"{one_line(each.name)} in {where} has {each.packed:,} bytes and would take {each.bytes:,} unpacked,"
                " which no images do: if they are what you want, unpack them with numpy and save them as .npy"
            )
    needed = sum(each.bytes for each in (images, labels) if each is not None)
    check_fits(f"unpacking {where}", needed, "save the images with np.save as .npy, which is read from the disk")


def _members(arrays: dict[str, _Header], file: Path) -> tuple[_Header, _Header | None]:
    """The images of an .npz (called ``images`` or ``x``, or the only array besides the labels), and its labels."""
    labels = next((arrays.pop(name) for name in ("labels", "y") if name in arrays and len(arrays) > 1), None)
    name = next((name for name in ("images", "x") if name in arrays), None)
    if name is None and len(arrays) != 1:
        found = ", ".join(map(one_line, arrays)) or "none"
        raise DataError(f"which array of {one_line(str(file))} has the images? Call it 'images'; there are: {found}")
    return arrays[name] if name else next(iter(arrays.values())), labels


def from_array(
    array: npt.NDArray[Any],
    name: str,
    location: str,
    labels: npt.NDArray[Any] | None = None,
    rows: Rows | npt.NDArray[Any] | None = None,
) -> Source:
    """uint8 N x H x W, N x H x W x C or N x C x H x W with C in 1, 3, 4 (the last axis is asked first). ``rows``: where
    the images are read from, if not from the array itself."""
    where = one_line(location)
    _check_array(array.dtype, array.shape, where)
    channels_first = array.ndim == 4 and array.shape[3] not in CHANNELS
    if labels is not None:
        _check_labels(labels.size, len(array), where)
    images = array if rows is None else rows

    def read(i: int, size: int | None = None) -> Image.Image:
        image = images[i].transpose(1, 2, 0) if channels_first else images[i]
        grey = image.ndim == 3 and image.shape[2] == 1
        return as_rgb(Image.fromarray(np.ascontiguousarray(image[..., 0] if grey else image)))

    return Source(
        name=name,
        location=location,
        paths=numbered(len(array)),
        read=read,
        labels=None if labels is None else tuple(map(str, labels.ravel().tolist())),
        skipped=(),
    )


def _check_array(dtype: np.dtype[Any], shape: tuple[int, ...], where: str) -> None:
    if dtype != np.uint8:
        raise DataError(f"the array {where} has dtype {dtype}, not uint8: scale it to 0..255 and use .astype('uint8')")
    if 0 in shape or len(shape) not in (3, 4) or (len(shape) == 4 and not {shape[1], shape[3]} & set(CHANNELS)):
        raise DataError(
            f"the array {where} has shape {shape}; it must be N x H x W, N x H x W x C or N x C x H x W with "
            "C one of 1, 3, 4"
        )


def _check_labels(count: int, images: int, where: str) -> None:
    if count != images:
        raise DataError(f"{where} has {count} labels for {images} images")
