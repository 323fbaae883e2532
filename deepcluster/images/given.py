"""Features and true labels that a user gives for images, which are known by their paths.

True labels serve metrics after the fact and nothing else.
"""

import csv
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from deepcluster.errors import DataError, UsageError
from deepcluster.images.arrays import load_array, reading, without_torch
from deepcluster.images.decode import Undecodable
from deepcluster.images.files import absolute, from_files, from_list, located
from deepcluster.images.source import SOME_FILES, Numbered, Source, numbered
from deepcluster.runtime.plain_files import PATH_COLUMNS, read_columns
from deepcluster.texts import one_line

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".npy"
WHAT_FEATURES_ARE = (
    "features are an .npy array of N x D numbers, with the paths of the images in a .txt (one a line) or .csv (a column"
    " path) of the same name beside it"
)
MAX_FEATURE = 1e15  # the squares of larger numbers leave the range of float32
LABEL_COLUMNS = ("label", "class", "category", "target")


def read_features(data: "str | Path | npt.ArrayLike | Tensor") -> "tuple[Tensor, Source]":
    """Return the features of an .npy file or of an array (float32, N x D), and their images.

    These are only paths if there are no files, and numbers if there are no paths. DataError if the features are not
    N x D finite numbers, or the number of paths differs.
    """
    if not isinstance(data, str | Path):
        features = _checked(np.asarray(without_torch(data)), "the array")
        return features, _rows_alone(len(features), "features")
    file = absolute(data)
    if file.suffix.lower() != SUFFIX:
        raise DataError(f"{one_line(str(data))} has no features: {WHAT_FEATURES_ARE}")
    with reading("the features", file):
        array = load_array(file)
    features = _checked(array, one_line(str(file)))
    return features, _images_of_rows(file, len(features))


def check_features_there(text: str, *others: str) -> str:
    """Return the text. UsageError if there are others, DataError if there is no such file, or one of another kind."""
    if others:
        raise UsageError(f"features come from one .npy file: leave out {one_line(others[0])}")
    file = absolute(text)
    if file.suffix.lower() != SUFFIX or not file.is_file():
        read_features(text)
    return text


def _checked(array: npt.NDArray[Any], name: str) -> "Tensor":
    import torch

    if array.dtype.kind not in "fiu":
        raise DataError(f"{name} holds {array.dtype}, and features are numbers: save them as float32")
    if array.ndim != 2 or 0 in array.shape:
        shape = " x ".join(map(str, array.shape)) or "a single number"
        raise DataError(f"{name} has the shape {shape}, and features are N x D: a row per image, not empty")
    with np.errstate(over="ignore"):
        features = torch.from_numpy(np.array(array, np.float32))
    bad = torch.nonzero(~(features.abs() <= MAX_FEATURE).all(1)).flatten()
    if len(bad):
        raise DataError(
            f"{name} has numbers that are not finite, or above {MAX_FEATURE:.0e}, in {len(bad):,} of"
            f" {len(features):,} rows, the first of them row {int(bad[0])}: leave these rows out, and their paths, or"
            " scale all"
        )
    return features


def _images_of_rows(file: Path, count: int) -> Source:
    listed = file.with_suffix(".txt")
    table = file.with_suffix(".csv")
    if listed.is_file():
        source, beside = from_list(listed), listed
    elif table.is_file():
        source, beside = from_files(_paths_in(table), table.stem, "python:paths"), table
    else:
        return _rows_alone(count, file.stem)
    if len(source.paths) != count or source.location.endswith(SOME_FILES):  # with the files of a folder in its place
        raise DataError(
            f"{one_line(str(file))} has {count:,} rows, and {one_line(str(beside))} has {len(source.paths):,} different"
            " paths: one per row, in their order"
        )
    return source


def _paths_in(table: Path) -> list[tuple[str, Path]]:
    paths: dict[str, Path] = {}
    with reading("the paths", table):
        for line, row in read_columns(table, {"path": PATH_COLUMNS}):
            if not row["path"]:
                raise DataError(f"{one_line(str(table))} has no path in line {line}: every row needs one")
            paths[row["path"]] = located(row["path"], table.parent)
    return [*paths.items()]


def _rows_alone(count: int, name: str) -> Source:
    return Source(name, "python:array", numbered(count), _NoPictures("python:array"))


class _NoPictures(Numbered):
    def read(self, i: int, size: int | None = None) -> Image.Image:
        raise Undecodable("features without a file")


def true_labels(spec: str, source: Source) -> list[str]:
    """Return the labels of ``source.paths``, "" for images without one. DataError if no image has one.

    ``spec`` is ``folders`` (the labels of the source: names of sub-folders, targets of a data set), or a CSV file with
    a path and a label column; UsageError if it cannot be opened.
    """
    if spec == "folders":
        if source.labels is None:
            raise DataError(
                f"--labels folders: {source.name} comes without labels (no file lies in a sub-folder);"
                " leave the option out, or give a CSV file of path,label"
            )
        return list(source.labels)
    by_path = _read_labels(Path(spec))
    alike = {_same_name(path): label for path, label in by_path.items()}
    labels = [by_path.get(_plain(path)) or alike.get(_same_name(path), "") for path in source.paths]
    if not any(labels):
        raise DataError(
            f"--labels {spec}: none of its {len(by_path)} paths is among the {len(labels)} images"
            f" (its first is {next(iter(by_path), 'missing')!r}, that of the images {source.paths[0]!r})"
        )
    return labels


def check_labels_there(spec: str) -> None:
    """Raise an error for an unusable file of labels, before anything takes time."""
    if spec != "folders":
        _read_labels(Path(spec))


def _read_labels(file: Path) -> dict[str, str]:
    labels: dict[str, tuple[str, int]] = {}
    try:
        for line, row in read_columns(file, {"path": PATH_COLUMNS, "label": LABEL_COLUMNS}):
            path = _plain(row["path"])
            label = row["label"].strip()
            former, first = labels.setdefault(path, (label, line))
            if former != label:
                raise DataError(
                    f"--labels {file}: {path} is {former!r} in line {first} and {label!r} in line {line}:"
                    " remove one of the two lines"
                )
    except DataError:
        raise
    except (OSError, csv.Error, ValueError) as error:
        kind, reason = (UsageError, error.strerror) if isinstance(error, OSError) else (DataError, error)
        raise kind(f"--labels {file}: {reason}; give `folders` or a CSV file of path,label") from None
    return {path: label for path, (label, _) in labels.items()}


def _plain(path: str) -> str:
    return re.sub(r"^(\./)+", "", path)


def _same_name(path: str) -> str:
    return unicodedata.normalize("NFC", _plain(path.replace("\\", "/")))
