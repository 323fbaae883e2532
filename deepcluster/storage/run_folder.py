"""The run folder: its files, their columns, and how they are written whole or not at all."""

import csv
import fcntl
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import save as as_bytes
from scipy.sparse import csr_array
from torch import Tensor

from deepcluster.clustering.graph import Graph
from deepcluster.errors import DeepClusterError, DiskError
from deepcluster.storage.cells import guarded, unguarded
from deepcluster.storage.reading import check_file, read_json, read_tensors

SCHEMA_VERSION = 1
CLUSTERS = ("path", "status", "cluster", "name", "fine_cluster", "distance", "margin", "is_outlier", "label")
SUMMARY = ("cluster", "name", "size", "share", "mean_distance", "nearest_cluster", "medoid_path", "junk")
SKIPPED = ("path", "reason")
DUPLICATES = ("group", "path", "distance")
HISTORY = (
    "round", "loss", "chance_loss", "inertia", "nmi_previous", "changed", "cluster_weight", "largest_share", "reseeded",
    "lr", "features_seconds", "clustering_seconds", "training_seconds", "images_per_second",
)  # fmt: skip
LOCK = ".lock"
SCRATCH = "images-"  # and a number: folders in which processes other than the first keep their pixels
GRAPH = "neighbours.safetensors"
# The values of run.json that commands read again.
RECORD = {"images": str, "location": str, "seed": int}
PREDICTIONS = ("path", "cluster", "name", "distance", "margin", "is_outlier")
# Of `deepcluster evaluate`, a file for each.
PROTOCOLS = ("clustering", "knn", "linear", "few", "retrieval", "voc07", "filters")
# All that a run may leave behind, with a sheet of filters for each layer; --overwrite removes these and nothing else.
CONTENTS = (
    "clusters.csv", "cluster_summary.csv", "skipped.csv", "duplicates.csv", "features.npy", "history.csv",
    "metrics.json", "model", "checkpoints", "recipe.toml", "run.json", "report.html", "images.u8", GRAPH,
    "map.npy", "tree.json", "thumbnails.webp", "curves.png", "sizes.png",
    *(f"evaluation-{protocol}.json" for protocol in PROTOCOLS),
)  # fmt: skip

MOST_CSV = 4 << 30  # bytes: about 25 million images

Row = Mapping[str, Any]


def evaluation(protocol: str) -> str:
    """The name of the file that `deepcluster evaluate` keeps."""
    return f"evaluation-{protocol}.json"


def filters(layer: str) -> str:
    """The name of the sheet that the protocol ``filters`` draws of a layer."""
    return f"filters-{layer}.png"


