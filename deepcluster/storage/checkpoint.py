"""Checkpoints: the state of a run between two rounds, from which it can go on.

A checkpoint is NAME.safetensors, and after it NAME.json, which has its SHA-256: without a json that agrees there is no
checkpoint. NAME is the number of rounds done. It has the remembered features of all images, so any number of ranks can
go on from there. The last two checkpoints are kept, so that a damaged one costs little.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from deepcluster.errors import DeepClusterError, DiskError, ModelError, NonFiniteError, first_line, other_version
from deepcluster.records import State
from deepcluster.runtime.bounded import json_sha256, read_json, sha256
from deepcluster.runtime.log import warn
from deepcluster.storage.files import write_tensors, write_whole
from deepcluster.storage.lock import is_known, own_files
from deepcluster.storage.tensors import read_tensors

SCHEMA_VERSIONS = range(4, 5)  # that this version reads; it writes the last
MAX_CHECKPOINTS = 2
NAMES = f"{'[0-9]' * 6}.json"  # not a user's 1.json
FEATURES_KEY = "features"  # the only tensor that may be read in part
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError)  # errors of reading
TENSOR = "tensor of this checkpoint"
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, without the remembered features, which stay in the file."""

    values: dict[str, Any]  # the numbers of the state; "optimizer" names its tensors by {TENSOR: name}
    tensors: dict[str, Tensor]  # of the state and of the network
    file: Path  # of all tensors, the features too
    about: dict[str, Any]  # facts about the run, as given to ``write``


class Checkpoints:
    """The checkpoints in a folder. It is no link: the lock of the run checks that."""

    def __init__(self, folder: Path, scratch: Path | None = None):
        self.folder = folder
        self.scratch = scratch

    def write(self, state: State, network: Tensors, about: Mapping[str, Any]) -> None:
        """Write a checkpoint, and then remove all but the last ``MAX_CHECKPOINTS``.

        ``state``: With the features of all images. ``network``: Its ``state_dict``, whose head is left out, because the
        next round makes a new one.

        Raises NonFiniteError if the network is no longer finite, DiskError if the disk is full: both leave the
        earlier checkpoints.
        """
        tensors = {} if state.features is None else {FEATURES_KEY: state.features}

        def named(value: Tensor) -> dict[str, str]:
            tensors[key := f"optimizer.{len(tensors)}"] = value
            return {TENSOR: key}

        optimizer = json.loads(json.dumps(state.optimizer, default=named))
        tensors |= {} if state.previous is None else {"previous": state.previous}
        tensors |= {f"network.{key}": value for key, value in network.items() if not key.startswith("head.")}
        for key, value in tensors.items():
            if not value.isfinite().all():
                raise NonFiniteError(f"{key} has numbers that are not finite: no checkpoint is made, try a lower --lr")
        name = f"{state.round:06d}"
        content: dict[str, Any] = {
            "schema_version": SCHEMA_VERSIONS[-1],
            "state": {"round": state.round, "settled": state.settled, "optimizer": optimizer},
            "about": dict(about),
            "files": {name: self._write(name, tensors)},
        }
        text = json.dumps(content | {"sha256": json_sha256(content)}, indent=1)
        write_whole(self.folder / f"{name}.json", lambda file: file.write(text + "\n"), scratch=self.scratch)
        self._prune(name)

    def latest(self) -> Checkpoint | None:
        """Return the last whole checkpoint; None if there never was one.

        Warns if a later one is damaged. Raises ModelError with all reasons if all are.
        """
        reasons: list[str] = []
        for path in sorted(self.folder.glob(NAMES), reverse=True):
            try:
                checkpoint = self._read(path)
            except DAMAGE as error:
                reasons.append(f"{path.stem}: {first_line(error)}")
                continue
            if reasons:
                warn(f"a checkpoint is damaged ({'; '.join(reasons)}): going on from {path.stem}, the one before")
            return checkpoint
        if reasons:
            raise ModelError(f"no usable checkpoint in {self.folder} ({'; '.join(reasons)}): --overwrite starts anew")
        return None

    def body(self, rounds: int) -> dict[str, Tensor]:
        """Return the weights of the network's body after so many rounds. ModelError if no whole checkpoint has them."""
        path = self.folder / f"{rounds:06d}.json"
        if not path.exists():
            rounds_kept = ", ".join(str(int(path.stem)) for path in sorted(self.folder.glob(NAMES))) or "none"
            raise ModelError(f"there is no checkpoint of round {rounds} (kept: {rounds_kept}): --overwrite starts anew")
        try:
            tensors = self._read(path).tensors
        except DAMAGE as error:
            raise ModelError(f"{path} is damaged ({first_line(error)}): --overwrite starts anew") from None
        prefix = "network.body."
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    def _write(self, name: str, tensors: Tensors) -> str:
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{name}.safetensors"
        try:
            written = write_tensors(path, tensors, scratch=self.scratch)
        except DiskError as error:
            needed = sum(value.nbytes for value in tensors.values())
            raise DiskError(f"{error}; the checkpoint needs {needed / 1e6:,.1f} MB: make room, then --resume") from None
        if sha256(path) != written:
            raise DiskError(f"{path} reads back differently from what was written: is the disk failing?")
        return written

    def _read(self, path: Path) -> Checkpoint:
        value = read_json(path)
        digest = value.pop("sha256")
        if text := other_version(value["schema_version"], SCHEMA_VERSIONS):
            raise ValueError(text)
        if json_sha256(value) != digest:
            raise ValueError("changed since it was written")
        file = path.with_suffix(".safetensors")
        mapped = read_tensors(file, value["files"][path.stem])
        # Copies: a mapped file would change under the run when the file is replaced.
        tensors = {key: tensor.clone() for key, tensor in mapped.items() if key != FEATURES_KEY}
        return Checkpoint(value["state"], tensors, file, value["about"])

    def _prune(self, last: str) -> None:
        # Checkpoints after `last` are damaged leftovers: the run resumed before them.
        whole = sorted(path.stem for path in self.folder.glob(NAMES) if path.stem <= last)
        newest = whole[-MAX_CHECKPOINTS:]
        for path in self.folder.iterdir():
            name = f"checkpoints/{path.name}"
            if path.stem not in newest and is_known(name):
                with suppress(OSError):  # one that is in use is removed another time
                    path.unlink()


