"""The own files of a run folder, and its lock.

A file is a run's own by its exact name and its kind: a plain file, or a link in the place of one, which is never
followed. Nothing else in the folder is ever removed, moved or replaced. Two hidden entries lie in ``.deepcluster/``:
``lock`` and ``scratch/`` (a folder per rank, emptied by the lock holder). A server has its ``open-`` page beside them.
"""

import errno
import os
import platform
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from deepcluster.errors import DiskError
from deepcluster.runtime import signals
from deepcluster.storage.content import FILES
from deepcluster.storage.files import changing

FOLDERS = ("model", "checkpoints", "former")
NUMBERED = re.compile(r"checkpoints/\d{6}\.(json|safetensors)|former/\d{6}\.safetensors")

HIDDEN = ".deepcluster"
LOCK = f"{HIDDEN}/lock"
SCRATCH = f"{HIDDEN}/scratch"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)

if sys.platform == "win32":
    import msvcrt

    BEHIND = 1 << 30  # the locked byte lies far behind the holder's name, because nobody else can read a locked byte

    def _lock(file: BinaryIO, *, release: bool = False) -> None:
        file.seek(BEHIND)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK if release else msvcrt.LK_NBLCK, 1)
        file.seek(0)

else:
    import fcntl

    def _lock(file: BinaryIO, *, release: bool = False) -> None:
        fcntl.flock(file, fcntl.LOCK_UN if release else fcntl.LOCK_EX | fcntl.LOCK_NB)


# ---- own files ------------------------------------------------------------------------------------------------------


def is_known(name: str) -> bool:
    """Return whether a run writes a file of this name (relative to the run folder, with ``/``)."""
    return name in FILES or NUMBERED.fullmatch(name) is not None


def own_files(run: Path, folder: str = "") -> list[str]:
    """Return the names of the run's own files, or of those in one of its ``FOLDERS``."""
    folders = ["", *(f"{name}/" for name in FOLDERS if _kind(run / name) == stat.S_IFDIR)] if run.is_dir() else []
    names = [inside + name for inside in folders for name in sorted(os.listdir(run / inside))]  # noqa: PTH208
    known = (name for name in names if is_known(name) and _kind(run / name) in (stat.S_IFREG, stat.S_IFLNK))
    return [name for name in known if name.startswith(folder)]


def _check_places(run: Path) -> None:
    """Raise DiskError if something else lies at the place of a file or a folder of the run."""
    folders = (HIDDEN, SCRATCH, *FOLDERS)  # before the files in them: none is a link
    for name in (*folders, *FILES):
        if _kind(run / name) not in (0, *((stat.S_IFDIR,) if name in folders else (stat.S_IFREG, stat.S_IFLNK))):
            raise DiskError(f"{run / name} is in the way of a file of this run: move it elsewhere, and try again")


def _kind(path: Path) -> int:
    """Return the kind of the entry ``path`` itself, as S_IFREG; 0 if nothing exists."""
    try:
        return stat.S_IFMT(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return 0


# ---- the lock -------------------------------------------------------------------------------------------------------


@contextmanager
def locked(run: Path, *, make: bool = False) -> Iterator[None]:
    """Hold the lock of a run folder, or ``make`` it first. The unfinished files of a killed process are removed.

    Raises DiskError if another process holds the lock, if nothing can be written, or if something else lies at the
    place of a file of the run.
    """
    with ExitStack() as stack:
        with changing(run, ": give another -o" if make else ": make it writable, or work on a copy of the run"):
            _check_places(run)
            (run / HIDDEN).mkdir(parents=make, exist_ok=True)
            stack.enter_context(hold(run, LOCK))
            shutil.rmtree(run / SCRATCH, ignore_errors=True)
            stack.enter_context(scratch(run))
        yield


@contextmanager
def hold(folder: Path, name: str) -> Iterator[None]:
    """Hold the system's lock on a file in ``folder`` that names the holder, and that stays.

    The system releases the lock when the process ends, however it ends.
    """
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
    with os.fdopen(descriptor, "r+b") as file:
        try:
            _lock(file)
            if not os.fstat(descriptor).st_nlink:
                raise BlockingIOError  # another run has just come in the place of this one
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read(200).decode(errors="replace").strip() or "another process"
            raise DiskError(f"{folder} is in use by {holder}: wait for it, or stop it") from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            problem = f"{folder} lies on a file system without locks ({error.strerror})"
            raise DiskError(f"{problem}: put it on a local disk") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n".encode())
        file.flush()
        try:
            yield
        finally:
            with suppress(OSError):
                file.truncate(0)  # a run that is passed on names no machine
            with suppress(OSError):
                _lock(file, release=True)


def scratch_of(run: Path, rank: int = 0) -> Path:
    """Return the place of a rank's unfinished files."""
    return run / SCRATCH / f"rank-{rank}"


@contextmanager
def scratch(run: Path, rank: int = 0) -> Iterator[None]:
    """Make the scratch folder of a rank, and remove it at the end."""
    path = scratch_of(run, rank)
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with signals.uninterrupted():
            shutil.rmtree(path, ignore_errors=True)
            with suppress(OSError):  # other ranks are not done yet
                path.parent.rmdir()
