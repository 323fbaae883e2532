"""A tree that an export made, replaced in place: unchanged files of existing images go, all others stay."""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from deepcluster.errors import DiskError
from deepcluster.runtime import signals
from deepcluster.runtime.plain_files import own_sha256, sha256, write_csv
from deepcluster.storage.content import Row
from deepcluster.storage.files import check_no_folder, scratch_folder, write_whole
from deepcluster.storage.run_folder import RunFolder
from deepcluster.storage.state import hold

INVENTORY = "inventory.csv"
INVENTORY_COLUMNS = ("path", "cluster", "name", "exported_path", "how", "sha256")
LOCK = ".deepcluster.lock"
SAME_BYTES = ("hardlink", "copy")  # ways that keep the bytes of a file
MAX_NAMED = 5  # files that are named on the screen


class Unavailable(Exception):
    """An original that no longer exists or may not be passed on; the message is the reason."""


def some(texts: Sequence[str]) -> str:
    """Return the first texts in a line."""
    return ", ".join(texts[:MAX_NAMED]) + (" and others" if len(texts) > MAX_NAMED else "")


def replaceable(out: Path, *, overwrite: bool) -> list[Row] | None:
    """Return the inventory of the tree at ``out``, None if there is nothing. DiskError if it may not be replaced."""
    if not overwrite or out.is_symlink() or not out.is_dir() or not any(out.iterdir()):
        check_no_folder(out)
        return None
    with suppress(DiskError):
        rows = RunFolder(out).read_rows(INVENTORY, INVENTORY_COLUMNS)
        if not any("\0" in row["exported_path"] for row in rows):
            return [*rows]
    raise DiskError(
        f"{out} has no intact {INVENTORY} of this version, so --overwrite leaves it as it is: give another -o"
    )


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Yield a folder for the new tree, and hold the lock of the tree at ``out``. Both are removed at the end."""
    with scratch_folder(out) as new, hold(out, LOCK, remove=True):
        yield new


def replace_tree(
    out: Path, new: Path, rows: Sequence[Row], original: Callable[[str], Path | None], *, alone: bool
) -> list[str]:
    """Replace the files of an export by those of another one, and return the files that stay.

    The new inventory also has the old rows of files that stay. After a kill it has the rows of both exports, so that
    the next call replaces them.

    Args:
        out: The tree to change, inside of :func:`replacing`.
        new: A finished tree on the same file system, whose files are moved; ``rows`` is its inventory.
        original: Gives the file of an image that exists, None if it is none; raises Unavailable if it does not exist.
        alone: No other files may stay.

    Raises:
        DiskError: Files that would stay are in the way; nothing was changed.
    """
    old = replaceable(out, overwrite=True) or []
    goes = {row["exported_path"] for row in old if row["exported_path"] and _may_go(out, row, original)}
    stays, comes = sorted(_files(out) - goes - {INVENTORY, LOCK}), sorted(_files(new) - {INVENTORY})
    if in_the_way := stays if alone else _in_the_way(out, comes, goes):
        raise DiskError(
            f"{out} is left as it is, because its export did not make these files, they were changed, or their"
            f" originals are gone: {some(in_the_way)}. Move them out, and export again"
        )
    signals.check()
    with signals.uninterrupted():
        write_inventory(out, [*old, *rows], scratch=new)
        for name in goes:
            (out / name).unlink()
        for name in comes:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).rename(out / name)
        write_inventory(out, [*rows, *(row for row in old if row["exported_path"] in stays)], scratch=new)
        for folder in sorted({above for name in goes for above in PurePosixPath(name).parents[:-1]}, reverse=True):
            with suppress(OSError):  # not empty
                (out / folder).rmdir()
    return stays


def write_inventory(out: Path, rows: Sequence[Row], *, scratch: Path | None = None) -> None:
    """Write the inventory of a tree, whole."""
    write_whole(out / INVENTORY, lambda file: write_csv(file, INVENTORY_COLUMNS, rows), scratch=scratch)


def _may_go(out: Path, row: Row, original: Callable[[str], Path | None]) -> bool:
    """Return whether the export made the file of a row of its inventory, and nothing is lost with it."""
    top, inside = os.path.realpath(out), PurePosixPath(row["exported_path"])
    if inside.is_absolute() or os.path.realpath(out / inside.parent) != str(Path(top, inside.parent)):
        return False  # an inventory that somebody changed, or a folder that is a link now
    file = out / inside
    try:
        image = original(row["path"]) if row["path"] and not file.is_symlink() else None  # metadata.csv is of none
        if image and file.samefile(image):
            # A hard link, or the original itself by another way into the folder (a mount, a name in another case),
            # which has no second link.
            return file.stat().st_nlink > 1
        if image and row["how"] in SAME_BYTES and sha256(image) != row["sha256"]:
            return False  # the only copy of what the image was before
        return own_sha256(file) == row["sha256"]
    except (OSError, ValueError, Unavailable):
        return False


def _in_the_way(out: Path, comes: Sequence[str], goes: Collection[str]) -> list[str]:
    """Return the places of new files, and of their folders, that something else has."""
    folders = {str(above) for name in comes for above in PurePosixPath(name).parents[:-1]}
    there = {name: out / name for name in {*comes, *folders}.difference(goes) if os.path.lexists(out / name)}
    return sorted(name for name, at in there.items() if name not in folders or at.is_symlink() or not at.is_dir())


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
