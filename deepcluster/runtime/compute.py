"""This process's part of the work: its rows of the images, its device, and the size, batch and type of a pass."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepcluster.runtime.devices import CPU, holds_rows
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import ALONE, Processes

FEATURES_PHASE, CLUSTERING_PHASE, TRAINING_PHASE, CUT_PHASE = "features", "clustering", "training", "cut"
MAX_PASS_BATCH = 256  # images in a batch of a pass, however many an optimizer step has
Progress = Callable[[str, int, int], None]  # phase, images done, images in all


def ignore_progress(phase: str, done: int, total: int) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Compute:
    """One process's part of the work, and how it does it. All steps of a run take the same one."""

    partition: Partition  #: owner (rank) of every image; holds the processes
    device: torch.device = CPU  #: device of the network
    size: int = 0  #: side of the central square that the network sees of an image, px
    batch_size: int = 256  #: images in a batch of a pass in evaluation mode; another one may change the last bits
    dtype: torch.dtype = torch.float32  #: type of the network's operations
    progress: Progress = ignore_progress  #: called with a phase, the images done and all images

    @classmethod
    def of(cls, network: nn.Module, images: Tensor, processes: Processes = ALONE, **values: Any) -> "Compute":
        """Return the settings for a network and this rank's images (n x 3 x S x S). A collective.

        ``values``: The other fields; ``size`` is S without one.
        """
        values["size"] = values.get("size") or images.shape[-1]
        return cls(Partition.of(processes, len(images)), next(network.parameters()).device, **values)

    def device_for(self, width: int, *, of_all: bool = False) -> torch.device:
        """Choose the device of ``width`` features of this rank's images, or ``of_all``. A collective.

        It is the CPU for all ranks if they do not fit on one rank's device.
        """
        rows = self.partition.total if of_all else self.partition.sizes[self.partition.processes.rank]
        return CPU if self.partition.processes.any(not holds_rows(self.device, rows, width)) else self.device


class Stopwatch:
    """A ``progress`` that times the steps of a round, which :meth:`start` begins, by the calls that it passes on."""

    def __init__(self, progress: Progress = ignore_progress):
        self.progress = progress
        self.start()

    def __call__(self, phase: str, done: int, total: int) -> None:
        if phase == FEATURES_PHASE or (phase == TRAINING_PHASE and done == 0):
            self._times[phase] = time.perf_counter()
        self.progress(phase, done, total)

    def start(self) -> None:
        """Begin to time a round."""
        self._begin = time.perf_counter()
        self._times = dict[str, float]()

    def seconds(self) -> dict[str, float]:
        """Return the seconds of the ``features``, the ``clustering`` and the ``training`` of a round that has ended."""
        end = time.perf_counter()
        features = self._times.get(FEATURES_PHASE, self._begin)  # no pass if they were known
        training = self._times.get(TRAINING_PHASE, end)
        return {"features": features - self._begin, "clustering": training - features, "training": end - training}
