"""The content of a run: the table of its files, run.json as a value, and tables with very many rows."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt

from deepcluster.runtime.plain_files import RUN, shaped

SCHEMA_VERSIONS = range(1, 2)  # of the runs that this version reads; it writes the last


@dataclass(frozen=True)
class File:
    """A file that a run may have."""

    columns: tuple[str, ...] = ()  # that a table must have
    spare: bool = False  # a run can be read without the file
    newer: tuple[str, ...] = ()  # columns that a table of an older version may lack; their cells are then empty


@dataclass(frozen=True)
class Column:
    """A column of clusters.csv. The cell is empty if an image has no value, as in most columns of skipped files."""

    name: str
    kind: type[str | int | float | bool]  # of the values; their form in Parquet and in Python follows from it
    meaning: str  # for docs/run-folder.md, which `python benchmarks/tables.py` writes
    predicted: bool = True  # of new images, too

    def cells(self, values: Iterable[Any]) -> list[Any]:
        """Return values as they are written."""
        if self.kind is float:
            return [f"{value:.6f}" for value in values]
        return [*map(int if self.kind is bool else self.kind, values)]

    def value(self, cell: Any) -> Any:
        """Return the value of a cell that is not empty."""
        return bool(int(cell)) if self.kind is bool else self.kind(cell)


# A new column is one line here if `placement_columns` in runs/run.py knows its values.
COLUMNS = (
    Column("path", str, "relative to IMAGES, with `/`"),
    Column("status", str, "`ok`, or `skipped` (no cells but these two)", predicted=False),
    Column("cluster", int, "from 0 by size when first made; `predict` on a training image gives the same number"),
    Column("name", str, "name of the cluster, empty without one"),
    Column(
        "by", str, "decision that put it there: `answer`, `drawn` (one, drawn at random) or `move`", predicted=False
    ),
    Column("fine_cluster", int, "pseudo-label, the nearest of the clusters trained on", predicted=False),
    Column("distance", float, "to the nearest centroid in the space of `features.npy`"),
    Column("margin", float, "1 - distance / distance to the nearest other cluster: 0 on the border, 1 on the centroid"),
    Column("is_outlier", bool, "1 for an image unlike those of the fit: its residual is above a limit"),
    Column("label", str, "true label (`fit --labels`), for scores alone", predicted=False),
)
PREDICTIONS = tuple(column.name for column in COLUMNS if column.predicted)

LOG = "log.txt"
IMAGES_READ = "checkpoints/images.csv"  # the images that the run began with
# Every file of a run but its checkpoints, which have numbers. A run writes no other, and no other file is its own.
FILES: Mapping[str, File] = {
    "added.csv": File(("path", "label", "source", "member", "sha256", "added")),  # the images after the fit
    IMAGES_READ: File(("path", "sha256")),
    "cluster_summary.csv": File(
        ("cluster", "name", "size", "share", "mean_distance", "nearest_cluster", "medoid_path", "junk")
    ),
    "clusters.csv": File(tuple(column.name for column in COLUMNS), newer=("by",)),
    "duplicates.csv": File(("group", "path", "distance"), spare=True),
    "embeddings.safetensors": File(spare=True),  # neighbour graphs, for other numbers of clusters
    **{f"evaluation-{protocol}.json": File() for protocol in ("clustering", "knn", "linear")},  # of earlier versions
    "features.npy": File(),
    "former.safetensors": File(),  # the clusters before and after the last applies, recuts and lessons (steps.py)
    "history.csv": File(
        (
            *("round", "loss", "chance_loss", "inertia", "nmi_previous", "changed", "cluster_weight", "largest_share"),
            *("reseeded", "lr", "features_seconds", "clustering_seconds", "training_seconds", "images_per_second"),
        )
    ),
    LOG: File(),
    "map.npy": File(spare=True),
    "metrics.json": File(spare=True),
    "model/config.json": File(),
    "model/groups.safetensors": File(),
    "model/model.safetensors": File(),
    "nouns.csv": File(("path", "noun", "probability"), spare=True),
    "recipe.toml": File(),
    "report.html": File(),
    "residuals.npy": File(),  # of the features, by which an image is an outlier
    RUN: File(),
    "skipped.csv": File(("path", "reason")),
    "thumbnails.webp": File(spare=True),
    "tiles.json": File(spare=True),
    "tree.json": File(spare=True),
}


RENAMED = {"rows": "rows_sha256"}  # keys of run.json by their names in earlier versions


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The content of run.json; docs/run-folder.md explains the keys. None: not known (yet), and not in the file."""

    schema_version: int = SCHEMA_VERSIONS[-1]
    run: str | None = None
    version: str | None = None
    status: str | None = None
    command: str | None = None
    images: str
    location: str
    started: str | None = None
    seed: int
    n_clusters: int | None = None  # None: -k auto, null in the file
    labels: str | None = None  # folders, or the absolute path of a CSV file
    like: str | None = None  # absolute path of the run whose clusters this one continues
    like_run: str | None = None  # identifier (``run``) of that run; None after a recut, which numbers anew
    requested: Mapping[str, Any] | None = None  # a RecipeRequest
    steps: Mapping[str, str] | None = None
    device: str | None = None
    environment: Mapping[str, str | int] | None = None
    images_count: int | None = None
    skipped_count: int | None = None
    fingerprint: str | None = None
    backbone: str | None = None
    pseudo_labels: int | None = None
    reasons: Mapping[str, str] | None = None
    seconds_by_phase: Mapping[str, float] | None = None
    resumed: Sequence[str] | None = None
    candidates: Sequence[Mapping[str, Any]] | None = None
    rounds: int | None = None
    stopped_because: str | None = None
    peak_memory_mb: int | None = None
    seconds: float | None = None
    cut: str | None = None
    cut_k: int | None = None  # of the last fit, recut or edit; None: a guess
    rows_sha256: str | None = None  # of clusters.csv (run_folder.rows_sha256)
    clusters: int | None = None
    quality: Mapping[str, float] | None = None  # share of images in their right cluster, by answers
    edits: str | None = None
    error: str | None = None
    other: Mapping[str, Any] = field(default_factory=dict)  # keys of other versions of the package stay as they are

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Self:
        """Return the record in a JSON object. ValueError names a key that is missing or of the wrong type."""
        names = {entry.name for entry in fields(cls)} - {"other"}
        table = {RENAMED.get(name, name): value for name, value in table.items()}
        other = {name: value for name, value in table.items() if name not in names}
        known = {name: value for name, value in table.items() if name in names}
        return shaped(known | {"other": other}, cls, RUN)  # type: ignore[no-any-return]

    def to_json(self) -> dict[str, Any]:
        table = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "other"}
        known = {name: value for name, value in table.items() if value is not None or name == "n_clusters"}
        return known | {**self.other}


