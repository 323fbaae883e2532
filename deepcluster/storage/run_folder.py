"""The run folder: its files, their columns, and how they are written whole or not at all."""

import csv
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError

from deepcluster.errors import DeepClusterError, DiskError
from deepcluster.images.arrays import load_array
from deepcluster.images.csv_files import Row, unguarded, write_csv
from deepcluster.images.run_folders import RECORD as RECORD
from deepcluster.images.run_folders import RUN as RUN
from deepcluster.images.run_folders import is_run
from deepcluster.runtime.plain_files import check_file, lines_of
from deepcluster.storage import generation
from deepcluster.storage.files import changing, write_tensors, write_whole
from deepcluster.storage.generation import Stage
from deepcluster.storage.lock import hold
from deepcluster.storage.ownership import LOCK, is_scratch, own_files, remove_stale_scratch, scratch
from deepcluster.storage.run_record import SCHEMA_VERSION, RunRecord
from deepcluster.storage.safe_read import read_json, sha256
from deepcluster.storage.table import Table

if TYPE_CHECKING:
    from torch import Tensor

    from deepcluster.runtime.processes import Processes

CLUSTERS = ("path", "status", "cluster", "name", "fine_cluster", "distance", "margin", "is_outlier", "label")
SUMMARY = ("cluster", "name", "size", "share", "mean_distance", "nearest_cluster", "medoid_path", "junk")
SKIPPED = ("path", "reason")
DUPLICATES = ("group", "path", "distance")
ADDED = "added.csv"  # the images that came after the fit
ADDED_COLUMNS = ("path", "label", "source", "member", "sha256", "added")
HISTORY = (
    "round",
    "loss",
    "chance_loss",
    "inertia",
    "nmi_previous",
    "changed",
    "cluster_weight",
    "largest_share",
    "reseeded",
    "lr",
    "features_seconds",
    "clustering_seconds",
    "training_seconds",
    "images_per_second",
)
FORMER = "former.safetensors"  # the groups before the last apply or recut
RESIDUALS = "residuals.npy"  # of the features, by which an image is an outlier
# A run can be read without these files, which some runs do not have.
SPARE = ("duplicates.csv", "map.npy", "metrics.json", "thumbnails.webp", "tree.json")
PREDICTIONS = ("path", "cluster", "name", "distance", "margin", "is_outlier")
MOST_CSV = 4 << 30  # bytes: about 25 million images
MOST_SMALL_CSV = 1 << 28  # of a table that has no row for each image
ATTEMPTS, PAUSE = 100, 0.02  # to read one state of a run that another process changes; seconds between two

Value = TypeVar("Value")


def evaluation(protocol: str) -> str:
    """The name of the file that `deepcluster evaluate` keeps."""
    return f"evaluation-{protocol}.json"


