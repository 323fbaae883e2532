"""Images in shards: tar archives in the layout of WebDataset, read in place. Nothing is ever extracted."""

import io
import json
import os
import re
import sys
import tarfile  # noqa: TID251 (reads headers)
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from posixpath import basename, splitext
from threading import local
from types import SimpleNamespace
from typing import BinaryIO

from deepcluster.errors import DataError
from deepcluster.images.decode import OTHER, SMALL_FILE, SUFFIXES, Reason, explain
from deepcluster.images.source import RAW_SUFFIXES, VIDEO_SUFFIXES, Items, Origin, Source, is_hidden
from deepcluster.runtime.bounded import check_file
from deepcluster.texts import one_line

_SHARD = re.compile(r"\.(tar(\.(gz|bz2|xz|zst))?|tgz|tbz2?|txz)$", re.IGNORECASE)
RANGE = re.compile(r"\{([0-9]{1,18})\.\.([0-9]{1,18})\}")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
# Files that describe shards: statistics, tables of the samples, indices; and those that Windows makes for itself.
_BESIDE = {
    *(".json", ".jsonl", ".parquet", ".csv", ".tsv", ".txt", ".md", ".idx", ".index", ".yaml", ".yml", ".db", ".ini"),
    *("readme", "license"),
}
_MAX_NAME_BYTES = 4096  # bytes: Linux's limit for a path
_MAX_LABEL_BYTES = 1 << 16  # bytes of a .cls or .json
_MAX_HEADER_BYTES = 1 << 20  # bytes of the long names and other extensions of one member


def is_shard(name: str) -> bool:
    """Tell if a file of this name is a tar archive; also a compressed one, which :func:`from_tars` skips."""
    return _SHARD.search(name) is not None


def shards_among(paths: Sequence[str]) -> list[str]:
    """Return the shards among the files of a folder, if all other files describe shards; else none."""
    shards = [path for path in paths if is_shard(path)]
    others = {(splitext(path)[1] or basename(path)).lower() for path in paths if not is_shard(path)}
    return shards if others <= _BESIDE else []


def expand(pattern: str) -> Iterator[str]:
    """Yield ``a-000.tar``, ``a-001.tar``, ``a-002.tar`` for ``a-{000..002}.tar``, as bash does."""
    numbers = RANGE.search(pattern)
    if numbers is None:
        yield pattern
        return
    first, last = numbers.groups()
    padded = any(len(end) > 1 and end.startswith("0") for end in (first, last))
    width = max(len(first), len(last)) if padded else 1
    step = 1 if int(first) <= int(last) else -1
    for number in range(int(first), int(last) + step, step):
        yield from expand(f"{pattern[: numbers.start()]}{number:0{width}}{pattern[numbers.end() :]}")


def files_of(pattern: Path) -> dict[str, Path]:
    """Return the shards of a pattern by name below the last folder without a range. DataError if not all exist."""
    base = pattern
    while RANGE.search(str(base)):
        base = base.parent
    shards: dict[str, Path] = {}
    for text in expand(str(pattern)):
        file = Path(text)
        if not file.is_file():
            raise DataError(
                f"no such shard: {one_line(text)}. {one_line(str(pattern))} names it:"
                " put the numbers of existing shards between its braces"
            )
        shards[file.relative_to(base).as_posix()] = file
    return shards


def from_tars(
    files: Mapping[str, Path], name: str, location: str, skipped: Sequence[tuple[str, Reason]] = ()
) -> Source:
    """Return the images in plain tar archives, whose headers are read once.

    Images are recognised by their suffix. Labels come from members KEY.cls or "label" in KEY.json; if no archive has
    any, from the folders in the names of the members. A damaged or truncated archive is used up to the damage; one that
    is compressed cannot be read from the middle, and is skipped. DataError if no image remains.

    ``files``: The archives, by the name in front of the names of their members.
    ``skipped``: (path, reason) of other files.
    """
    archives = _Archives(files)
    reasons = [*skipped]
    labels = list[str]()
    folders = list[str]()
    for shard, file in files.items():
        members = _Members(file)
        archives.add(shard, members)
        labels += [members.labels.get(_key(member), "") for member in members.images]
        folders += [sys.intern(member.split("/")[-2] if "/" in member else "") for member in members.images]
        reasons += [(f"{shard}/{member}" if member else shard, reason) for member, reason in members.skipped.items()]
    reasons.sort(key=lambda pair: os.fsencode(pair[0]))
    if not archives.paths:
        aside = "".join(f"; {one_line(path)}: {reason}" for path, reason in reasons[:3])
        raise DataError(
            f"no image in {one_line(location)}: {len(files)} shards read{aside}. A shard is a plain tar archive, and"
            " the names of its images end in .jpg, .png or another suffix of images"
        )
    labels = labels if any(labels) else folders
    known = tuple(labels) if any(labels) else None
    return Source(name, location, tuple(archives.paths), archives, known, tuple(reasons))


