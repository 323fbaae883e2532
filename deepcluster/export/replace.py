"""A tree that an export made, replaced in place: only files that exist elsewhere go, all others stay."""

import filecmp
import os
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from deepcluster.errors import DiskError
from deepcluster.runtime import signals
from deepcluster.runtime.plain_files import write_csv
from deepcluster.storage.content import Row
from deepcluster.storage.files import check_no_folder, write_whole
from deepcluster.storage.run_folder import RunFolder

INVENTORY = "inventory.csv"
INVENTORY_COLUMNS = ("path", "cluster", "name", "exported_path", "how")
METADATA = "train/metadata.csv"  # of a data set
MAX_NAMED = 5  # files that are named on the screen


def some(texts: Sequence[str]) -> str:
    """Return the first texts in a line."""
    return ", ".join(texts[:MAX_NAMED]) + (" and others" if len(texts) > MAX_NAMED else "")


def replaceable(out: Path, *, overwrite: bool) -> list[Row] | None:
    """Return the inventory of the tree at ``out``, None if there is nothing.

    Raises:
        DiskError: There is something else than the tree of an export, or it may not be replaced.
    """
    if not overwrite or out.is_symlink() or not out.is_dir() or not any(out.iterdir()):
        check_no_folder(out)
        return None
    try:
        return [*RunFolder(out).read_rows(INVENTORY, INVENTORY_COLUMNS)]
    except DiskError:
        raise DiskError(
            f"{out} has no {INVENTORY} of an export, so --overwrite leaves it as it is: give another -o"
        ) from None


def replace_tree(
    out: Path,
    new: Path,
    old: Sequence[Row],
    rows: Sequence[Row],
    original: Callable[[str], Path | None],
    *,
    alone: bool,
) -> list[str]:
    """Replace the files of an export by those of another one, and return the files that stay.

    A file goes if it is a link, equals its original, or equals its successor. After a kill the inventory has the files
    of both exports, so that the next call replaces them.

    Args:
        out: The tree to change; ``old`` is its inventory.
        new: A finished tree on the same file system, whose files are moved; ``rows`` is its inventory.
        original: Gives the file of an image outside of ``out``, None if it is none.
        alone: No other files may stay.

    Raises:
        DiskError: Files that would stay are in the way; nothing was changed.
    """
    successors = {row["path"]: new / row["exported_path"] for row in rows if row["exported_path"]}
    goes = {
        row["exported_path"]
        for row in old
        if row["exported_path"] and _exists_elsewhere(out, row, original(row["path"]), successors.get(row["path"]))
    }
    if _is_unchanged_metadata(out, old):
        goes.add(METADATA)
    stays, comes = sorted(_files(out) - goes - {INVENTORY}), sorted(_files(new) - {INVENTORY})
    if in_the_way := stays if alone else _in_the_way(out, comes, goes):
        raise DiskError(
            f"{out} is left as it is, because these files are not of its export, were changed or exist nowhere else:"
            f" {some(in_the_way)}. Move them out, and export again"
        )
    signals.check()
    with signals.uninterrupted():
        both = [*old, *rows]
        write_whole(out / INVENTORY, lambda file: write_csv(file, INVENTORY_COLUMNS, both), scratch=new)
        for name in goes:
            (out / name).unlink()
        for name in comes:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).rename(out / name)
        (new / INVENTORY).replace(out / INVENTORY)
        for folder in sorted({above for name in goes for above in PurePosixPath(name).parents[:-1]}, reverse=True):
            with suppress(OSError):  # not empty
                (out / folder).rmdir()
    return stays


def _is_unchanged_metadata(out: Path, old: Sequence[Row]) -> bool:
    """Return whether ``out`` has the table that the export of a data set wrote before its inventory."""
    file, top = out / METADATA, f"{PurePosixPath(METADATA).parent}/"
    if file.is_symlink() or not file.is_file() or not any(row["exported_path"].startswith(top) for row in old):
        return False
    return file.stat().st_mtime_ns <= (out / INVENTORY).stat().st_mtime_ns


def _exists_elsewhere(out: Path, row: Row, original: Path | None, successor: Path | None) -> bool:
    """Return whether nothing is lost with the file of a row of the inventory."""
    top, inside = os.path.realpath(out), PurePosixPath(row["exported_path"])
    if inside.is_absolute() or os.path.realpath(out / inside.parent) != str(Path(top, inside.parent)):
        return False  # an inventory that somebody changed, or a folder that is a link now
    file = out / inside
    if file.is_symlink():
        return row["how"] == "symlink"
    for other in (original, successor):
        with suppress(OSError):
            if other is None:
                continue
            # One file: either a hard link, or the original itself by another way into the folder (a mount, a name in
            # another case), which has no second link.
            if file.stat().st_nlink > 1 if file.samefile(other) else filecmp.cmp(file, other, shallow=False):
                return True
    return False


def _in_the_way(out: Path, comes: Sequence[str], goes: Collection[str]) -> list[str]:
    """Return the places of new files, and of their folders, that something else has."""
    folders = {str(above) for name in comes for above in PurePosixPath(name).parents[:-1]}
    there = {name: out / name for name in {*comes, *folders}.difference(goes) if os.path.lexists(out / name)}
    return sorted(name for name, at in there.items() if name not in folders or at.is_symlink() or not at.is_dir())


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