@dataclass(frozen=True)
class RunFolder:
    """A folder that :func:`create` made or :func:`open_run` found. ``ours``: of several processes one writes, and for
    the others nothing is written."""

    path: Path
    ours: bool = True

    @property
    def model(self) -> Path:
        return self.path / "model"

    def write_rows(self, name: str, columns: Sequence[str], rows: Iterable[Row]) -> None:
        self._write(name, lambda file: write_csv(file, columns, rows))

    def read_rows(self, name: str, columns: Sequence[str] = ()) -> list[dict[str, str]]:
        """The rows of a table, every one with a cell for each column; ``columns`` are those that must be there."""
        with self._read(name) as path:
            check_file(path, MOST_CSV)
            with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
                table = csv.DictReader(file, strict=True)
                names = list(table.fieldnames or [])
                if missing := [column for column in columns if column not in names]:
                    raise ValueError(f"it has no column {missing[0]}")
                rows = []
                for row in table:
                    if len(row) != len(names) or None in row.values():
                        raise ValueError(f"line {table.line_num} has not {len(names)} cells")
                    rows.append(unguarded(row))
                return rows

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        text = json.dumps(value, indent=2, allow_nan=False) + "\n"
        self._write(name, lambda file: file.write(text))

    def read_json(self, name: str, types: Mapping[str, type] | None = None) -> dict[str, Any]:
        """A table of JSON; ``types`` are the keys that must be there, and what they hold."""
        with self._read(name) as path:
            value = read_json(path)
            if not isinstance(value, dict):
                raise ValueError("it holds no table")
            for key, kind in (types or {}).items():
                if type(value.get(key)) is not kind:
                    raise ValueError(f"it has no {key} of type {kind.__name__}")
            return value

    def write_text(self, name: str, text: str) -> None:
        self._write(name, lambda file: file.write(text))

    def write_graph(self, graph: Graph) -> None:
        if self.ours:
            write_tensors(self.path / GRAPH, graph_tensors(graph))

    def read_graph(self, images: int) -> Graph | None:
        """The graph of ``images`` images that the groups were cut from; None where it is that of the features."""
        if not (self.path / GRAPH).exists():
            return None
        with self._read(GRAPH) as path:
            return graph_of(read_tensors(path), images)

    def write_bytes(self, name: str, data: bytes) -> None:
        self._write(name, lambda file: file.write(data), binary=True)

    def write_array(self, name: str, array: np.ndarray) -> None:
        self._write(name, lambda file: np.save(file, array), binary=True)

    def _write(self, name: str, write: Any, *, binary: bool = False) -> None:
        if self.ours:
            write_whole(self.path / name, write, binary=binary)

    def read_array(self, name: str, rows: int, columns: int) -> npt.NDArray[np.float32]:
        """A table of finite float32 numbers of this shape."""
        with self._read(name) as path:
            check_file(path, 1 << 62)
            # Mapped: no memory is taken for more than the file has, whatever its header says.
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(array, np.ndarray) or (array.dtype, array.shape) != (np.float32, (rows, columns)):
                found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "no array"
                raise ValueError(f"it holds {found} instead of float32 {(rows, columns)}")
            array = np.array(array)
            if not np.isfinite(array).all():
                raise ValueError("it has numbers that are not finite")
            return array

    @contextmanager
    def _read(self, name: str) -> Iterator[Path]:
        """The path of a file of this run; what goes wrong in reading it is a DiskError."""
        path = self.path / name
        try:
            yield path
        except FileNotFoundError:
            raise DiskError(f"{self.path} has no {name}: is it a finished run?") from None
        except (OSError, ValueError, KeyError, TypeError, EOFError, csv.Error, SafetensorError) as error:
            raise _damaged(path, error) from error

    @contextmanager
    def believed(self) -> Iterator[None]:
        """Work on what files of this run say; where they do not fit together it is a DiskError."""
        try:
            yield
        except (DeepClusterError, MemoryError):
            raise
        except Exception as error:  # any line that works on a number or a name may trip over another thing
            raise _damaged(self.path, error) from error


def _damaged(path: Path, error: Exception) -> DiskError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return DiskError(f"{path} is damaged ({reason}): fit again with --overwrite, or take a copy of it")


def folder_name(name: str) -> str:
    """``name`` as the start of a folder's name: printable, in UTF-8, and short enough to put a date behind it."""
    printable = "".join(char if char.isprintable() else "_" for char in name)
    return printable.encode()[:200].decode(errors="ignore")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep every other process from writing to the run folder ``path``, which is made where it is missing.

    The system lets go of the lock when the process ends, however it ends. DiskError where another one has it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = _lock(path / LOCK)
    except OSError as error:
        if isinstance(error, DiskError):
            raise
        raise DiskError(f"cannot write to {path} ({error.strerror}): give another -o") from None
    try:
        yield
    finally:
        with suppress(OSError):
            (path / LOCK).unlink(missing_ok=True)
        file.close()