Row = Mapping[str, str]
Cells = npt.NDArray[Any]  # of texts

VARIED = ("path", "distance", "margin")  # columns with a text of its own in almost every row


def _shared(column: str, cell: str) -> str:
    """Return the cell of a column; equal ones become one object."""
    return cell if column in VARIED else sys.intern(cell)


class Table(Sequence[Row]):
    """Rows of text cells in ``columns`` of one length, made when asked for: 260 bytes a row (dictionaries take 600)."""

    def __init__(self, columns: Mapping[str, Cells]):
        self.columns = columns

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Table":
        """Return the table of ``rows`` that all have the cells of the first one."""
        if isinstance(rows, Table):
            return rows
        columns: dict[str, list[str]] = {}
        for row in rows:
            columns = columns or {name: [] for name in row}
            for name, column in columns.items():
                column.append(_shared(name, row[name]))
        return cls({name: np.array(column, object) for name, column in columns.items()})

    @classmethod
    def of_columns(cls, columns: Mapping[str, Iterable[object]]) -> "Table":
        """Return the table of ``columns`` of one length, whose cells become texts."""

        def column(name: str, cells: Iterable[object]) -> Cells:
            return np.array([_shared(name, str(cell)) for cell in cells], object)

        return cls({name: column(name, cells) for name, cells in columns.items()})

    def where(self, name: str, cell: str) -> "Table":
        """Return the rows that have this cell in a column."""
        return self.at(np.flatnonzero(self.column(name) == cell))

    def at(self, rows: npt.ArrayLike) -> "Table":
        """Return the ``rows`` with these numbers, in this order."""
        return Table({name: column[np.asarray(rows, np.int64)] for name, column in self.columns.items()})

    def words(self, name: str) -> tuple[list[str], npt.NDArray[np.int64]]:
        """Return the different cells of a column, and the number of every row's."""
        index: dict[str, int] = {}
        numbers = (index.setdefault(cell, len(index)) for cell in self.column(name))
        codes = np.fromiter(numbers, np.int64, len(self))
        return list(index), codes

    def column(self, name: str) -> Cells:
        """Return the cells of a column; empty texts if the table has none of this name."""
        return self.columns[name] if name in self.columns else np.full(len(self), "", object)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    @overload
    def __getitem__(self, row: int) -> Row: ...
    @overload
    def __getitem__(self, row: slice) -> list[Row]: ...
    def __getitem__(self, row: int | slice) -> Row | list[Row]:
        if isinstance(row, slice):
            return list(self.at(range(*row.indices(len(self)))))
        return {name: column[row] for name, column in self.columns.items()}

    def __iter__(self) -> Iterator[Row]:
        return (dict(zip(self.columns, cells, strict=True)) for cells in zip(*self.columns.values(), strict=True))


@dataclass(frozen=True)
class Tables:
    """The tables of a result: for all images on the main rank, empty on the others."""

    record: RunRecord  # content of run.json
    clusters: Sequence[Row]  # of clusters.csv
    summary: Sequence[Row]  # of cluster_summary.csv
    metrics: Mapping[str, Any]  # content of metrics.json; empty without labels

    @cached_property
    def usable(self) -> Table:
        """The rows of the usable images."""
        return Table.of(self.clusters).where("status", "ok")
