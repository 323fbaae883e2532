"""True labels, if there are any: for metrics after the fact and nothing else."""

import csv
import re
import unicodedata
from pathlib import Path

from deepcluster.errors import DataError, UsageError
from deepcluster.images.csv_files import PATH_COLUMNS, read_columns
from deepcluster.images.source import Source

LABEL_COLUMNS = ("label", "class", "category", "target")


def true_labels(spec: str, source: Source) -> list[str]:
    """The label of each of ``source.paths``, "" where there is none.

    Args:
        spec: ``folders`` (the labels of the source: names of sub-folders, targets of a data set), or a CSV file with a
            path and a label column.
        source: The images.

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
