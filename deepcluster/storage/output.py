"""Where a command writes what its user names with -o: what may be replaced, what is written into, what is refused."""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from deepcluster.errors import DeepClusterError, DiskError, UsageError
from deepcluster.images import find
from deepcluster.images.run_folders import is_run
from deepcluster.images.webdataset import files_of, is_pattern
from deepcluster.nets.sizes import FEATURES
from deepcluster.storage.atomic import opened, scratch_name, write_whole
from deepcluster.storage.ownership import own_files
from deepcluster.storage.run_folder import open_run

# What lies here belongs to the system, also a plain file that is standard output: written into, and never replaced.
SYSTEM = ("/dev", "/proc", "/sys")


@dataclass(frozen=True)
class Output:
    """A file that :func:`output` has checked. ``whole``: it is written whole or not at all, and replaces what is there;
    else, of a device or a FIFO, it is written into."""

    path: Path
    whole: bool

    def write(self, write: Callable[[Any], object], *, binary: bool = False) -> None:
        """``write(file)``, in text or ``binary``. DiskError where that cannot be done."""
        if self.whole:
            write_whole(self.path, write, binary=binary)
            return
        try:
            # "a": what standard output has already is kept. A device has no end, and it makes no difference.
            with opened(self.path, "a", binary=binary) as file:
                # With write alone: to a real file numpy writes by its number, and asks for the place in it.
                write(SimpleNamespace(write=file.write, writelines=file.writelines))
        except (BrokenPipeError, DeepClusterError):
            raise
        except OSError as error:
            raise DiskError(f"cannot write {self.path} ({error.strerror or error})") from None


def output(path: Path, *, overwrite: bool, inputs: Callable[[], Iterable[Path]]) -> Output:
    """The file at ``path`` as an output, checked before anything is computed for it.

    ``inputs``: the files that are read for it; asked only where there is a file at ``path``.

    Raises DiskError where there is a folder, a socket, or a file with something in it (but with ``overwrite``), or
    where nothing can be written; UsageError where ``path`` is among the inputs, ``overwrite`` or not.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise DiskError(f"{path} is a link that leads nowhere: remove it, or give another -o") from None
        _try(path)
        return Output(path, whole=True)
    except (OSError, ValueError) as error:
        raise _refused(path, error) from None
    if stat.S_ISDIR(status.st_mode):
        raise DiskError(f"{path} is a folder: give the name of a file, as -o {path / 'new'}{path.suffix or '.csv'}")
    if stat.S_ISSOCK(status.st_mode):
        raise DiskError(f"{path} is a socket: give the name of a file")
    if not stat.S_ISREG(status.st_mode) or _is_of_the_system(path):
        return Output(path, whole=False)
    for each in inputs():
        check_apart(path, each)
    if status.st_size and not overwrite:
        raise DiskError(f"{path} exists already, and is left as it is: give another -o, or --overwrite to replace it")
    _try(path)
    return Output(path, whole=True)


def files_read(run: Path, images: str) -> Iterator[Path]:
    """The files that `predict` and `similar` read of a run, as far as their names are known before: no output
    may be one of them. (Of ``-`` they come with the images.)"""
    record = open_run(run).read_record() if is_run(run) else None
    yield from (run / name for name in own_files(run))
    place = Path(images)
    if is_pattern(images) and not os.path.lexists(place):
        yield from files_of(place).values()
    elif images != "-" and os.path.lexists(place):
        yield place
        if record and record.backbone == FEATURES:  # the paths of features lie beside them
            yield from map(place.with_suffix, (".csv", ".txt"))
            return
        source = find(place)
        if source.file is not None:
            yield from source.files()
        elif place.is_dir():
            yield from place.rglob("*.tar")
    elif record:  # the path of an image in the run, relative to the folder of its images or of their list
        location = Path(record.location)
        yield from (folder / place for folder in (location, location.parent))
        yield from (Path(row["source"]) for row in open_run(run).read_added() if row["path"] == images)


def check_apart(path: Path, other: Path) -> None:
    """UsageError where the output ``path`` and the input ``other`` are one file, by whatever names."""
    same = False
    with suppress(OSError, ValueError):  # where one is not there, or cannot be looked at
        same = path.samefile(other)
    if same:
        raise UsageError(f"-o {path} is one of the files that are read ({other}): give another -o")


def _is_of_the_system(path: Path) -> bool:
    """Whether ``path``, or a link on the way to where it leads, lies in a folder of the system."""
    for _ in range(40):  # as many as Linux follows
        folder = Path(os.path.realpath(path.parent))
        if any(folder.is_relative_to(place) for place in SYSTEM) and not folder.is_relative_to("/dev/shm"):
            return True
        if not path.is_symlink():
            return False
        path = folder / path.readlink()
    return False


def _try(path: Path) -> None:
    """DiskError where no file can be made at ``path``."""
    beside = scratch_name(path)
    try:
        beside.open("xb").close()
        beside.unlink()
    except (OSError, ValueError) as error:
        raise _refused(path, error) from None


def _refused(path: Path, error: Exception) -> DiskError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return DiskError(f"cannot write {path} ({reason}): give another -o")
