"""The content of a run: its files, its facts as values, and tables with very many rows."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt

from deepcluster.runtime.bounded import RUN, shaped

SCHEMA_VERSIONS = range(1, 2)  # of the runs and models that this version reads; it writes the last


@dataclass(frozen=True)
class File:
    """A file that a run may have."""

    columns: tuple[str, ...] = ()  # that a table must have
    spare: bool = False  # a run can be read without the file
    view: bool = False  # made from the other files after each change, and again if it is missing or older


@dataclass(frozen=True)
class Column:
    """A column of clusters.csv. The cell is empty if an image has no value, as in most columns of skipped files."""

    name: str
    type: type[str | int | float | bool]  # of the values; their form in Parquet and in Python follows from it
    meaning: str  # for docs/run-folder.md, which `python benchmarks/tables.py` writes
    predicted: bool = True  # of new images, too

    def cells(self, values: Iterable[Any]) -> list[Any]:
        """Return the cells of values."""
        if self.type is float:
            return [f"{value:.6f}" for value in values]
        return [*map(int if self.type is bool else self.type, values)]

    def value(self, cell: Any) -> Any:
        """Return the value of a cell that is not empty."""
        return bool(int(cell)) if self.type is bool else self.type(cell)


# A new column is one line here if `placement_columns` in runs/run.py knows its values.
COLUMNS = (
    Column("path", str, "relative to IMAGES, with `/`"),
    Column("status", str, "`ok`, or `skipped` (no cells but these two)", predicted=False),
    Column("cluster", int, "from 0 by size at first; `predict` on a training image gives it; -1: none (`--reject`)"),
    Column("name", str, "name of the cluster, empty without one"),
    Column(
        "by", str, "why a person is sure: `answer`, `checked` (seen and left) or `drawn` (at random)", predicted=False
    ),
    Column("fine_cluster", int, "pseudo-label, the nearest of the clusters trained on", predicted=False),
    Column("distance", float, "to the nearest centroid in the space of `features.npy`"),
    Column("margin", float, "1 - distance / distance to the nearest other cluster: 0 on the border, 1 on the centroid"),
    Column("is_outlier", bool, "1 for an image unlike those of the fit: its residual is above a limit"),
    Column("label", str, "true label (`fit --labels`), for scores alone", predicted=False),
)
PREDICTIONS = tuple(column.name for column in COLUMNS if column.predicted)

LOG = "log.txt"
IMAGES = "images.csv"
CLUSTERS = "model/clusters.safetensors"
RESULT = "result.json"
# Every file of a run but its checkpoints and the earlier states of its clusters, which have numbers. A run writes no
# other, and no other file is its own.
FILES: Mapping[str, File] = {
    "cluster_summary.csv": File(
        ("cluster", "name", "size", "share", "mean_distance", "nearest_cluster", "medoid_path", "junk"), view=True
    ),
    "clusters.csv": File(tuple(column.name for column in COLUMNS), view=True),
    "duplicates.csv": File(("set", "path", "distance"), spare=True),
    "features.npy": File(),
    "history.csv": File(
        (
            *("round", "loss", "chance_loss", "inertia", "nmi_previous", "changed", "cluster_weight", "largest_share"),
            *("reseeded", "lr", "features_seconds", "clustering_seconds", "training_seconds", "images_per_second"),
        )
    ),
    IMAGES: File(("path", "status", "reason", "label", "source", "member", "sha256", "added")),
    "layouts.safetensors": File(spare=True),  # and neighbour graphs, for other numbers of clusters
    LOG: File(),
    "map.npy": File(spare=True),
    "metrics.json": File(view=True),
    CLUSTERS: File(),
    "model/config.json": File(),
    "model/model.safetensors": File(),
    "nouns.csv": File(("path", "noun", "probability"), spare=True),
    "recipe.toml": File(),
    "report.html": File(view=True),
    "residuals.npy": File(),  # of the features: an image with a large one is an outlier
    RESULT: File(view=True),
    RUN: File(),
    "similar.npy": File(spare=True),
    "skipped.csv": File(("path", "reason"), view=True),
    "thumbnails.webp": File(spare=True),
    "tree.json": File(view=True),
}


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The content of run.json: facts about the fit. None: not known (yet), and not in the file."""

    schema_version: int = SCHEMA_VERSIONS[-1]
    run: str
    version: str | None = None
    status: str | None = None
    command: str | None = None
    images: str
    base: str  # absolute path of the folder from which relative places of images start
    of_folder: bool = False  # all files below ``base`` were asked for
    started: str | None = None
    seed: int
    n_clusters: int | None = None  # None: -k auto, null in the file
    labels: str | None = None  # folders, or the absolute path of a CSV file
    like: str | None = None  # absolute path of the run whose clusters this one continues
    like_run: str | None = None  # identifier (``run``) of that run
    requested: Mapping[str, Any] | None = None  # a RecipeRequest
    steps: Mapping[str, str] | None = None
    device: str | None = None
    environment: Mapping[str, str | int] | None = None
    images_count: int | None = None
    skipped_count: int | None = None
    backbone: str | None = None
    pseudo_labels: int | None = None
    reasons: Mapping[str, str] | None = None
    seconds_by_phase: Mapping[str, float] | None = None
    resumed: Sequence[str] | None = None
    rounds: int | None = None
    stopped_because: str | None = None
    baseline: Mapping[str, float] | None = None  # metrics before the rounds
    peak_memory_mb: int | None = None
    seconds: float | None = None
    error: str | None = None

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Self:
        """Return the record in a JSON object. ValueError names a key that is missing, unknown or of the wrong type."""
        return shaped(dict(table), cls, RUN)  # type: ignore[no-any-return]

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None or name == "n_clusters"}


