"""Source: images that exist but are not yet read, and why some are left out."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from PIL import Image

from deepcluster.errors import DataError
from deepcluster.images.decode import DAMAGED, OTHER, RAW, Reason, decode, sides
from deepcluster.images.raw import reads_raw
from deepcluster.runtime.machine import check_fits
from deepcluster.texts import one_line, plural

WHAT_TO_TYPE = (
    "IMAGES is a folder, an image, a pattern such as photos/*.jpg, or several of these; or one text file of paths,"
    " .npy array, .tar shard or range train-{000..146}.tar, - for paths on standard input, sklearn:digits"
    " or torchvision:NAME"
)
LINK = Reason("a symbolic link, not followed", "linked")  # to skip one in a folder
BESIDE = Reason("beside the shards, not read", "beside the shards")
# Folders that a disk, an archive or a NAS makes for itself; some have thumbnails of all photographs.
SYSTEM_FOLDERS = {"@eadir", "#recycle", "__macosx", "lost+found", "$recycle.bin"}


class Origin(NamedTuple):
    """Place of an image, which identifies it under any name that a run gives it."""

    source: str  # real path of its file, or of the array or shard that holds it; name of a data set; empty: memory
    member: str = ""  # number of its row, or name of the shard's member; empty for a file of its own


class Items(Protocol):
    """Images by number: their contents and origins. A class for each kind of source."""

    of_files: bool = False  # an image may be a file of its own

    def content(self, i: int) -> Path | BinaryIO | Image.Image:
        """Return the file of the i-th image, a stream of its bytes, or an image in mode RGB.

        Raises ``Undecodable`` or ``OSError``.
        """
        ...

    def file(self, i: int) -> Path | None:
        """Return the absolute path of the i-th image; None for one that is no file."""
        return None

    def origin(self, i: int) -> Origin: ...


@dataclass(frozen=True)
class Numbered(Items):
    """Images of an array or a data set, by their numbers there."""

    holder: str  # as in ``Origin.source``

    def origin(self, i: int) -> Origin:
        return Origin(self.holder, str(i))


@dataclass(frozen=True)
class Source:
    """Images that exist but are not yet read: a selection of items, in an order, by name.

    Examples:
        >>> digits = find("sklearn:digits")
        >>> digits.read(0).size, digits.labels[:3]
        ((8, 8), ('0', '1', '2'))
    """

    name: str  #: a short name, for the name of a run
    location: str  #: where they are, for messages: an absolute path, the name of a data set, or words
    #: Relative to a folder, with ``/``, in the order of their bytes; as written in a list, each file once (a list from
    #: Python is taken as it is); SHARD/MEMBER in the order of the archives; numbers of an array or a data set.
    paths: tuple[str, ...]
    items: Items  #: these images, and perhaps others
    labels: tuple[str, ...] | None = None  #: the labels of ``paths``, if the source has any
    skipped: tuple[tuple[str, Reason], ...] = ()  #: (path, reason) of files that are never opened
    numbers: Sequence[int] | None = None  #: the numbers of the images among ``items``; None: 0, 1, 2, ...
    of_folder: bool = False  #: all files in the folder were asked for

    @property
    def base(self) -> Path:
        """Folder from which a later command looks for the images: their own, their list's or archive's, or this one."""
        if not Path(self.location).is_absolute():
            return Path.cwd()
        is_folder = os.path.isdir(self.location)  # noqa: PTH112 (is_dir may raise)
        return Path(self.location) if is_folder else Path(self.location).parent

    def read(self, i: int, size: int | None = None) -> Image.Image:
        """Return the i-th image in mode RGB, reduced as in ``decode`` if ``size`` is given and the image is encoded.

        Raises ``Undecodable`` or ``OSError``.
        """
        content = self.items.content(self._number(i))
        return content if isinstance(content, Image.Image) else decode(content, size=size)

    def short_side(self, i: int) -> int:
        """Return the shorter side of the i-th image in px, by its header if it is encoded. Raises as ``read``."""
        content = self.items.content(self._number(i))
        return min(content.size if isinstance(content, Image.Image) else sides(content))

    def file(self, i: int) -> Path | None:
        return self.items.file(self._number(i))

    def origin(self, i: int) -> Origin:
        return self.items.origin(self._number(i))

    def _number(self, i: int) -> int:
        return i if self.numbers is None else self.numbers[i]

    def files(self) -> Iterator[Path]:
        """Yield the absolute paths of the images that are files."""
        return filter(None, map(self.file, range(len(self.paths)))) if self.items.of_files else iter(())

    def parts(self, count: int) -> Iterator["Source"]:
        """Yield all images, ``count`` at a time; the first part also has ``skipped``."""
        for begin in range(0, len(self.paths), count):
            part = self.rows(range(len(self.paths))[begin : begin + count])
            yield part if begin else replace(part, skipped=self.skipped)

    def rows(self, chosen: Sequence[int]) -> "Source":
        """Return the images with these numbers, in this order; ``skipped`` is empty."""
        return replace(
            self,
            paths=tuple(self.paths[i] for i in chosen),
            labels=None if self.labels is None else tuple(self.labels[i] for i in chosen),
            skipped=(),
            numbers=tuple(map(self._number, chosen)),
        )


def nothing_readable(location: str, tried: int, reasons: Sequence[tuple[str, str]]) -> DataError:
    """Return the error if none of ``tried`` files is an image; ``reasons``: (path, reason) of some files."""
    examples = "; ".join(f"{one_line(path)}: {reason}" for path, reason in reasons[:3])
    return DataError(
        f"no readable image in {one_line(location)}: {tried} {'file' if tried == 1 else 'files'} tried ({examples}). "
        "Check that this is the right place, that the files are images and that they may be read"
    )


def check_skipped(skipped: Sequence[Mapping[str, str]], most: int | None) -> None:
    """Raise DataError if more than ``most`` files (None: any number) were skipped, given as their paths and reasons."""
    if most is not None and len(skipped) > most:
        examples = "; ".join(f"{one_line(file['path'])}: {file['reason']}" for file in skipped[:3])
        raise DataError(
            f"unusable files: {len(skipped):,} ({examples}{'; ...' * (len(skipped) > 3)}), and --max-skipped is {most}:"
            " repair or remove them, or allow more"
        )


def row_names(count: int) -> tuple[str, ...]:
    """Return paths for ``count`` images without names: their numbers, which do not change when more images come."""
    check_fits(f"a list of {count:,} images", 64 * count, "pass fewer images")
    return tuple(map(str, range(count)))


@dataclass(frozen=True)
class _Joined(Items):
    images: Sequence[tuple[Items, int]]  # with their numbers there
    of_files: bool

    def content(self, i: int) -> Path | BinaryIO | Image.Image:
        items, number = self.images[i]
        return items.content(number)

    def file(self, i: int) -> Path | None:
        items, number = self.images[i]
        return items.file(number)

    def origin(self, i: int) -> Origin:
        items, number = self.images[i]
        return items.origin(number)


def joined(sources: Sequence[Source], name: str, location: str) -> Source:
    """Return the images of several sources, one source behind the other."""
    paths = tuple(path for source in sources for path in source.paths)
    labels = tuple(label for source in sources for label in source.labels or [""] * len(source.paths))
    images = [(source.items, source._number(i)) for source in sources for i in range(len(source.paths))]
    items = _Joined(images, any(source.items.of_files for source in sources))
    return Source(name, location, paths, items, labels if any(labels) else None)


def is_hidden(name: str) -> bool:
    """Tell if a file or folder of this name is no image of a person."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


