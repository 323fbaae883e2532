"""Bounded files, strict JSON of a known shape, and digests."""

import codecs
import hashlib
import json
import math
import stat
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from itertools import repeat
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints


def check_file(path: Path, most: int = sys.maxsize) -> None:
    """Raise ValueError if ``path`` is a folder, a FIFO, a device, ..., is empty, or has more than ``most`` bytes."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait forever, and a device need not end
        raise ValueError("not a plain file")
    if not status.st_size:  # files of /proc claim no bytes, and some never end
        raise ValueError("empty file")
    if status.st_size > most:
        raise ValueError(f"{status.st_size:,} bytes, more than the {most:,} that are read")


# Python's objects take up to 25 times as much memory as the JSON they come from.
MAX_JSON = 4 << 20  # bytes


def read_json(path: Path) -> Any:
    """Read the JSON value in a file. Raises OSError, or ValueError with the reason."""
    check_file(path, MAX_JSON)
    return parse_json(path.read_bytes().removeprefix(codecs.BOM_UTF8))  # an editor may have put it in front


def parse_json(data: bytes) -> Any:
    """Parse JSON by the letter of its standard: no key twice, no NaN, no infinity. ValueError with the reason."""
    try:
        return json.loads(data.decode(), object_pairs_hook=_no_key_twice, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("JSON with a repeated key")
    return table


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"JSON with a number that is not finite, {text[:20]}")
    return value


RUN = "run.json"
# Values that every run.json has.
RECORD: Mapping[str, type] = {"schema_version": int, "run": str, "images": str, "base": str, "seed": int}


def is_run(folder: Path) -> bool:
    """Tell if a folder is a run folder: its run.json is one of ours."""
    try:
        record = read_json(folder / RUN)
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and all(type(record.get(key)) is kind for key, kind in RECORD.items())


def shaped(value: Any, kind: Any, name: str) -> Any:
    """Return a JSON value as a ``kind``, or raise ValueError with its ``name`` and the fault.

    A ``kind`` is a type; ``Annotated[int, range(...)]``; ``dict[str, kind]`` or ``Mapping``; a ``tuple`` of kinds or a
    ``Sequence``, from a list; a union; a dataclass, from an object that has its fields and no other keys.
    """
    origin = get_origin(kind)
    inner = get_args(kind)
    if is_dataclass(kind) and type(value) is dict:
        kinds = get_type_hints(kind, include_extras=True)
        needed = [field.name for field in fields(kind) if field.default is field.default_factory is MISSING]
        for key in (*value, *needed):
            if key not in kinds:
                raise ValueError(f"unknown key {key[:80]!a}")
            if key not in value:
                raise ValueError(f"{key} is missing")
        return kind(**{key: shaped(item, kinds[key], key) for key, item in value.items()})  # type: ignore[operator]
    if origin is Annotated:
        if type(value) is inner[0] and value in inner[1]:
            return value
        raise ValueError(f"{name} is not a whole number from {inner[1].start} to {inner[1].stop - 1}")
    if kind is Any or (kind is float and type(value) is int):
        return value
    if origin in (dict, Mapping) and type(value) is dict:
        return {key: shaped(item, inner[1], name) for key, item in value.items()}
    of_any_length = origin is Sequence or inner[-1:] == (...,)
    if origin in (tuple, Sequence) and type(value) is list and (of_any_length or len(value) == len(inner)):
        kinds_of_items = repeat(inner[0]) if of_any_length else inner
        return tuple(shaped(item, kind, name) for item, kind in zip(value, kinds_of_items, strict=False))
    for option in inner if origin in (Union, UnionType) else ():
        with suppress(ValueError):
            return shaped(value, option, name)
    if type(value) is not kind:
        raise ValueError(f"{name} is of the wrong type")
    return value


# SHA-256 finds damage, not attackers: these can write a new digest beside a new file.


def sha256(path: Path) -> str:
    """Return the digest of a file in hexadecimal digits. It is read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_sha256(value: Any) -> str:
    """Return the digest of a JSON value, however it is laid out in a file."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
