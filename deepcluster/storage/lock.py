"""A lock that one process at a time has, and that says who has it."""

import errno
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from deepcluster.errors import DiskError

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)

if sys.platform == "win32":
    import msvcrt

    BEHIND = 1 << 30  # the byte that is locked, as nobody else can read such a one; the file ends long before it

    def _lock(file: BinaryIO) -> None:
        file.seek(BEHIND)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        file.seek(0)

else:
    import fcntl

    def _lock(file: BinaryIO) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Have the lock ``path``, a file that is there as long as somebody has it.

    The system lets go of it when the process ends, however it ends.

    Raises:
        DiskError: Another process has it (its number and machine are named), or the file system has no locks.
        OSError: The file cannot be made.
    """
    file = _locked(path)
    try:
        yield
    finally:
        if sys.platform == "win32":  # removes no file that is open, so none that somebody else waits for
            file.close()
        with suppress(OSError):
            path.unlink(missing_ok=True)
        file.close()


def _locked(path: Path) -> BinaryIO:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        file = os.fdopen(descriptor, "r+b")
        try:
            _lock(file)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read(200).decode(errors="replace").strip() or "another process"
            file.close()
            raise DiskError(f"{path.parent} is in use by {holder}: wait for it, or stop it") from None
        except OSError as error:
            file.close()
            if error.errno not in NO_LOCKS:
                raise
            raise DiskError(
                f"{path.parent} lies on a file system without locks ({error.strerror}): put the run on a local disk"
            ) from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        file.close()  # the process that had it has removed it in between
    file.truncate()
    file.write(f"process {os.getpid()} on {platform.node()}\n".encode())
    file.flush()
    return file
