"""The run folder: how its files are read, and written whole or not at all."""

import csv
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deepcluster.errors import DeepClusterError, DiskError, first_line, other_version
from deepcluster.images.arrays import load_array
from deepcluster.runtime import bounded, log, signals, tables
from deepcluster.runtime.bounded import RUN as RUN
from deepcluster.runtime.bounded import check_file, is_run
from deepcluster.runtime.tables import CsvRow
from deepcluster.storage import lock, swap
from deepcluster.storage.clusters_file import Header, digest_of, header_of
from deepcluster.storage.content import CLUSTERS, FILES, IMAGES, LOG, RESULT, SCHEMA_VERSIONS, RunRecord, Table
from deepcluster.storage.files import changing, put_in_place, sync_folder, write_tensors, write_whole
from deepcluster.storage.images_table import ImagesTable

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RunFolder:
    """The files of a run, to read."""

    path: Path
    final: Path | None = None  # the place that a whole run, written beside it, takes at the end

    @property
    def place(self) -> Path:
        """The path of the run, for its page and for messages."""
        return self.final or self.path

    def file(self, name: str) -> Path:
        return self.path / name

    def has(self, name: str) -> bool:
        return self.file(name).is_file()

    def read_rows(self, name: str) -> Table:
        """Read a table. All rows have a cell for every column."""
        with self._read(name) as path:
            return read_table(path, FILES[name].columns)

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON object."""
        with self._read(name) as path:
            return bounded.shaped(bounded.read_json(path), dict, "it")  # type: ignore[no-any-return]

    def read_record(self) -> RunRecord:
        """Return the content of run.json."""
        with self.as_disk_errors(RUN):
            return RunRecord.from_json(self.read_json(RUN))

    def read_images(self) -> ImagesTable:
        """Read images.csv."""
        return ImagesTable(self.read_rows(IMAGES))

    def read_header(self, name: str = CLUSTERS) -> Header:
        """Read the header of the clusters, or of another state of them."""
        with self.as_disk_errors(name):
            return header_of(self.file(name))

    def read_array(self, name: str, rows: int, columns: int) -> npt.NDArray[np.float32]:
        """Return the first ``rows`` of a float32 matrix: an update that was stopped may have written more."""
        with self._read(name) as path:
            # Read, and not mapped: if a mapped file shrinks, the process dies without a word.
            array: npt.NDArray[np.float32] = load_array(path)
            if array.dtype != np.float32 or array.ndim != 2 or array.shape[1] != columns or len(array) < rows:
                raise ValueError(f"it holds {array.dtype} {array.shape}, and the run has {rows:,} rows of {columns:,}")
            return array[:rows]

    @contextmanager
    def _read(self, name: str) -> Iterator[Path]:
        """Yield the path of a plain file of this run. An error in reading it becomes a DiskError."""
        path = self.file(name)
        with self.as_disk_errors(name):
            if not path.exists():
                if name != RUN and (status := self.read_record().status) != "done":
                    way_out = "go on with `deepcluster fit --resume`"
                    raise DiskError(f"{self.path} has no {name} yet (its status is {status}): {way_out}")
                raise DiskError(f"{self.path} has no {name}: is it a finished run?")
            check_file(path)
            yield path

    @contextmanager
    def as_disk_errors(self, name: str = "") -> Iterator[None]:
        """Turn any error while using this run's data, or its file ``name``, into a DiskError."""
        try:
            yield
        except (DeepClusterError, MemoryError):
            raise
        except Exception as error:  # any line that works on a number or a name may trip over another thing
            path = self.path / name
            is_spare = name in FILES and FILES[name].spare
            other = "remove it, and the report is made without it" if is_spare else "fit again with another -o"
            raise DiskError(
                f"{path} is damaged ({first_line(error)[:200]}): restore it from a copy, or {other}"
            ) from error


