"""Files that are written whole or not at all."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors.torch import save as as_bytes
from torch import Tensor

from deepcluster.errors import DiskError


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, scratch: Path | None = None) -> str:
    """Write a safetensors file whole, and return its SHA-256."""
    parts: dict[str, Tensor] = {}
    for name, value in tensors.items():
        part = value.detach().cpu().contiguous()
        shared = any(part.numel() and part.data_ptr() == other.data_ptr() for other in parts.values())
        parts[name] = part.clone() if shared else part  # safetensors refuses two names of one memory
    # Not by safetensors' own writer: it makes files that only their owner can read.
    data = as_bytes(parts)
    write_whole(path, lambda file: file.write(data), binary=True, scratch=scratch)
    return hashlib.sha256(data).hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last, too. (Windows opens no folders.)"""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
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
    beside = (scratch or path.parent) / f".deepcluster-{secrets.token_hex(8)}.tmp"
    try:
        # "x": a new file, and never the target of a link that somebody put there.
        with (
            beside.open("xb") if binary else beside.open("x", encoding="utf-8", errors="surrogateescape", newline="")
        ) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        if not isinstance(error, OSError) or isinstance(error, DiskError):
            raise
        free = f"; {shutil.disk_usage(path.parent).free / 1e6:,.0f} MB are free" if path.parent.is_dir() else ""
        raise DiskError(f"cannot write {path} ({error.strerror or error}{free})") from None
