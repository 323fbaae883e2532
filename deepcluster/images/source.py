"""Where images come from: a folder, a list of paths, shards, an array, or a data set that a library knows by name."""

import codecs
import difflib
import inspect
import io
import math
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from deepcluster.errors import DataError, UsageError, missing_extra
from deepcluster.images import webdataset as tars
from deepcluster.images.arrays import HOLDS_OBJECTS, Rows, load_array, said_plainly
from deepcluster.images.datasets import CHANNELS, reader
from deepcluster.images.decode import (
    MAX_PIXELS,
    SUFFIXES,
    Undecodable,
    as_rgb,
    decode,
    explain,
    not_a_file,
    one_line,
    short_side,
)
from deepcluster.images.run_folders import is_run
from deepcluster.runtime.memory import check_fits

UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
PATH_COLUMNS = ("path", "file_name", "filename", "file", "image")  # what tables call a column of paths
_WHAT_TO_TYPE = (
    "IMAGES is a folder, an image, a text file of paths, an .npy or .npz array, a .tar shard, a pattern of shards as "
    "train-{000..146}.tar, - for paths on standard input, sklearn:digits, torchvision:NAME or hf:NAME"
)


class Dataset(Protocol):
    """Images one by one, as in ``datasets.reader``: torch's Dataset, Hugging Face's, a list of pictures."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Any: ...


# An .npz of more than so many bytes unpacked is read where it takes at most so many times the bytes that it has in the
# file. Photographs have a ratio of 1 to 2, drawings of digits 5 to 20, and nothing but zeros 1,000.
UNPACKED = 100_000_000
DENSEST = 300

# What :func:`find` takes.
Images = str | Path | npt.NDArray[Any] | Tensor | Sequence[str | Path] | Dataset


class Read(Protocol):
    """The i-th image of a source; ``size``, where given, as in ``decode``."""

    def __call__(self, i: int, size: int | None = None) -> Image.Image: ...


@dataclass(frozen=True)
class Source:
    """Images that were found but not yet read.

    ``name`` is short, for the name of a run. ``location`` is what ``find`` takes to find them again: an absolute path,
    ``sklearn:digits``, ``torchvision:NAME``, ``hf:NAME``, ``-``; what was passed from Python has ``python:paths``,
    ``python:array`` or ``python:dataset``. ``paths`` are relative to a folder, with ``/`` between their parts, in the
    order of their bytes; those of a list are as they stand there, in its order (a file only once, but for a list
    passed from Python, which is taken as it is); those in shards are SHARD/MEMBER, in the order of the archives; those
    of an array or data set are padded numbers.
    ``read(i, size)`` is the i-th image in mode RGB; it raises ``Undecodable`` or ``OSError``. Given the ``size`` that
    the caller needs, files may come reduced as in ``decode``; then ``short_side(i)`` is the shorter side in px that the
    whole image has, from the header (None: ``read`` reduces nothing), and ``file(i)`` the absolute path of the file
    (None: the images are no files). ``labels`` belong to ``paths``. ``skipped`` has (path, reason) for what was found
    but is never opened.
    """

    name: str
    location: str
    paths: tuple[str, ...]
    read: Read
    labels: tuple[str, ...] | None
    skipped: tuple[tuple[str, str], ...]
    max_pixels: int = MAX_PIXELS
    short_side: Callable[[int], int] | None = None
    file: Callable[[int], Path] | None = None

    def part(self, begin: int, end: int) -> "Source":
        """The images ``begin`` to ``end`` alone; what is never opened goes with the first of them."""
        some = self.rows(range(len(self.paths))[begin:end])
        return some if begin else replace(some, skipped=self.skipped)

    def parts(self, count: int) -> Iterator["Source"]:
        """All of them, ``count`` images at a time."""
        return (self.part(begin, begin + count) for begin in range(0, len(self.paths), count))

    def rows(self, chosen: Sequence[int]) -> "Source":
        """The images with these numbers alone, in their order, and nothing that is never opened."""
        side, file = self.short_side, self.file
        return replace(
            self,
            paths=tuple(self.paths[i] for i in chosen),
            read=lambda i, size=None: self.read(chosen[i], size),
            labels=None if self.labels is None else tuple(self.labels[i] for i in chosen),
            skipped=(),
            short_side=None if side is None else lambda i: side(chosen[i]),
            file=None if file is None else lambda i: file(chosen[i]),
        )


def find_in_parts(images: Images, count: int, *, stdin: TextIO | None = None) -> Iterator[Source]:
    """What :func:`find` finds, ``count`` images at a time. Of ``-`` no more is read than the next part needs."""
    if not (isinstance(images, str) and images == "-"):
        yield from find(images).parts(count)
        return
    known: set[str] = set()
    waiting: list[str] = []
    for each in _paths_as_they_come(stdin or sys.stdin):
        path = _unquoted(each, None)
        file = str(_located(path, None))
        if file not in known:
            known.add(file)
            waiting.append(path)
        if len(waiting) == count:
            yield _from_paths(waiting, "stdin", "-", MAX_PIXELS)
            waiting = []
    if waiting or not known:
        yield _from_paths(waiting, "stdin", "-", MAX_PIXELS)


def find(
    images: Images,
    *,
    max_pixels: int = MAX_PIXELS,
    stdin: TextIO | None = None,
) -> Source:
    """Find images without decoding them. ``stdin`` is read for ``-`` (default ``sys.stdin``).

    Raises ``DataError`` where there is nothing, or where it is nothing that can hold images.
    """
    if isinstance(images, Tensor):
        images = images.detach().cpu().numpy()
    if isinstance(images, np.ndarray) and images.dtype.kind != "U":
        return _from_array(images, "array", "python:array")
    if isinstance(images, str | Path):
        return _from_text(str(images), max_pixels, stdin)
    if isinstance(images, Sequence | np.ndarray) and all(isinstance(path, str | Path) for path in images):
        return _from_paths(images, "images", "python:paths", max_pixels)
    if _is_dataset(images):
        if not len(images):
            raise DataError(f"no images in the {type(images).__name__} that was passed")
        return Source("dataset", "python:dataset", _numbers(len(images)), reader(images), None, ())
    raise DataError(
        f"images cannot come from a {type(images).__name__}: pass a folder, a list of paths, an array or tensor, or a "
        "Dataset that has a length"
    )


def _is_dataset(images: Any) -> TypeGuard[Dataset]:
    """Whether it gives images by number. Of a list, the first item tells."""
    if isinstance(images, list | tuple):
        return bool(images) and isinstance(images[0], Image.Image | np.ndarray | Tensor)
    known = hasattr(images, "__len__") and hasattr(images, "__getitem__")
    return known and not isinstance(images, str | bytes | bytearray | Mapping)


def _from_text(text: str, max_pixels: int, stdin: TextIO | None) -> Source:
    if not text:
        raise UsageError(f"IMAGES is empty. {_WHAT_TO_TYPE}")
    scheme, _, name = text.partition(":")
    if text == "-":
        return _from_paths(_paths_as_they_come(stdin or sys.stdin), "stdin", "-", max_pixels)
    if scheme == "sklearn":
        return _from_sklearn(name)
    if scheme == "torchvision":
        return _from_torchvision(name)
    if scheme == "hf":
        return _from_hugging_face(name)
    return _from_place(text, max_pixels)


def _from_place(text: str, max_pixels: int) -> Source:
    place = _absolute(text)
    try:
        mode = place.stat().st_mode
    except (OSError, ValueError) as error:
        unknown = re.match(r"[A-Za-z][\w+.-]+:", text)
        if not unknown and tars.is_pattern(text):
            name = re.sub(r"\{.*?\}", "", place.name).partition(".")[0].strip("-_ ")
            return _from_tars(tars.files_of(place), name or "shards", str(place), max_pixels)
        problem = "unknown kind of images" if unknown else explain(error)
        raise DataError(f"{problem}: {one_line(text)}. {_WHAT_TO_TYPE}") from error
    if stat.S_ISDIR(mode):
        return _from_folder(place, max_pixels)
    if not stat.S_ISREG(mode):
        raise DataError(f"{one_line(text)} is {not_a_file(mode)}. {_WHAT_TO_TYPE}")
    suffix = place.suffix.lower()
    if suffix in (".npy", ".npz"):
        return _from_numpy_file(place)
    if tars.is_shard(place.name):
        return _from_tars({place.name: place}, place.stem, str(place), max_pixels)
    if suffix == ".txt" or (suffix not in SUFFIXES and _is_text(place)):
        return _from_paths(_listed(place), place.stem, str(place), max_pixels, place.parent)
    return _from_files([place.name], [place], place.stem, str(place), max_pixels)


# Files


def _from_folder(folder: Path, max_pixels: int) -> Source:
    """Every file below the folder, or every image in it where it holds shards. What starts with a dot is ignored, what
    is no file of its own is skipped. Run folders below it are left out."""
    paths: list[str] = []
    skipped: list[tuple[str, str]] = []
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise DataError(f"cannot read the folder {one_line(str(folder))}: {explain(error)}") from error
    if is_run(folder):
        raise DataError(f"{one_line(str(folder))} is a run folder, and its pictures are no images: name their folder")
    for path, reason in _walk(folder):
        if reason is None:
            paths.append(path)
        else:
            skipped.append((path, reason))
    if not paths:
        aside = "".join(f"; {one_line(path)}: {reason}" for path, reason in skipped[:3])
        raise DataError(f"no files in {one_line(str(folder))}{aside}. {_WHAT_TO_TYPE}")
    paths.sort(key=os.fsencode)
    if shards := tars.shards_among(paths):
        skipped += [(path, "beside the shards, not read") for path in paths if not tars.is_shard(path)]
        return _from_tars(
            {path: folder / path for path in shards}, folder.name or "images", str(folder), max_pixels, skipped
        )
    skipped.sort(key=lambda pair: os.fsencode(pair[0]))
    labels = tuple(path.split("/")[-2] if "/" in path else "" for path in paths)
    return Source(
        name=folder.name or "images",
        location=str(folder),
        paths=tuple(paths),
        read=lambda i, size=None: decode(folder / paths[i], size=size, max_pixels=max_pixels),
        labels=labels if any(labels) else None,
        skipped=tuple(skipped),
        max_pixels=max_pixels,
        short_side=lambda i: short_side(folder / paths[i], max_pixels=max_pixels),
        file=lambda i: folder / paths[i],
    )


def _walk(folder: Path) -> Iterator[tuple[str, str | None]]:
    """(path relative to the folder, None or the reason why it is not to be opened)."""
    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            with os.scandir(folder / below) as found:
                entries = [entry for entry in found if not entry.name.startswith(".")]
        except OSError as error:
            yield below.rstrip("/"), explain(error)
            continue
        for entry in entries:
            path = below + entry.name
            try:
                if entry.is_symlink():
                    yield path, "a symbolic link, not followed"
                elif entry.is_dir(follow_symlinks=False):
                    if not is_run(folder / path):
                        waiting.append(path + "/")
                elif entry.is_file(follow_symlinks=False):
                    yield path, None
                else:
                    yield path, not_a_file(entry.stat(follow_symlinks=False).st_mode)
            except OSError as error:  # gone by now, or of a folder that may be listed but not entered
                yield path, explain(error)


def _from_paths(
    given: Iterable[str | Path], name: str, location: str, max_pixels: int, folder: Path | None = None
) -> Source:
    """A list of paths in its order, a file only once; relative ones lie in ``folder``, else in the current folder."""
    known: set[Path] = set()
    paths: list[str] = []
    files: list[Path] = []
    for each in map(str, given):
        # Who copies a path from a file manager has it in quotes.
        path = each if location == "python:paths" else _unquoted(each, folder)
        file = _located(path, folder)
        # From Python, each item of a list has its row.
        if file not in known or location == "python:paths":
            known.add(file)
            paths.append(path)
            files.append(file)
    if not files:
        where = {"-": "standard input", "python:paths": "the list"}.get(location, one_line(location))
        raise DataError(f"no paths in {where}: one path of an image a line is expected")
    return _from_files(paths, files, name, location, max_pixels)


def _unquoted(path: str, folder: Path | None) -> str:
    """What stands between two quotes, unless there is a file whose name has them."""
    quoted = re.fullmatch(r"""(["'])([^"']+)\1""", path)
    return path if quoted is None or _is_there(path, folder) else quoted[2]


def _located(path: str, folder: Path | None) -> Path:
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise DataError(f"not a possible file name: {path!a}") from error
    # os.path.exists, because Path.exists raises for names that are too long.
    beside = folder is not None and (os.path.exists(folder / path) or not os.path.exists(path))  # noqa: PTH110
    return _absolute(folder / path if folder is not None and beside else path)


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow a link that was named on purpose)


def _from_files(paths: list[str], files: list[Path], name: str, location: str, max_pixels: int) -> Source:
    return Source(
        name=name,
        location=location,
        paths=tuple(path.replace(os.sep, "/") for path in paths),
        read=lambda i, size=None: decode(files[i], size=size, max_pixels=max_pixels),
        labels=tuple(file.parent.name for file in files),
        skipped=(),
        max_pixels=max_pixels,
        short_side=lambda i: short_side(files[i], max_pixels=max_pixels),
        file=lambda i: files[i],
    )


def _lines(content: bytes) -> list[str]:
    """Paths one a line (blank lines and # comments left out), or separated by NUL as ``find -print0`` writes them."""
    content = content.removeprefix(codecs.BOM_UTF8)
    if content.startswith(UTF_16):  # as PowerShell writes what is redirected
        try:
            content = content.decode("utf-16").encode()
        except UnicodeError as error:
            raise DataError(f"a list of paths begins as UTF-16, and is none ({error}): write it in UTF-8") from error
    if b"\0" in content:
        return [os.fsdecode(path) for path in content.split(b"\0") if path.strip()]
    lines = (line.rstrip(b"\r") for line in content.split(b"\n"))
    return [os.fsdecode(line) for line in lines if line.strip() and not line.startswith(b"#")]


def _paths_as_they_come(stdin: TextIO | None) -> Iterator[str]:
    if stdin is None:
        raise DataError("IMAGES is -, but standard input is closed: send it the paths of images, one a line")
    # The bytes below the text, where there are some: a strict text stream fails on names that are not UTF-8.
    raw = getattr(stdin, "buffer", None)
    blocks = iter(partial(raw.read1, 1 << 16), b"") if raw else iter([stdin.read().encode(errors="surrogateescape")])
    waiting, separator = b"", b""
    try:
        for block in blocks:
            waiting += block
            if waiting.startswith(UTF_16):  # its separators are no single bytes
                continue
            separator = separator or next((sign for sign in (b"\0", b"\n") if sign in waiting), b"")
            if separator:
                whole, _, waiting = waiting.rpartition(separator)
                yield from _lines(whole)
    except OSError as error:
        raise DataError(f"cannot read standard input: {explain(error)}") from error
    yield from _lines(waiting)


def _is_empty(file: Path) -> bool:
    """Files of /proc look so too, and some of them never end: what is empty is not opened."""
    return not file.stat().st_size


def _listed(file: Path) -> list[str]:
    """The paths in a list. DataError where it is a table."""
    try:
        lines = [] if _is_empty(file) else _lines(file.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {one_line(str(file))}: {explain(error)}") from error
    cells = [cell.strip(" \"'") for cell in re.split("[,;\t]", lines[0])] if lines else []
    named = next((cell for cell in cells if cell.lower() in PATH_COLUMNS), "")
    if len(cells) > 1 and (named or file.suffix.lower() in (".csv", ".tsv")) and not _is_there(lines[0], file.parent):
        raise DataError(
            f"{one_line(str(file))} is a table, and IMAGES may be a list of paths, one a line: write its column"
            f"{' ' + named if named else ''} of paths to a .txt file. (A CSV of path,label is for --labels)"
        )
    return lines


def _is_there(path: str, folder: Path | None) -> bool:
    return os.path.lexists(_located(path, folder))


def _is_text(file: Path) -> bool:
    """Not empty, and UTF-8 or, by its first bytes, UTF-16: looks at the first 64 KiB, up to the last line break."""
    try:
        if _is_empty(file):
            return False
        with file.open("rb") as stream:
            start = stream.read(1 << 16)
        if start.startswith(UTF_16):
            codecs.getincrementaldecoder("utf-16")().decode(start, final=len(start) < 1 << 16)
            return True
        (start[: start.rfind(b"\n") + 1] or start).decode()
    except (OSError, UnicodeDecodeError):
        return False
    return bool(start)


# Shards


def _from_tars(
    files: Mapping[str, Path], name: str, location: str, max_pixels: int, skipped: Sequence[tuple[str, str]] = ()
) -> Source:
    """The images in tar archives, by the names that stand in front of those of their members."""
    shards = tars.index(files.items())
    skipped = sorted([*skipped, *shards.skipped], key=lambda pair: os.fsencode(pair[0]))
    if not shards.paths:
        aside = "".join(f"; {one_line(path)}: {reason}" for path, reason in skipped[:3])
        raise DataError(
            f"no image in {one_line(location)}: {len(files)} shards read{aside}. A shard is a plain tar archive, and"
            " the names of its images end in .jpg, .png or another suffix of images"
        )
    return Source(
        name=name,
        location=location,
        paths=shards.paths,
        read=lambda i, size=None: decode(shards.open(i), size=size, max_pixels=max_pixels),
        labels=shards.labels,
        skipped=tuple(skipped),
        max_pixels=max_pixels,
        short_side=lambda i: short_side(shards.open(i), max_pixels=max_pixels),
    )


# Arrays


def _from_numpy_file(file: Path) -> Source:
    try:
        if _is_empty(file):
            raise EOFError("an empty file")
        if file.suffix.lower() == ".npy":
            mapped = load_array(file, mmap_mode="r")
            rows = Rows(file, mapped) if mapped.flags.c_contiguous else load_array(file)
            return _from_array(mapped, file.stem, str(file), rows=rows)
        with load_array(file) as loaded:  # an .npz has to be unpacked
            headers = {name: _header(loaded, name) for name in _wanted(loaded.files)}
            image_header, label_header = _members(headers, file)
            _check_members(image_header, label_header, file)
            images = loaded[image_header.name]
            labels = None if label_header is None else loaded[label_header.name]
    except (DataError, MemoryError):
        raise
    except Exception as error:  # numpy and zipfile raise many kinds for a damaged file
        reason = explain(said_plainly(error) if isinstance(error, ValueError) else error)
        raise DataError(f"cannot read the array {one_line(str(file))}: {reason}") from error
    return _from_array(images, file.stem, str(file), labels)


def _wanted(names: list[str]) -> list[str]:
    known = [name for name in names if name in ("images", "x", "labels", "y")]
    return known if {"images", "x"} & set(known) else names


@dataclass(frozen=True)
class _Header:
    """What a member of an .npz says of itself: ``packed`` are the bytes that it has in the file."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    packed: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _header(archive: Any, name: str) -> _Header:
    """Read without unpacking more than the first 64 KiB."""
    entry = archive.zip.getinfo(name if name in archive.zip.namelist() else f"{name}.npy")
    with archive.zip.open(entry) as member:
        start = io.BytesIO(member.read(1 << 16))
    version = np.lib.format.read_magic(start)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(start)
    if dtype.hasobject:
        raise HOLDS_OBJECTS
    return _Header(name, dtype, shape, entry.compress_size)


def _check_members(images: _Header, labels: _Header | None, file: Path) -> None:
    """What the headers alone tell, before anything is unpacked: a few kilobytes may be gigabytes."""
    where = one_line(str(file))
    _check_array(images.dtype, images.shape, where)
    if labels is not None:
        _check_labels(math.prod(labels.shape), images.shape[0], where)
    for each in (images, labels):
        if each is not None and each.bytes > max(UNPACKED, DENSEST * each.packed):
            raise DataError(
                f"{one_line(each.name)} in {where} has {each.packed:,} bytes and would take {each.bytes:,} unpacked,"
                " which no images do: if they are what you want, unpack them with numpy and save them as .npy"
            )
    needed = sum(each.bytes for each in (images, labels) if each is not None)
    check_fits(f"unpacking {where}", needed, "save the images with np.save as .npy, which is read from the disk")


def _members(arrays: dict[str, _Header], file: Path) -> tuple[_Header, _Header | None]:
    """The images of an .npz (called ``images`` or ``x``, or the only array besides the labels), and its labels."""
    labels = next((arrays.pop(name) for name in ("labels", "y") if name in arrays and len(arrays) > 1), None)
    name = next((name for name in ("images", "x") if name in arrays), None)
    if name is None and len(arrays) != 1:
        found = ", ".join(map(one_line, arrays)) or "none"
        raise DataError(f"which array of {one_line(str(file))} has the images? Call it 'images'; there are: {found}")
    return arrays[name] if name else next(iter(arrays.values())), labels


def _from_array(
    array: npt.NDArray[Any],
    name: str,
    location: str,
    labels: npt.NDArray[Any] | None = None,
    rows: Rows | npt.NDArray[Any] | None = None,
) -> Source:
    """uint8 N x H x W, N x H x W x C or N x C x H x W with C in 1, 3, 4 (the last axis is asked first). ``rows``: where
    the images are read from, if not from the array itself."""
    where = one_line(location)
    _check_array(array.dtype, array.shape, where)
    channels_first = array.ndim == 4 and array.shape[3] not in CHANNELS
    if labels is not None:
        _check_labels(labels.size, len(array), where)
    images = array if rows is None else rows

    def read(i: int, size: int | None = None) -> Image.Image:
        image = images[i].transpose(1, 2, 0) if channels_first else images[i]
        grey = image.ndim == 3 and image.shape[2] == 1
        return as_rgb(Image.fromarray(np.ascontiguousarray(image[..., 0] if grey else image)))

    return Source(
        name=name,
        location=location,
        paths=_numbers(len(array)),
        read=read,
        labels=None if labels is None else tuple(map(str, labels.ravel().tolist())),
        skipped=(),
    )


def _check_array(dtype: np.dtype[Any], shape: tuple[int, ...], where: str) -> None:
    if dtype != np.uint8:
        raise DataError(f"the array {where} has dtype {dtype}, not uint8: scale it to 0..255 and use .astype('uint8')")
    if 0 in shape or len(shape) not in (3, 4) or (len(shape) == 4 and not {shape[1], shape[3]} & set(CHANNELS)):
        raise DataError(
            f"the array {where} has shape {shape}; it must be N x H x W, N x H x W x C or N x C x H x W with "
            "C one of 1, 3, 4"
        )


def _check_labels(count: int, images: int, where: str) -> None:
    if count != images:
        raise DataError(f"{where} has {count} labels for {images} images")


def _numbers(count: int) -> tuple[str, ...]:
    width = len(str(count - 1))
    return tuple(f"{row:0{width}}" for row in range(count))


# Data sets by name


def _from_sklearn(name: str) -> Source:
    if name != "digits":
        raise DataError(f"unknown data set sklearn:{one_line(name)}: the one there is, is sklearn:digits")
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return _from_array(grey, "digits", "sklearn:digits", digits.target)


def _from_torchvision(name: str) -> Source:
    """The training part of a data set of torchvision, downloaded once into the cache folder."""
    from torchvision import datasets

    names = {known.lower(): known for known in datasets.__all__ if _is_torchvision(getattr(datasets, known))}
    known = names.get(name.lower())
    if known is None:
        near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
        hint = " or ".join(f"torchvision:{names[one]}" for one in near) or "torchvision:CIFAR10, for example"
        raise DataError(f"unknown data set torchvision:{one_line(name)}: did you mean {hint}?")
    cache = Path(os.environ.get("DEEPCLUSTER_CACHE_DIR") or "~/.cache/deepcluster").expanduser() / known
    try:
        cache.mkdir(parents=True, exist_ok=True)
        kind = getattr(datasets, known)
        dataset = kind(**_training_part(kind, cache))
    except Exception as error:  # each class raises its own kinds
        raise DataError(
            f"torchvision:{known} cannot be downloaded into {cache}: {one_line(str(error))}. Check the connection and "
            "type the same again, or download it on another machine and copy that folder here"
        ) from error

    def read(i: int, size: int | None = None) -> Image.Image:
        image = dataset[i][0]
        if not isinstance(image, Image.Image):
            raise Undecodable(f"not an image but a {type(image).__name__}")
        return as_rgb(image)

    return Source(known, f"torchvision:{known}", _numbers(len(dataset)), read, _targets(dataset), ())


def _from_hugging_face(name: str) -> Source:
    """The training part (or the first one) of a data set of the Hugging Face Hub, which its package downloads."""
    try:
        import datasets
    except ImportError as error:
        raise missing_extra("hf", error) from None
    try:
        parts = datasets.load_dataset(name)
        dataset = parts["train"] if "train" in parts else parts[next(iter(parts))]
    except Exception as error:  # its many parts raise their own kinds
        raise DataError(
            f"hf:{one_line(name)} cannot be loaded: {one_line(str(error))}. Check the name (USER/NAME) and the"
            " connection"
        ) from error
    labels = _hugging_face_labels(dataset)
    return Source(name.rpartition("/")[2], f"hf:{name}", _numbers(len(dataset)), reader(dataset), labels, ())


def _hugging_face_labels(dataset: Any) -> tuple[str, ...] | None:
    """The names of the classes of each image, where there is one column of them."""
    columns = [name for name, feature in dataset.features.items() if type(feature).__name__ == "ClassLabel"]
    if len(columns) != 1:
        return None
    names = dataset.features[columns[0]].names
    return tuple(names[label] if label is not None and label >= 0 else "" for label in dataset[columns[0]])


def _is_torchvision(kind: object) -> bool:
    return inspect.isclass(kind) and kind.__name__ not in ("VisionDataset", "DatasetFolder", "ImageFolder")


def _training_part(kind: type, root: Path) -> dict[str, object]:
    """The arguments that download the training images; torchvision's classes name them alike, but not all have all."""
    if kind.__name__ == "EMNIST":  # it hides its arguments behind **kwargs, and its split is something else
        return {"root": str(root), "split": "balanced", "train": True, "download": True}
    accepted = inspect.signature(kind).parameters
    chosen: dict[str, object] = {"root": str(root), "download": True, "train": True}
    if "split" in accepted and not str(accepted["split"].default).startswith("train"):
        chosen["split"] = "train"
    return {name: value for name, value in chosen.items() if name in accepted}


def _targets(dataset: Any) -> tuple[str, ...] | None:
    """The class of each image, by name where the data set has names; None where it has no single class an image."""
    for attribute in ("targets", "labels", "_labels"):
        values = getattr(dataset, attribute, None)
        if values is None or len(values) != len(dataset) or np.ndim(values) != 1:
            continue
        targets, names = np.asarray(values), getattr(dataset, "classes", None)
        if names and targets.dtype.kind in "iu" and targets.min() >= 0 and targets.max() < len(names):
            return tuple(_text(names[target]) for target in targets.tolist())
        return tuple(map(str, targets.tolist()))
    return None


def _text(name: object) -> str:
    return ", ".join(map(str, name)) if isinstance(name, tuple | list) else str(name)
