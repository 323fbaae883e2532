"""Reading files that may be damaged or a stranger's: plain files only, of bounded size, JSON without dark corners."""

import json
import math
import stat
from pathlib import Path
from typing import Any

# Python's objects take up to 25 times as much memory as the JSON they come from.
MOST_JSON = 4 << 20  # bytes


def check_file(path: Path, most: int) -> None:
    """ValueError where ``path`` is a folder, a FIFO, a device, ... or has more than ``most`` bytes."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait forever, and a device need not end
        raise ValueError("not a plain file")
    if status.st_size > most:
        raise ValueError(f"{status.st_size:,} bytes, more than the {most:,} that are read")


def read_json(path: Path) -> Any:
    """The JSON value in a file. Raises OSError, or ValueError with the reason."""
    check_file(path, MOST_JSON)
    return parse_json(path.read_bytes())


def parse_json(data: bytes) -> Any:
    """A JSON value by the letter of its standard: no key twice, no NaN, no infinity. ValueError with the reason."""
    try:
        return json.loads(
            data.decode(), object_pairs_hook=_no_key_twice, parse_constant=_no_constant, parse_float=_finite
        )
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("JSON with a key twice")
    return table


def _no_constant(name: str) -> float:
    raise ValueError(f"JSON with {name}")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"JSON with a number beyond all bounds, {text[:20]}")
    return value
