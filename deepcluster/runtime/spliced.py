"""Parts of files as files of their own."""

import io
import os
from typing import Any


class Spliced(io.RawIOBase):
    """``head``, then the bytes of ``file`` from ``begin`` to ``end``, to be read."""

    def __init__(self, head: bytes, file: io.FileIO | io.BufferedReader, begin: int, end: int):
        self._head, self._file, self._moved = head, file, begin - len(head)
        self._size, self._at = end - self._moved, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        room = memoryview(buffer)[: max(0, self._size - self._at)]
        if part := self._head[self._at : self._at + len(room)]:
            count = len(part)
            room[:count] = part
        else:
            self._file.seek(self._at + self._moved)
            count = self._file.readinto(room) or 0
        self._at += count
        return count