def rounds_done(run: Path) -> int:
    """Return the number of rounds after which the last checkpoint of a run was written; 0 without one."""
    return max((int(Path(name).stem) for name in own_files(run, "checkpoints/") if name.endswith(".json")), default=0)


@contextmanager
def as_checkpoint_errors(folder: Path) -> Iterator[None]:
    """Turn any error about the values of a whole checkpoint into a ModelError."""
    try:
        yield
    except (DeepClusterError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        what = f"the last checkpoint in {folder} does not fit this run ({first_line(error)[:200]})"
        raise ModelError(f"{what}: --overwrite starts anew") from error


def restored(checkpoint: Checkpoint, images: slice = slice(None)) -> tuple[State, dict[str, Tensor]]:
    """Return the state of a checkpoint, with the features of these ``images`` alone, and the network's tensors."""
    tensors = checkpoint.tensors

    def table(entries: dict[str, Any]) -> Any:
        integers = {int(key) if key.isdecimal() else key: value for key, value in entries.items()}
        return tensors[entries[TENSOR]] if TENSOR in entries else integers

    values = checkpoint.values
    features = read_tensors(checkpoint.file).get(FEATURES_KEY)  # mapped: only the rows that are copied are read
    network = {key.removeprefix("network."): value for key, value in tensors.items() if key.startswith("network.")}
    state = State(
        round=values["round"],
        previous=tensors.get("previous"),
        settled=values["settled"],
        features=None if features is None else features[images].clone(),
        optimizer=json.loads(json.dumps(values["optimizer"]), object_hook=table),
    )
    return state, network
