"""Checkpoints while a run alternates, and stopping it when asked to."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from deepcluster.errors import Stopped
from deepcluster.nets.backbone import Network
from deepcluster.records import State, Trained
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.signals import Stop
from deepcluster.storage.checkpoint import Checkpoints


class Checkpointer:
    """Saves states: at the start of each round and at the end, every ``interval`` seconds of training, and on a stop.

    Each rank writes its rows, and the main rank decides when; a stop signal on any rank stops all.

    Args:
        checkpoints: Where the states go.
        network: It is saved beside them.
        about: What else a checkpoint says of its run.
        stop: Whether a signal came.
        interval: Seconds between two checkpoints.
        partition: Which rank has which rows.
        enough: Whether the training of a round ends here; the main rank decides.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        network: Network,
        about: Callable[[], Mapping[str, Any]],
        stop: Stop,
        interval: float,
        partition: Partition,
        enough: Callable[[Trained], bool] = lambda _: False,
    ):
        self.checkpoints = checkpoints
        self.network = network
        self.about = about
        self.stop = stop
        self.interval = interval
        self.partition = partition
        self.enough = enough
        self.last = time.monotonic()
        self._unsaved: State | None = None  # the last one, where it is in no checkpoint yet
        self.settled = 0  # of the last state

    def __call__(self, state: State) -> bool:
        """Save the state where it is time; returns whether the training of its round ends here."""
        processes, trained = self.partition.processes, state.work.trained if state.work else None
        training = state.work is not None
        due = processes.is_main and time.monotonic() - self.last >= self.interval
        enough = processes.is_main and trained is not None and self.enough(trained)
        asked = processes.all_reduce(torch.tensor([self.stop.wanted, due, enough]).int())
        stopping, due, enough = asked.bool().tolist()
        self._unsaved, self.settled = state, state.settled
        if not training or (trained and (stopping or due)):
            self._write()
        if stopping:
            raise Stopped(f"stopped in round {state.round + 1}")
        # Until here stopping loses nothing beyond the last checkpoint; while it trains the network changes.
        self.stop.at_once = not training
        return bool(enough)

    def _write(self) -> None:
        assert self._unsaved is not None
        self.checkpoints.write(self._unsaved, self.network.state_dict(), self.about(), self.partition)
        self.last = time.monotonic()
        self._unsaved = None