class _Members:
    """Members of one archive, whose headers are read once."""

    def __init__(self, file: Path):
        self.images: dict[str, tuple[int, int]] = {}  # position and size, by name
        self.labels: dict[str, str] = {}  # by key
        self.skipped: dict[str, Reason] = {}  # reasons by name; "" is the archive itself
        try:
            check_file(file)
            reason = Reason(self._read(file))
        except (OSError, ValueError) as error:
            reason = explain(error)
        if reason or not self.images:
            self.skipped[""] = reason or Reason("no image in it")

    def _read(self, file: Path) -> str:
        """Take all members; return the damage, or ""."""
        with _Headers(io.FileIO(file)) as stream:
            begin = stream.peek()
            length = file.stat().st_size
            at = 0
            if program := next((name for sign, name in _COMPRESSED.items() if begin.startswith(sign)), None):
                return f"compressed: unpack it once with {program} -dc"
            try:
                with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8") as tar:
                    while (member := tar.next()) is not None:
                        tar.members = []  # type: ignore[attr-defined]  # it would keep all headers of 1 kB
                        plain = member.isreg() and not member.issparse()
                        # With a size below 0 the same header could come again, forever.
                        if (
                            member.size < 0
                            or tar.offset <= member.offset
                            or (plain and member.offset_data + member.size > length)
                        ):
                            break
                        at = tar.offset
                        self._take(member, stream, plain=plain)
                # An archive ends with zeros. Anything else is damage, or another archive behind the first.
                stream.seek(min(at, length))
                damaged = at >= length or any(part.strip(b"\0") for part in iter(lambda: stream.read(1 << 20), b""))
            except (MemoryError, OSError):
                raise
            except Exception:  # of damaged headers: ReadError, ValueError, OverflowError, RecursionError, ...
                damaged = True
        return f"not a tar archive, or cut off, from byte {at} on: the rest is not read" if damaged else ""

    def _take(self, member: tarfile.TarInfo, stream: BinaryIO, *, plain: bool) -> None:
        """Take a member if it is an image, a label, or something that a user would miss."""
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        if member.isdir() or not parts or any(is_hidden(part) and part != ".." for part in parts):
            return
        name = "/".join(parts)
        kind = parts[-1].lower().partition(".")[2]
        if kind in ("cls", "json"):
            if plain and member.size <= _MAX_LABEL_BYTES:
                stream.seek(member.offset_data)
                label = _label_in(stream.read(member.size), kind)
                key = _key(name)
                if label is not None and (kind == "cls" or key not in self.labels):
                    self.labels[key] = sys.intern(label)
            return
        if is_shard(name):
            reason = Reason("an archive within an archive, not read")
        elif name.lower().endswith((*RAW_SUFFIXES, *VIDEO_SUFFIXES)):
            reason = Reason("not read in an archive: extract it into a folder", OTHER)
        elif splitext(name)[1].lower() not in SUFFIXES:
            return
        elif "\0" in name or len(os.fsencode(name)) > _MAX_NAME_BYTES:
            reason = Reason("not a possible file name")
        elif not plain:
            reason = Reason("a link, a device or a sparse file, not read")
        elif name in self.images:
            reason = Reason("a second member of this name; the first is used")
        else:
            self.images[name] = (member.offset_data, member.size)
            return
        shown = name.replace("\0", " ")[: _MAX_NAME_BYTES // 4]
        taken = shown in self.images or shown in self.skipped
        self.skipped[f"{shown}#{member.offset}" if taken else shown] = reason


def _label_in(content: bytes, kind: str) -> str | None:
    """Return the label in a .cls or .json member, None if it has none."""
    if kind == "cls":
        return content.decode(errors="replace").strip()
    with suppress(ValueError, RecursionError):
        described = json.loads(content) if b'"label"' in content else None  # most have none, which is seen sooner
        label = described.get("label") if isinstance(described, dict) else None
        return str(label).strip() if isinstance(label, str | int | float) else None
    return None


class _Archives(Items):
    """Archives that are open to read images by number. An image costs 16 bytes: its position and its size."""

    def __init__(self, files: Mapping[str, Path]):
        self.paths: list[str] = []
        self._shards = [(f"{shard}/", file, os.path.realpath(file)) for shard, file in files.items()]
        self._firsts = array("q")
        self._offsets = array("q")
        self._sizes = array("q")
        self._last = local()  # the archive that a thread read last: not shared, because a file has one position

    def add(self, shard: str, members: _Members) -> None:
        self.paths += [f"{shard}/{member}" for member in members.images]
        self._firsts.append(len(self._sizes))
        self._offsets.extend(offset for offset, _ in members.images.values())
        self._sizes.extend(size for _, size in members.images.values())

    def content(self, i: int) -> BinaryIO:
        number = self._number(i)
        begin = self._offsets[i]
        length = self._sizes[i]
        if getattr(self._last, "number", None) != number:
            self._last.stream = _Stream(self._shards[number][1])
            self._last.number = number
        stream = self._last.stream
        if length > SMALL_FILE:
            member = tarfile.TarInfo()
            member.offset_data, member.size = begin, length
            return tarfile.ExFileObject(SimpleNamespace(fileobj=stream), member)  # type: ignore[arg-type]
        stream.seek(begin)
        return io.BytesIO(stream.read(length))

    def origin(self, i: int) -> Origin:
        prefix, _, file = self._shards[self._number(i)]
        return Origin(file, self.paths[i].removeprefix(prefix))

    def _number(self, i: int) -> int:
        """Return the number of the archive that has the i-th image."""
        return bisect_right(self._firsts, i) - 1


def _key(name: str) -> str:
    """Return the key that the members of one sample share: the name up to the first dot after the last slash."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


class _Headers(io.BufferedReader):
    """An archive read header by header: a size in a damaged header allocates no memory."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


class _Stream(io.FileIO):
    """A file that closes with its last user: a thread that ends, or goes on to another shard."""

    def __del__(self) -> None:
        self.close()
