"""The run folder: how its files are read, and written whole or not at all."""

import csv
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from deepcluster.errors import DeepClusterError, DiskError, first_line, other_version
from deepcluster.images.arrays import load_array
from deepcluster.runtime import log, plain_files, tables
from deepcluster.runtime.plain_files import RUN as RUN
from deepcluster.runtime.plain_files import check_file, is_run
from deepcluster.runtime.tables import CsvRow
from deepcluster.storage import state
from deepcluster.storage.content import FILES, LOG, SCHEMA_VERSIONS, RunRecord, Table
from deepcluster.storage.files import changing, sync_folder, write_tensors, write_whole

if TYPE_CHECKING:
    from torch import Tensor


Value = TypeVar("Value")


@dataclass(frozen=True)
class RunFolder:
    """The files of a run, to read."""

    path: Path

    def file(self, name: str) -> Path:
        return self.path / name

    def has(self, name: str) -> bool:
        return self.file(name).is_file()

    def read_rows(self, name: str) -> list[dict[str, str]]:
        """Read the rows of a table. All have a cell for every column."""
        with self._read(name) as path:
            return list(table_rows(path, FILES[name].columns, FILES[name].newer))

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON object."""
        with self._read(name) as path:
            return plain_files.shaped(plain_files.read_json(path), dict, "it")  # type: ignore[no-any-return]

    def read_record(self) -> RunRecord:
        """Return the content of run.json."""
        table = self.read_json(RUN)
        with self.as_disk_errors(RUN):
            return RunRecord.from_json(table)

    def read_clusters(self) -> Table:
        """Read clusters.csv. DiskError if its rows were changed, because other files rely on their order."""
        with self._read("clusters.csv") as path:
            rows = Table.of(table_rows(path, FILES["clusters.csv"].columns, FILES["clusters.csv"].newer))
        if self.read_record().rows_sha256 != rows_sha256(rows):
            raise DiskError(
                f"{self.path / 'clusters.csv'} was changed since it was written (sorted, or saved by another"
                " program?): features.npy and the report rely on the order of its rows. Restore it from a copy"
            )
        return rows

    def read_added(self) -> list[dict[str, str]]:
        """Read the list of images that came after the fit, the last usable ones; empty without such a file."""
        return self.read_rows("added.csv") if self.has("added.csv") else []

    def count_added(self, used: Table) -> int:
        """Return the number of the images that came after the fit. DiskError if they do not end the ``used`` rows."""
        added = [row["path"] for row in self.read_added()]
        with self.as_disk_errors("added.csv"):
            if len(added) >= len(used) or added != [*used.column("path")[len(used) - len(added) :]]:
                raise ValueError("its images are not the last ones of clusters.csv")
        return len(added)

    def read_array(self, name: str, rows: int, columns: int) -> npt.NDArray[np.float32]:
        """Return a float32 matrix of this shape."""
        shape = (rows, columns)
        with self._read(name) as path:
            # Read, and not mapped: if a mapped file shrinks, the process dies without a word.
            array: npt.NDArray[np.float32] = load_array(path)
            if array.dtype != np.float32 or array.shape != shape:
                raise ValueError(f"it holds {array.dtype} {array.shape} instead of float32 {shape}")
            return array

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
            check_file(path, sys.maxsize)
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

    @contextmanager
    def next_state(self, *, anew: bool = False) -> Iterator["NextState"]:
        """Yield the next state, which becomes current at the end; an error drops it. ``anew``: With new files only."""
        with changing(self.path):
            (self.path / state.NEXT).mkdir()
        folder = NextState(self.path)
        for name in state.own_files(self.path) if anew else ():
            folder.remove(name)
        yield folder
        if not folder.has(LOG) and (text := log.lines()):
            folder.write(LOG, text)
        state.commit(self.path)

    def path_of(self, name: str) -> Path:
        """Return the path to write a file to. A name that is not in ``FILES`` is an error of ours."""
        if not state.is_known(name):
            raise AssertionError(f"{name} is no file of a run: add it to FILES")
        return self.path / name

    def remove(self, name: str) -> None:
        with changing(self.path / name):
            self.path_of(name).unlink(missing_ok=True)

    def write_rows(self, name: str, rows: Iterable[CsvRow], *more: str) -> None:
        """Write a table, with ``more`` columns than every such table has."""
        self._write(name, lambda file: tables.write_csv(file, (*FILES[name].columns, *more), rows))

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
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
        write_whole(self.path_of(name), write, binary=binary, scratch=state.scratch_of(self.path))

    def write_tensors(self, name: str, tensors: "Mapping[str, Tensor]") -> str:
        """Write a safetensors file, and return its SHA-256."""
        return write_tensors(self.path_of(name), tensors, scratch=state.scratch_of(self.path))


class NextState(LockedFolder):
    """The next state of a run folder: its own files, and the others of the present state."""

    def file(self, name: str) -> Path:
        staged = self.path / state.NEXT / name
        return staged if staged.exists() else self.path / name

    def has(self, name: str) -> bool:
        staged = self.path / state.NEXT / name
        return staged.stat().st_size > 0 if staged.exists() else super().has(name)

    def path_of(self, name: str) -> Path:
        path = self.path / state.NEXT / super().path_of(name).relative_to(self.path)
        path.parent.mkdir(exist_ok=True)
        return path

    def remove(self, name: str) -> None:
        """Leave a file out of the next state, which an empty file marks."""
        with changing(self.path / name):
            path = self.path_of(name)
            path.write_bytes(b"")
            sync_folder(path.parent)


def rows_sha256(rows: Iterable[CsvRow]) -> str:
    """Return the digest of the images in clusters.csv, their order and their clusters."""
    digest = hashlib.sha256()
    for row in rows:
        text = f"{row['path']}\0{row['status']}\0{row.get('cluster', '')}\n"
        digest.update(text.encode(errors="surrogateescape"))
    return digest.hexdigest()


def table_rows(path: Path, columns: Sequence[str], newer: Sequence[str] = ()) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file. Raise ValueError if a cell or one of ``columns`` (unless ``newer``) is missing."""
    # A spreadsheet puts a byte order mark in front.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        table = csv.DictReader(plain_files.lines_of(file), strict=True)
        names = list(table.fieldnames or [])
        missing = dict.fromkeys((column for column in columns if column not in names), "")
        if needed := [column for column in missing if column not in newer]:
            raise ValueError(f"it has no column {needed[0]}")
        for row in table:
            if len(row) != len(names) or None in row.values():
                raise ValueError(f"line {table.line_num} does not have {len(names)} cells")
            yield tables.unguarded(row) | missing