@dataclass(frozen=True)
class RunFolder:
    """A run folder that :func:`open_run` or :func:`locked` found.

    Args:
        path: Where it is.
        read_only: A rank that is not the main one: it may not write.
        scratch: The folder for unfinished files, of whoever has the lock.
        stage: Where the files of the next state are collected; None writes each file to its place at once.
    """

    path: Path
    read_only: bool = False
    scratch: Path | None = None
    stage: Stage | None = None

    def file(self, name: str) -> Path:
        """Where a file of the run is; there is none where the path does not exist."""
        if self.stage and (name in self.stage.removed or (self.stage.folder / name).exists()):
            return self.stage.folder / name
        return generation.current(self.path, name)

    def has(self, name: str) -> bool:
        return self.file(name).is_file()

    @contextmanager
    def next_state(self, *, anew: bool = False) -> Iterator["RunFolder"]:
        """This folder with writes that become current all at once at the end of the context; an error drops them.

        Args:
            anew: The next state has no file of the present one.
        """
        assert self.scratch is not None, "writing needs the lock"
        generation.check_places(self.path)
        stage = Stage(self.path, self.scratch / secrets.token_hex(4))
        if anew:
            stage.removed |= set(own_files(self.path))
        yield replace(self, stage=stage)
        stage.commit()

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with changing(self.path / name):
            if self.stage:
                self.stage.remove(name)
            else:
                (self.path / name).unlink(missing_ok=True)

    def write_rows(self, name: str, columns: Sequence[str], rows: Iterable[Row]) -> None:
        self._write(name, lambda file: write_csv(file, columns, rows))

    def read_rows(self, name: str, columns: Sequence[str] = ()) -> list[dict[str, str]]:
        """The rows of a table, every one with a cell for each column; ``columns`` are those that must be there."""
        with self._read(name) as path:
            return list(_rows(path, columns))

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        text = json.dumps(value, indent=2, allow_nan=False) + "\n"
        self._write(name, lambda file: file.write(text))

    def read_json(self, name: str, types: Mapping[str, type] | None = None) -> dict[str, Any]:
        """A JSON object; ``types`` are the keys that must be there, and what they hold."""
        with self._read(name) as path:
            value = read_json(path)
            if not isinstance(value, dict):
                raise ValueError("it holds no table")
            for key, kind in (types or {}).items():
                if type(value.get(key)) is not kind:
                    raise ValueError(f"it has no {key} of type {kind.__name__}")
            return value

    def read_record(self, types: Mapping[str, type] | None = None) -> RunRecord:
        """Return run.json; ``types`` are keys that must be there besides those of every run."""
        return RunRecord.from_json(self.read_json(RUN, {**RECORD, **(types or {})}))

    def write_record(self, record: RunRecord) -> None:
        self.write_json(RUN, record.to_json())

    def read_clusters(self) -> Table:
        """The rows of clusters.csv. DiskError where they are not those that were written: other files go by them."""
        with self._read("clusters.csv") as path:
            rows = Table.of(_rows(path, CLUSTERS))
        record = self.read_record()
        with self.as_disk_errors():
            if record.rows != Digests.of(rows.only("path", "status", "cluster")).rows:
                raise DiskError(
                    f"{self.path / 'clusters.csv'} was changed since it was written (sorted, or saved by another"
                    " program?): features.npy and the report go by the order of its rows. Restore it from a copy"
                )
        return rows

    def read_added(self) -> list[dict[str, str]]:
        """The images that came after the fit, the last ones that were used; none where it has no such file."""
        return self.read_rows(ADDED, ADDED_COLUMNS) if self.has(ADDED) else []

    def write_text(self, name: str, text: str) -> None:
        self._write(name, lambda file: file.write(text))

    def write_bytes(self, name: str, data: bytes) -> None:
        self._write(name, lambda file: file.write(data), binary=True)

    def write_array(self, name: str, array: np.ndarray) -> None:
        self._write(name, lambda file: np.save(file, array), binary=True)

    def write_blocks(self, name: str, shape: tuple[int, int], blocks: "Iterable[Tensor]") -> None:
        """Write a matrix of float32 numbers whose rows come in ``blocks``."""

        def write(file: Any) -> None:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
            for block in blocks:
                file.write(block.contiguous().numpy().astype("<f4", copy=False).data)

        self._write(name, write, binary=True)

    def _write(self, name: str, write: Any, *, binary: bool = False) -> None:
        write_whole(self._place(name), write, binary=binary, scratch=self.scratch)

    def write_tensors(self, name: str, tensors: "Mapping[str, Tensor]") -> str:
        """Write a safetensors file, and return its SHA-256."""
        return write_tensors(self._place(name), tensors, scratch=self.scratch)

    def _place(self, name: str) -> Path:
        assert not self.read_only, "only the main rank writes"
        return self.stage.path(name) if self.stage else self.path / name

    def read_array(self, name: str, rows: int, columns: int) -> npt.NDArray[np.float32]:
        """Return a matrix of finite float32 numbers of this shape."""
        shape = (rows, columns)
        with self._read(name) as path:
            check_file(path, 1 << 62)
            # Mapped: no memory is taken for more than the file has, whatever its header says.
            array: Any = load_array(path, mmap_mode="r")
            if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != shape:
                found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "no array"
                raise ValueError(f"it holds {found} instead of float32 {shape}")
            # Read, and not mapped: where a mapped file shrinks the process dies without a word.
            read: npt.NDArray[np.float32] = load_array(path)
            if not np.isfinite(read).all():
                raise ValueError("it has numbers that are not finite")
            return read

    @contextmanager
    def _read(self, name: str) -> Iterator[Path]:
        """The path of a file of this run; what goes wrong in reading it is a DiskError."""
        path = self.path / name
        try:
            yield self.file(name)
        except FileNotFoundError:
            if name != RUN and (status := self.read_record().status) != "done":
                way_out = "go on with `deepcluster fit --resume`"
                raise DiskError(f"{self.path} has no {name} yet (its status is {status}): {way_out}") from None
            raise DiskError(f"{self.path} has no {name}: is it a finished run?") from None
        except (OSError, ValueError, KeyError, TypeError, EOFError, csv.Error, SafetensorError) as error:
            raise _damaged(path, error) from error

    @contextmanager
    def as_disk_errors(self, name: str = "") -> Iterator[None]:
        """Turn any error while using this run's data, or that of its file ``name``, into a DiskError."""
        try:
            yield
        except (DeepClusterError, MemoryError):
            raise
        except Exception as error:  # any line that works on a number or a name may trip over another thing
            raise _damaged(self.path / name, error) from error


