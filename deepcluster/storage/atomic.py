"""Files that are written whole or not at all."""

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcluster.errors import DeepClusterError, DiskError
from deepcluster.runtime import signals as stopping

if TYPE_CHECKING:
    from torch import Tensor


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", *, scratch: Path | None = None) -> str:
    """Write a safetensors file whole, and return its SHA-256."""
    from safetensors.torch import save  # imports torch, which nobody needs to see what is there

    parts: dict[str, Tensor] = {}
    for name, value in tensors.items():
        part = value.detach().cpu().contiguous()
        shared = any(part.numel() and part.data_ptr() == other.data_ptr() for other in parts.values())
        parts[name] = part.clone() if shared else part  # safetensors refuses two names of one memory
    # Not by safetensors' own writer: it makes files that only their owner can read.
    data = save(parts)
    write_whole(path, lambda file: file.write(data), binary=True, scratch=scratch)
    return hashlib.sha256(data).hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last, too. (Windows opens no folders, and some file systems sync none.)"""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
                raise
        finally:
            os.close(descriptor)


def write_whole(path: Path, write: Any, *, binary: bool = False, scratch: Path | None = None) -> None:
    """Write a file beside ``path`` and rename it, so that a reader sees the old file or the new one, never half of one.

    Args:
        path: The file to make or to replace.
        write: Called with the open file.
        binary: Open it for bytes instead of text.
        scratch: A folder on the same file system for the unfinished file; without it, the folder of ``path``.

    Raises:
        DiskError: It cannot be written; what was there is left as it was.
    """
    beside = scratch / scratch_name(path).name if scratch else scratch_name(path)
    made = False
    try:
        # "x": a new file, and never the target of a link that somebody put there.
        with opened(beside, "x", binary=binary) as file:
            made = True
            write(file)
            file.flush()
            os.fsync(file.fileno())
        stopping.check()
        with stopping.later():
            beside.replace(path)
            sync_folder(path.parent)
    except BaseException as error:
        if made:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
        if not isinstance(error, OSError) or isinstance(error, DeepClusterError):
            raise
        raise cannot_write(path, error) from None


def opened(path: Path, mode: str, *, binary: bool) -> Any:
    """The file at ``path``, for bytes or for text that may have names of files in it."""
    if binary:
        return path.open(f"{mode}b")
    return path.open(mode, encoding="utf-8", errors="surrogateescape", newline="")


def scratch_name(path: Path) -> Path:
    """A name beside ``path`` for what becomes ``path`` in the end: hidden, no longer than names may be, and one that
    nobody can foresee. (Not by the number of the process, which comes again in containers.)"""
    return path.parent / f".deepcluster-{secrets.token_hex(8)}.tmp"


def cannot_write(path: Path, error: OSError) -> DiskError:
    """What to say of an error of the system in writing ``path``."""
    free = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        with suppress(OSError):
            free = f"; {shutil.disk_usage(path.parent).free / 1e6:,.0f} MB are free"
    advice = ": close the program that uses it, and try again" if error.errno == errno.EBUSY else ""
    return DiskError(f"cannot write {path} ({error.strerror or error}{free}){advice}")


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """Turn an error of the system in changing ``path`` into a DiskError."""
    try:
        yield
    except DeepClusterError:
        raise
    except OSError as error:
        raise cannot_write(path, error) from None