@dataclass(frozen=True)
class Facts:
    """Facts about the clusters of a run that follow from no other file."""

    cut: str = ""  # identifier of the clusters of all images: edits are for these, and for no later ones
    cut_k: int | None = None  # requested number, or the number after edits; None: a guess
    candidates: Sequence[Mapping[str, Any]] = ()  # numbers of clusters, the guess first
    edits: str | None = None  # digest of the last edits or answers, which are not applied twice
    is_recut: bool = False  # the numbers mean other clusters than in the run of ``--like``


Row = Mapping[str, str]
Cells = npt.NDArray[Any]  # of texts

# Columns with a text of its own in almost every row. Equal cells of the others are one object.
VARIED = ("path", "distance", "margin", "sha256", "source", "member")


class Table(Sequence[Row]):
    """Rows of text cells in ``columns`` of one length, made when asked for: 260 bytes a row (dictionaries take 600)."""

    def __init__(self, columns: Mapping[str, Cells]):
        self.columns = columns

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Table":
        """Return the table of ``rows`` that all have the cells of the first one."""
        if isinstance(rows, Table):
            return rows
        rows = [*rows]
        return cls.of_columns({name: [row[name] for row in rows] for name in rows[0]} if rows else {})

    @classmethod
    def of_columns(cls, columns: Mapping[str, Iterable[object]]) -> "Table":
        """Return the table of ``columns`` of one length, whose cells become texts."""

        def column(name: str, cells: Iterable[object]) -> Cells:
            texts = [*map(str, cells)]
            return np.array(texts if name in VARIED else [*map(sys.intern, texts)], object)

        return cls({name: column(name, cells) for name, cells in columns.items()})

    def with_cell(self, name: str, cell: str) -> "Table":
        """Return the rows that have this cell in a column."""
        return self.at(np.flatnonzero(self.column(name) == cell))

    def at(self, rows: npt.ArrayLike) -> "Table":
        """Return the ``rows`` with these numbers, in this order."""
        return Table({name: column[np.asarray(rows, np.int64)] for name, column in self.columns.items()})

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
    """The tables of a result."""

    record: RunRecord  # content of run.json
    facts: Facts
    clusters: Sequence[Row]  # of clusters.csv
    summary: Sequence[Row]  # of cluster_summary.csv
    metrics: Mapping[str, Any]  # content of metrics.json; empty without labels
    quality: Mapping[str, float] | None  # share of images in their right cluster, by answers

    @cached_property
    def usable(self) -> Table:
        """The rows of the usable images."""
        return Table.of(self.clusters).with_cell("status", "ok")
