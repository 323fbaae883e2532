"""Protocol ``knn``: the class of an image by those of the nearest ones, which count by their likeness (Wu et al. 2018).

Wu, Xiong, Yu, Lin, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, section 3.4.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepcluster.evaluation.common import NamedFigure, Once, ProbeTask, accuracies, anew, numbers
from deepcluster.learning.features import extract
from deepcluster.recipe import Options, option
from deepcluster.runtime.display import Display, Silent

TESTS, TRAINS = 256, 16_384  # rows of a product: 17 MB


@dataclass(frozen=True)
class KnnOptions(Options):
    """Options of the protocol."""

    neighbours: str = option("20,200", "How many neighbours vote: one or more numbers.")
    temperature: float = option(0.07, "Of the weights exp(cosine / temperature) of their votes.", low=1e-6, high=1e6)


def knn(
    task: ProbeTask, options: KnnOptions | None = None, *, once: Once = anew, display: Display | None = None
) -> Iterator[NamedFigure]:
    """``top1_kN`` (and ``top5_kN`` beyond 5 classes) of the features of the backbone, not reduced, of length 1; N is at
    most the number of images to learn from. ``chance``: always the most frequent class."""
    options, display = options or KnnOptions(), display or Silent()
    counts = [min(int(k), len(task.train.classes)) for k in numbers(options.neighbours, "neighbours", int)]

    def features(images: Tensor) -> Tensor:
        found = extract(
            task.network, images, size=task.image_size, batch_size=task.batch_size,
            progress=lambda done, total: display.progress("features", done, total),
        )  # fmt: skip
        found = found.float()
        return found.div_(found.norm(dim=1, keepdim=True).clamp_(min=1e-12))  # in place: at 4,096 numbers they are many

    def compute() -> dict[str, float]:
        # Each process scores its own images by those of all.
        train, test = task.train.table.whole(features(task.train.images)), features(task.test.images)
        votes = weighted_votes(train, task.train.classes, test, counts, options.temperature, len(task.names))
        return {
            f"{name}_k{k}": value
            for k, scores in zip(counts, votes, strict=True)
            for name, value in accuracies(task.test.table.whole(scores), task.test.classes).items()
        }

    yield from {"train_images": len(task.train.classes), "images": len(task.test.classes)}.items()
    yield from {"classes": len(task.names), "chance": task.chance}.items()
    yield from once("knn", compute).items()


def weighted_votes(
    train: Tensor, classes: Tensor, test: Tensor, counts: Sequence[int], temperature: float, of: int
) -> list[Tensor]:
    """For each k of ``counts`` the votes that M test rows give each of ``of`` classes (M x ``of``): the sum of
    exp(cos / temperature) over those of the k nearest train rows that are of the class, as a share of all.

    train: N x D, test: M x D, of length 1; classes: N. Beside them it takes memory for ``TESTS`` x ``TRAINS`` numbers.
    """
    votes = [torch.zeros(len(test), of) for _ in counts]
    for begin in range(0, len(test), TESTS):
        cosines, rows = nearest(train, test[begin : begin + TESTS], max(counts))
        for k, into in zip(counts, votes, strict=True):
            # Less the largest, which changes no share: exp(1 / .01) is beyond float32.
            weights = ((cosines[:, :k] - cosines[:, :1]) / temperature).exp()
            into[begin : begin + TESTS].scatter_add_(1, classes[rows[:, :k]], weights / weights.sum(1, keepdim=True))
    return votes


def nearest(train: Tensor, test: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest cosines of each test row with train rows, descending, and the numbers of these rows."""
    best, rows = torch.empty(len(test), 0), torch.empty(len(test), 0, dtype=torch.int64)
    for begin in range(0, len(train), TRAINS):
        cosines = test @ train[begin : begin + TRAINS].T
        values, places = cosines.topk(min(k, cosines.shape[1]), dim=1)
        both = torch.cat([best, values], 1)
        best, order = both.topk(min(k, both.shape[1]), dim=1)
        rows = torch.cat([rows, places + begin], 1).gather(1, order)
    return best, rows
