"""Text files that may be a stranger's: plain files of bounded size, with bounded lines."""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

MOST_TEXT = 1 << 30  # bytes of a list of paths or of labels: about 10 million
LONGEST_LINE = 1 << 20  # characters


def check_file(path: Path, most: int) -> None:
    """ValueError where ``path`` is a folder, a FIFO, a device, ..., is empty, or has more than ``most`` bytes."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait forever, and a device need not end
        raise ValueError("not a plain file")
    if not status.st_size:  # so do the files of /proc look, of which some never end
        raise ValueError("an empty file")
    if status.st_size > most:
        raise ValueError(f"{status.st_size:,} bytes, more than the {most:,} that are read")


def lines_of(file: TextIO) -> Iterator[str]:
    """Yield the lines of an open file. Raise ValueError at a line longer than ``LONGEST_LINE``."""
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise ValueError(f"a line of more than {LONGEST_LINE:,} characters")
        yield line
