"""Files and folders that are written whole or not at all, and the checks of a user's -o."""

import errno
import hashlib
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from deepcluster.errors import DeepClusterError, DiskError, UsageError
from deepcluster.runtime import console, signals

if TYPE_CHECKING:
    from torch import Tensor

# Files in these folders belong to the system. They are written into, and never replaced.
SYSTEM = ("/dev", "/proc", "/sys")
ROOM = ": make room, or give another -o"


# ---- writing --------------------------------------------------------------------------------------------------------


def write_whole(path: Path, write: Any, *, binary: bool = False, scratch: Path | None = None) -> None:
    """Write a file beside ``path`` and rename it, so that a reader sees the old file or the new one, never half of one.

    ``write`` is called with the open file. ``scratch``: A folder on the same file system for the unfinished file (None:
    ``path``'s own). Raises DiskError if it cannot be written, and leaves an older file.
    """
    beside = scratch_name(scratch / path.name if scratch else path)
    with changing(path):
        # "x": a new file, and never the target of a link that somebody put there.
        opened = _opened(beside, "x", binary=binary)
        try:
            with opened as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            signals.check()
            beside.replace(path)
        except BaseException:
            with suppress(OSError):
                beside.unlink()
            raise
        sync_folder(path.parent)


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", *, scratch: Path | None = None) -> str:
    """Write a safetensors file whole, and return its SHA-256."""
    from safetensors.torch import save  # imports torch, which a look at the folder does not need

    parts: dict[str, Tensor] = {}
    for name, value in tensors.items():
        part = value.detach().cpu().contiguous()
        shared = any(part.numel() and part.data_ptr() == other.data_ptr() for other in parts.values())
        parts[name] = part.clone() if shared else part  # safetensors refuses two names of one memory
    # Not by safetensors' own writer: it makes files that only their owner can read.
    data = save(parts)
    write_whole(path, lambda file: file.write(data), binary=True, scratch=scratch)
    return hashlib.sha256(data).hexdigest()


@contextmanager
def new_folder(out: Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """Yield a folder beside ``out`` to write into, which takes the place of ``out`` at the end; an error removes it.

    ``check``: Raises an error if the folder at ``out`` must stay. An OSError inside becomes a DiskError.
    """
    check(out)
    beside = scratch_name(Path(os.path.abspath(out)))  # noqa: PTH100 (without following links)
    with changing(out, ROOM):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.mkdir()
            yield beside
            check(out)  # again: somebody may have put a file there meanwhile
            old = scratch_name(out) if out.exists() else None
            put_in_place(beside, out, old)
            if old:
                check(old)  # a file that came at the last moment stays there
                shutil.rmtree(old, ignore_errors=True)
        finally:
            with signals.uninterrupted():
                shutil.rmtree(beside, ignore_errors=True)


def put_in_place(new: Path, out: Path, old: Path | None = None) -> None:
    """Rename ``out`` to ``old`` (None: nothing is there), and the whole folder ``new`` to ``out``."""
    signals.check()
    with signals.uninterrupted(), changing(out):
        sync_folder(out.parent)  # a power cut after the first rename leaves the new run
        if old is not None:
            out.rename(old)
        try:
            new.rename(out)
        except OSError:
            if old is not None:
                old.rename(out)
            raise
        sync_folder(out.parent)


def new_file(out: Path, write: Callable[[Any], object]) -> None:
    """Write a new binary file, and make its folder if it is missing."""
    check_no_file(out)
    with changing(out, ROOM):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, write, binary=True)


def write_output(path: Path, write: Callable[[Any], object], *, binary: bool = False) -> None:
    """Write a file that :func:`check_output` has allowed: a plain one whole; a device or a FIFO is opened as it is."""
    if _is_replaceable(path):
        write_whole(path, write, binary=binary)
        return
    # "a": standard output keeps its text so far. A device has no end, so it makes no difference there.
    with changing(path), _opened(path, "a", binary=binary) as file:
        # With write alone: numpy writes to a real file by its number, and asks for the place in it.
        write(SimpleNamespace(write=file.write))


def write_table(target: Path | None, write: Callable[[Any], object], *, start: str = "") -> None:
    """Let ``write`` write to a file, which begins with ``start``, or (None) to standard output."""
    if target:
        write_output(target, lambda file: (file.write(start), write(file)))
    else:
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="")  # type: ignore[union-attr]
        write(SimpleNamespace(write=console.write_printable if sys.stdout.isatty() else sys.stdout.write))


