"""Images in shards: tar archives in the layout of WebDataset, read in place. Nothing is ever extracted."""

import io
import json
import os
import re
import sys
import tarfile
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import splitext
from threading import local
from typing import BinaryIO

from deepcluster.errors import DataError
from deepcluster.images.decode import SMALL_FILE, SUFFIXES, explain, is_empty, one_line
from deepcluster.images.source import Origin
from deepcluster.runtime.spliced import Spliced

_SHARD = re.compile(r"\.(tar(\.(gz|bz2|xz|zst))?|tgz|tbz2?|txz)$", re.IGNORECASE)
_RANGE = re.compile(r"\{([0-9]{1,18})\.\.([0-9]{1,18})\}")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
# Files that writers of shards put beside them: statistics, tables of the samples, indices.
_BESIDE = {".json", ".jsonl", ".parquet", ".csv", ".tsv", ".txt", ".md", ".idx", ".index", ".yaml", ".yml"}
_LONGEST_NAME = 4096  # bytes: Linux's limit for a path
_LONGEST_LABEL = 1 << 16  # bytes of a .cls or .json
_LONGEST_HEADER = 1 << 20  # bytes of the long names and other extensions of one member


@dataclass(frozen=True, eq=False)
class Shards:
    """Images in tar archives, in the order of the shards and of their members.

    An image costs 16 bytes beside its path: its offset and its size.

    Attributes:
        paths: SHARD/MEMBER, each once.
        labels: From members KEY.cls or "label" in KEY.json; if no shard has any, the folders in the names of the
            members; None if there are none either.
        skipped: (path, reason).
        files: The archives.
        places: The name of each in ``paths``, and its real path.
        firsts: The number of the first image of each file.
        offsets: Position of each image in its file.
        sizes: The bytes of each image.
        last: The file that a thread read last. One for each thread, because a file has one position.
    """

    paths: tuple[str, ...]
    labels: tuple[str, ...] | None
    skipped: tuple[tuple[str, str], ...]
    files: tuple[Path, ...]
    places: tuple[tuple[str, str], ...]
    firsts: "array[int]"
    offsets: "array[int]"
    sizes: "array[int]"
    last: local = field(default_factory=local, init=False)

    def open(self, i: int) -> BinaryIO:
        """The bytes of the i-th image, for this thread to read before it opens another. Raises ``OSError``."""
        stream = self._stream(bisect_right(self.firsts, i) - 1)
        if self.sizes[i] > SMALL_FILE:
            return io.BufferedReader(Spliced(b"", stream, self.offsets[i], self.offsets[i] + self.sizes[i]))
        stream.seek(self.offsets[i])
        return io.BytesIO(stream.read(self.sizes[i]))

    def origin(self, i: int) -> Origin:
        """The origin of the i-th image."""
        shard = bisect_right(self.firsts, i) - 1
        name, place = self.places[shard]
        return Origin(place, self.paths[i].removeprefix(f"{name}/"))

    def _stream(self, shard: int) -> "_Stream":
        if getattr(self.last, "shard", None) != shard:
            self.last.stream = _Stream(self.files[shard])
            self.last.shard = shard
        stream: _Stream = self.last.stream
        return stream


def is_shard(name: str) -> bool:
    """Tell if a file of this name is a tar archive; also a compressed one, which :func:`index` refuses."""
    return _SHARD.search(name) is not None


def shards_among(paths: Iterable[str]) -> list[str]:
    """The shards among the files of a folder, if all the others only describe shards; else none."""
    shards, others = [], False
    for path in paths:
        if is_shard(path):
            shards.append(path)
        else:
            others |= splitext(path)[1].lower() not in _BESIDE
    return [] if others else shards


def expand(pattern: str) -> Iterator[str]:
    """``a-{000..002}.tar`` -> ``a-000.tar``, ``a-001.tar``, ``a-002.tar``, as bash does; several ranges are nested."""
    numbers = _RANGE.search(pattern)
    if numbers is None:
        yield pattern
        return
    first, last = numbers.groups()
    padded = any(len(end) > 1 and end.startswith("0") for end in (first, last))
    width = max(len(first), len(last)) if padded else 1
    step = 1 if int(first) <= int(last) else -1
    for number in range(int(first), int(last) + step, step):
        yield from expand(f"{pattern[: numbers.start()]}{number:0{width}}{pattern[numbers.end() :]}")


def is_pattern(text: str) -> bool:
    """Tell if the text names shards by ranges of numbers in braces."""
    return is_shard(text) and _RANGE.search(text) is not None


def files_of(pattern: Path) -> dict[str, Path]:
    """The shards of a pattern by name, relative to the last folder without a range. DataError if one is missing."""
    base = pattern
    while _RANGE.search(str(base)):
        base = base.parent
    shards: dict[str, Path] = {}
    for text in expand(str(pattern)):
        file = Path(text)
        if not file.is_file():
            raise DataError(
                f"no such shard: {one_line(text)}. {one_line(str(pattern))} names it:"
                " put the numbers of the shards that are there between its braces"
            )
        shards[file.relative_to(base).as_posix()] = file
    return shards


