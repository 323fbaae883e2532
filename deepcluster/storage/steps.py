"""Steps back and forward: the states that the clusters of a run had, the newest first.

A state has the layout of groups.safetensors. Its ``about`` also has entries of run.json (``record``), the figures
before the rounds (``baseline``), and the change that followed: its words (``done``), an image that shows it (``row``),
the number of images that it moved (``moved``) and its time (``at``), which older versions did not write. If changes
were taken back, the newest state has their number (``undone``): that is the index of the present state among them.
Otherwise the present state is not among them.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deepcluster.errors import DeepClusterError
from deepcluster.model import Model
from deepcluster.runtime.plain_files import parse_json, read_tensors
from deepcluster.storage.content import RunRecord
from deepcluster.storage.model_files import Clusters, clusters_in, clusters_tensors, json_tensor
from deepcluster.storage.run_folder import LockedFolder, RunFolder

FORMER = "former.safetensors"
MAX_STEPS = 100  # back; of more, and of more bytes, the first result and the newest stay
MAX_BYTES = 1 << 26

# Entries of run.json on the clusters.
ENTRIES = ("cut", "cut_k", "edits", "candidates", "like_run")
State = Mapping[str, Tensor]


class Step(NamedTuple):
    """A step back or forward: ``about`` has the change (``done``, ``row``) that is taken back or made again."""

    about: Mapping[str, Any]
    to: Clusters


def state_of(model: Model, record: RunRecord, baseline: Mapping[str, float]) -> State:
    """Return the state of a run that has a result. ``baseline``: The figures before the rounds."""
    return clusters_tensors(model, record={name: getattr(record, name) for name in ENTRIES}, baseline=dict(baseline))


def after_change(states: Sequence[State], now: State, done: str, row: int, **about: Any) -> list[State]:
    """Return the states after a new change of ``now``. All that were taken back become steps back: none is lost.

    ``about``: More about the change.
    """
    if undone := _undone(states):
        texts = [_about(state)["done"] for state in states[1 : undone + 1]]
        states = [_with(states[0], done=f"taken back: {'; '.join(texts)}", row=row, undone=0), *states[1:]]
    return [_with(now, done=done, row=row, **about), *states]


def after_steps(states: Sequence[State], now: State, steps: int) -> list[State]:
    """Return the states after so many ``steps`` back or, negative, forward from ``now``."""
    undone = _undone(states) + steps
    newest, *others = states if undone > steps else [now, *states]
    return [_with(newest, undone=undone), *others] if undone else others


def _about(state: State) -> dict[str, Any]:
    return {"done": "", "row": 0, "moved": 0, "at": "", **parse_json(state["about"].numpy().tobytes())}


def _undone(states: Sequence[State]) -> int:
    return _about(states[0]).get("undone", 0) if states else 0


def _with(state: State, **about: Any) -> State:
    return {**state, "about": json_tensor(_about(state) | about)}


# ---- files ----------------------------------------------------------------------------------------------------------


def read_steps(folder: RunFolder, dims: int | None = None) -> tuple[list[Step], list[Step]]:
    """Read the steps back and the steps forward, the nearest first. DiskError if one is damaged."""
    states = []
    with folder.as_disk_errors(FORMER):
        for state in (raw := read_states(folder)):
            about = _about(state)
            about["record"] = {name: about["record"].get(name) for name in ENTRIES}  # of this version
            states.append(replace(clusters_in(state, dims), about=about))
        undone = _undone(raw)
        forward = [Step(states[i].about, states[i - 1]) for i in range(undone, 0, -1)]
    return [Step(state.about, state) for state in states[undone + (undone > 0) :]], forward


def read_states(folder: RunFolder) -> list[State]:
    """Read the states of a run, the newest first. DiskError if the file is damaged."""
    with folder.as_disk_errors(FORMER):
        tensors = read_tensors(folder.file(FORMER)) if folder.has(FORMER) else {}
        states: list[State] = []
        while tensors:
            end = f".{len(states)}" if states else ""
            names = [name for name in ("centroids", "groups", "about") if name + end in tensors]
            state = {name: tensors.pop(name + end).clone() for name in names}
            if not state:
                raise ValueError(f"unknown tensor {min(tensors)[:80]!a}")
            states.append({**(states[-1] if states else {}), **state})
        return states


def keep_step(folder: LockedFolder, now: State, done: str, row: int, **about: Any) -> None:
    """Keep the state ``now`` before a change. Of too many, those next to the first result are forgotten."""
    states = after_change((), now, done, row, **about)
    with suppress(DeepClusterError), folder.as_disk_errors():  # damaged steps are of no use
        states = after_change(read_states(folder), now, done, row, **about)
    while len(states) > 2 and (
        len(states) > MAX_STEPS or sum(part.nbytes for part in _new(states).values()) > MAX_BYTES
    ):
        del states[-2]
    write_states(folder, states)


def write_states(folder: LockedFolder, states: Sequence[State]) -> None:
    """Write the states, the newest first."""
    if states:
        folder.write_tensors(FORMER, _new(states))
    else:
        folder.remove(FORMER)


def _new(states: Sequence[State]) -> dict[str, Tensor]:
    """Return the tensors by their names in the file, without those that equal the tensor of the state before."""
    return {
        f"{name}.{i}" if i else name: tensor
        for i, state in enumerate(states)
        for name, tensor in state.items()
        if i == 0 or not torch.equal(tensor, states[i - 1][name])
    }
