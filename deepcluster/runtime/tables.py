"""Tables in CSV, from and for strangers, with cells that are no formulas.

A spreadsheet runs a cell that begins with ``= + - @`` (some also in full width), a tab or a line break, and may
skip blanks and invisible characters before that. Names of files and labels come from strangers, so such a cell gets a
guard in front: a path ``./``, with which it still names the same file for every program that opens it; another text
``'``, the sign by which spreadsheets mark text.
"""

import codecs
import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from deepcluster.runtime.bounded import check_file

CsvRow = Mapping[str, Any]

PATH_COLUMNS = ("path", "file_name", "filename", "file", "image")  # names of a column of paths in strangers' tables
UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # first bytes of a file
UTF_8_MARK = "\ufeff"  # at the start of a file: Excel takes it for UTF-8 by this alone
DELIMITERS = ",;\t"  # a spreadsheet writes semicolons in a country with decimal commas, and tabs in UTF-16
PATH = "./"
TEXT = "'"
TEXT_COLUMNS = ("name", "now", "reason", "label", "source", "member")
GUARDS = {"path": PATH, "medoid_path": PATH} | dict.fromkeys(TEXT_COLUMNS, TEXT)
# A text that begins with guards of its own and then the same signs gets one more, so that taking one off is exact.
# The script of the page uses the patterns, too. For JavaScript \s lacks five of the controls that it has here.
_SIGNS = "[=+@\t\r\n\\uff1d\\uff0b\\uff0d\\uff20-]"
_BLANK = "\\s\\x1c-\\x1f\\x85"
_INVISIBLE = "\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
FORMULA = {guard: re.compile(f"(?:{re.escape(guard)})*[{_BLANK}{_INVISIBLE}]*{_SIGNS}") for guard in (PATH, TEXT)}


def write_csv(file: Any, columns: Sequence[str], rows: Iterable[CsvRow]) -> None:
    """Write a header and the ``rows``, text guarded."""
    plain, quoted = (
        csv.DictWriter(file, columns, restval="", lineterminator="\n", quoting=quoting)
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )
    plain.writeheader()
    for cells in rows:
        row = {**cells, **{column: guarded(column, cells[column]) for column in GUARDS if column in cells}}
        # Before Python 3.13 a carriage return alone is not quoted, and no reader would find the end of the row.
        writer = quoted if any(isinstance(cell, str) and "\r" in cell for cell in row.values()) else plain
        writer.writerow(row)


def read_columns(
    file: Path, names: Mapping[str, Sequence[str]], optional: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line number and some cells of every row of a table from outside, without guards.

    The table has commas, semicolons or tabs, and is in UTF-8 or UTF-16. Text but paths that is not UTF-8 is taken for
    that of Windows, see :func:`from_windows`.

    ``names``: Possible names of the column of a cell, by the key of the cell; the first existing one counts. Cells
    of a missing ``optional`` key are empty. Raises ValueError if the first line lacks another column, another line has
    more cells, OSError or csv.Error if it cannot be read.
    """
    check_file(file)
    with file.open("rb") as start:
        is_wide = start.read(2) in UTF_16_MARKS
    encoding, errors = ("utf-16", "strict") if is_wide else ("utf-8-sig", "surrogateescape")
    with file.open(encoding=encoding, errors=errors, newline="") as stream:
        header_line = next(stream, "")
        delimiter = max(DELIMITERS, key=header_line.count)
        reader = csv.DictReader(chain([header_line], stream), delimiter=delimiter)
        header = [column or "" for column in reader.fieldnames or ()]
        by_name = {column.strip().lower(): column for column in reversed(header)}
        columns = {key: next((by_name[name] for name in names[key] if name in by_name), None) for key in names}
        if missing := [key for key, column in columns.items() if column is None and key not in optional]:
            titles = ",".join(header)[:80] or "nothing"
            raise ValueError(f"no column {missing[0]}: the first line must have {','.join(names)}, and has {titles}")
        for cells in reader:
            if any(cells.pop(None, None) or ()):
                raise ValueError(f"line {reader.line_num} has more cells than the first line: quote texts with commas")
            texts = {key: unguarded(key, cells.get(column) or "") for key, column in columns.items()}
            yield reader.line_num, {key: text if key == "path" else from_windows(text) for key, text in texts.items()}


def from_windows(text: str) -> str:
    """Return text with its bytes that are not UTF-8 as Windows-1252, which Excel writes in western countries."""
    return re.sub("[\udc80-\udcff]", lambda one: bytes([ord(one[0]) - 0xDC00]).decode("cp1252", "replace"), text)


def guarded(column: str, cell: Any) -> Any:
    """Return a cell for a file: a text that looks like a formula gets the guard of its column."""
    guard = GUARDS.get(column)
    return guard + cell if guard and isinstance(cell, str) and FORMULA[guard].match(cell) else cell


def unguarded(column: str, cell: str) -> str:
    """Return a cell of a column as it was before :func:`guarded`."""
    bare = cell.removeprefix(GUARDS.get(column, ""))
    return bare if len(bare) < len(cell) and guarded(column, bare) == cell else cell
