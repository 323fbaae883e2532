"""Checkpoints: where the alternation of a run is, so that it can go on from there.

A checkpoint is NAME.safetensors, and after it NAME.json, which has the SHA-256 of every file that belongs to it:
without a json that agrees there is no checkpoint. NAME is the round and the step. Each rank writes its own rows: the
main rank into NAME.safetensors, with all that is the same on every rank, rank 1 into NAME-1.safetensors, and so on. Any
number of ranks can go on from there: each reads the rows that are its own then. What is large and never changes again
(parts) is written once, in files of its own. The last two are kept, so that one that is damaged costs little.
"""

import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from deepcluster.errors import DeepClusterWarning, DiskError, ModelError, NonFiniteError
from deepcluster.records import Clustering, State, Trained, Work
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import ALONE, Processes
from deepcluster.storage.files import write_tensors, write_whole
from deepcluster.storage.ownership import is_known
from deepcluster.storage.safe_read import json_sha256, read_json, read_tensors, sha256

SCHEMA_VERSION = 2
KNOWN_VERSIONS = (1, SCHEMA_VERSION)  # of 1 the main rank wrote all rows
KEPT = 2
IMAGES = "images.csv"  # the images that the run began with (runs/resume.py)
Tensors = Mapping[str, Tensor]
# Tensors with a row for each image. Labels are needed on every rank; of the others each has its own rows.
_ROWS = re.compile(r"reduced|memory|previous|labels\.\d+")
_OWN = ("reduced", "memory")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is whole, as the main rank has read it.

    Attributes:
        values: Of the state, what is no tensor.
        shared: Its tensors that are the same on every rank.
        rows: The files that have the others, in the order of the rows.
        network: The ``state_dict`` of the network then.
        about: What the run said about it.
        parts: The parts.
    """

    values: dict[str, Any]
    shared: dict[str, Tensor]
    rows: tuple[Path, ...]
    network: dict[str, Tensor]
    about: dict[str, Any]
    parts: dict[str, dict[str, Tensor]]

    @property
    def round(self) -> int:
        """Index of the round under way."""
        return int(self.values["round"])


class Checkpoints:
    """The checkpoints in a folder, which all ranks see. DiskError where it is a link, which might lead anywhere."""

    def __init__(self, folder: Path, scratch: Path | None = None, processes: Processes = ALONE):
        if folder.is_symlink():
            raise DiskError(f"{folder} is a symbolic link, and nothing is written where it leads: remove it")
        self.folder = folder
        self.scratch = scratch
        self.processes = processes
        self.parts: dict[str, str] = {}  # the digests of those that are written
        self._found = ""  # the one that the run goes on from: it stays as it is

    def add(self, name: str, tensors: Tensors) -> None:
        """Write a part, which belongs to every checkpoint from now on. For the main rank."""
        self.parts[name] = self._write(name, tensors)

    def write(
        self, state: State, network: Tensors, about: Mapping[str, Any], partition: Partition | None = None
    ) -> None:
        """Write a checkpoint, and then remove all but the last two. A collective.

        Args:
            state: Where the alternation is, on this rank.
            network: The ``state_dict`` of the network.
            about: What the run says about it.
            partition: Which rank has which rows (None: this one has all).

        Raises NonFiniteError where the network is no longer finite, DiskError where the disk is full: both leave the
        checkpoints that are there.
        """
        name, processes = _name(state), self.processes
        if name == self._found:
            return
        own = slice(0, None) if partition is None else partition.local
        tensors = {
            key: value[own] if _ROWS.fullmatch(key) and key not in _OWN else value
            for key, value in tensors_of(state).items()
            if processes.is_main or _ROWS.fullmatch(key) or key == "epoch_loss"
        }
        if processes.is_main:
            tensors |= {f"network.{key}": value for key, value in network.items()}
        for key, each in tensors.items():
            if each.is_floating_point() and not torch.isfinite(each).all():
                raise NonFiniteError(
                    f"{key} has numbers that are not finite, so no checkpoint is made of it: try a smaller learning"
                    " rate (--lr)"
                )
        file = name if processes.is_main else f"{name}-{processes.rank}"
        digests = processes.gather_json(self._write(file, tensors) if tensors else "")
        if processes.is_main:
            self._complete(name, state, about, digests)
        processes.any(False)  # no rank writes the next one while old files are removed
        self._found = ""

    def _complete(self, name: str, state: State, about: Mapping[str, Any], digests: Sequence[str]) -> None:
        """Write the json, for the main rank; ``digests`` are those of what each rank has written, "" for nothing."""
        written = {f"{name}-{rank}" if rank else name: digest for rank, digest in enumerate(digests) if digest}
        files = {**self.parts, **written}
        value: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "state": values_of(state),
            "about": dict(about),
            "files": files,
        }
        text = json.dumps(value | {"sha256": json_sha256(value)}, indent=1)
        write_whole(self.folder / f"{name}.json", lambda file: file.write(text + "\n"), scratch=self.scratch)
        self._prune(name, files)

    def latest(self) -> Checkpoint | None:
        """The last checkpoint that is whole, on the main rank; None where there never was one. A collective.

        Warns where a later one is damaged. Raises ModelError where all are, with the reason of each.
        """
        reasons: list[str] = []
        names = [path.stem for path in sorted(self.folder.glob("*-*.json"), reverse=True)]
        for name in self.processes.broadcast_json(lambda: names):
            found, reason = self._read(name)
            if reason:
                reasons.append(f"{name}.json: {reason}")
                continue
            if reasons:
                warnings.warn(
                    f"a checkpoint is damaged ({'; '.join(reasons)}): going on from {name}, the one before",
                    DeepClusterWarning,
                    stacklevel=2,
                )
            self._found = name
            return found
        if reasons:
            raise ModelError(f"no checkpoint in {self.folder} is whole ({'; '.join(reasons)}): --overwrite starts anew")
        return None

    def _write(self, name: str, tensors: Tensors) -> str:
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{name}.safetensors"
        try:
            written = write_tensors(path, tensors, scratch=self.scratch)
        except DiskError as error:
            needed = sum(value.numel() * value.element_size() for value in tensors.values())
            raise DiskError(
                f"{error}; the checkpoint needs {needed / 1e6:,.1f} MB: make room and go on with --resume"
            ) from None
        if sha256(path) != written:
            raise DiskError(f"{path} does not read as it was written: is the disk failing?")
        return written

    def _read(self, name: str) -> tuple[Checkpoint | None, str]:
        """A checkpoint, on the main rank, and why it cannot be used, on each: they check the files of rows together."""
        found: Checkpoint | None = None

        def read() -> tuple[dict[str, str], str]:
            nonlocal found
            try:
                found, others = self._read_shared(name)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
                return {}, str(error).splitlines()[0] if str(error) else type(error).__name__
            return others, ""

        others, reason = self.processes.broadcast_json(read)
        mine = [*others.items()][self.processes.rank :: self.processes.world_size]
        own = next(filter(None, (self._damage(file, digest) for file, digest in mine)), "")
        return found, reason or next(filter(None, self.processes.all_gather_json(own)), "")

    def _damage(self, name: str, digest: str) -> str:
        """What is wrong with a file; empty where nothing is."""
        path = self.folder / f"{name}.safetensors"
        try:
            return "" if sha256(path) == digest else f"{path.name} has changed since it was written, by its SHA-256"
        except FileNotFoundError:
            return f"{path.name} is missing"
        except OSError as error:
            return f"{path.name}: {error.strerror}"

    def _read_shared(self, name: str) -> tuple[Checkpoint, dict[str, str]]:
        """A checkpoint, and the digests of the files with other ranks' rows, which are still to be checked."""
        value = read_json(self.folder / f"{name}.json")
        digest = value.pop("sha256")
        if value["schema_version"] not in KNOWN_VERSIONS:
            raise ValueError(f"not a checkpoint of version {' or '.join(map(str, KNOWN_VERSIONS))}")
        if json_sha256(value) != digest:
            raise ValueError("changed since it was written")
        files = dict(value["files"])
        others = {file: files.pop(file) for file in [*files] if re.fullmatch(rf"{name}-\d+", file)}
        tensors = self._read_tensors(name, files.pop(name))
        network = {key.removeprefix("network."): each for key, each in tensors.items() if key.startswith("network.")}
        shared = {
            key: each for key, each in tensors.items() if not (_ROWS.fullmatch(key) or key.startswith("network."))
        }
        parts = {part: self._read_tensors(part, digest) for part, digest in files.items()}
        self.parts = files
        ranks = sorted(others, key=lambda file: int(file.rpartition("-")[2]))
        rows = tuple(self.folder / f"{file}.safetensors" for file in (name, *ranks))
        return Checkpoint(value["state"], shared, rows, network, value["about"], parts), others

    def _read_tensors(self, name: str, digest: str) -> dict[str, Tensor]:
        """The tensors of a file, without rows."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            raise ValueError(f"{path.name} is missing")
        # Copies: a mapped file would change under the run when the file is replaced.
        is_part = not re.fullmatch(r"\d+-\d+", name)
        return {
            key: value.clone()
            for key, value in read_tensors(path, digest).items()
            if is_part or not _ROWS.fullmatch(key)
        }

    def _prune(self, last: str, files: Mapping[str, str]) -> None:
        # A later one than that just written is damaged: the run went on from one before it.
        kept = {path.stem for path in sorted(self.folder.glob("*-*.json")) if path.stem <= last}
        kept = {*sorted(kept)[-KEPT:]} - {last}
        for path in self.folder.iterdir():
            wanted = path.stem in files or path.stem == last or "-".join(path.stem.split("-")[:2]) in kept
            if not wanted and path.name != IMAGES and is_known(f"checkpoints/{path.name}"):
                with suppress(OSError):  # one that is in use is removed another time
                    path.unlink()


def restored(checkpoint: Checkpoint | None, partition: Partition) -> State:
    """The state of a checkpoint, which the main rank has, with the rows that are this rank's now. A collective."""
    processes = partition.processes

    def made() -> Checkpoint:
        assert checkpoint is not None, "the main rank has it"
        return checkpoint

    values = processes.broadcast_json(lambda: made().values)
    files = processes.broadcast_json(lambda: [str(path) for path in made().rows])
    shared = processes.broadcast_tensors(lambda: made().shared)
    rows = _read_rows([*map(Path, files)], partition.local, processes.rank, processes.world_size)
    return state_of(values, {**shared, **rows})


