"""Features that another program computed, N x D numbers, and the images of their rows."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import compress, islice
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from deepcluster.errors import DataError, UsageError, needing
from deepcluster.images.arrays import load_array, reading, without_torch
from deepcluster.images.decode import Undecodable
from deepcluster.images.files import from_table
from deepcluster.images.lists import absolute, read_list
from deepcluster.images.source import Items, Origin, Source, row_names
from deepcluster.runtime.tables import PATH_COLUMNS, read_columns
from deepcluster.texts import one_line, plural

if TYPE_CHECKING:
    from torch import Tensor

WHAT_FEATURES_ARE = (
    "features are an .npy array of N x D numbers, with the paths of the images in a .txt (one a line) or .csv (a column"
    " path) of the same name beside it; or Parquet, a file or a folder of files, with a column of lists of numbers, and"
    " the paths in a column path, image_id or id"
)
MAX_FEATURE = 1e15  # the squares of larger numbers leave the range of float32
# Names of columns in strangers' tables. The first that exists counts.
EMBEDDING_COLUMNS = ("embedding", "embeddings", "features")
ID_COLUMNS = (*PATH_COLUMNS, "image_id", "id")


class OwnFeatures(NamedTuple):
    """Features, and their images."""

    features: "Tensor"  #: float32, N x D
    source: Source  #: paths alone if there are no files, and numbers if there are no paths


def read_features(data: Any, paths: Sequence[str | Path] | None = None) -> OwnFeatures:
    """Return the features of a file, a folder, an array or a column of rows, and their images.

    Args:
        data: An .npy file, Parquet, N x D numbers, or a sequence of N rows of D numbers; ``OwnFeatures`` are returned.
        paths: The images of the rows of an array or a column.

    Raises:
        DataError: They are not N x D finite numbers, or the number of paths differs.
    """
    if isinstance(data, OwnFeatures):
        return data
    if not isinstance(data, str | Path):
        features = _checked(stacked(data) if is_column(data) else np.asarray(without_torch(data)), "the array")
        return OwnFeatures(
            features, _images_of_rows(len(features), "features", "the list of paths", paths, [Path.cwd()])
        )
    file = absolute(data)
    title = one_line(str(file))
    if tables := _tables(file):
        rows, ids = _read_tables(tables, title)
        features = _checked(rows, title)
        folders = [file, file.parent] if file.is_dir() else [file.parent]
        return OwnFeatures(features, _images_of_rows(len(features), file, title, ids, [*folders, Path.cwd()]))
    with reading("the features", file):
        array = load_array(file)
    features = _checked(array, title)
    return OwnFeatures(features, _images_beside(file, len(features)))


def check_features_there(text: str, *others: str) -> str:
    """Return the text. UsageError if ``others`` follow, DataError if the file does not exist or is of another kind."""
    if others:
        raise UsageError(
            f"features come from one file or folder: leave out {one_line(others[0])}, or name the folder of the files"
        )
    file = absolute(text)
    if tables := _tables(file):
        _columns(tables[0])
    elif not file.is_file():
        read_features(text)
    return text


def are_features(X: Any) -> bool:
    """Return whether X is (meant as) N x D numbers; anything else holds images or paths."""
    if hasattr(X, "cast_column") or column_of_paths(X) is not None:
        return False
    if is_column(X):
        first = next((item for item in X if item is not None), "")
        return not isinstance(first, str | Path | Image.Image) and getattr(first, "ndim", 0) < 2
    return (hasattr(X, "__array__") or hasattr(X, "shape")) and getattr(X, "ndim", 2) <= 2


def column_of_paths(X: Any) -> Any:
    """Return the name of the column of a data frame that has images or, by its name, the paths of some, or None."""
    for name in getattr(X, "columns", ()):
        first = next(iter(X[name]), None)
        is_path = isinstance(first, str | Path) and isinstance(name, str) and name.lower() in PATH_COLUMNS
        if is_path or isinstance(first, Image.Image):
            return name
    return None


def column_of_rows(X: Any) -> Any:
    """Return the name of a column of a data frame with rows of numbers in its cells, such as embeddings, or None."""
    for name in getattr(X, "columns", ()):
        lists = (cell for cell in islice(X[name], 100) if np.iterable(cell) and not isinstance(cell, str | bytes))
        number = next(iter(next(lists, ())), "")
        if isinstance(number, Real) or getattr(number, "ndim", 1) == 0:
            return name
    return None


def is_column(data: Any) -> bool:
    """Tell if it is a sequence of rows, such as a column of a data frame."""
    return isinstance(data, list | tuple) or getattr(data, "ndim", 0) == 1


def stacked(rows: Iterable[Any]) -> npt.NDArray[Any]:
    """Return rows of numbers as an array. DataError if they differ in length."""
    cells = [np.asarray(without_torch(row)) for row in rows]
    for i, cell in enumerate(cells):
        if cell.shape != cells[0].shape:
            raise _unequal("the column", len(cells[0]) if cells[0].ndim else 0, len(cell) if cell.ndim else 0, i)
    return np.stack(cells) if cells else np.empty((0, 0))


def _unequal(title: str, first: int, other: int, row: int) -> DataError:
    numbers = f"{plural(first, 'number')} in row 0, and {plural(other, 'number')} in row {row:,}"
    return DataError(f"{title} has {numbers}: keep only rows of one length")


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
            f"{name} has NaN, inf or numbers above {MAX_FEATURE:.0e}, in {len(bad):,} of"
            f" {len(features):,} rows, the first of them row {int(bad[0])}: leave these rows out, and their paths, or"
            " scale all"
        )
    return features


# ---- tables ---------------------------------------------------------------------------------------------------------


def _tables(file: Path) -> list[Path]:
    """Return the Parquet files that ``file`` is or holds; none for an .npy file. DataError if it is anything else."""
    if file.suffix.lower() == ".npy":
        return []
    # Other programs write _SUCCESS and _metadata beside their tables.
    below = sorted(path for path in file.rglob("*") if not path.name.startswith(("_", ".")))
    tables = [path for path in (below if file.is_dir() else [file]) if path.suffix.lower() == ".parquet"]
    if not tables:
        raise DataError(f"{one_line(str(file))} has no features: {WHAT_FEATURES_ARE}")
    return tables


def _columns(table: Path) -> tuple[str, str | None]:
    """Return the columns of the embeddings and of the paths or ids; None without these."""
    with needing("pyarrow"):
        import pyarrow.parquet as pq
        import pyarrow.types as of
    with reading("the table", table):
        schema = pq.read_schema(table)
    types = {field.name: getattr(field.type, "storage_type", field.type) for field in schema}  # of an extension type
    lists = [
        name
        for name, kind in types.items()
        if (of.is_list(kind) or of.is_large_list(kind) or of.is_fixed_size_list(kind))
        and (of.is_floating(kind.value_type) or of.is_integer(kind.value_type))
    ]
    known = [name for name in lists if name.lower() in EMBEDDING_COLUMNS] or lists
    if len(known) != 1:
        title = one_line(str(table))
        names = ", ".join(map(one_line, lists or types)) or "none"
        raise DataError(
            f"which column of {title} has the embeddings? Call it 'embedding'; there are: {names}"
            if lists
            else f"no column of {title} has lists of numbers (there are: {names}): {WHAT_FEATURES_ARE}"
        )
    texts = {
        name.lower(): name
        for name, kind in types.items()
        if of.is_string(kind) or of.is_large_string(kind) or of.is_integer(kind) or of.is_dictionary(kind)
    }
    return known[0], next((texts[name] for name in ID_COLUMNS if name in texts), None)


def _read_tables(tables: Sequence[Path], title: str) -> tuple[npt.NDArray[np.float32], list[Any] | None]:
    """Return the embeddings, and their paths or ids; None without these.

    Rows without numbers and with the status ``skipped`` are left out: ``export --to parquet`` writes them for unusable
    images.
    """
    embeddings, ids = _columns(tables[0])
    import pyarrow.parquet as pq

    parts: list[npt.NDArray[np.float32]] = []
    names: list[Any] = []
    rows = 0
    for file in tables:
        with reading("the table", file):
            schema = pq.read_schema(file)
            if missing := sorted({embeddings, ids or embeddings} - {*schema.names}):
                raise ValueError(f"no column {missing[0]!a}, and {tables[0].name} has it; give tables of one kind")
            wanted = [name for name in (embeddings, ids, "status") if name in schema.names]
            for batch in pq.read_table(file, columns=wanted, partitioning=None).to_batches():
                numbers = _numbers(batch.column(embeddings), title, parts[0].shape[1] if parts else None, rows)
                rows += len(numbers)
                status = batch.column("status").to_pylist() if "status" in wanted else [None] * len(numbers)
                is_used = np.array([text != "skipped" for text in status]) | ~np.isnan(numbers).all(axis=1)
                parts.append(numbers[is_used])
                names += compress(batch.column(ids).to_pylist() if ids else (), is_used)
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32), names if ids else None


def _numbers(column: Any, title: str, width: int | None, first_row: int) -> npt.NDArray[np.float32]:
    """Return lists of ``width`` numbers (None: as many as the first has) as an array. DataError if one has another."""
    import pyarrow.compute as pc

    lists = getattr(column, "storage", column)  # of an extension type
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    width = int(lengths[0]) if width is None else width
    for row in np.flatnonzero(lengths != width).tolist():
        raise _unequal(title, width, int(lengths[row]), first_row + row)
    with np.errstate(over="ignore"):
        numbers: npt.NDArray[np.float32] = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return numbers.reshape(len(lists), width)


# ---- their images ---------------------------------------------------------------------------------------------------


def _images_beside(file: Path, count: int) -> Source:
    """Return the images of the rows of an .npy file, by the list or the table of the same name."""
    beside = file.with_suffix(".txt")
    paths = [path for path, _ in read_list(beside)] if beside.is_file() else None
    if paths is None and (beside := file.with_suffix(".csv")).is_file():
        with reading("the paths", beside):
            paths = [row["path"] for _, row in read_columns(beside, {"path": PATH_COLUMNS})]
    return _images_of_rows(count, file, one_line(str(beside)), paths, [file.parent, Path.cwd()])


def _images_of_rows(
    count: int, file: Path | str, title: str, paths: Sequence[Any] | None, folders: Sequence[Path]
) -> Source:
    """Return the images of ``file`` by their paths in the table ``title``, or by number if there are none.

    Relative paths start at the first of ``folders`` that has any such file. Without any file the paths are ids.
    """
    name = Path(file).stem
    if paths is None:
        return Source(name, "the array", row_names(count), _NoPictures(row_names(count)))
    rows: dict[str, int] = {}
    for row, path in enumerate(paths):
        text = "" if path is None else str(path).removeprefix("file://").replace(os.sep, "/")  # Daft writes addresses
        if not text or "\0" in text:
            raise DataError(f"{title} has no possible path in row {row:,}: every row needs one")
        if rows.setdefault(text, row) != row:
            raise DataError(f"{title} has {one_line(text)} in the rows {rows[text]:,} and {row:,}: leave one out")
    if count != len(rows):
        raise DataError(
            f"{one_line(str(file))} has {count:,} rows, and {title} has {len(rows):,} different paths: one per row, in"
            " their order"
        )
    return from_table([*rows], name, folders) or Source(name, "the ids", tuple(rows), _NoPictures(tuple(rows)))


@dataclass(frozen=True)
class _NoPictures(Items):
    ids: Sequence[str]

    def content(self, i: int) -> Image.Image:
        raise Undecodable("features without a file")

    def origin(self, i: int) -> Origin:
        return Origin("", self.ids[i])
