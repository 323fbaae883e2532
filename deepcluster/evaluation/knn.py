"""Protocol ``knn``: the class of an image by a weighted vote of the nearest ones.

Wu, Xiong, Yu, Lin, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, section 3.4.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from deepcluster.clustering.blocks import nearest
from deepcluster.evaluation import KnnOptions
from deepcluster.evaluation.common import NamedFigure, ProbeTask, accuracies, numbers
from deepcluster.learning.features import extract
from deepcluster.place import Place
from deepcluster.runtime.console import Display, Silent


def knn(task: ProbeTask, options: KnnOptions | None = None, *, display: Display | None = None) -> Iterator[NamedFigure]:
    """Yield ``top1_kN`` for N neighbours (at most all images to learn from), of more than 5 classes also ``top5_kN``.

    The features are those of the backbone at length 1, not reduced. ``chance`` is the accuracy of the most frequent
    class.
    """
    options, display = options or KnnOptions(), display or Silent()
    counts = [min(int(k), len(task.train.classes)) for k in numbers(options.neighbours, "neighbours", int)]

    def features(images: Tensor) -> Tensor:
        place = Place.of(
            task.network, images, size=task.image_size, batch_size=task.batch_size, progress=display.progress
        )
        rows = extract(task.network, images, place).cpu().float()
        return rows.div_(rows.norm(dim=1, keepdim=True).clamp_(min=1e-12))  # in place: a copy would double the memory

    yield from task.facts.items()
    # Every rank scores its images by the training images of all ranks.
    train, test = task.train.partition.all_gather(features(task.train.images)), features(task.test.images)
    votes = weighted_votes(train, task.train.classes, test, counts, options.temperature, len(task.names))
    for k, shares in zip(counts, votes, strict=True):
        figures = accuracies(task.test.partition.all_gather(shares), task.test.classes)
        yield from ((f"{name}_k{k}", value) for name, value in figures.items())


def weighted_votes(
    train: Tensor, classes: Tensor, test: Tensor, counts: Sequence[int], temperature: float, of: int
) -> list[Tensor]:
    """Return for every k in ``counts`` the votes of the k nearest rows, weighted by exp(cosine / temperature).

    Rows of ``train`` (N x D, of ``classes``) and ``test`` (M x D) have length 1. The result is shares, M x ``of``.
    """
    cosines, rows = nearest(test, max(counts), train)
    votes = []
    for k in counts:
        # Subtracting the largest changes no share, and keeps exp(1 / .01) within float32.
        weights = ((cosines[:, :k] - cosines[:, :1]) / temperature).exp()
        shares = weights / weights.sum(1, keepdim=True)
        votes.append(torch.zeros(len(test), of).scatter_add_(1, classes[rows[:, :k]], shares))
    return votes
