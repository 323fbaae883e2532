"""Text files from and for strangers: plain files of bounded size, with bounded lines, and cells that are no formulas.

A spreadsheet runs a cell that begins with ``= + - @`` (some also in full width), a tab or a line break, and may
skip blanks and invisible characters before that. Names of files and labels come from strangers, so such a cell gets a
guard in front: a path ``./``, with which it still names the same file for every program that opens it; another text
``'``, the sign by which spreadsheets mark text.
"""

import csv
import io
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

MOST_TEXT = 1 << 30  # bytes of a list of paths or of labels: about 10 million
LONGEST_LINE = 1 << 20  # characters


def check_file(path: Path, most: int) -> None:
    """Raise ValueError if ``path`` is a folder, a FIFO, a device, ..., is empty, or has more than ``most`` bytes."""
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


Row = Mapping[str, Any]

PATH_COLUMNS = ("path", "file_name", "filename", "file", "image")  # names of a column of paths in strangers' tables
PATH, TEXT = "./", "'"
TEXT_COLUMNS = ("name", "reason", "label", "source", "member")
GUARDS = {"path": PATH, "medoid_path": PATH} | dict.fromkeys(TEXT_COLUMNS, TEXT)
# A text that begins with guards of its own and then the same signs gets one more, so that taking one off is exact.
_SIGNS = "[=+@\t\r\n\\uff1d\\uff0b\\uff0d\\uff20-]"
_INVISIBLE = "[\\s\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]*"
_FORMULA = {guard: re.compile(f"(?:{re.escape(guard)})*{_INVISIBLE}{_SIGNS}") for guard in (PATH, TEXT)}


def write_csv(file: Any, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Write a header and the ``rows``, text guarded."""
    plain, quoted = (
        csv.DictWriter(file, columns, restval="", lineterminator="\n", quoting=quoting)
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )
    plain.writeheader()
    for row in map(guarded, rows):
        # Before Python 3.13 a carriage return alone is not quoted, and no reader would find the end of the row.
        writer = quoted if any(isinstance(cell, str) and "\r" in cell for cell in row.values()) else plain
        writer.writerow(row)


def read_columns(file: Path, names: Mapping[str, Sequence[str]]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line number and some cells of every row of a table from outside, without guards.

    Args:
        names: By the key of a cell, the names that its column may have; the first such column counts.

    Raises:
        ValueError: The first line lacks a column, or the file is too large.
        OSError, csv.Error: The file cannot be read, or not as a table.
    """
    check_file(file, MOST_TEXT)
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.DictReader(lines_of(stream))
        header = [column or "" for column in reader.fieldnames or ()]
        columns = {
            key: next((column for column in header if column.strip().lower() in names[key]), None) for key in names
        }
        if missing := [key for key, column in columns.items() if column is None]:
            raise ValueError(
                f"no column {missing[0]}: the first line must have {','.join(names)}, and has"
                f" {','.join(header)[:80] or 'nothing'}"
            )
        for cells in reader:
            yield reader.line_num, unguarded({key: cells[column] or "" for key, column in columns.items()})


def guarded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row as it is to be written: numbers, and text that begins harmlessly, stay as they are."""
    return {**row, **{column: _guarded(column, row[column]) for column in GUARDS if column in row}}


def unguarded(row: Mapping[str, str]) -> dict[str, str]:
    """Return the row as it was before :func:`guarded`."""
    return {**row, **{column: _unguarded(column, row[column]) for column in GUARDS if column in row}}


def _guarded(column: str, cell: Any) -> Any:
    guard = GUARDS[column]
    return guard + cell if isinstance(cell, str) and _FORMULA[guard].match(cell) else cell


def _unguarded(column: str, cell: str) -> str:
    rest = cell.removeprefix(GUARDS[column])
    return rest if _guarded(column, rest) == cell else cell


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
