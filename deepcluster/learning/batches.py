"""Batches of a training loop: the part of a sample that this rank trains on, gathered and prepared ahead of time."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from deepcluster.errors import NonFiniteError
from deepcluster.learning.heads import IGNORED
from deepcluster.runtime.devices import CPU, made_ahead, moved
from deepcluster.runtime.partition import Partition

Prepared = TypeVar("Prepared")


@dataclass(frozen=True)
class Batch:
    """The images of one optimizer step."""

    step: int  # in the epoch
    drawn: Tensor  # indices of the images that all ranks train on together
    parts: list[Tensor]  # indices of the images of every rank (see strides)
    rank: int
    images: Tensor  # uint8, B x 3 x S x S, this rank's, on the device that trains

    @property
    def new(self) -> list[int]:
        """Number of images of every rank without filling."""
        return [len(range(rank, len(self.drawn), len(self.parts))) for rank in range(len(self.parts))]

    def targets(self, labels: Tensor) -> Tensor:
        """Select the labels of this rank's images from all ``labels``; IGNORED for filling."""
        targets = labels[self.parts[self.rank]]
        targets[self.new[self.rank] :] = IGNORED
        return targets


def batches(
    images: Tensor,
    partition: Partition,
    samples: Iterable[tuple[int, Tensor]],
    prepare: Callable[[Batch], Prepared],
    device: torch.device,
) -> Iterator[Prepared]:
    """Yield ``prepare(batch)`` for all batches, on a GPU while the previous one is trained on.

    ``images`` are this rank's; ``samples`` have the numbers of the steps, and the images that all ranks draw for them.
    ``prepare``, for example random views, must not exchange anything with other ranks.
    """
    # Channels-last, an image lies in one piece: else indexing goes pixel by pixel, which is ten times as slow.
    pixels = images.permute(0, 2, 3, 1)
    processes = partition.processes

    def make(sample: tuple[int, Tensor]) -> Prepared:
        step, drawn = sample
        parts = strides(drawn, processes.world_size)
        gathered = moved(partition.get_rows(pixels, parts), device).permute(0, 3, 1, 2)
        return prepare(Batch(step, drawn, parts, processes.rank, gathered))

    # Collectives have an order, which a thread that works ahead would not keep.
    yield from made_ahead(make, samples, device if processes.alone else CPU)


def strides(drawn: Tensor, world_size: int) -> list[Tensor]:
    """Divide a sample among the ranks: equal parts, filled up with its first images if it is too short.

    A part has at least two images, because batch normalisation has no variance of one.
    """
    if world_size == 1:
        return [drawn]
    size = max(2, -(-len(drawn) // world_size))
    filled = drawn[torch.arange(size * world_size) % len(drawn)]
    return [filled[rank::world_size] for rank in range(world_size)]


def check_finite(loss: Tensor, title: str, lr: float) -> None:
    """Raise NonFiniteError if a loss is not finite with the learning rate ``lr``."""
    if not torch.isfinite(loss):
        raise NonFiniteError(
            f"the loss of {title} is not finite with a learning rate of {lr:g}: try a tenth of it (--lr {lr / 10:g})"
        )
