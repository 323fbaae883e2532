"""edits.json: what a person decides about the clusters, as the report writes it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepcluster.errors import UsageError
from deepcluster.storage.safe_read import json_sha256, read_json

SCHEMA_VERSION = 1
KEYS = {"schema_version", "cut", "names", "merge", "junk", "split", "move"}
LONGEST_NAME = 200  # characters


@dataclass(frozen=True)
class Edits:
    """What a person has decided: first the splits, then the merges, the moves, the names and the marks.

    Attributes:
        cut: the ``cut`` of run.json that the edits were made for; "" fits any.
        names: of clusters, as they are in the end; "" removes a name.
        merge: the clusters of each tuple become one, with the number of the first.
        junk: all clusters that are marked as junk from now on; None leaves the marks as they are.
        split: (cluster, number of parts); the largest part keeps the number, the others get the next free ones, in
            this order.
        move: (row of features.npy or path, cluster as it is after the merges). Numbers from the next free one on make
            new clusters.
    """

    cut: str
    names: Mapping[int, str]
    merge: tuple[tuple[int, ...], ...]
    junk: tuple[int, ...] | None
    split: tuple[tuple[int, int], ...] = ()
    move: tuple[tuple[int | str, int], ...] = ()

    @property
    def digest(self) -> str:
        """Recorded in run.json, so that the same edits are not applied twice."""
        return json_sha256([self.cut, sorted(self.names.items()), self.merge, self.junk, self.split, self.move])

    @property
    def changes_clusters(self) -> bool:
        """Whether an image may be in another cluster afterwards."""
        return bool(self.merge or self.split or self.move)


def read_edits(path: Path) -> Edits:
    """The edits in a JSON file.

    Raises:
        UsageError: with the file and what is wrong with it.
    """
    try:
        table = read_json(path)
        version = table.get("schema_version") if isinstance(table, dict) else None
        if type(version) is not int or version != SCHEMA_VERSION:  # JSON's true and 1.0 equal 1, too
            raise ValueError(f"not edits of version {SCHEMA_VERSION}")
        if unknown := sorted(table.keys() - KEYS):
            raise ValueError(f"unknown key {unknown[0][:80]!a}")
        return Edits(
            cut=_of(table.get("cut", ""), str, "cut"),
            names={_number(key): _name(name) for key, name in _of(table.get("names", {}), dict, "names").items()},
            merge=tuple(_numbers(clusters, "merge") for clusters in _of(table.get("merge", []), list, "merge")),
            junk=_numbers(table["junk"], "junk") if "junk" in table else None,
            split=tuple(_split(pair) for pair in _of(table.get("split", []), list, "split")),
            move=tuple(_move(pair) for pair in _of(table.get("move", []), list, "move")),
        )
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}: the report makes one (Download edits.json)") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be used ({error}): download it from the report again") from None


def _of(value: Any, kind: type, key: str) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{key} is not of type {kind.__name__}")
    return value


def _number(key: str) -> int:
    if not re.fullmatch("0|[1-9][0-9]{0,8}", key):  # one way to write each, so no number comes twice
        raise ValueError(f"{key[:80]!a} in names is not the number of a cluster")
    return int(key)


def _numbers(value: Any, key: str) -> tuple[int, ...]:
    numbers = _of(value, list, key)
    if not all(map(_is_number, numbers)) or (key == "merge" and not numbers):
        raise ValueError(f"{key} is not made of numbers of clusters")
    return tuple(numbers)


def _split(value: Any) -> tuple[int, int]:
    from deepcluster.groups.tree import MOST_PARTS  # imports torch

    match value:
        case [number, count] if _is_number(number) and _is_number(count) and 2 <= count <= MOST_PARTS:
            return number, count
    raise ValueError(f"{str(value)[:80]!a} in split is not [cluster, number of parts from 2 to {MOST_PARTS}]")


def _move(value: Any) -> tuple[int | str, int]:
    match value:
        case [image, number] if _is_number(number) and (type(image) is str or _is_number(image)):
            return image, number
    raise ValueError(f"{str(value)[:80]!a} in move is not [row or path, cluster]")


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < 10**9


def _name(value: Any) -> str:
    """A single printable line."""
    name: str = _of(value, str, "a name").strip()
    if len(name) > LONGEST_NAME or not all(letter.isprintable() for letter in name):
        raise ValueError(f"the name {name[:80]!a} is not one line of at most {LONGEST_NAME} printable characters")
    return name
