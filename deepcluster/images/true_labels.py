"""True labels of images, from a table by their paths or from their folders. They are for metrics alone."""

import csv
import os
import re
import unicodedata
from pathlib import Path

from deepcluster.errors import DataError, UsageError
from deepcluster.images.source import Source
from deepcluster.runtime.tables import PATH_COLUMNS, from_windows, read_columns

LABEL_COLUMNS = ("label", "class", "category", "target")


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
    if any(map(os.path.isabs, by_path)) and source.items.of_files:
        labels = [label or alike.get(_same_name(str(source.file(i))), "") for i, label in enumerate(labels)]
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
    try:
        rows = [*read_columns(file, {"path": PATH_COLUMNS, "label": LABEL_COLUMNS})]
    except (OSError, csv.Error, ValueError) as error:
        kind, reason = (UsageError, error.strerror) if isinstance(error, OSError) else (DataError, error)
        raise kind(f"--labels {file}: {reason}; give `folders` or a CSV file of path,label") from None
    labels: dict[str, tuple[str, int]] = {}
    for line, row in rows:
        path = _plain(row["path"])
        label = row["label"].strip()
        former, first = labels.get(path, ("", line))
        if former and label and former != label:
            raise DataError(
                f"--labels {file}: {path} is {former!r} in line {first} and {label!r} in line {line}:"
                " remove one of the two lines"
            )
        labels[path] = (former or label, first if former else line)
    return {path: label for path, (label, _) in labels.items()}


def _plain(path: str) -> str:
    return re.sub(r"^(\./)+", "", path)


def _same_name(path: str) -> str:
    return unicodedata.normalize("NFC", _plain(from_windows(path).replace("\\", "/")))
