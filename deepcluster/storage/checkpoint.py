"""Checkpoints: where the alternation of a run is, so that it can go on from there.

A checkpoint is NAME.safetensors, and after it NAME.json, which has the SHA-256 of every file that belongs to it:
without a json that agrees there is no checkpoint. NAME is the round and the step. What is large and never changes again
(parts) is written once, in files of its own. The last two are kept, so that one that is damaged costs little.
"""

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from deepcluster.errors import DeepClusterWarning, DiskError, ModelError, NonFiniteError
from deepcluster.records import Clustering, State, Trained, Work
from deepcluster.storage.atomic import write_tensors, write_whole
from deepcluster.storage.ownership import is_checkpoint
from deepcluster.storage.safe_read import json_sha256, read_json, read_tensors, sha256

SCHEMA_VERSION = 1
KEPT = 2
IMAGES = "images.csv"  # the images that the run began with (runs/resume.py)
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A state, the ``state_dict`` of the network then, what the run said ``about`` it, and the parts."""

    state: State
    network: dict[str, Tensor]
    about: dict[str, Any]
    parts: dict[str, dict[str, Tensor]]


class Checkpoints:
    """The checkpoints in a folder. DiskError where that is a link, which might lead anywhere."""

    def __init__(self, folder: Path, scratch: Path | None = None):
        if folder.is_symlink():
            raise DiskError(f"{folder} is a symbolic link, and nothing is written where it leads: remove it")
        self.folder = folder
        self.scratch = scratch
        self.parts: dict[str, str] = {}  # the digests of those that are written

    def add(self, name: str, tensors: Tensors) -> None:
        """Write a part, which belongs to every checkpoint from now on."""
        self.parts[name] = self._write(name, tensors)

    def write(self, state: State, network: Tensors, about: Mapping[str, Any]) -> None:
        """Write a checkpoint, and then remove all but the last two.

        Raises NonFiniteError where the network is no longer finite, DiskError where the disk is full: both leave the
        checkpoints that are there.
        """
        tensors = {**{f"network.{name}": value for name, value in network.items()}, **tensors_of(state)}
        for key, each in tensors.items():
            if each.is_floating_point() and not torch.isfinite(each).all():
                raise NonFiniteError(
                    f"{key} has numbers that are not finite, so no checkpoint is made of it: try a smaller learning"
                    " rate (--lr)"
                )
        name = _name(state)
        files = {**self.parts, name: self._write(name, tensors)}
        value: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "state": values_of(state),
            "about": dict(about),
            "files": files,
        }
        text = json.dumps(value | {"sha256": json_sha256(value)}, indent=1)
        write_whole(self.folder / f"{name}.json", lambda file: file.write(text + "\n"), scratch=self.scratch)
        self._prune(name)

    def latest(self) -> Checkpoint | None:
        """The last checkpoint that is whole; None where there never was one.

        Warns where a later one is damaged. Raises ModelError where all are, with the reason of each.
        """
        reasons = []
        for path in sorted(self.folder.glob("*-*.json"), reverse=True):
            try:
                found = self._read(path)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
                reasons.append(f"{path.name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
                continue
            if reasons:
                warnings.warn(
                    f"a checkpoint is damaged ({'; '.join(reasons)}): going on from {path.stem}, the one before",
                    DeepClusterWarning,
                    stacklevel=2,
                )
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

    def _read(self, path: Path) -> Checkpoint:
        value = read_json(path)
        digest = value.pop("sha256")
        if value["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"not a checkpoint of version {SCHEMA_VERSION}")
        if json_sha256(value) != digest:
            raise ValueError("changed since it was written")
        files = dict(value["files"])
        tensors = self._read_tensors(path.stem, files.pop(path.stem))
        network = {name.removeprefix("network."): each for name, each in tensors.items() if name.startswith("network.")}
        parts = {name: self._read_tensors(name, digest) for name, digest in files.items()}
        self.parts = files
        return Checkpoint(state_of(value["state"], tensors), network, value["about"], parts)

    def _read_tensors(self, name: str, digest: str) -> dict[str, Tensor]:
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            raise ValueError(f"{path.name} is missing")
        # Copies: a mapped file would change under the run when the file is replaced.
        return {key: value.clone() for key, value in read_tensors(path, digest).items()}

    def _prune(self, last: str) -> None:
        # A later one than that just written is damaged: the run went on from one before it.
        kept = sorted(path for path in self.folder.glob("*-*.json") if path.stem <= last)[-KEPT:]
        wanted = {path.stem for path in kept} | self.parts.keys()
        for path in self.folder.iterdir():
            if path.stem not in wanted and path.name != IMAGES and is_checkpoint(path.name):
                path.unlink(missing_ok=True)


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
