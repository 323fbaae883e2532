"""Find images (a folder, a list of paths, shards, an array, a data set or its name) and their true labels.

True labels serve metrics after the fact and nothing else.
"""

import csv
import os
import re
import stat
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import Image

from deepcluster.errors import DataError, UsageError
from deepcluster.images import arrays, files, named, shards
from deepcluster.images.arrays import is_tensor, reader
from deepcluster.images.csv_files import PATH_COLUMNS, read_columns
from deepcluster.images.decode import SUFFIXES, explain, not_a_file, one_line
from deepcluster.images.source import WHAT_TO_TYPE, Source, numbered


class Dataset(Protocol):
    """Images by number, as in ``arrays.reader``: a Dataset of torch or Hugging Face, a list of
    images, or a tensor."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Any: ...


LIBRARIES = {"sklearn": named.from_sklearn, "torchvision": named.from_torchvision, "hf": named.from_hugging_face}

# Everything that :func:`find` takes.
Images = str | Path | npt.NDArray[Any] | Sequence[str | Path] | Dataset | Source


def find_in_parts(images: Images, count: int, *, stdin: TextIO | None = None) -> Iterator[Source]:
    """Yield the images of :func:`find`, ``count`` at a time. From ``-`` only what the next part needs is read."""
    if not (isinstance(images, str) and images == "-"):
        yield from find(images).parts(count)
        return
    paths = files.paths_of_stdin(stdin or sys.stdin)
    part = list(islice(paths, count))
    yield files.from_files(part, "stdin", "-")
    while part := list(islice(paths, count)):
        yield files.from_files(part, "stdin", "-")


def find(images: Images, *, stdin: TextIO | None = None) -> Source:
    """Find images without decoding them.

    Args:
        images: A folder, a list of paths, an array, a data set, or a text as for IMAGES on the command line; what was
            found already stays as it is.
        stdin: Read for ``-``; default: ``sys.stdin``.

    Raises:
        DataError: Nothing is there, or it cannot hold images.
    """
    if isinstance(images, Source):
        return images
    if is_tensor(images):
        images = images.detach().cpu().numpy()
    if isinstance(images, Mapping) and images:  # a DatasetDict of Hugging Face, or what looks like it
        names = ", ".join(f"[{name!r}]" for name in list(images)[:5])
        raise DataError(f"images cannot come from a whole {type(images).__name__}: pass one part of it: {names}")
    if isinstance(images, np.ndarray) and images.dtype.kind != "U":
        return arrays.from_array(images, "array", "python:array")
    if isinstance(images, str | Path):
        return _from_text(str(images), stdin)
    if isinstance(images, Sequence | np.ndarray) and all(isinstance(path, str | Path) for path in images):
        return files.from_files([(path, files.located(path)) for path in map(str, images)], "images", "python:paths")
    if _is_dataset(images):
        if not len(images):
            raise DataError(f"no images in the {type(images).__name__} that was passed")
        return Source("dataset", "python:dataset", numbered(len(images)), reader(images), None, ())
    raise DataError(
        f"images cannot come from a {type(images).__name__}: pass a folder, a list of paths, an array or tensor, or a "
        "Dataset that has a length"
    )


def _is_dataset(images: Any) -> TypeGuard[Dataset]:
    """Tell if it gives images by number; the first item of a list decides."""
    if isinstance(images, list | tuple):
        return bool(images) and (isinstance(images[0], Image.Image | np.ndarray) or is_tensor(images[0]))
    indexed = hasattr(images, "__len__") and hasattr(images, "__getitem__")
    return indexed and not isinstance(images, str | bytes | bytearray | Mapping)


def _from_text(text: str, stdin: TextIO | None) -> Source:
    if not text:
        raise UsageError(f"IMAGES is empty. {WHAT_TO_TYPE}")
    scheme, _, name = text.partition(":")
    if text == "-":
        return files.from_files(list(files.paths_of_stdin(stdin or sys.stdin)), "stdin", "-")
    return LIBRARIES[scheme](name) if scheme in LIBRARIES else _from_path(text)


def is_named(text: str) -> bool:
    """Tell if a text as for IMAGES names a data set, which its library loads: that may take a while."""
    return text.partition(":")[0] in LIBRARIES


def check_there(text: str) -> None:
    """DataError where a text as for IMAGES names no file or folder; nothing is opened, nor looked for elsewhere."""
    if text == "-" or is_named(text):
        return
    path = files.absolute(os.path.expanduser(text))  # noqa: PTH111
    if not os.path.lexists(path):
        _from_path(text)


def _from_path(text: str) -> Source:
    path = files.absolute(os.path.expanduser(text))  # noqa: PTH111 (which leaves alone the ~ of nobody's home)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        unknown = re.match(r"[A-Za-z][\w+.-]+:", text)
        if not unknown and shards.is_pattern(text):
            name = re.sub(r"\{.*?\}", "", path.name).partition(".")[0].strip("-_ ")
            return shards.from_tars(shards.files_of(path), name or "shards", str(path))
        problem = "unknown kind of images" if unknown else explain(error)
        raise DataError(f"{problem}: {one_line(text)}. {WHAT_TO_TYPE}") from error
    if stat.S_ISDIR(mode):
        return files.from_folder(path)
    if not stat.S_ISREG(mode):
        raise DataError(f"{one_line(text)} is {not_a_file(mode)}. {WHAT_TO_TYPE}")
    suffix = path.suffix.lower()
    if suffix in (".npy", ".npz"):
        return arrays.from_numpy_file(path)
    if shards.is_shard(path.name):
        return shards.from_tars({path.name: path}, path.stem, str(path))
    if suffix == ".txt" or (suffix not in SUFFIXES and files.is_text(path)):
        return files.from_list(path)
    return files.from_files([(path.name, path)], path.stem, str(path))


LABEL_COLUMNS = ("label", "class", "category", "target")


def true_labels(spec: str, source: Source) -> list[str]:
    """The label of each of ``source.paths``, "" where there is none.

    Args:
        spec: ``folders`` (the labels of the source: names of sub-folders, targets of a data set), or a CSV file with a
            path and a label column.

    Raises:
        DataError: No image gets a label.
        UsageError: The file cannot be opened.
    """
    if spec == "folders":
        if source.labels is None:
            raise DataError(
                f"--labels folders: {source.name} comes without labels (no file lies in a sub-folder);"
                " leave the option out, or give a CSV file of path,label"
            )
        return list(source.labels)
    by_path = _read_csv(Path(spec))
    alike = {_same_name(path): label for path, label in by_path.items()}
    labels = [by_path.get(_plain(path)) or alike.get(_same_name(path), "") for path in source.paths]
    if not any(labels):
        raise DataError(
            f"--labels {spec}: none of its {len(by_path)} paths is among the {len(labels)} images"
            f" (its first is {next(iter(by_path), 'missing')!r}, that of the images {source.paths[0]!r})"
        )
    return labels


def check_labels_there(spec: str) -> None:
    """Raise what is wrong with the file of labels, before anything takes time."""
    if spec != "folders":
        _read_csv(Path(spec))


def _read_csv(file: Path) -> dict[str, str]:
    lines: dict[str, tuple[str, int]] = {}
    try:
        for number, row in read_columns(file, {"path": PATH_COLUMNS, "label": LABEL_COLUMNS}):
            name, text = _plain(row["path"]), row["label"].strip()
            before, line = lines.setdefault(name, (text, number))
            if before != text:
                raise DataError(
                    f"--labels {file}: {name} is {before!r} in line {line} and {text!r} in line {number}:"
                    " remove one of the two lines"
                )
    except DataError:
        raise
    except OSError as error:
        raise UsageError(f"--labels {file}: {error.strerror}; give `folders` or a CSV file of path,label") from None
    except (csv.Error, ValueError) as error:
        raise DataError(f"--labels {file}: {error}; give `folders` or a CSV file of path,label") from None
    return {name: text for name, (text, _) in lines.items()}


def _plain(path: str) -> str:
    return re.sub(r"^(\./)+", "", path)


def _same_name(path: str) -> str:
    return unicodedata.normalize("NFC", _plain(path.replace("\\", "/")))