def _opened(path: Path, mode: str, *, binary: bool) -> Any:
    """Open a file for bytes, or for text that may contain names of files."""
    if binary:
        return path.open(f"{mode}b")
    return path.open(mode, encoding="utf-8", errors="surrogateescape", newline="")


def scratch_name(path: Path) -> Path:
    """Return a short hidden name beside ``path`` that nobody can foresee: process numbers come again in containers."""
    return path.parent / f".deepcluster-{secrets.token_hex(8)}.tmp"


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


@contextmanager
def changing(path: Path, advice: str = "") -> Iterator[None]:
    """Turn an error of the system in changing ``path`` into a DiskError, except that the reader of a pipe has gone."""
    try:
        yield
    except (DeepClusterError, BrokenPipeError):
        raise
    except OSError as error:
        free = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            with suppress(OSError):
                free = f"; {shutil.disk_usage(path.parent).free / 1e6:,.0f} MB are free"
        advice = ": close the program that uses it, and try again" if error.errno == errno.EBUSY else advice
        raise DiskError(f"cannot write {path} ({error.strerror or error}{free}){advice}") from None


# ---- checks before anything is computed -----------------------------------------------------------------------------


def check_output(path: Path, *, overwrite: bool, inputs: Callable[[], Iterable[Path]]) -> None:
    """Check that a command may write the file ``path``, and that it can.

    ``overwrite``: A file with something in it may be replaced. ``inputs``: Gives the files that are read for it.

    Raises DiskError if a folder, a socket or a file that may not be replaced is there, or nothing can be written there,
    and UsageError if it is one of the inputs.
    """
    with changing(path, ": give another -o"):
        try:
            status = path.stat()
        except FileNotFoundError:
            if path.is_symlink():
                raise DiskError(f"{path} is a link that leads nowhere: remove it, or give another -o") from None
            status = None
        except ValueError as error:
            raise DiskError(f"cannot write {str(path)!a} ({error}): give another -o") from None
        if status and stat.S_ISDIR(status.st_mode):
            raise DiskError(f"{path} is a folder: give the name of a file, as -o {path / 'new'}{path.suffix or '.csv'}")
        if status and not _is_replaceable(path):
            return
        if status and status.st_size and not overwrite:
            raise DiskError(f"{path} exists already, and is left as it is: give another -o, or --overwrite")
        for file in inputs() if status else ():
            same = False
            with suppress(OSError, ValueError):  # one of the two does not exist, or cannot be read
                same = path.samefile(file)  # under any names
            if same:
                raise UsageError(f"-o {path} is an input of this command ({file}): give another -o")
        beside = scratch_name(path)
        beside.open("xb").close()
        beside.unlink()


def check_no_file(out: Path) -> None:
    """Raise DiskError if ``out`` exists."""
    if os.path.lexists(out):
        raise DiskError(f"{out} exists already, and is left as it is: give another -o, or remove it")


def check_no_folder(out: Path) -> None:
    """Raise DiskError if ``out`` exists and is no empty folder."""
    with changing(out, ROOM):
        if out.is_symlink() or not out.is_dir():
            check_no_file(out)
        elif any(out.iterdir()):
            raise DiskError(f"{out} exists already, and is left as it is: give another -o, or --overwrite an export")
        elif out.samefile(Path.cwd()):  # a shell in it would stay in the folder that was replaced
            raise DiskError(f"-o {out} is the current folder: name a new folder in it, as -o {out / 'new'}")


def check_outside(out: Path, images: Path) -> None:
    """Raise UsageError if ``out`` lies in the folder of the images: the next fit would find every image twice."""
    # realpath and not resolve(), which raises if links go round in a circle.
    if images.is_dir() and Path(os.path.realpath(out)).is_relative_to(os.path.realpath(images)):
        why = "the folder of the images, and the next fit would find them twice"
        raise UsageError(f"-o {out} lies in {images}, {why}: give an -o outside of it")


def _is_replaceable(path: Path) -> bool:
    """Return whether ``path`` is a plain file, or nothing yet, outside of the system's folders."""
    folder = Path(os.path.realpath(path.parent))
    system = any(folder.is_relative_to(root) for root in SYSTEM) and not folder.is_relative_to("/dev/shm")
    return not system and (path.is_file() or not path.exists())