class LockedFolder(RunFolder):
    """A run folder whose lock this process holds: a file is written to its place at once."""

    def path_of(self, name: str) -> Path:
        """Return the path to write a file to. A name that is not in ``FILES`` is an error of ours."""
        if not lock.is_known(name):
            raise AssertionError(f"{name} is no file of a run: add it to FILES")
        return self.path / name

    def remove(self, name: str) -> None:
        with changing(self.path / name):
            self.path_of(name).unlink(missing_ok=True)

    def write_rows(self, name: str, rows: Iterable[CsvRow], *more: str) -> None:
        """Write a table, with ``more`` columns than every such table has."""
        self._write(name, lambda file: tables.write_csv(file, (*FILES[name].columns, *more), rows))

    def write_json(self, name: str, value: Mapping[str, Any] | None) -> None:
        """Write a JSON object; None: remove that of an earlier result."""
        if value is None:
            self.remove(name)
        else:
            self.write(name, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def write_record(self, record: RunRecord) -> None:
        self.write_json(RUN, record.to_json())

    def write(self, name: str, content: str | bytes) -> None:
        self._write(name, lambda file: file.write(content), binary=isinstance(content, bytes))

    def write_blocks(self, name: str, shape: tuple[int, ...], blocks: "Iterable[Tensor | np.ndarray]") -> None:
        """Write a matrix of float32 numbers whose rows come in ``blocks``."""

        def write(file: Any) -> None:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
            for block in blocks:
                file.write(np.ascontiguousarray(block, "<f4").data)

        self._write(name, write, binary=True)

    def _write(self, name: str, write: Any, *, binary: bool = False) -> None:
        write_whole(self._made(name), write, binary=binary, scratch=self._scratch)

    def write_tensors(self, name: str, tensors: "Mapping[str, Tensor]") -> str:
        """Write a safetensors file, and return its SHA-256."""
        return write_tensors(self._made(name), tensors, scratch=self._scratch)

    def _made(self, name: str) -> Path:
        """Return the path to write a file to, whose folder exists."""
        path = self.path_of(name)
        with changing(path), suppress(FileExistsError):
            path.parent.mkdir()
            sync_folder(path.parent.parent)
        return path

    @property
    def _scratch(self) -> Path | None:
        return None if self.final else lock.scratch_of(self.path)


@contextmanager
def staged(folder: LockedFolder) -> Iterator[LockedFolder]:
    """Yield a folder for a whole run, which takes the place of ``folder`` at the end; an error drops it."""
    new = swap.new_place(folder.path)
    with changing(new):
        shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
        new.mkdir()
    try:
        yield LockedFolder(new, folder.path)
        if text := log.lines():
            (new / LOG).write_text(text, encoding="utf-8")
        put_in_place(new, folder.path, swap.old_place(folder.path))
    finally:
        with signals.uninterrupted():
            shutil.rmtree(new, ignore_errors=True)
    swap.remove_old(folder.path)


def rows_in(file: Path) -> int:
    """Return the number of rows of a matrix on disk. Raises an error with the reason if the file is no matrix."""
    return len(load_array(file, mmap_mode="r"))


def read_table(path: Path, columns: Sequence[str]) -> Table:
    """Read a CSV file by columns. Raise ValueError if a cell or one of ``columns`` is missing."""
    # A spreadsheet puts a byte order mark in front.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        names = next(reader, [])
        if missing := [column for column in columns if column not in names]:
            raise ValueError(f"it has no column {missing[0]}")
        if len({*names}) < len(names):
            raise ValueError("it has two columns of one name")
        rows = [row for row in reader if row]
    if short := [number for number, row in enumerate(rows, 2) if len(row) != len(names)]:
        raise ValueError(f"row {short[0]} does not have {len(names)} cells")
    cells = zip(*rows, strict=True) if rows else ([] for _ in names)
    return Table.of_columns(
        {
            name: map(partial(tables.unguarded, name), column) if name in tables.GUARDS else column
            for name, column in zip(names, cells, strict=True)
        }
    )


def folder_name(name: str) -> str:
    """Return ``name`` as the start of a folder's name: printable UTF-8, and short enough to put a date behind it."""
    printable = "".join(char if char.isprintable() else "_" for char in name)
    return printable.encode()[:200].decode(errors="ignore")


@contextmanager
def locked(path: Path, *, make: bool = False) -> Iterator[LockedFolder]:
    """Yield the run at ``path``, or ``make`` a folder, for this process alone, and log into it; see lock.locked."""
    if not make:
        open_run(path)
    with lock.locked(path, make=make), log.logged_in(path / LOG):
        yield LockedFolder(path)


def check_free(path: Path, *, overwrite: bool = False, resume: bool = False) -> None:
    """Raise DiskError if ``path`` exists and a run may not write into it."""
    swap.settle(path)
    if not os.path.lexists(path):
        return
    if path.is_dir() and all(entry.name == lock.HIDDEN for entry in path.iterdir()):
        return
    if not is_run(path):
        raise DiskError(f"{path} is not a run folder, so it is left alone (it has no {RUN} of a run): give another -o")
    if not (overwrite or resume):
        raise DiskError(
            f"{path} exists already: give another -o, --overwrite to replace that run, or --resume to go on with it (in"
            " Python another run=, or resume=True)"
        )
    open_run(path)


def open_run(path: Path) -> RunFolder:
    """Return the run folder at ``path``. DiskError if it is no run folder, or one of another version."""
    swap.settle(path)
    if not path.is_dir():
        raise DiskError(f"no such run folder: {path}. Name the folder that `deepcluster fit` printed")
    folder = RunFolder(path)
    if not folder.has(RUN):
        raise DiskError(f"{path} is not a run folder (it has no {RUN}): name one that `deepcluster fit` made")
    with folder.as_disk_errors(RUN):
        if text := other_version(folder.read_json(RUN)["schema_version"], SCHEMA_VERSIONS):
            raise DiskError(f"{path} {text}")
    return folder


def version_of(folder: RunFolder) -> str:
    """Return the version of a run: a text that changes with its clusters and its images."""
    with folder.as_disk_errors(CLUSTERS):
        return f"{digest_of(folder.file(CLUSTERS))}-{folder.file(IMAGES).stat().st_size}"


def are_current(folder: RunFolder) -> bool:
    """Return whether the views of a run show its present state, by two small files."""
    if not folder.has(RESULT):
        return False
    with suppress(DeepClusterError):
        result = folder.read_json(RESULT)
        views = result.get("views")
        known = [name for name in views if name in FILES] if isinstance(views, list) else []
        return bool(known) and result.get("shows") == version_of(folder) and all(map(folder.has, known))
    return False
