"""The groups that a run had before the last `apply` or `recut`, so that one step can be taken back."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from deepcluster.errors import UsageError
from deepcluster.groups.cut import Cut
from deepcluster.storage.run_folder import FORMER, RunFolder
from deepcluster.storage.safe_read import parse_json, read_tensors

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Former:
    """What the groups of a run are made of.

    Attributes:
        groups: The cut.
        names: Of its groups.
        junk: The groups that are marked so.
        edits: The digest of the edits in it, None where there are none.
        candidates: For the number of groups, as in run.json.
        baseline: The figures of the network at the start that belong to them.
    """

    groups: Cut
    names: tuple[str, ...]
    junk: tuple[int, ...]
    edits: str | None
    candidates: tuple[Mapping[str, Any], ...] | None
    baseline: Mapping[str, float]


def write_former(folder: RunFolder, former: Former) -> None:
    about = {name: value for name, value in asdict(former).items() if name != "groups"}
    text = json.dumps({"schema_version": SCHEMA_VERSION, **about}).encode()
    folder.write_tensors(
        FORMER,
        {
            "centroids": former.groups.centroids,
            "groups": former.groups.groups,
            "about": torch.frombuffer(bytearray(text), dtype=torch.uint8),
        },
    )


def read_former(folder: RunFolder, dims: int) -> Former:
    """UsageError where there is nothing to take back; DiskError where the file is not of a run of ``dims`` numbers."""
    if not folder.has(FORMER):
        raise UsageError(f"{folder.path} has nothing to take back: only the last apply or recut can be")
    with folder.as_disk_errors(FORMER):
        return _former(read_tensors(folder.file(FORMER)), dims)


def _former(tensors: Mapping[str, Tensor], dims: int) -> Former:
    centroids, groups = tensors["centroids"], tensors["groups"]
    about: Any = parse_json(tensors["about"].numpy().tobytes())
    names, junk = tuple(about["names"]), tuple(about["junk"])
    if about["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"not a state of version {SCHEMA_VERSION}")
    if (centroids.dtype, groups.dtype, centroids.shape) != (torch.float32, torch.int64, (len(groups), dims)):
        raise ValueError(f"it holds centroids {centroids.dtype} {tuple(centroids.shape)} for {dims} dimensions")
    if not (len(groups) and torch.isfinite(centroids).all() and groups.min() >= 0 and groups.max() == len(names) - 1):
        raise ValueError(f"its groups are not those of {len(names)} names")
    if not all(isinstance(name, str) and name.isprintable() for name in names):
        raise ValueError("its names are not printable texts")
    if not all(type(number) is int and 0 <= number < len(names) for number in junk):
        raise ValueError("its junk are not numbers of clusters")
    candidates = about["candidates"]
    return Former(
        groups=Cut(centroids.clone(), groups.clone()),
        names=names,
        junk=junk,
        edits=None if about["edits"] is None else str(about["edits"]),
        candidates=None if candidates is None else tuple(dict(each) for each in candidates),
        baseline={str(name): float(value) for name, value in about["baseline"].items()},
    )
