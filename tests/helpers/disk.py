"""A model of a disk: it tells every tree of files that a power cut may leave."""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from itertools import combinations
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

from deepcluster.storage.lock import HIDDEN

MAX_PENDING = 5  # names that are not yet safe, of which every subset may survive; of more: prefixes, one, all but one
Tree = dict[str, bytes | None]  # content by path; None: a folder
Names = dict[int, dict[str, int]]  # by the inode of a folder: the inodes of its entries
Change = list[tuple[int, str, int | None]]  # (folder, name, inode) of one call; None: the name goes


class Disk:
    """The content of a file lasts from its fsync on, a name from the fsync of its folder on."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch):
        self.root = root.stat().st_ino
        self.names: Names = {}
        self.files: dict[int, bytes] = {}
        self.pending: list[Change] = []
        self.held: list[int] = []  # open files, so that no inode number comes again
        self.trees: dict[tuple[tuple[str, bytes | None], ...], None] = {}  # in the order of the work
        for path in (root, *root.rglob("*")):
            if path.is_dir():
                self.names[path.stat().st_ino] = {entry.name: entry.stat().st_ino for entry in path.iterdir()}
            else:
                self.files[path.stat().st_ino] = path.read_bytes()
        for name in ("rename", "replace", "link", "unlink", "rmdir", "mkdir", "fsync"):
            patch.setattr(os, name, self._watched(name, getattr(os, name)))

    def safe(self) -> Tree:
        """Return the tree in which nothing survives that is not yet safe."""
        return self._tree(())

    def _watched(self, name: str, original: Any) -> Any:
        takes_two = name in ("rename", "replace", "link")

        def call(*arguments: Any, **options: Any) -> Any:
            target = arguments[1 if takes_two else 0]
            self._hold(target, options)
            source = (_place(arguments[0]), _inode(arguments[0])) if takes_two else None
            result = original(*arguments, **options)
            if name == "fsync":
                self._sync(target)
            elif "dir_fd" not in options and f"/{HIDDEN}" not in os.fspath(target):
                # The calls in a scratch folder, and those of a removal of whole folders, never survive a cut.
                inode = source[1] if source else _inode(target) if name == "mkdir" else None
                if name == "mkdir":
                    self.names[inode] = {}
                change: Change = [(*_place(target), inode)]
                if source and name != "link":
                    change.append((*source[0], None))
                self.pending.append(change)
            for chosen in self._subsets():
                self.trees[tuple(sorted(self._tree(chosen).items(), key=itemgetter(0)))] = None
            return result

        return call

    def _hold(self, path: Any, options: dict[str, Any]) -> None:
        if not isinstance(path, int):
            with suppress(OSError):
                self.held.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK, dir_fd=options.get("dir_fd")))

    def _sync(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        folder = status.st_ino
        if not stat.S_ISDIR(status.st_mode):
            self.files[folder] = Path(f"/proc/self/fd/{descriptor}").read_bytes()
            return
        for change in self.pending:
            if any(place == folder for place, _, _ in change):
                _apply(change, self.names)
        self.pending = [change for change in self.pending if all(place != folder for place, _, _ in change)]
        with os.scandir(descriptor) as entries:
            self.names[folder] = {entry.name: entry.inode() for entry in entries}

    def _subsets(self) -> Iterator[tuple[Change, ...]]:
        changes, count = self.pending, len(self.pending)
        if count <= MAX_PENDING:
            yield from (chosen for size in range(count + 1) for chosen in combinations(changes, size))
        else:
            yield from (tuple(changes[:end]) for end in range(count + 1))
            yield from ((change,) for change in changes)
            yield from (tuple(changes[:i] + changes[i + 1 :]) for i in range(count))

    def _tree(self, chosen: tuple[Change, ...]) -> Tree:
        names = {folder: dict(entries) for folder, entries in self.names.items()}
        for change in chosen:
            _apply(change, names)
        tree: Tree = {}

        def walk(folder: int, prefix: str) -> None:
            for name, inode in names[folder].items():
                if inode in names:
                    tree[prefix + name] = None
                    walk(inode, f"{prefix}{name}/")
                else:
                    tree[prefix + name] = self.files.get(inode, b"")

        walk(self.root, "")
        return tree


def _place(path: Any) -> tuple[int, str]:
    path = Path(path)
    return path.parent.stat().st_ino, path.name


def _inode(path: Any) -> int:
    return os.lstat(path).st_ino


def _apply(change: Change, names: Names) -> None:
    for folder, name, inode in change:
        if inode is not None:
            names.setdefault(folder, {})[name] = inode
        else:
            names.get(folder, {}).pop(name, None)


def write(tree: Tree, to: Path) -> Path:
    """Write a tree into a new folder."""
    to.mkdir()
    for name, content in sorted(tree.items(), key=itemgetter(0)):
        (to / name).mkdir() if content is None else (to / name).write_bytes(content)
    return to
