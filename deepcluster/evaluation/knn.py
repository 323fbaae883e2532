"""Protocol ``knn``: the class of an image by those of the nearest ones, which count by their likeness (Wu et al. 2018).

Wu, Xiong, Yu, Lin, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, section 3.4.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from deepcluster.clustering.nearest import nearest
from deepcluster.evaluation.common import NamedFigure, Once, ProbeTask, accuracies, anew, numbers
from deepcluster.evaluation.options import KnnOptions
from deepcluster.learning.features import extract
from deepcluster.runtime.display import Display, Silent


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
        train, test = task.train.partition.all_gather(features(task.train.images)), features(task.test.images)
        votes = weighted_votes(train, task.train.classes, test, counts, options.temperature, len(task.names))
        return {
            f"{name}_k{k}": value
            for k, scores in zip(counts, votes, strict=True)
            for name, value in accuracies(task.test.partition.all_gather(scores), task.test.classes).items()
        }

    yield from {"train_images": len(task.train.classes), "images": len(task.test.classes)}.items()
    yield from {"classes": len(task.names), "chance": task.chance}.items()
    yield from once("knn", compute).items()


def weighted_votes(
    train: Tensor, classes: Tensor, test: Tensor, counts: Sequence[int], temperature: float, of: int
) -> list[Tensor]:
    """For each k of ``counts`` the votes that M test rows give each of ``of`` classes (M x ``of``): the sum of
    exp(cos / temperature) over those of the k nearest train rows that are of the class, as a share of all.

    train: N x D, test: M x D, of length 1; classes: N.
    """
    cosines, rows = nearest(test, max(counts), train)
    votes = []
    for k in counts:
        # Less the largest, which changes no share: exp(1 / .01) is beyond float32.
        weights = ((cosines[:, :k] - cosines[:, :1]) / temperature).exp()
        shares = weights / weights.sum(1, keepdim=True)
        votes.append(torch.zeros(len(test), of).scatter_add_(1, classes[rows[:, :k]], shares))
    return votes
