"""Images at new places: by a symbolic link, a hard link, a copy, or written as PNG. Originals are only read."""

import os
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Set
from contextlib import suppress
from pathlib import Path

from deepcluster.errors import DiskError, UsageError
from deepcluster.export.metadata import UnknownFormat, stripped
from deepcluster.images import Source
from deepcluster.images.decode import Undecodable, explain, not_a_file, short_side

PNG = "png"


class Unavailable(Exception):
    """An original that no longer exists or may not be passed on; the message is the reason."""


def _hardlink(file: Path, target: Path) -> None:
    os.link(os.path.realpath(file), target)  # a link to a link would be one


def _copy(file: Path, target: Path) -> None:
    shutil.copyfile(file, target)
    with suppress(OSError):  # times and permissions, if the file system has them
        shutil.copystat(file, target)


WAYS: dict[str, Callable[[Path, Path], None]] = {"symlink": os.symlink, "hardlink": _hardlink, "copy": _copy}
WORDS = {"symlink": "symbolic links", "hardlink": "hard links", "copy": "copies", PNG: "PNG files"}


class Transfer:
    """Brings images of a source to new places, and counts.

    An image that is not a file, or whose target is a .png of another format, is decoded and written as PNG.

    Args:
        source: The images.
        mode: symlink, hardlink or copy; None: for each file the first of these that works.
        strip: Copy files without their metadata: JPEG files losslessly, others as PNG.
        roots: Real paths of the files that may be brought, or of folders above them; empty: any image may.

    Attributes:
        ways: Tried in turn for each file.
        files: How many files came by each way.
        bytes: Written.
        refused: By way, why it was refused the first time.

    Raises:
        UsageError: There is no such mode, or it cannot strip.
    """

    def __init__(self, source: Source, mode: str | None, *, strip: bool, roots: Set[str] = frozenset()):
        if mode is not None and mode not in WAYS:
            raise UsageError(f"--mode {mode}: choose {', '.join(WAYS)}, or leave it out")
        if strip and mode not in (None, "copy"):
            raise UsageError(
                f"--strip-metadata is for copies: {WORDS[mode or '']} lead to the originals; leave --mode out, or give"
                " --keep-metadata"
            )
        mode = "copy" if strip else mode
        self.strip = strip
        self.source = source
        self.roots = roots
        self.ways = (PNG,) if source.file is None else tuple(WAYS) if mode is None else (mode,)
        self.files: Counter[str] = Counter()
        self.bytes = 0
        self.refused: dict[str, str] = {}

    def __call__(self, i: int, target: Path) -> str:
        """Bring the i-th image to ``target``; returns the way. Raises Unavailable, or an OSError of the target."""
        file = self.source.file(i) if self.source.file else None
        if file is not None:
            _check_image(file, self.roots)
        if file is None or (target.suffix == ".png" and file.suffix.lower() != ".png"):
            way = self._png(i, target)
        else:
            way = self._file(i, file, target)
        self.files[way] += 1
        if way in ("copy", PNG):
            self.bytes += target.stat().st_size
        return way

    def _file(self, i: int, file: Path, target: Path) -> str:
        if self.strip:
            return self._stripped(i, file, target)
        for way in self.ways:
            try:
                WAYS[way](file, target)
                return way
            except OSError as error:
                if way == "copy":  # there is no other way
                    raise
                self.refused.setdefault(way, explain(error))
        raise DiskError(
            f"{WORDS[way]} are refused there ({self.refused[way]}): omit --mode to fall back to whatever works"
        )

    def _stripped(self, i: int, file: Path, target: Path) -> str:
        try:
            data = stripped(file)
        except UnknownFormat:
            return self._png(i, target)
        except OSError as error:
            raise Unavailable(explain(error)) from None
        with target.open("xb") as stream:
            stream.write(data)
        return "copy"

    def _png(self, i: int, target: Path) -> str:
        try:
            image = self.source.read(i)
        except (Undecodable, OSError) as error:
            raise Unavailable(explain(error)) from None
        with target.open("xb") as stream:
            image.save(stream, "PNG")
        return PNG

    @property
    def text(self) -> str:
        """What was done and what was refused."""
        done = ", ".join(f"{self.files[way]:,} {WORDS[way]}" for way in WORDS if self.files[way])
        refused = "".join(f"; {WORDS[way]} are refused there ({why})" for way, why in self.refused.items())
        why = "" if self.source.file else " (these images are not files)"
        return f"{done}{why}; {self.bytes:,} bytes written{refused}; {self.metadata}"

    @property
    def metadata(self) -> str:
        """What happens to the metadata."""
        kept = "EXIF (time, place), comments and other metadata stay in them"
        return "without EXIF, comments and other metadata" if self.strip or not self.source.file else kept


def _check_image(file: Path, roots: Set[str]) -> None:
    """Raise Unavailable if the file does not exist, lies outside of ``roots``, or has no header of an image."""
    real = Path(os.path.realpath(file))
    if roots and roots.isdisjoint(map(str, (real, *real.parents))):
        raise Unavailable("outside of the folders of the run's images")
    try:
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode):  # opening a FIFO would wait forever
            raise Unavailable(not_a_file(mode) if not stat.S_ISDIR(mode) else "is a folder")
        with file.open("rb") as stream:
            short_side(stream)
    except (Undecodable, OSError) as error:
        raise Unavailable(explain(error)) from None