def index(shards: Iterable[tuple[str, Path]]) -> Shards:
    """Find the images in (name, file) of plain tar archives by reading their headers, each file once.

    Images are recognised by their suffix. A damaged or truncated shard is in ``skipped``; what comes before the damage
    is used. Raises ``DataError`` for a compressed archive, which cannot be read from the middle.
    """
    paths: list[str] = []
    labels: list[str] = []
    folders: list[str] = []
    skipped: list[tuple[str, str]] = []
    files: list[Path] = []
    places: list[tuple[str, str]] = []
    firsts, offsets, sizes = array("q"), array("q"), array("q")
    for shard, file in shards:
        files.append(file)
        places.append((shard, os.path.realpath(file)))
        firsts.append(len(paths))
        contents = _contents(file)
        for name, (offset, size) in contents.images.items():
            paths.append(f"{shard}/{name}")
            offsets.append(offset)
            sizes.append(size)
            labels.append(contents.labels.get(_key(name), ""))
            folders.append(sys.intern(name.split("/")[-2] if "/" in name else ""))
        skipped += [(f"{shard}/{name}" if name else shard, reason) for name, reason in contents.skipped]
    labels = labels if any(labels) else folders
    return Shards(
        tuple(paths),
        tuple(labels) if any(labels) else None,
        tuple(skipped),
        tuple(files),
        tuple(places),
        firsts,
        offsets,
        sizes,
    )


@dataclass(frozen=True)
class _Contents:
    """Index one archive: name -> (offset, size) of its images, key -> label, (name, reason); name "" is the archive."""

    images: dict[str, tuple[int, int]] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)


def _contents(file: Path) -> _Contents:
    contents = _Contents()
    try:
        if is_empty(file):
            reason = "empty file"
        else:
            with _Headers(io.FileIO(file)) as stream:
                _check_plain(file, stream)
                reason = _read_members(stream, contents)
    except OSError as error:
        reason = explain(error)
    if reason or not contents.images:
        contents.skipped.append(("", reason or "no image in it"))
    return contents


def _check_plain(file: Path, stream: BinaryIO) -> None:
    begin = stream.read(8)
    stream.seek(0)
    for sign, kind in _COMPRESSED.items():
        if begin.startswith(sign):
            plain = _SHARD.sub("-plain.tar" if file.suffix.lower() == ".tar" else ".tar", file.name)
            raise DataError(
                f"{one_line(str(file))} is compressed ({kind}), so its images cannot be read one by one. Unpack it"
                f" once: {kind} -dc {one_line(file.name)} > {one_line(plain)} (the images are compressed already)"
            )


def _read_members(stream: "_Headers", contents: _Contents) -> str:
    """Put the members of an archive into ``contents``; return why the reading ended early, or ""."""
    length = os.fstat(stream.fileno()).st_size
    at = 0
    try:
        with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep every header, 1 kB each
                plain = member.isreg() and not member.issparse()
                # With a size below 0 the same header could come again, forever.
                if member.size < 0 or tar.offset <= member.offset or (plain and _end(member) > length):
                    return _damaged(member.offset)
                at = tar.offset
                _take(member, stream, contents, plain=plain)
    except (MemoryError, OSError):
        raise
    except Exception:  # of damaged headers: ReadError, ValueError, OverflowError, RecursionError, ...
        return _damaged(at)
    # An archive ends with zeros. Anything else is damage, or another archive behind the first.
    stream.seek(min(at, length))
    rest = iter(lambda: stream.read(1 << 20), b"")
    return "" if at < length and not any(part.strip(b"\0") for part in rest) else _damaged(at)


def _end(member: tarfile.TarInfo) -> int:
    return member.offset_data + member.size


def _damaged(at: int) -> str:
    return f"not a tar archive, or cut off, from byte {at} on: the rest is not read"


def _take(member: tarfile.TarInfo, stream: BinaryIO, contents: _Contents, *, plain: bool) -> None:
    """Put one member into ``contents`` if it is an image, a label, or something that a user would miss."""
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    if member.isdir() or not parts or any(part.startswith(".") and part != ".." for part in parts):
        return
    name = "/".join(parts)
    suffix, dots = splitext(name)[1].lower(), parts[-1].lower().partition(".")[2]
    if dots in ("cls", "json"):
        if plain and member.size <= _LONGEST_LABEL:
            _take_label(stream, member, dots, _key(name), contents.labels)
    elif suffix in SUFFIXES:
        if "\0" in name or len(os.fsencode(name)) > _LONGEST_NAME:
            reason = "not a possible file name"
        elif not plain:
            reason = "a link, a device or a sparse file, not read"
        elif name in contents.images:
            reason = "a second member of this name; the first is used"
        else:
            contents.images[name] = (member.offset_data, member.size)
            return
        shown = name.replace("\0", " ")[: _LONGEST_NAME // 4]
        contents.skipped.append((f"{shown}#{member.offset}" if shown in contents.images else shown, reason))
    elif is_shard(name):
        contents.skipped.append((name, "an archive within an archive, not read"))


def _take_label(stream: BinaryIO, member: tarfile.TarInfo, kind: str, key: str, labels: dict[str, str]) -> None:
    stream.seek(member.offset_data)
    content = stream.read(member.size)
    if kind == "cls":
        labels[key] = sys.intern(content.decode(errors="replace").strip())
    elif b'"label"' in content and key not in labels:
        try:
            described = json.loads(content)
        except (ValueError, RecursionError):
            return
        label = described.get("label") if isinstance(described, dict) else None
        if isinstance(label, str | int | float):
            labels[key] = sys.intern(str(label).strip())


def _key(name: str) -> str:
    """Return the key that the members of one sample share: the name up to the first dot after the last slash."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


class _Headers(io.BufferedReader):
    """An archive read header by header: a size in a damaged header allocates no memory."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


class _Stream(io.FileIO):
    """A file that closes with its last user: a thread that ends, or goes on to another shard."""

    def __del__(self) -> None:
        self.close()
