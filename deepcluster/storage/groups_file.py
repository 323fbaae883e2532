"""The groups of a model, apart from its network: model/groups.safetensors, and former.safetensors for one step back.

Both have the same layout: ``centroids`` and ``groups`` of the cut, and ``about``, a JSON text of the names, the marks
and, in former.safetensors, the entries of run.json on the groups and their figures.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepcluster.errors import UsageError
from deepcluster.groups.cut import Cut
from deepcluster.model import Model
from deepcluster.storage.run_folder import FORMER, LockedFolder, RunFolder
from deepcluster.storage.run_record import RunRecord
from deepcluster.storage.safe_read import check_tensors, parse_json, read_tensors

# Entries of run.json on the groups, with their types.
ENTRIES = {"cut": str, "edits": str, "candidates": list, "stability": float, "verdict": str}


@dataclass(frozen=True)
class Groups:
    """The content of a file of groups.

    Attributes:
        cut: The groups.
        names: Of the groups.
        junk: The groups that are marked so.
        about: All that the file says in words.
    """

    cut: Cut
    names: tuple[str, ...]
    junk: tuple[int, ...]
    about: Mapping[str, Any]


def groups_tensors(model: Model, **about: Any) -> dict[str, Tensor]:
    """Return the content of the file of a model's groups; ``about``: more for its JSON text."""
    text = json.dumps({"names": model.names, "junk": model.junk, **about}).encode()
    return {
        "centroids": model.groups.centroids,
        "groups": model.groups.groups,
        "about": torch.frombuffer(bytearray(text), dtype=torch.uint8),
    }


def read_groups(path: Path, dims: int, digest: str | None = None) -> Groups:
    """Read groups in ``dims`` dimensions from a file with this SHA-256 (None: any).

    Raises OSError, SafetensorError, or ValueError with the reason.
    """
    tensors = read_tensors(path, digest)
    shapes = {"centroids": ("count", "dims"), "groups": ("count",), "about": ("bytes",)}
    types = {"groups": torch.int64, "about": torch.uint8}
    check_tensors(tensors, shapes, types, dims=dims)
    about = parse_json(tensors["about"].numpy().tobytes())
    names, junk = (about.get(key) for key in ("names", "junk")) if isinstance(about, dict) else (None, None)
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError("its names are not texts, one for each cluster")
    "".join(names).encode(errors="surrogateescape")  # a ValueError for a name that no file can hold
    if not (isinstance(junk, list) and all(type(number) is int and 0 <= number < len(names) for number in junk)):
        raise ValueError("its junk are not numbers of clusters")
    centroids, groups = tensors["centroids"].clone(), tensors["groups"].clone()
    if not torch.isfinite(centroids).all():
        raise ValueError("its centroids are not finite numbers")
    if groups.min() < 0 or groups.max() != len(names) - 1:  # groups that were merged into others have no centroid
        raise ValueError(f"its groups are not the numbers of {len(names)} clusters")
    return Groups(Cut(centroids, groups), tuple(names), tuple(junk), about)


def keep_former(folder: LockedFolder, model: Model, record: RunRecord, baseline: Mapping[str, float]) -> None:
    """Keep the groups that the run has now, the entries of run.json on them and their ``baseline`` for an undo."""
    entries = {name: getattr(record, name) for name in ENTRIES}
    folder.write_tensors(FORMER, groups_tensors(model, record=entries, baseline=dict(baseline)))


def read_former(folder: RunFolder, dims: int) -> Groups:
    """Read the groups of :func:`keep_former`.

    Raises:
        UsageError: The run has none.
        DiskError: The file is damaged, or of a run with other dimensions.
    """
    if not folder.has(FORMER):
        raise UsageError(f"{folder.path} has nothing to take back: only the last apply or recut can be")
    with folder.as_disk_errors(FORMER):
        former = read_groups(folder.file(FORMER), dims)
        record, baseline = former.about["record"], former.about["baseline"]
        if not all(type(value) in (int, float) for value in baseline.values()):
            raise ValueError("its figures are not numbers")
        if record.keys() != ENTRIES.keys() or not all(
            value is None or type(value) is ENTRIES[name] for name, value in record.items()
        ):
            raise ValueError("it has other entries of run.json, or of other types")
        return former