def _lock(path: Path) -> BinaryIO:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        file = os.fdopen(descriptor, "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = file.read(200).decode(errors="replace").strip()
            file.close()
            raise DiskError(
                f"{path.parent} is in use by {holder or 'another process'}: wait for it, or stop it"
            ) from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        file.close()  # it was removed by the process that had it, in between
    file.truncate()
    file.write(f"process {os.getpid()} on {platform.node()}\n".encode())
    file.flush()
    return file


def graph_tensors(graph: Graph) -> dict[str, Tensor]:
    """A graph as tensors; the ties in float32."""
    ties = graph.ties
    parts = {"rows": graph.rows, "ties": torch.from_numpy(ties.data.astype(np.float32))}
    return parts | {"columns": torch.from_numpy(ties.indices), "ends": torch.from_numpy(ties.indptr)}


def graph_of(parts: Mapping[str, Tensor], images: int) -> Graph:
    """The graph that :func:`graph_tensors` took apart. ValueError where it is not one of ``images`` images."""
    rows, ties, columns, ends = (parts[name] for name in ("rows", "ties", "columns", "ends"))
    size = len(rows)
    ascending = rows.dtype == torch.int64 and size > 0 and bool((rows.diff() > 0).all())
    if not (ascending and rows[0] >= 0 and rows[-1] < images):
        raise ValueError("its rows are not those of the images")
    if not (ties.dtype == torch.float32 and torch.isfinite(ties).all() and (ties >= 0).all()):
        raise ValueError("its ties are not finite numbers from 0")
    square = csr_array((ties.double().numpy(), columns.numpy(), ends.numpy()), (size, size))
    square.check_format(full_check=True)
    return Graph(rows, square)


def finished(path: Path) -> RunFolder | None:
    """The run folder at ``path``, where there is one whose run has ended well."""
    folder = RunFolder(path)
    return folder if (path / "run.json").is_file() and folder.read_json("run.json").get("status") == "done" else None


def check_free(path: Path, *, overwrite: bool = False, resume: bool = False) -> None:
    """DiskError where there is something at ``path`` that a run may not write into."""
    if path.exists() and (not path.is_dir() or any(each.name != LOCK for each in path.iterdir())):
        if not (overwrite or resume):
            raise DiskError(
                f"{path} exists already: give another -o, --overwrite to replace that run, or --resume to go on with it"
            )
        if not (path / "run.json").is_file():
            raise DiskError(f"{path} is not a run folder, so it is left alone: give another -o")


def create(path: Path, *, overwrite: bool = False, resume: bool = False) -> RunFolder:
    """An empty run folder at ``path``, or with ``resume`` the one that is there.

    DiskError where something else is there already, or nothing can be written.
    """
    try:
        check_free(path, overwrite=overwrite, resume=resume)
        if path.is_dir():
            for folder in (path, path / "checkpoints", path / "model"):
                for stale in folder.glob(".*.tmp") if not folder.is_symlink() else ():  # of a process that was killed
                    stale.unlink(missing_ok=True)
            for stale in path.glob(f"{SCRATCH}*"):
                shutil.rmtree(stale, ignore_errors=True)
            sheets = [each.name for each in path.glob(filters("*")) if not each.is_dir()]
            for name in ("images.u8",) if resume else (*CONTENTS, *sheets):
                old = path / name
                if old.is_dir() and not old.is_symlink():
                    shutil.rmtree(old)
                else:
                    old.unlink(missing_ok=True)
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe-{os.getpid()}"
        probe.unlink(missing_ok=True)
        probe.open("xb").close()
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


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file whole, and return its SHA-256."""
    parts: dict[str, Tensor] = {}
    for name, value in tensors.items():
        part = value.detach().cpu().contiguous()
        shared = any(part.numel() and part.data_ptr() == other.data_ptr() for other in parts.values())
        parts[name] = part.clone() if shared else part  # safetensors refuses two names of one memory
    # Not by safetensors' own writer: it makes files that only their owner can read.
    data = as_bytes(parts)
    write_whole(path, lambda file: file.write(data), binary=True)
    return hashlib.sha256(data).hexdigest()


def _sync(folder: Path) -> None:
    """Make the names in a folder last, too. (Windows opens no folders.)"""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_whole(path: Path, write: Any, *, binary: bool = False) -> None:
    """Write beside ``path`` and rename, so that a reader sees the old file or the new one and never half of one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.unlink(missing_ok=True)
        # "x": a new file and never the target of a link that somebody put there.
        with (
            beside.open("xb") if binary else beside.open("x", encoding="utf-8", errors="surrogateescape", newline="")
        ) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        _sync(path.parent)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        free = f"; {shutil.disk_usage(path.parent).free / 1e6:,.0f} MB are free" if path.parent.exists() else ""
        raise DiskError(f"cannot write {path} ({error.strerror or error}{free})") from None
