"""Replace an exported tree: delete the unchanged files of the last export, and keep every other file."""

import os
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path, PurePosixPath

from deepcluster.errors import DiskError
from deepcluster.export.split import PARTS
from deepcluster.runtime import signals
from deepcluster.runtime.plain_files import MAX_TEXT, check_file, own_sha256, sha256, write_csv
from deepcluster.storage.content import Row
from deepcluster.storage.files import check_no_folder, scratch_folder, write_whole
from deepcluster.storage.run_folder import RunFolder, table_rows
from deepcluster.storage.state import hold
from deepcluster.texts import some

INVENTORY = "inventory.csv"
INVENTORY_COLUMNS = ("path", "cluster", "name", "exported_path", "how", "sha256")
LOCK = ".deepcluster.lock"
ASIDE = "_left"  # folder for only copies that are in the way
SAME_BYTES = ("hardlink", "copy")  # ways that keep the bytes of a file


class Unavailable(Exception):
    """An original that no longer exists or may not be passed on; the message is the reason."""


def key(name: str) -> str:
    """Return one key for names that some file system takes as equal."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def replaceable(out: Path, *, overwrite: bool) -> list[Row] | None:
    """Return the inventory of the tree at ``out``, None if there is nothing. DiskError if it may not be replaced."""
    if not overwrite or out.is_symlink() or not out.is_dir() or not any(out.iterdir()):
        check_no_folder(out)
        return None
    with suppress(DiskError), RunFolder(out).as_disk_errors(INVENTORY):
        check_file(out / INVENTORY, MAX_TEXT)
        rows = [*table_rows(out / INVENTORY, INVENTORY_COLUMNS)]
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
    """Replace the export at ``out`` by the files of the finished tree ``new``, and return the files that stay.

    It is called inside of :func:`replacing`, and moves the new files, of which ``rows`` is the inventory. A file of the
    export that is the only copy moves aside if it is in the way; ``alone``: other files may stay only if they are moved
    aside. The new inventory also has the old rows of files that stay. After a kill it has the rows of both exports, so
    that the next call replaces them. ``original`` gives the file of an image that exists, None if it is none, and
    raises Unavailable if it does not exist.

    Raises DiskError if files that the export did not make are in the way; nothing was changed.
    """
    old = replaceable(out, overwrite=True) or []
    made = {row["exported_path"]: row for row in old if row["exported_path"] and _is_made(out, row, original)}
    goes = {name for name, row in made.items() if _exists_elsewhere(out / name, row, original)}
    stays = sorted(_files(out) - goes - {INVENTORY, LOCK})
    comes = sorted(_files(new) - {INVENTORY})
    placed = [name for name in stays if not name.startswith(f"{ASIDE}/")]
    in_the_way = {*placed} if alone else {*_in_the_way(out, comes, goes)}
    for number in count(1):
        above = ASIDE if number == 1 else f"{ASIDE}/{number}"
        # Without train/ and the like, of which `datasets` reads every one.
        targets = {f"{above}/{_unread(name)}": name for name in sorted(in_the_way.intersection(made))}
        if {*map(key, targets)}.isdisjoint(map(key, stays)):
            break
    aside = {name: target for target, name in targets.items()}
    if others := sorted({*in_the_way.difference(aside), *_in_the_way(out, [*targets], goes)}):
        raise DiskError(
            f"{out} is left as it is, because its export did not make these files, or they were changed:"
            f" {some(others)}. Move them out, and export again"
        )
    stay_rows = [
        {**row, "exported_path": aside.get(row["exported_path"], row["exported_path"])}
        for row in old
        if row["exported_path"] in stays
    ]
    signals.check()
    with signals.uninterrupted():
        write_inventory(out, [*old, *rows, *stay_rows], scratch=new)
        for name in goes:
            (out / name).unlink()
        for name, target in aside.items():
            (out / target).parent.mkdir(parents=True, exist_ok=True)
            (out / name).rename(out / target)
        for name in comes:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).rename(out / name)
        write_inventory(out, [*rows, *stay_rows], scratch=new)
        for folder in sorted(
            {above for name in (*goes, *aside) for above in PurePosixPath(name).parents[:-1]}, reverse=True
        ):
            with suppress(OSError):  # not empty
                (out / folder).rmdir()
    return [aside.get(name, name) for name in stays]


def _unread(name: str) -> str:
    """Return a path that `datasets` does not read: without train/, and with a letter for the name of another part."""
    part, slash, rest = name.partition("/")
    return name if part not in PARTS else rest if part == PARTS[0] else part[0] + slash + rest


def write_inventory(out: Path, rows: Sequence[Row], *, scratch: Path | None = None) -> None:
    """Write the inventory of a tree, whole."""
    write_whole(out / INVENTORY, lambda file: write_csv(file, INVENTORY_COLUMNS, rows), scratch=scratch)


def _is_made(out: Path, row: Row, original: Callable[[str], Path | None]) -> bool:
    """Return whether the export made the file of a row of its inventory, and nobody changed it."""
    top = os.path.realpath(out)
    inside = PurePosixPath(row["exported_path"])
    if inside.is_absolute() or os.path.realpath(out / inside.parent) != str(Path(top, inside.parent)):
        return False  # an inventory that somebody changed, or a folder that is a link now
    file = out / inside
    try:
        with suppress(Unavailable):
            if (image := _image_of(row, file, original)) and file.samefile(image):
                # A hard link, or the original itself by another way into the folder (a mount, a name in another case),
                # which has no second link.
                return file.stat().st_nlink > 1
        return own_sha256(file) == row["sha256"]
    except (OSError, ValueError):
        return False


def _exists_elsewhere(file: Path, row: Row, original: Callable[[str], Path | None]) -> bool:
    """Return True if it loses nothing to remove a file that the export made."""
    try:
        image = _image_of(row, file, original)
        if image is None or row["how"] not in SAME_BYTES or file.samefile(image):
            return True
        # If the image was edited since, a plain copy is the only one of its former content.
        return sha256(image) == row["sha256"]
    except (OSError, Unavailable):
        return False


def _image_of(row: Row, file: Path, original: Callable[[str], Path | None]) -> Path | None:
    """Return the file of a row's image; None for a link, and for metadata.csv, which belongs to no image."""
    return original(row["path"]) if row["path"] and not file.is_symlink() else None


def _in_the_way(out: Path, comes: Sequence[str], goes: Collection[str]) -> list[str]:
    """Return the paths of new files, and of their folders, at which something else lies."""
    folders = {str(above) for name in comes for above in PurePosixPath(name).parents[:-1]}
    there = {name: out / name for name in {*comes, *folders}.difference(goes) if os.path.lexists(out / name)}
    return sorted(name for name, at in there.items() if name not in folders or at.is_symlink() or not at.is_dir())


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