def _read_rows(files: Sequence[Path], own: slice, rank: int, count: int) -> dict[str, Tensor]:
    """The tensors with a row for each image: of labels all rows, of the others those of the rank."""
    parts = [read_tensors(path) for path in files]  # mapped: only the rows that are copied are read
    tensors = {}
    for key in filter(_ROWS.fullmatch, parts[0]):
        begin, pieces = 0, []
        for part in parts:
            rows = part[key]
            wanted = own if key in _OWN else slice(0, None)
            end = len(rows) if wanted.stop is None else max(0, wanted.stop - begin)
            pieces.append(rows[max(0, wanted.start - begin) : end])
            begin += len(rows)
        tensors[key] = torch.cat(pieces)
    if "epoch_loss" in parts[0]:
        # Of each rank; with another number of ranks each takes the mean, as only their sum counts.
        losses = torch.cat([part["epoch_loss"].reshape(-1) for part in parts])
        tensors["epoch_loss"] = losses[rank].clone() if len(losses) == count else losses.mean()
    return tensors


def _name(state: State) -> str:
    steps = state.work.trained.steps if state.work and state.work.trained else 0
    return f"{state.round:06d}-{steps:08d}"


def tensors_of(state: State) -> dict[str, Tensor]:
    """The tensors of a state, by name; :func:`values_of` has the rest."""
    found = {f"momentum.{i}": value for i, value in enumerate(state.momentum)}
    for name, value in (("previous", state.previous), ("memory", state.memory)):
        if value is not None:
            found[name] = value
    if state.work:
        found["reduced"] = state.work.reduced
        for i, each in enumerate(state.work.clusterings):
            found |= {f"labels.{i}": each.labels, f"centroids.{i}": each.centroids, f"sizes.{i}": each.sizes}
        if state.work.trained:
            found |= {"epoch_loss": state.work.trained.epoch_loss, "loss": state.work.trained.loss}
    return found


