"""Writing down where the alternation of a run is, and stopping it when asked to."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from deepcluster.errors import Stopped
from deepcluster.nets.backbone import Network
from deepcluster.records import State
from deepcluster.stopping import Stop
from deepcluster.storage.checkpoint import Checkpoints


class Keeper:
    """Hands states to the checkpoints: at the start of each round and at the end, every ``interval`` seconds in a
    training, and before it stops.

    ``about`` gives what the run wants to know beside the state.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        network: Network,
        about: Callable[[], Mapping[str, Any]],
        stop: Stop,
        interval: float,
    ):
        self.checkpoints = checkpoints
        self.network = network
        self.about = about
        self.stop = stop
        self.interval = interval
        self.last = time.monotonic()

    def __call__(self, state: State) -> None:
        training = state.work is not None
        trained = state.work is not None and state.work.trained is not None
        due = self.stop.wanted or time.monotonic() - self.last >= self.interval
        if not training or (trained and due):
            self.checkpoints.write(state, self.network.state_dict(), self.about())
            self.last = time.monotonic()
        if self.stop.wanted:
            raise Stopped(f"stopped in round {state.round + 1}")
        # From here on to the end of the round the network changes; before, what is written is all there is to lose.
        self.stop.at_once = not training