class Digests:
    """SHA-256 of the rows of clusters.csv that have passed by: of the images, in their order, and their clusters.

    Args:
        fitted: Number of images of the fit, the first rows.

    Attributes:
        cut: Identifier of the assignment of these images, which an update therefore keeps.
    """

    def __init__(self, fitted: int = 0) -> None:
        self._rows, self._fitted, self.cut = hashlib.sha256(), fitted, ""

    def passing(self, rows: Iterable[Row]) -> Iterator[Row]:
        for number, row in enumerate(rows, 1):
            text = f"{row['path']}\0{row['status']}\0{row.get('cluster', '')}\n"
            self._rows.update(text.encode(errors="surrogateescape"))
            if number == self._fitted:
                self.cut = self.rows[:16]
            yield row

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Digests":
        digests = cls()
        for _ in digests.passing(rows):
            pass
        return digests

    @property
    def rows(self) -> str:
        return self._rows.hexdigest()


def _rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    check_file(path, MOST_SMALL_CSV if path.name in ("history.csv", "cluster_summary.csv") else MOST_CSV)
    # A spreadsheet puts a byte order mark in front.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        table = csv.DictReader(lines_of(file), strict=True)
        names = list(table.fieldnames or [])
        if missing := [column for column in columns if column not in names]:
            raise ValueError(f"it has no column {missing[0]}")
        for row in table:
            if len(row) != len(names) or None in row.values():
                raise ValueError(f"line {table.line_num} has not {len(names)} cells")
            yield unguarded(row)


def _damaged(path: Path, error: Exception) -> DiskError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    spare = path.name in SPARE
    other = "remove it, and the report does without" if spare else "fit again with another -o"
    return DiskError(f"{path} is damaged ({reason}): restore it from a copy, or {other}")


def folder_name(name: str) -> str:
    """``name`` as the start of a folder's name: printable, in UTF-8, and short enough to put a date behind it."""
    printable = "".join(char if char.isprintable() else "_" for char in name)
    return printable.encode()[:200].decode(errors="ignore")


