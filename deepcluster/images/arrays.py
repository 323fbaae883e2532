"""Arrays in files of numpy, whose images are read one by one."""

import os
from io import FileIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from deepcluster.errors import DataError
from deepcluster.images.decode import one_line

HOLDS_OBJECTS = ValueError("it holds Python objects and not numbers: save numbers of type uint8")
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
