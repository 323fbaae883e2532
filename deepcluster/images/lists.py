"""Lists of paths: text files of one path a line, and standard input."""

import codecs
import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from deepcluster.errors import DataError
from deepcluster.images.arrays import reading
from deepcluster.images.decode import explain
from deepcluster.runtime.bounded import check_file
from deepcluster.runtime.tables import PATH_COLUMNS, UTF_16_MARKS
from deepcluster.texts import one_line

LISTS = {".lst", "", ".csv", ".tsv"}  # suffixes of lists of paths, beside .txt; tables are refused with a reason


def read_list(file: Path) -> list[tuple[str, Path]]:
    """Return the paths in a text file, as written and absolute, each once. DataError if it is a table.

    Relative paths start at its folder, or else at the current one.
    """
    with reading("the list", file):
        lines = _lines(file.read_bytes())
    cells = [cell.strip(" \"'") for cell in re.split("[,;\t]", lines[0])] if lines else []
    column = next((cell for cell in cells if cell.lower() in PATH_COLUMNS), "")
    is_table = len(cells) > 1 and (column or file.suffix.lower() in (".csv", ".tsv"))
    if is_table and not os.path.lexists(located(lines[0], file.parent)):
        raise DataError(
            f"{one_line(str(file))} is a table, and IMAGES may be a list of paths, one a line: write its column"
            f"{' ' + column if column else ''} of paths to a .txt file. (A CSV of path,label is for --labels)"
        )
    return distinct(lines, file.parent)


def distinct(lines: Iterable[str], folder: Path | None = None) -> list[tuple[str, Path]]:
    """Return (path as written, its file), each file once."""
    files: dict[Path, str] = {}
    for line in lines:
        # File managers put quotes around a path, but a file may have them in its name.
        quoted = re.fullmatch(r"""(["'])([^"']+)\1""", line)
        path = quoted[2] if quoted and not os.path.lexists(located(line, folder)) else line
        files.setdefault(located(path, folder), path)
    return [(path, file) for file, path in files.items()]


def located(path: str, folder: Path | None = None) -> Path:
    """Return the absolute path: in ``folder``, unless only the current folder has such a file."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise DataError(f"not a possible file name: {path!a}") from error
    # os.path.exists, because Path.exists raises for names that are too long.
    beside = folder is not None and (os.path.exists(folder / path) or not os.path.exists(path))  # noqa: PTH110
    return absolute(folder / path if folder is not None and beside else path)


def absolute(path: str | Path) -> Path:
    """Return the absolute path; unlike ``resolve()`` it does not follow a link that was named on purpose."""
    try:
        return Path(os.path.abspath(path))  # noqa: PTH100
    except FileNotFoundError:
        raise DataError("the current folder is gone: change to another folder, and try again") from None


def _lines(content: bytes) -> list[str]:
    """Split a list into paths: by NUL (``find -print0``), or by lines, without blank ones and # comments."""
    content = content.removeprefix(codecs.BOM_UTF8)
    if content.startswith(UTF_16_MARKS):  # PowerShell's redirection writes it
        try:
            content = content.decode("utf-16").encode()
        except UnicodeError as error:
            raise DataError(f"a list of paths begins as UTF-16 but is not ({error}): write it in UTF-8") from error
    if b"\0" in content:
        return [os.fsdecode(path) for path in content.split(b"\0") if path.strip()]
    lines = (line.rstrip(b"\r") for line in content.split(b"\n"))
    return [os.fsdecode(line) for line in lines if line.strip() and not line.startswith(b"#")]


def standard_input() -> list[str]:
    """Return the paths that another program sends. DataError if it is closed or cannot be read."""
    if sys.stdin is None:
        raise DataError("IMAGES is -, but standard input is closed: send it the paths of images, one a line")
    # The bytes below the text, if it has any: a strict text stream fails on names that are not UTF-8.
    raw = getattr(sys.stdin, "buffer", None)
    try:
        return _lines(sys.stdin.read().encode(errors="surrogateescape") if raw is None else raw.read())
    except OSError as error:
        raise DataError(f"cannot read standard input: {explain(error)}") from error


def is_text(file: Path) -> bool:
    """Tell if the first 64 KiB are text in UTF-8 or (by the first bytes) UTF-16."""
    with suppress(OSError, ValueError):
        check_file(file)
        with file.open("rb") as stream:
            start = stream.read(1 << 16)
        encoding = "utf-16" if start.startswith(UTF_16_MARKS) else "utf-8"
        codecs.getincrementaldecoder(encoding)().decode(start, final=len(start) < 1 << 16)
        return True
    return False
