"""Replace an exported tree that nobody changed. A file that the export did not write is never removed."""

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from deepcluster.errors import DiskError
from deepcluster.images.decode import Undecodable
from deepcluster.runtime import signals
from deepcluster.runtime.plain_files import MAX_TEXT, check_file, own_sha256
from deepcluster.runtime.tables import write_csv
from deepcluster.storage.content import Row
from deepcluster.storage.files import check_no_folder, scratch_folder, write_whole
from deepcluster.storage.run_folder import RunFolder, read_table
from deepcluster.storage.state import hold
from deepcluster.texts import one_line, some

INVENTORY = "inventory.csv"
INVENTORY_COLUMNS = ("path", "cluster", "name", "by", "exported_path", "how", "sha256")
LOCK = ".deepcluster.lock"
OF_FILE_MANAGERS = (".DS_Store", ".directory", "Thumbs.db", "desktop.ini")  # made by looking at a folder; they stay
SAME_BYTES = ("hardlink", "copy")  # ways that keep the bytes of a file


def key(name: str) -> str:
    """Return one key for names that some file system takes as equal."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def replaceable(out: Path, original: Callable[[str], Path | None], *, overwrite: bool) -> bool:
    """Return True if a tree at ``out`` may be replaced, False if there is nothing. DiskError if something must stay."""
    if not overwrite or out.is_symlink() or not out.is_dir() or not any(out.iterdir()):
        check_no_folder(out)
        return False
    _check_unchanged(out, original)
    return True


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Yield a folder for the new tree, and hold the lock of the tree at ``out``. Both are removed at the end."""
    with scratch_folder(out) as new, hold(out, LOCK, remove=True):
        yield new


def replace_tree(out: Path, new: Path, rows: Sequence[Row], original: Callable[[str], Path | None]) -> None:
    """Replace the export at ``out`` by the files of the finished tree ``new``, of which ``rows`` is the inventory.

    It is called inside of :func:`replacing`. After a kill the inventory has the rows of both exports, so the next call
    replaces the mixture. DiskError if somebody changed the tree; nothing was changed then.
    """
    old = _check_unchanged(out, original)
    goes = _files(out).intersection(row["exported_path"] for row in old)
    signals.check()
    with signals.uninterrupted():
        write_inventory(out, [*old, *rows], scratch=new)
        for name in goes:
            (out / name).unlink()
        for folder in sorted((path for path in out.rglob("*") if path.is_dir()), reverse=True):
            with suppress(OSError):  # not empty
                folder.rmdir()
        for name in sorted(_files(new)):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).rename(out / name)
        write_inventory(out, rows, scratch=new)


def write_inventory(out: Path, rows: Sequence[Row], *, scratch: Path | None = None) -> None:
    """Write the inventory of a tree, whole."""
    write_whole(out / INVENTORY, lambda file: write_csv(file, INVENTORY_COLUMNS, rows), scratch=scratch)


def _check_unchanged(out: Path, original: Callable[[str], Path | None]) -> Sequence[Row]:
    """Return the inventory of the tree at ``out``. DiskError if somebody changed the tree, or it has an only copy.

    Nobody changed a tree if each of its files is in its inventory with the digest of its content (a link: of the path
    that it holds), whatever its times. Files may be missing, and file managers leave files of their own. A copy or a
    hard link of an image that no longer exists is an only copy: ``original`` raises Undecodable.
    """
    rows: Sequence[Row] = ()
    with suppress(DiskError), RunFolder(out).as_disk_errors(INVENTORY):
        check_file(out / INVENTORY, MAX_TEXT)
        rows = read_table(out / INVENTORY, INVENTORY_COLUMNS)
    if not rows:
        raise DiskError(f"{out} is left as it is, because it has no intact {INVENTORY}: give another folder (-o)")
    rows_of: defaultdict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        rows_of[row["exported_path"]][row["sha256"]] = row
    wrong = []
    for name in sorted(_files(out)):
        if why := _change(out / name, rows_of[name], original):
            wrong.append(f"{one_line(name)} ({why})")
    if wrong:
        raise DiskError(f"{out} is left as it is: {some(wrong)}; give another folder (-o)")
    return rows


def _change(file: Path, rows: dict[str, Row], original: Callable[[str], Path | None]) -> str:
    """Return why a file of a tree must stay, empty if it may go; ``rows``: Of the inventory, by their digests."""
    if not rows:
        return "" if file.name in OF_FILE_MANAGERS else "added"
    try:
        row = rows[own_sha256(file)]
    except (KeyError, OSError, ValueError):
        return "changed"
    try:
        if row["how"] in SAME_BYTES:
            original(row["path"])
    except Undecodable as error:
        return f"the only copy: {error}"
    return ""


def _files(folder: Path) -> set[str]:
    """Return the paths of the files and links in a tree, without its inventory and lock."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix() for path in paths} - {INVENTORY, LOCK}
