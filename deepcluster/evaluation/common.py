"""What the protocols share: labelled images, parts that are computed once, and the network at the end of the run.

Nothing here is chosen by a score: a probe is scored after its last epoch, never after its best one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepcluster.errors import DataError, NonFiniteError, UsageError
from deepcluster.nets.backbone import Network
from deepcluster.runtime.partition import Partition
from deepcluster.seeding import generator

Figure = float | str
NamedFigure = tuple[str, Figure]
Figures = Mapping[str, Figure]
# once(part, compute): the values of a part of a protocol, computed or remembered.
Once = Callable[[str, Callable[[], Figures]], Figures]


def anew(part: str, compute: Callable[[], Figures]) -> Figures:
    """Nothing is remembered."""
    return compute()


@dataclass(frozen=True)
class Labelled:
    """uint8 N x 3 x S x S ``images`` and the number of the class of each (int64, N). Where processes share the images
    (``shared``), they are the own ones of each, and the classes those of all."""

    images: Tensor
    classes: Tensor
    shared: Partition | None = None

    @property
    def partition(self) -> Partition:
        return self.shared or Partition.single(len(self.images))


@dataclass(frozen=True)
class ProbeTask:
    """A network as a run left it (in evaluation mode), images to learn from and images to be scored on.

    ``names`` are the classes, by number. ``image_size``: side of the central square that the network sees, px;
    ``batch_size``: images in a pass of the network where nothing is trained.
    """

    network: Network
    train: Labelled
    test: Labelled
    names: Sequence[str]
    image_size: int
    batch_size: int
    seed: int

    @property
    def chance(self) -> float:
        """The top-1 accuracy of always naming the most frequent class of training."""
        return float((self.test.classes == self.train.classes.bincount().argmax()).double().mean())


def held_out(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to learn from and, a fifth of ``count`` (rounded down, at least one), rows to be scored on; both ascending.

    Raises DataError where there are fewer than two.
    """
    if count < 2:
        raise DataError(f"{count} labelled images cannot be split into some to learn from and some to score: give more")
    order = torch.randperm(count, generator=generator(seed, "held out"))
    tests = max(1, count // 5)
    return order[tests:].sort().values, order[:tests].sort().values


def accuracies(scores: Tensor, classes: Tensor) -> dict[str, float]:
    """Share of images (scores N x K, classes N) whose class has the highest score, and, beyond 5 classes, one of the 5
    highest."""
    best = scores.topk(min(5, scores.shape[1]), dim=1).indices == classes.unsqueeze(1)
    found = {"top1": float(best[:, 0].double().mean())}
    if scores.shape[1] > 5:
        found["top5"] = float(best.any(1).double().mean())
    return found


def numbers(text: str, option: str, kind: type[int] | type[float]) -> list[int] | list[float]:
    """The numbers above 0 in a list such as ``20,200``. UsageError where it is none."""
    try:
        found = [kind(each) for each in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < each < 1e9 for each in found):
        raise UsageError(f"{option}={text}: give numbers above 0, with commas between them")
    return found


def check_finite(loss: Tensor, what: str, option: str, lr: float) -> None:
    """NonFiniteError where the loss of ``what`` is no longer finite; ``option`` is the name of the step ``lr``."""
    if not torch.isfinite(loss):
        raise NonFiniteError(
            f"the loss of {what} is not finite with {option}={lr:g}: try a tenth of it (--set {option}={lr / 10:g})"
        )
