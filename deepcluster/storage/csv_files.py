"""Text from outside in a cell of a CSV file: never a formula, and read back exactly.

A spreadsheet runs a cell that begins with ``= + - @`` (some also in full width), a tab or a line break. Names of files
and labels come from strangers, so such a cell gets a guard in front: a path ``./``, with which it still names the same
file for every program that opens it; another text ``'``, the sign by which spreadsheets mark text.
"""

import re
from collections.abc import Mapping
from typing import Any

PATH, TEXT = "./", "'"
GUARDS = {"path": PATH, "medoid_path": PATH, "name": TEXT, "reason": TEXT, "label": TEXT}
# A text that begins with guards of its own and then the same signs gets one more, so that taking one off is exact.
_SIGNS = "[=+@\t\r\n\\uff1d\\uff0b\\uff0d\\uff20-]"
_FORMULA = {guard: re.compile(f"(?:{re.escape(guard)})*{_SIGNS}") for guard in (PATH, TEXT)}


def guarded(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row as it is to be written: numbers, and text that begins harmlessly, stay as they are."""
    return {column: _guarded(column, cell) for column, cell in row.items()}


def unguarded(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row as it was before :func:`guarded`."""
    return {column: _unguarded(column, cell) for column, cell in row.items()}


def _guarded(column: str, cell: Any) -> Any:
    guard = GUARDS.get(column)
    return guard + cell if guard and isinstance(cell, str) and _FORMULA[guard].match(cell) else cell


def _unguarded(column: str, cell: Any) -> Any:
    guard = GUARDS.get(column)
    rest = cell.removeprefix(guard) if guard and isinstance(cell, str) else cell
    return rest if _guarded(column, rest) == cell else cell