@contextmanager
def locked(path: Path, *, make: bool = False) -> Iterator[RunFolder]:
    """The run folder ``path``, for this process alone to write to.

    What a killed process left is completed or removed first.

    Args:
        path: The folder.
        make: Make the folder where it is missing.

    Raises:
        DiskError: Another process has the lock, or nothing can be written.
    """
    with ExitStack() as stack:
        try:
            if make:
                path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold(path / LOCK))
            generation.finish(path)
            remove_stale_scratch(path)
            place = stack.enter_context(scratch(path))
        except DiskError:
            raise
        except OSError as error:
            advice = "give another -o" if make else "make it writable, or work on a copy of the run"
            raise DiskError(f"cannot write to {path} ({error.strerror or error}): {advice}") from None
        yield RunFolder(path, scratch=place)


@contextmanager
def shared_lock(path: Path, processes: "Processes", *, make: bool = False) -> Iterator[RunFolder]:
    """:func:`locked` by the main rank for all of them; each rank has a scratch folder of its own."""
    if processes.is_main:
        with locked(path, make=make) as folder:
            processes.any(False)  # what killed processes left is gone before the others go on
            yield folder
        return
    processes.any(False)
    path.mkdir(parents=True, exist_ok=True)  # on another machine than the main rank's it may be missing
    with scratch(path) as place:
        yield RunFolder(path, read_only=True, scratch=place)


def check_shared(folder: RunFolder, processes: "Processes") -> None:
    """DiskError where a rank does not see the folder that the main rank has, and so its files. A collective."""
    assert folder.scratch is not None
    name = processes.broadcast_json(lambda: str(folder.scratch and folder.scratch.name))
    if processes.any(not (folder.path / name).is_dir()):
        raise DiskError(f"the processes do not see one folder at {folder.path}: give an -o that all of them share")


def check_free(path: Path, *, overwrite: bool = False, resume: bool = False) -> None:
    """DiskError where there is something at ``path`` that a run may not write into."""
    if not os.path.lexists(path):
        return
    if path.is_dir() and all(entry.name == LOCK or is_scratch(entry) for entry in path.iterdir()):
        return
    if not is_run(path):
        raise DiskError(f"{path} is not a run folder, so it is left alone (it has no {RUN} of a run): give another -o")
    if not (overwrite or resume):
        raise DiskError(
            f"{path} exists already: give another -o, --overwrite to replace that run, or --resume to go on with it"
        )
    open_run(path)


def open_run(path: Path) -> RunFolder:
    """The run folder at ``path``, with all files at their places. DiskError where there is none, or one of another
    version."""
    if not path.is_dir():
        raise DiskError(f"no such run folder: {path}. Name the folder that `deepcluster fit` printed")
    if generation.is_pending(path):  # a killed process left it so; where it cannot be written to, it is read as it is
        with suppress(DiskError), locked(path):
            pass
    folder = RunFolder(path)
    if not folder.has(RUN):
        raise DiskError(f"{path} is not a run folder (it has no {RUN}): name one that `deepcluster fit` made")
    version = folder.read_json(RUN).get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise DiskError(
            f"{path} has schema_version {version}, and this version of deepcluster reads {SCHEMA_VERSION}: use the"
            " version that made it"
        )
    return folder


def read_state(path: Path, read: Callable[[RunFolder], Value]) -> Value:
    """What ``read`` reads of a run: all of one state, although another process may change the run meanwhile."""
    for attempt in range(ATTEMPTS):
        digest, pending = before = _state(path)
        try:
            value = read(open_run(path))
        except DeepClusterError:
            # A process that was killed leaves a pending state for good, so what cannot be read then is damaged.
            if attempt == ATTEMPTS - 1 or (_state(path) == before and not pending):
                raise
        else:
            if digest and _state(path)[0] == digest:
                return value
        time.sleep(PAUSE)
    raise DiskError(f"{path} is changed all the time by another process: try again when that one is done")


def _state(path: Path) -> tuple[str, bool]:
    """The digest of run.json, and whether the state is pending: equal in two looks if nothing has changed between."""
    pending = generation.is_pending(path)
    for file in (generation.current(path, RUN), path / RUN):  # it may move to its place just now
        with suppress(OSError):
            return sha256(file), pending
    return "", pending
