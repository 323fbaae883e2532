"""The run folder: its files, their columns, and how they are written whole or not at all."""

import csv
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.errors import DiskError
from deepcluster.storage.cells import guarded, unguarded

SCHEMA_VERSION = 1
CLUSTERS = ("path", "status", "cluster", "name", "fine_cluster", "distance", "margin", "is_outlier", "label")
SUMMARY = ("cluster", "name", "size", "share", "mean_distance", "nearest_cluster", "medoid_path")
SKIPPED = ("path", "reason")
HISTORY = (
    "round", "loss", "chance_loss", "inertia", "nmi_previous", "changed", "largest_share", "reseeded", "lr",
    "features_seconds", "clustering_seconds", "training_seconds", "images_per_second",
)  # fmt: skip
PREDICTIONS = ("path", "cluster", "name", "distance", "margin", "is_outlier")
# All that a run may leave behind; --overwrite removes these and nothing else.
CONTENTS = (
    "clusters.csv", "cluster_summary.csv", "skipped.csv", "features.npy", "history.csv", "metrics.json", "model",
    "checkpoints", "recipe.toml", "run.json", "report.html", "images.u8",
)  # fmt: skip

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """A folder that :func:`create` made or :func:`open_run` found."""

    path: Path

    @property
    def model(self) -> Path:
        return self.path / "model"

    def write_rows(self, name: str, columns: Sequence[str], rows: Iterable[Row]) -> None:
        write_whole(self.path / name, lambda file: write_csv(file, columns, rows))

    def read_rows(self, name: str) -> list[dict[str, str]]:
        try:
            with (self.path / name).open(encoding="utf-8", errors="surrogateescape", newline="") as file:
                return [unguarded(row) for row in csv.DictReader(file)]
        except FileNotFoundError:
            raise DiskError(f"{self.path} has no {name}: is it a finished run?") from None

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        text = json.dumps(value, indent=2, allow_nan=False) + "\n"
        write_whole(self.path / name, lambda file: file.write(text))

    def read_json(self, name: str) -> dict[str, Any]:
        try:
            value: dict[str, Any] = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DiskError(f"{self.path} has no {name}: is it a finished run?") from None
        except ValueError as error:
            raise DiskError(f"{self.path / name} is damaged ({error}): fit again with --overwrite") from None
        return value

    def write_text(self, name: str, text: str) -> None:
        write_whole(self.path / name, lambda file: file.write(text))

    def write_array(self, name: str, array: np.ndarray) -> None:
        write_whole(self.path / name, lambda file: np.save(file, array), binary=True)


def folder_name(name: str) -> str:
    """``name`` as the start of a folder's name: printable, in UTF-8, and short enough to put a date behind it."""
    printable = "".join(char if char.isprintable() else "_" for char in name)
    return printable.encode()[:200].decode(errors="ignore")


def create(path: Path, *, overwrite: bool = False) -> RunFolder:
    """An empty run folder at ``path``. DiskError where something is there already, or nothing can be written."""
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            if not overwrite:
                raise DiskError(f"{path} exists already: give another -o, or --overwrite to replace that run")
            if not (path / "run.json").is_file():
                raise DiskError(f"{path} is not a run folder, so --overwrite leaves it alone: give another -o")
            for name in CONTENTS:
                old = path / name
                if old.is_dir() and not old.is_symlink():
                    shutil.rmtree(old)
                else:
                    old.unlink(missing_ok=True)
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except DiskError:
        raise
    except OSError as error:
        raise DiskError(f"cannot write to {path} ({error.strerror}): give another -o") from None
    return RunFolder(path)


def open_run(path: Path) -> RunFolder:
    """The run folder at ``path``. DiskError where there is none."""
    if not path.is_dir():
        raise DiskError(f"there is no run folder {path}: name the folder that `deepcluster fit` printed")
    if not (path / "run.json").is_file():
        raise DiskError(f"{path} is not a run folder (it has no run.json): name one that `deepcluster fit` made")
    return RunFolder(path)


def write_csv(file: Any, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """A header and a row for each of ``rows``, text guarded (cells.py)."""
    plain, quoted = (
        csv.DictWriter(file, columns, restval="", lineterminator="\n", quoting=quoting)
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )
    plain.writeheader()
    for row in map(guarded, rows):
        # Before Python 3.13 a carriage return alone is not quoted, and no reader would find the end of the row.
        writer = quoted if any(isinstance(cell, str) and "\r" in cell for cell in row.values()) else plain
        writer.writerow(row)


def write_whole(path: Path, write: Any, *, binary: bool = False) -> None:
    """Write beside ``path`` and rename, so that a reader sees the old file or the new one and never half of one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with (
            beside.open("wb") if binary else beside.open("w", encoding="utf-8", errors="surrogateescape", newline="")
        ) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        free = f"; {shutil.disk_usage(path.parent).free / 1e6:,.0f} MB are free" if path.parent.exists() else ""
        raise DiskError(f"cannot write {path} ({error.strerror or error}{free})") from None
