"""Drawings of the report, as files of the run folder: the map, the merge tree, the thumbnails."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy.typing as npt

from deepcluster.errors import DiskError
from deepcluster.groups.tree import Tree
from deepcluster.runtime.plain_files import check_file, shaped
from deepcluster.storage.run_folder import LockedFolder, RunFolder

MAP, TREE, SHEET = "map.npy", "tree.json", "thumbnails.webp"
MOST_SHEET = 1 << 21  # bytes
SCHEMA_VERSION = 1


def read_map(folder: RunFolder, images: int, shown: Sequence[int] = ()) -> npt.NDArray[Any] | None:
    """Read the places of the ``images`` of a run (float32, N x 2), or of those ``shown``; None if it has no map."""
    if not folder.has(MAP):
        return None
    return folder.read_array(MAP, len(shown) or images, 2)


def read_sheet(folder: RunFolder) -> bytes:
    """Read the sheet of tiny pictures; empty if the run has none."""
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
    """Write the merge tree."""
    folder.write_json(TREE, {"schema_version": SCHEMA_VERSION} | asdict(tree))


def read_tree(folder: RunFolder, images: int) -> Tree | None:
    """Return the merge tree of ``images`` images; None if the run has none. DiskError if the file holds no tree."""
    if not folder.has(TREE):
        return None
    table = folder.read_json(TREE)
    with folder.as_disk_errors(TREE):
        tree: Tree = shaped({field.name: table[field.name] for field in fields(Tree)}, Tree, TREE)
        pieces, joined = len(tree.groups), sorted(node for pair in tree.merges for node in pair)
        if (
            joined != list(range(2 * pieces - 2))
            or any(max(pair) >= pieces + j for j, pair in enumerate(tree.merges))
            or not len(tree.sizes) == len(tree.medoids) == 2 * pieces - 1
            or not all(0 <= group < 10**9 for group in tree.groups)  # numbers have gaps, and may exceed the images
            or not all(0 <= size <= images for size in tree.sizes)
            or not all(0 <= row < images for row in tree.medoids)
        ):
            raise ValueError("it holds no tree")
        return tree