def values_of(state: State) -> dict[str, Any]:
    """What is no tensor. (JSON has no NaN: None.)"""
    value: dict[str, Any] = {"round": state.round, "settled": state.settled, "momenta": len(state.momentum)}
    if work := state.work:
        value["work"] = {
            "agreement": None if math.isnan(work.agreement) else work.agreement,
            "moved": None if math.isnan(work.moved) else work.moved,
            "cluster_weight": work.cluster_weight,
            "seconds": list(work.seconds),
            "clusterings": [[each.inertia, each.iterations, each.reseeded] for each in work.clusterings],
            "steps": work.trained.steps if work.trained else None,
        }
    return value


def state_of(value: Mapping[str, Any], tensors: Tensors) -> State:
    """The state that :func:`values_of` and :func:`tensors_of` took apart."""
    work = None
    if found := value.get("work"):
        clusterings = [
            Clustering(tensors[f"labels.{i}"], tensors[f"centroids.{i}"], tensors[f"sizes.{i}"], *numbers)
            for i, numbers in enumerate(found["clusterings"])
        ]
        steps = found["steps"]
        work = Work(
            reduced=tensors["reduced"],
            clusterings=tuple(clusterings),
            agreement=math.nan if found["agreement"] is None else found["agreement"],
            moved=math.nan if found["moved"] is None else found["moved"],
            cluster_weight=found["cluster_weight"],
            seconds=(found["seconds"][0], found["seconds"][1]),
            trained=None if steps is None else Trained(steps, tensors["epoch_loss"], tensors["loss"]),
        )
    return State(
        round=value["round"],
        previous=tensors.get("previous"),
        settled=value["settled"],
        memory=tensors.get("memory"),
        momentum=tuple(tensors[f"momentum.{i}"] for i in range(value["momenta"])),
        work=work,
    )
