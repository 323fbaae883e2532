"""Where an export goes: a path where nothing is yet, written completely or not at all."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from deepcluster.errors import DiskError, UsageError
from deepcluster.images import Source
from deepcluster.images.decode import explain, one_line
from deepcluster.runtime import signals as stopping
from deepcluster.storage.atomic import scratch_name, write_whole


def check_no_file(out: Path) -> None:
    """DiskError if there is something at ``out``."""
    if os.path.lexists(out):
        raise DiskError(f"{one_line(str(out))} exists already, and is left as it is: give another -o, or remove it")


def check_no_folder(out: Path) -> None:
    """DiskError if there is something at ``out`` other than an empty folder."""
    try:
        if out.is_symlink() or not out.is_dir() or any(out.iterdir()):
            check_no_file(out)
        elif out.is_mount() or out.samefile(Path.cwd()):
            raise DiskError(f"-o {one_line(str(out))} cannot be replaced: name a new folder in it, as -o {out / 'new'}")
    except DiskError:
        raise
    except (OSError, ValueError) as error:
        raise _cannot_write(out, error) from None


def check_apart(out: Path, source: Source) -> None:
    """UsageError if ``out`` lies in the folder of the images: the next fit would find every image twice."""
    images = Path(source.location)
    # realpath and not resolve(), which raises where links go round in a circle.
    inside = Path(os.path.realpath(out)).is_relative_to(os.path.realpath(images))
    if images.is_dir() and inside:
        raise UsageError(
            f"-o {one_line(str(out))} lies in {one_line(str(images))}, the folder of the images, and the next fit would"
            " find them twice: give an -o outside of it"
        )


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which is renamed to ``out`` at the end. Turns an OSError inside into a DiskError."""
    check_no_folder(out)
    out = Path(os.path.abspath(out))  # noqa: PTH100 (without following links)
    beside = scratch_name(out)
    made = False
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with stopping.later():
            beside.mkdir()
            made = True
        yield beside
        stopping.check()
        with stopping.later():
            if out.exists():
                out.rmdir()
            beside.rename(out)
    except BaseException as error:
        if made:
            shutil.rmtree(beside, ignore_errors=True)
        if not isinstance(error, OSError) or isinstance(error, DiskError):
            raise
        raise _cannot_write(out, error) from None


def write_file(out: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a new file, and make its folder if it is missing."""
    check_no_file(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(out, error) from None
    write_whole(out, write, binary=True)


def _cannot_write(out: Path, error: Exception) -> DiskError:
    free = f"; {shutil.disk_usage(out.parent).free / 1e6:,.0f} MB are free" if out.parent.is_dir() else ""
    return DiskError(f"cannot write {one_line(str(out))} ({explain(error)}{free}): make room, or give another -o")
