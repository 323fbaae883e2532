"""Writing down where the alternation of a run is, and stopping it when asked to."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from deepcluster.errors import Stopped
from deepcluster.nets.backbone import Network
from deepcluster.records import State
from deepcluster.runtime.partition import Shares
from deepcluster.runtime.signals import Stop
from deepcluster.storage.checkpoint import Checkpoints, state_of, tensors_of, values_of


class Checkpointer:
    """Hands states to the checkpoints: at the start of each round and at the end, every ``interval`` seconds in a
    training, and before it stops. Of several processes the first writes, and says when; a stop of one is that of all.

    ``about`` gives what the run wants to know beside the state.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        network: Network,
        about: Callable[[], Mapping[str, Any]],
        stop: Stop,
        interval: float,
        table: Shares,
    ):
        self.checkpoints = checkpoints
        self.network = network
        self.about = about
        self.stop = stop
        self.interval = interval
        self.table = table
        self.last = time.monotonic()
        self._told: State | None = None  # the last one, where it is not in a checkpoint
        self.settled = 0  # of the last state

    def __call__(self, state: State) -> None:
        self.settled = state.settled
        training = state.work is not None
        trained = state.work is not None and state.work.trained is not None
        stopping, due = self._asked()
        self._told = state
        if not training or (trained and (stopping or due)):
            self._write()
        if stopping:
            raise Stopped(f"stopped in round {state.round + 1}")
        # From here on to the end of the round the network changes; before, what is written is all there is to lose.
        self.stop.at_once = not training

    def rest(self) -> None:
        """Between a training and the next round, before what takes long: from now on work can be left where it is."""
        if self._told:
            self._write()
        self.stop.at_once = True

    def end(self) -> None:
        """After the last round."""
        self.stop.at_once = True

    def _write(self) -> None:
        assert self._told is not None
        whole = gathered(self._told, self.table)
        if self.table.processes.leads:
            self.checkpoints.write(whole, self.network.state_dict(), self.about())
        self.last = time.monotonic()
        self._told = None

    def _asked(self) -> tuple[bool, bool]:
        """Whether any process is to stop, and whether it is time for the first to write."""
        processes = self.table.processes
        due = processes.leads and time.monotonic() - self.last >= self.interval
        stopping, due = processes.sum(torch.tensor([self.stop.wanted, due]).int()).bool().tolist()
        return stopping, due


def gathered(state: State, table: Shares) -> State:
    """A state with all rows of what processes share, for the first of them; the losses of each side by side."""
    if table.processes.alone:
        return state
    memory = None if state.memory is None else table.at_first(state.memory)
    work = state.work and replace(state.work, reduced=table.at_first(state.work.reduced))
    if work and work.trained:
        loss = work.trained.epoch_loss
        losses = torch.tensor(table.processes.every(loss.item()), dtype=loss.dtype)  # a float takes float32 exactly
        work = replace(work, trained=replace(work.trained, epoch_loss=losses))
    return replace(state, memory=memory, work=work)


def scattered(state: State | None, table: Shares) -> State:
    """What :func:`gathered` has brought together, of the first process, back to where its rows belong."""
    processes = table.processes

    def without_rows() -> State:
        assert state is not None, "the first process has it"
        none = torch.empty(0)
        return replace(
            state,
            memory=None if state.memory is None else none,
            work=state.work and replace(state.work, reduced=none),
        )

    if processes.alone and state:
        shared = state
    else:
        tensors = processes.first_tensors(lambda: tensors_of(without_rows()))
        shared = state_of(processes.first(lambda: values_of(without_rows())), tensors)
    work = shared.work and replace(
        shared.work, reduced=table.from_first(state.work.reduced if state and state.work else None)
    )
    if work and work.trained:
        losses = work.trained.epoch_loss
        own = losses.reshape(-1)[processes.rank] if losses.numel() == processes.count else losses.mean()
        work = replace(work, trained=replace(work.trained, epoch_loss=own))
    memory = None if shared.memory is None else table.from_first(state.memory if state else None)
    return replace(shared, memory=memory, work=work)
