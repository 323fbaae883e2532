"""Labelled images and scores, which the protocols share.

No protocol selects by a score: a probe is scored after its last epoch, never after its best one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepcluster.errors import DataError, NonFiniteError, UsageError
from deepcluster.nets.network import Network
from deepcluster.runtime.partition import Partition
from deepcluster.seeding import generator

Figure = float | str
NamedFigure = tuple[str, Figure]
Figures = Mapping[str, Figure]


@dataclass(frozen=True)
class Labelled:
    """Images with their classes.

    Attributes:
        images: uint8 N x 3 x S x S; where processes share the images, those of this rank.
        classes: int64, the class of every image of all ranks.
        shared: How the ranks share the images; None: they do not.
    """

    images: Tensor
    classes: Tensor
    shared: Partition | None = None

    @property
    def partition(self) -> Partition:
        return self.shared or Partition.single(len(self.images))


@dataclass(frozen=True)
class ProbeTask:
    """Input of a probe.

    Attributes:
        network: In evaluation mode.
        train: Images to learn from.
        test: Images to score.
        names: The classes, by number.
        image_size: Side of the central square that the network sees, px.
        batch_size: Images in a pass of the network where nothing is trained.
        seed: Seed of all random numbers.
    """

    network: Network
    train: Labelled
    test: Labelled
    names: Sequence[str]
    image_size: int
    batch_size: int
    seed: int

    @property
    def facts(self) -> Figures:
        """The figures with which every probe begins."""
        images, classes = {"train_images": len(self.train.classes), "images": len(self.test.classes)}, len(self.names)
        return images | {"classes": classes, "chance": self.chance}

    @property
    def chance(self) -> float:
        """The top-1 accuracy of always naming the most frequent class of training."""
        return float((self.test.classes == self.train.classes.bincount().argmax()).double().mean())


def held_out(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to learn from, and a fifth of ``count`` (rounded down, at least one) to score; both ascending.

    Raises:
        DataError: ``count`` is less than 2.
    """
    if count < 2:
        raise DataError(f"{count} labelled images cannot be split into some to learn from and some to score: give more")
    order = torch.randperm(count, generator=generator(seed, "held out"))
    tests = max(1, count // 5)
    return order[tests:].sort().values, order[:tests].sort().values


def accuracies(scores: Tensor, classes: Tensor) -> dict[str, float]:
    """``top1`` (and of more than 5 classes ``top5``) of the scores (N x K) of images whose classes are given (N)."""
    best = scores.topk(min(5, scores.shape[1]), dim=1).indices == classes.unsqueeze(1)
    figures = {"top1": float(best[:, 0].double().mean())}
    if scores.shape[1] > 5:
        figures["top5"] = float(best.any(1).double().mean())
    return figures


def numbers(text: str, option: str, kind: type[int] | type[float]) -> list[int] | list[float]:
    """The numbers in a list such as ``20,200``. UsageError where it is no list of numbers above 0."""
    try:
        values = [kind(value) for value in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value < 1e9 for value in values):
        raise UsageError(f"{option}={text}: give numbers above 0, with commas between them")
    return values


def check_finite(loss: Tensor, what: str, option: str, lr: float) -> None:
    """NonFiniteError where the loss of ``what`` is not finite; ``option`` names the learning rate ``lr``."""
    if not torch.isfinite(loss):
        raise NonFiniteError(
            f"the loss of {what} is not finite with {option}={lr:g}: try a tenth of it (--set {option}={lr / 10:g})"
        )
