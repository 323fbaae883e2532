"""Find images: a folder, a list of paths, shards, an array, a data set or its name."""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import Image

from deepcluster.errors import DataError, UsageError
from deepcluster.images import arrays, shards
from deepcluster.images.arrays import is_tensor, without_torch
from deepcluster.images.decode import Reason, explain, not_a_file
from deepcluster.images.lists import LISTS, absolute, distinct, is_text, located, read_list, standard_input
from deepcluster.images.source import BESIDE, LINK, WHAT_TO_TYPE, Items, Origin, Source, is_hidden
from deepcluster.runtime.bounded import is_run
from deepcluster.texts import one_line


class Dataset(Protocol):
    """Images by number, as in ``arrays.from_dataset``: a Dataset of torch or Hugging Face, a list of
    images, or a tensor."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Any: ...


LIBRARIES = {"sklearn": arrays.from_sklearn, "torchvision": arrays.from_torchvision}

# Everything that :func:`find` takes.
Images = str | Path | npt.NDArray[Any] | Sequence[str | Path] | Dataset | Source


def find(images: Images, *others: str, may_be_empty: bool = False) -> Source:
    """Find images without decoding them.

    Args:
        images: A folder, a list of paths, an array, a data set, or a text as for IMAGES on the command line. A source
            is returned as it is.
        others: Further folders, images and patterns: with ``images``, all are one collection.
        may_be_empty: A folder without files is a source without images, and no error.

    Raises:
        DataError: They do not exist, or cannot be images, or cannot be one of several.

    Examples:
        >>> len(find("sklearn:digits").paths)
        1797
    """
    if isinstance(images, Source):
        return images
    images = without_torch(images)
    if isinstance(images, Mapping) and images:  # a DatasetDict of Hugging Face, or something like it
        names = ", ".join(f"X[{name!r}]" for name in list(images)[:5])
        raise DataError(f"images cannot come from a whole {type(images).__name__}: pass one part of it: {names}")
    if isinstance(images, np.ndarray) and images.dtype.kind != "U":
        return arrays.from_array(images, "array", arrays.MEMORY)
    if isinstance(images, str | Path):
        source = _collection(_matching([str(images), *others])) if others else _from_text(str(images))
        if not (source.paths or source.skipped or may_be_empty):
            raise DataError(f"no files in {one_line(source.location)}. {WHAT_TO_TYPE}")
        return source
    if isinstance(images, Sequence | np.ndarray) and all(isinstance(path, str | Path) for path in images):
        files = [(path, located(os.path.expanduser(path))) for path in map(str, images)]  # noqa: PTH111
        return from_files(files, "images", "the list")
    if _is_dataset(images):
        if not len(images):
            raise DataError(f"no images in the {type(images).__name__} that was passed")
        return arrays.from_dataset(images, "dataset", "the data set")
    way = "a folder, a list of paths, an array or tensor, or a Dataset that has a length"
    way = "X.dataset, its data set" if hasattr(images, "dataset") else way  # a DataLoader
    raise DataError(f"images cannot come from a {type(images).__name__}: pass {way}")


def _is_dataset(images: Any) -> TypeGuard[Dataset]:
    """Tell if ``images`` has images by number; the first item of a list that is not None decides."""
    if isinstance(images, list | tuple):
        first = next((item for item in images if item is not None), None)
        return isinstance(first, Image.Image | np.ndarray) or is_tensor(first)
    indexed = hasattr(images, "__len__") and hasattr(images, "__getitem__")
    return indexed and not isinstance(images, str | bytes | bytearray | Mapping)


def _from_text(text: str) -> Source:
    if not text:
        raise UsageError(f"IMAGES is empty. {WHAT_TO_TYPE}")
    scheme, _, name = text.partition(":")
    if text == "-":
        return from_files(distinct(standard_input()), "stdin", "standard input")
    if scheme in LIBRARIES:
        return LIBRARIES[scheme](name)
    path = absolute(os.path.expanduser(text))  # noqa: PTH111 (which leaves alone the ~ of nobody's home)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        unknown = re.match(r"[A-Za-z][\w+.-]+:", text)
        if not unknown and shards.is_shard(text) and shards.RANGE.search(text):
            name = re.sub(r"\{.*?\}", "", path.name).partition(".")[0].strip("-_ ")
            return shards.from_tars(shards.files_of(path), name or "shards", str(path))
        if isinstance(error, FileNotFoundError) and (matches := glob(os.path.expanduser(text), recursive=True)):  # noqa: PTH111, PTH207
            return _collection(matches)
        problem = "unknown kind of images" if unknown else explain(error)
        raise DataError(f"{problem}: {one_line(text)}. {WHAT_TO_TYPE}") from error
    if stat.S_ISDIR(mode):
        return _from_folder(path)
    if not stat.S_ISREG(mode):
        raise DataError(f"{one_line(text)} is {not_a_file(mode)}. {WHAT_TO_TYPE}")
    suffix = path.suffix.lower()
    if suffix in (".npy", ".npz"):
        return arrays.from_numpy_file(path)
    if shards.is_shard(path.name):
        return shards.from_tars({path.name: path}, path.stem, str(path))
    if suffix == ".txt" or (suffix in LISTS and is_text(path)):
        return from_files(read_list(path), path.stem, str(path))
    return from_files([(path.name, path)], path.stem, str(path))


def _matching(texts: Iterable[str]) -> list[str]:
    """Return the paths that the texts are, or that match them as patterns. DataError if nothing matches one."""
    paths: list[str] = []
    for text in texts:
        path = os.path.expanduser(text)  # noqa: PTH111
        matches = [path] if os.path.lexists(path) else glob(path, recursive=True)  # noqa: PTH207
        if not matches:
            raise DataError(f"no such file: {one_line(text)}. {WHAT_TO_TYPE}")
        paths += matches
    return paths


def _collection(paths: Iterable[str | Path]) -> Source:
    """Return the named files and all files in the named folders, once, by their paths in the folder that all share.

    A file that is named is used even if it is a link. DataError if one is an array, a list or shards.
    """
    inside = {path: dict(_walk(path)) if os.path.isdir(path) else None for path in map(absolute, paths)}  # noqa: PTH112
    tops = [path.parent if walked is None else path for path, walked in inside.items()]
    if len({top.anchor for top in tops}) > 1:
        raise DataError("IMAGES are on several drives: write the paths of all images to a .txt file, and give that")
    folder = Path(os.path.commonpath(tops))
    reasons: dict[str, Reason | None] = {}
    for path, walked in sorted(inside.items(), key=lambda item: item[1] is None):  # a name is stronger than a reason
        is_other = shards.is_shard(path.name) or path.suffix.lower() in (".txt", ".npy", ".npz")
        if is_other if walked is None else shards.shards_among([*walked]):
            raise DataError(f"{one_line(str(path))} cannot be one of several IMAGES. {WHAT_TO_TYPE}")
        name = path.relative_to(folder).as_posix()
        above = "" if path == folder else f"{name}/"
        reasons |= {name: None} if walked is None else {above + below: reason for below, reason in walked.items()}
    return files_in(folder, reasons)


def _from_folder(folder: Path) -> Source:
    """Return all files below a folder (maybe none), or all images in its shards if it holds shards.

    Names that start with a dot and folders of the system are ignored, links and devices skipped, run folders left out.
    """
    source = files_in(folder, dict(_walk(folder)), Path(os.path.realpath(folder)))
    if source.skipped and not source.paths:
        aside = "".join(f"; {one_line(path)}: {reason}" for path, reason in source.skipped[:3])
        raise DataError(f"no files in {one_line(str(folder))}{aside}. {WHAT_TO_TYPE}")
    if names := shards.shards_among(source.paths):
        beside = [(path, BESIDE) for path in source.paths if not shards.is_shard(path)]
        files = {path: folder / path for path in names}
        of_shards = shards.from_tars(files, source.name, source.location, [*source.skipped, *beside])
        return replace(of_shards, of_folder=True)
    return source


def files_in(folder: Path, reasons: Mapping[str, Reason | None], real_folder: Path | None = None) -> Source:
    """Return files by their paths in a folder, with ``reasons`` to skip some (None: used); folders give the labels.

    ``real_folder``: The folder without links, if no link is below it.
    """
    ordered = sorted(reasons.items(), key=lambda pair: os.fsencode(pair[0]))
    paths = tuple(path for path, reason in ordered if reason is None)
    skipped = tuple((path, reason) for path, reason in ordered if reason is not None)
    labels = tuple(path.split("/")[-2] if "/" in path else "" for path in paths)
    files = _Files(paths, folder, real_folder)
    known = labels if any(labels) else None
    return Source(folder.name or "images", str(folder), paths, files, known, skipped, of_folder=True)


def _walk(folder: Path) -> Iterator[tuple[str, Reason | None]]:
    """Yield (path in the folder, None or the reason not to open it). DataError if the folder is a run or unreadable."""
    if is_run(folder):
        raise DataError(
            f"{one_line(str(folder))} is a run folder, whose pictures are not your images: name their folder"
        )
    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            with os.scandir(folder / below) as listing:
                entries = [entry for entry in listing if not is_hidden(entry.name)]
        except OSError as error:
            if not below:
                raise DataError(f"cannot read the folder {one_line(str(folder))}: {explain(error)}") from error
            yield below.rstrip("/"), explain(error)
            continue
        for entry in entries:
            path = below + entry.name
            try:
                if entry.is_symlink():
                    yield path, LINK
                elif entry.is_dir(follow_symlinks=False):
                    if not is_run(folder / path):
                        waiting.append(path + "/")
                elif entry.is_file(follow_symlinks=False):
                    yield path, None
                else:
                    yield path, not_a_file(entry.stat(follow_symlinks=False).st_mode)
            except OSError as error:  # removed meanwhile, or in a folder that may be listed but not entered
                yield path, explain(error)


def from_table(paths: Sequence[str], name: str, folders: Sequence[Path]) -> Source | None:
    """Return the images of a column of paths, in its order; None if no file exists.

    Relative paths start at the first of ``folders`` that has any of them.
    """
    folder = next((folder for folder in folders if any(os.path.isfile(folder / path) for path in paths)), None)  # noqa: PTH113
    if folder is None:
        return None
    is_near = not all(map(os.path.isabs, paths))
    location = str(folder) if is_near else "the list"
    labels = _folder_names([folder / path for path in paths])
    return Source(name, location, tuple(paths), _Files(paths, folder), labels)


def from_files(files: Sequence[tuple[str, Path]], name: str, location: str) -> Source:
    """Return the images of (path to show, absolute path), in this order; with a folder among them, one collection."""
    if any(os.path.isdir(file) for _, file in files):  # noqa: PTH112
        return _collection([file for _, file in files])
    if not files:
        raise DataError(f"no paths in {one_line(location)}: give the path of at least one image")
    paths = tuple(path.replace(os.sep, "/") for path, _ in files)
    places = [file for _, file in files]
    return Source(name, location, paths, _Files(places), _folder_names(places))


def _folder_names(files: Sequence[Path]) -> tuple[str, ...] | None:
    """Return the labels of files: the names of their folders; None if all are empty.

    The top folder of all files gives no label, so a list has the same labels as the folder of its files.
    """
    folders = [file.parent for file in files]
    several = len({folder.anchor for folder in folders}) > 1  # drives
    top = None if several else Path(os.path.commonpath(folders))
    labels = tuple("" if folder == top else folder.name for folder in folders)
    return labels if any(labels) else None


@dataclass(frozen=True)
class _Files(Items):
    paths: Sequence[str | Path]  # absolute, or below ``folder``
    folder: Path = Path()
    real_folder: Path | None = None  # of ``folder``; no link below it is followed
    of_files = True

    def file(self, i: int) -> Path:
        return self.folder / self.paths[i]

    content = file

    def origin(self, i: int) -> Origin:
        path = self.file(i)
        return Origin(os.path.realpath(path) if self.real_folder is None else str(self.real_folder / self.paths[i]))
