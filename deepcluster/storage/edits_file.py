"""Edits: the decisions of a person about the clusters, from the served report, a JSON file or Python."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from deepcluster.errors import DiskError, UsageError
from deepcluster.runtime.bounded import json_sha256, read_json, shaped
from deepcluster.texts import JOINERS

SCHEMA_VERSION = 1
LONGEST_NAME = 200  # characters
Number = Annotated[int, range(10**9)]


@dataclass(frozen=True)
class Edits:
    """Decisions of a person: first the splits, then the merges, the moves, the names and the marks."""

    cut: str = ""  # the ``cut`` of result.json that the edits were made for; "" fits any
    names: Mapping[int, str] = field(default_factory=dict)  # final names of clusters; "" removes a name
    merge: tuple[tuple[Number, ...], ...] = ()  # the clusters of a tuple become one, with the number of the first
    junk: tuple[Number, ...] | None = None  # all clusters marked as junk from now on; None changes no mark
    # (cluster, number of parts); the largest part keeps the number, the others get the next free ones, in this order.
    split: tuple[tuple[Number, int], ...] = ()
    # (row of features.npy or path, cluster after the merges). Numbers from the next free one on make new clusters.
    move: tuple[tuple[Number | str, Number], ...] = ()
    checked: tuple[Number | str, ...] = ()  # rows or paths of images that a person saw and left where they are

    @property
    def digest(self) -> str:
        """Return the digest by which the same edits are not applied twice."""
        names = sorted(self.names.items())
        return json_sha256([self.cut, names, self.merge, self.junk, self.split, self.move, self.checked])


def read_edits(path: Path) -> Edits:
    """Read the edits in a JSON file. UsageError or DiskError names the file and the fault."""
    try:
        return edits_of(read_json(path))
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}: give a JSON file with edits") from None
    except OSError as error:
        raise DiskError(f"{path} cannot be read ({error.strerror}): check it") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be used ({error}): correct it") from None


def edits_of(value: object) -> Edits:
    """Return the edits in a JSON value. ValueError names the fault."""
    table = shaped(value, dict, "the file")
    version = table.pop("schema_version", None)
    if type(version) is not int or version != SCHEMA_VERSION:  # JSON's true and 1.0 equal 1, too
        raise ValueError(f'it needs "schema_version": {SCHEMA_VERSION}')
    named: dict[str, str] = shaped(table.pop("names", {}), dict[str, str], "names")
    names = {_number(key): checked_name(name) for key, name in named.items()}
    edits: Edits = shaped(table, Edits, "the file")
    if () in edits.merge:
        raise ValueError("merge has an empty list")
    if edits.split:
        from deepcluster.groups.tree import MAX_PARTS  # imports torch

        if not all(2 <= count <= MAX_PARTS for _, count in edits.split):
            raise ValueError(f"split makes 2 to {MAX_PARTS} parts of a cluster")
    return replace(edits, names=names)


def python_edits(words: Mapping[str, Any], cut: str) -> Edits:
    """Return the edits in a dict with the words of edits.json; ``cut``: the clusters that they are for.

    The keys of names may be numbers, and all numbers may be numpy's. UsageError names the fault.
    """
    try:
        names = {str(number): name for number, name in words.get("names", {}).items()}
        plain = {"schema_version": SCHEMA_VERSION, "cut": cut, **words, "names": names}
        return edits_of(json.loads(json.dumps(plain, default=lambda value: getattr(value, "tolist", value.__str__)())))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"the edits cannot be used ({error}): give a dict such as {{'merge': [[1, 3]]}}") from None


def _number(key: str) -> int:
    if not re.fullmatch("0|[1-9][0-9]{0,8}", key):  # one way to write a number, so none comes twice
        raise ValueError(f"{key[:80]!a} in names is not the number of a cluster")
    return int(key)


def checked_name(name: str) -> str:
    """Return the name without blanks around it. UsageError if it is not a single printable line."""
    name = name.strip().lstrip(JOINERS).strip()
    if len(name) > LONGEST_NAME or not all(letter.isprintable() or letter in JOINERS for letter in name):
        raise UsageError(f"the name {name[:80]!a} is not one line of at most {LONGEST_NAME} printable characters")
    return name