RAW_SUFFIXES = (
    *(".arw", ".cr2", ".cr3", ".crw", ".dng", ".iiq", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl"),
    *(".sr2", ".srf", ".srw", ".x3f"),
)
VIDEO_SUFFIXES = (".3gp", ".avi", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".webm", ".wmv")
VIDEO, SIDECAR = "video", "sidecar"


def skipped_in_words(skipped: Iterable[tuple[str, Reason]]) -> str:
    """Count (path, reason) by category, most frequent first: ``2 damaged, 1 video``."""
    reasons = Counter(_category(path.lower(), reason.category) for path, reason in skipped)
    nouns = (VIDEO, SIDECAR, OTHER)
    return ", ".join(
        plural(times, category) if category in nouns else f"{times:,} {category}"
        for category, times in reasons.most_common()
    )


def _category(name: str, category: str) -> str:
    """Return the category of a skipped file, whose suffix tells more if it has no image."""
    if category == RAW or (category in (OTHER, DAMAGED) and name.endswith(RAW_SUFFIXES)):
        return "RAW (export them as JPEG)" if reads_raw() else "RAW (pip install rawpy, or export them as JPEG)"
    if category == OTHER and name.endswith((*VIDEO_SUFFIXES, ".xmp")):
        return SIDECAR if name.endswith(".xmp") else VIDEO
    return category
