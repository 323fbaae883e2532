"""What a person decides about the clusters: names, merges and marks, as the report writes them into edits.json."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepcluster.errors import UsageError
from deepcluster.groups.cut import Cut
from deepcluster.model import Model
from deepcluster.storage.safe_read import json_sha256, read_json

SCHEMA_VERSION = 1
KEYS = {"schema_version", "cut", "names", "merge", "junk"}
LONGEST_NAME = 200  # characters


@dataclass(frozen=True)
class Edits:
    """What a person has decided.

    Attributes:
        cut: the ``cut`` of run.json that the edits were made for; "" fits any.
        names: of clusters, as they are after the merges; "" removes a name.
        merge: the clusters of each tuple become one, with the number of the first.
        junk: all clusters that are marked as junk from now on; None leaves the marks as they are.
    """

    cut: str
    names: Mapping[int, str]
    merge: tuple[tuple[int, ...], ...]
    junk: tuple[int, ...] | None

    @property
    def digest(self) -> str:
        """Recorded in run.json, so that the same edits are not applied twice."""
        return json_sha256([self.cut, sorted(self.names.items()), self.merge, self.junk])


def read_edits(path: Path) -> Edits:
    """The edits in a JSON file.

    Raises:
        UsageError: with the file and what is wrong with it.
    """
    try:
        table = read_json(path)
        if not isinstance(table, dict) or table.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"not edits of version {SCHEMA_VERSION}")
        if unknown := sorted(table.keys() - KEYS):
            raise ValueError(f"unknown key {unknown[0][:80]!a}")
        return Edits(
            cut=_text(table.get("cut", ""), "cut"),
            names={_number(key): _name(name) for key, name in _of(table.get("names", {}), dict, "names").items()},
            merge=tuple(_numbers(clusters, "merge") for clusters in _of(table.get("merge", []), list, "merge")),
            junk=_numbers(table["junk"], "junk") if "junk" in table else None,
        )
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}: the report makes one (Download edits.json)") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be used ({error}): download it from the report again") from None


def edited(model: Model, edits: Edits) -> Model:
    """The model with these edits; the outlier distances of merged clusters are still to be computed.

    Clusters keep their numbers: of merged ones all but the first have no images from then on.

    Raises:
        UsageError: where there is no cluster of a number, or one is merged twice.
    """
    present = set(model.groups.groups.tolist())
    merged = [number for clusters in edits.merge for number in clusters]
    gone = {number for clusters in edits.merge for number in clusters[1:]}
    _check_present([*merged, *edits.names, *(edits.junk or ())], present)
    if twice := sorted(number for number, times in Counter(merged).items() if times > 1):
        raise UsageError(f"cluster {twice[0]} is merged twice: name it in one merge")
    if left := sorted(set(edits.names) & gone):
        raise UsageError(f"cluster {left[0]} is merged into another one: name that one")

    target = torch.arange(model.groups.count)
    for first, *others in edits.merge:
        target[others] = first
    groups = Cut(model.groups.centroids, target[model.groups.groups])
    names, junk = list(model.names), set(model.junk)
    for clusters in edits.merge:
        names[clusters[0]] = next((names[number] for number in clusters if names[number]), "")
    for number, name in edits.names.items():
        names[number] = name
    junk = (junk if edits.junk is None else set(edits.junk)) - gone
    names = [name if number not in gone else "" for number, name in enumerate(names)]
    return replace(model, groups=groups, names=tuple(names[: groups.count]), junk=tuple(sorted(junk)))


def carried_over(model: Model, before: Tensor, after: Tensor, count: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and junk marks of new clusters, inherited from the old clusters that they continue.

    An old cluster continues as a new one where more than half of its images are more than half of that one.

    Args:
        model: with the old names and marks.
        before: the old cluster of each image (int64, N).
        after: its new one (int64, N).
        count: the number of new clusters.
    """
    names, junk, marked = [""] * count, [], set(model.junk)
    pairs, shared = torch.unique(torch.stack([before, after], 1), dim=0, return_counts=True)
    old, new = torch.bincount(before)[pairs[:, 0]], torch.bincount(after)[pairs[:, 1]]
    for number, heir in pairs[(2 * shared > old) & (2 * shared > new)].tolist():
        names[heir] = model.names[number]
        junk += [heir] if number in marked else []
    return tuple(names), tuple(sorted(junk))


def _check_present(numbers: list[int], present: set[int]) -> None:
    for number in numbers:
        if number not in present:
            raise UsageError(f"there is no cluster {number}: the clusters are {_shown(sorted(present))}")


def _shown(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:20])) + (", ..." if len(numbers) > 20 else "")


def _of(value: Any, kind: type, key: str) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{key} is not of type {kind.__name__}")
    return value


def _text(value: Any, key: str) -> str:
    return str(_of(value, str, key))


def _number(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) < 10):
        raise ValueError(f"{key[:80]!a} in names is not the number of a cluster")
    return int(key)


def _numbers(value: Any, key: str) -> tuple[int, ...]:
    numbers = _of(value, list, key)
    if not all(type(number) is int and 0 <= number < 10**9 for number in numbers) or (key == "merge" and not numbers):
        raise ValueError(f"{key} is not made of numbers of clusters")
    return tuple(numbers)


def _name(value: Any) -> str:
    """A single printable line."""
    name = _text(value, "a name").strip()
    if len(name) > LONGEST_NAME or not all(letter.isprintable() for letter in name):
        raise ValueError(f"the name {name[:80]!a} is not one line of at most {LONGEST_NAME} printable characters")
    return name
