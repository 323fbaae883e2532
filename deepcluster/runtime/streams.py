"""Standard output and standard error of a command, which may be closed, full, or not read to the end."""

import io
import os
import re
import sys
from contextlib import suppress
from typing import Any, TextIO

from deepcluster.errors import DiskError

FAILURES: list[DiskError] = []  # of this process


class Standard(io.RawIOBase):
    """The file with this ``number``. The first write that fails raises an error that names it; what is written after
    that is gone, so that whatever has to be finished can be."""

    def __init__(self, number: int, called: str, *, is_open: bool):
        self.number = number
        self.called = called
        self.is_open = is_open
        self.useless = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.number

    def isatty(self) -> bool:
        return self.is_open and os.isatty(self.number)

    def write(self, data: Any) -> int:
        if self.useless:
            return len(data)
        try:
            if not self.is_open:
                raise OSError(0, "it is closed")
            return os.write(self.number, data)
        except BrokenPipeError:  # whoever read it has had enough: that is no failure
            self.useless = True
            raise
        except OSError as error:
            self.useless = True
            FAILURES.append(DiskError(f"cannot write to {self.called} ({error.strerror}): send it elsewhere"))
            raise FAILURES[-1] from None


def set_up() -> None:
    """Put streams of this kind in the places of ``sys.stdout`` and ``sys.stderr``. A letter that the terminal lacks is
    shown by its code."""
    while (lowest := os.open(os.devnull, os.O_RDWR)) <= 2:  # else the next file that is opened would be standard output
        pass
    os.close(lowest)
    # In a column or none, and in millions, the help would be laid out for ever.
    if not re.fullmatch("[2-9][0-9]|[1-9][0-9]{2}", os.environ.get("COLUMNS", "80")):
        del os.environ["COLUMNS"]
    sys.stdout = standard(sys.stdout, 1, "standard output")
    sys.stderr = standard(sys.stderr, 2, "standard error")


def standard(stream: TextIO | None, number: int, called: str) -> TextIO:
    """A text stream to the file with this ``number``, like ``stream``; None: it is closed."""
    raw = Standard(number, called, is_open=stream is not None)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding if stream else "utf-8",
        errors="backslashreplace",
        line_buffering=number == 2 or raw.isatty(),
    )


def failure() -> DiskError | None:
    """What the user has not been told, for want of a place; asked at the end of a command."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(DiskError, BrokenPipeError):
            stream.flush()
    return FAILURES[0] if FAILURES else None