@contextmanager
def replacing(folder: LockedFolder | None) -> Iterator[None]:
    """Add to an error inside the context that the old run is unchanged (None: no run was to be replaced)."""
    before = folder and _version(folder.path)
    try:
        yield
    except DeepClusterError as error:
        if not folder or _version(folder.path) != before:
            raise
        raise type(error)(f"{error}; {folder.path} is as it was") from error


def folder_name(name: str) -> str:
    """Return ``name`` as the start of a folder's name: printable UTF-8, and short enough to put a date behind it."""
    printable = "".join(char if char.isprintable() else "_" for char in name)
    return printable.encode()[:200].decode(errors="ignore")


@contextmanager
def locked(path: Path, *, make: bool = False) -> Iterator[LockedFolder]:
    """Yield the run at ``path``, or ``make`` a folder, for this process alone, and log into it; see state.locked."""
    if not make:
        open_run(path)
    with state.locked(path, make=make), log.logged_in(path / LOG):
        yield LockedFolder(path)


def check_free(path: Path, *, overwrite: bool = False, resume: bool = False) -> None:
    """Raise DiskError if there is something at ``path`` that a run may not write into."""
    if not os.path.lexists(path):
        return
    if is_run(path / state.COMMIT):  # its first files, which a killed process has left there
        state.settle(path)
    if path.is_dir() and all(entry.name == state.HIDDEN for entry in path.iterdir()):
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
    """Return the run folder at ``path``, with all files at their places.

    Raises DiskError if there is none, if it is of another version, or if it cannot be completed after a kill.
    """
    if not path.is_dir():
        raise DiskError(f"no such run folder: {path}. Name the folder that `deepcluster fit` printed")
    state.settle(path)
    folder = RunFolder(path)
    if not folder.has(RUN):
        raise DiskError(f"{path} is not a run folder (it has no {RUN}): name one that `deepcluster fit` made")
    record = folder.read_json(RUN)
    with folder.as_disk_errors(RUN):
        if text := other_version(record["schema_version"], SCHEMA_VERSIONS):
            raise DiskError(f"{path} {text}")
    return folder


def read_state(path: Path, read: Callable[[RunFolder], Value]) -> Value:
    """Return the result of ``read`` from one state of the run, although another process may change it meanwhile."""
    for _ in range(state.ATTEMPTS):
        before = _version(path)
        folder = open_run(path)
        try:
            with folder.as_disk_errors():
                value = read(folder)
        except DeepClusterError:
            if before and _version(path) == before:
                raise
        else:
            if before and _version(path) == before:
                return value
        time.sleep(state.PAUSE_SECONDS)
    raise DiskError(
        f"{path} changes all the time, because another process writes to the run: try again when it has ended"
    )


def _version(path: Path) -> str:
    """Return the digest of run.json, which changes with the clusters, or "" while files are not at their places."""
    with suppress(OSError, ValueError):
        if not state.pending(path):
            check_file(path / RUN, plain_files.MAX_JSON)  # a FIFO would never end
            return plain_files.sha256(path / RUN)
    return ""
