"""What the report draws, as files of the run folder: the map, the merge tree, the thumbnails."""

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from deepcluster.errors import DiskError
from deepcluster.groups.tree import Tree
from deepcluster.runtime.plain_files import check_file
from deepcluster.storage.run_folder import LockedFolder, RunFolder

MAP, TREE, SHEET = "map.npy", "tree.json", "thumbnails.webp"
MOST_SHEET = 1 << 21  # bytes
SCHEMA_VERSION = 1


def read_map(folder: RunFolder, images: int, shown: Sequence[int] = ()) -> npt.NDArray[Any] | None:
    """The places of the ``images`` of a run (float32, N x 2), or of those ``shown``; None where the run has none."""
    if not folder.has(MAP):
        return None
    return folder.read_array(MAP, len(shown) or images, 2)


def read_sheet(folder: RunFolder) -> bytes:
    """The sheet of tiny pictures; empty where the run has none."""
    if not folder.has(SHEET):
        return b""
    path = folder.file(SHEET)
    with folder.as_disk_errors(SHEET):
        check_file(path, MOST_SHEET)
        data = path.read_bytes()
    if data[:4] + data[8:12] != b"RIFFWEBP":
        raise DiskError(f"{path} is no WebP picture: remove it, and the report does without")
    return data


def write_tree(folder: LockedFolder, tree: Tree) -> None:
    folder.write_json(
        TREE,
        {
            "schema_version": SCHEMA_VERSION,
            "groups": tree.groups,
            "merges": tree.merges,
            "sizes": tree.sizes,
            "medoids": tree.medoids,
        },
    )


def read_tree(folder: RunFolder, images: int) -> Tree | None:
    """Return the merge tree of ``images`` images; None if the run has none. DiskError if the file holds no tree."""
    if not folder.has(TREE):
        return None
    table = folder.read_json(TREE, {"groups": list, "merges": list, "sizes": list, "medoids": list})
    with folder.as_disk_errors(TREE):
        return _tree(table, images)


def _tree(table: dict[str, Any], images: int) -> Tree:
    pieces = len(table["groups"])
    tree = Tree(
        groups=_numbers(table["groups"], pieces, 10**9),  # numbers have gaps, and may exceed the number of images
        merges=tuple((a, b) for a, b in (_numbers(pair, 2, 2 * pieces) for pair in table["merges"])),
        sizes=_numbers(table["sizes"], 2 * pieces - 1, images + 1),
        medoids=_numbers(table["medoids"], 2 * pieces - 1, images),
    )
    joined = sorted(node for pair in tree.merges for node in pair)
    if joined != list(range(2 * pieces - 2)) or any(max(pair) >= pieces + j for j, pair in enumerate(tree.merges)):
        raise ValueError(f"{TREE} holds no tree")
    return tree


def _numbers(values: Any, count: int, below: int) -> tuple[int, ...]:
    if len(values) != count or not all(type(value) is int and 0 <= value < below for value in values):
        raise ValueError(f"{TREE} has other numbers than those of {count} nodes")
    return tuple(values)
