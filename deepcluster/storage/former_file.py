"""The groups that a run had before the last `apply` or `recut`, so that one step can be taken back."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from deepcluster.errors import UsageError
from deepcluster.groups.cut import Cut
from deepcluster.storage.run_folder import FORMER, LockedFolder, RunFolder
from deepcluster.storage.safe_read import parse_json, read_tensors

SCHEMA_VERSION = 1
# Entries of run.json on the groups, with their types.
ENTRIES = {"cut": str, "edits": str, "candidates": list, "stability": float, "verdict": str}


@dataclass(frozen=True)
class Former:
    """What the groups of a run are made of.

    Attributes:
        groups: The cut.
        names: Of its groups.
        junk: The groups that are marked so.
        record: The ``ENTRIES`` of run.json.
        baseline: The figures of the network at the start that belong to them.
    """

    groups: Cut
    names: tuple[str, ...]
    junk: tuple[int, ...]
    record: Mapping[str, Any]
    baseline: Mapping[str, float]


def write_former(folder: LockedFolder, former: Former) -> None:
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
    names, junk, baseline = tuple(about["names"]), tuple(about["junk"]), about["baseline"]
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
    if not all(type(value) in (int, float) for value in baseline.values()):
        raise ValueError("its figures are not numbers")
    record = {name: about["record"][name] for name in ENTRIES}
    if not all(value is None or type(value) is ENTRIES[name] for name, value in record.items()):
        raise ValueError("it has entries of run.json that are of other types")
    return Former(
        groups=Cut(centroids.clone(), groups.clone()),
        names=names,
        junk=junk,
        record=record,
        baseline=dict(baseline),
    )
