"""Protocols that score clusters (``clustering``) and features (``knn``, ``linear``) by labels; none selects by them."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from deepcluster.clustering import agreement
from deepcluster.clustering.blocks import nearest
from deepcluster.clustering.whitening import Whitening
from deepcluster.errors import DataError, UsageError
from deepcluster.evaluation import ClusteringOptions, KnnOptions, LinearOptions
from deepcluster.images import Source
from deepcluster.learning.features import extract
from deepcluster.nets.network import Network
from deepcluster.runtime.compute import Compute
from deepcluster.runtime.console import Display, Silent
from deepcluster.runtime.partition import Partition
from deepcluster.seeding import generator

NamedFigure = tuple[str, float]


@dataclass(frozen=True)
class Labelled:
    """Images with their classes."""

    images: Tensor  # uint8, n x 3 x S x S: this rank's
    classes: Tensor  # int64, of the images of all ranks
    partition: Partition


@dataclass(frozen=True)
class ProbeTask:
    """Input of ``knn`` and ``linear``."""

    network: Network  #: in evaluation mode
    train: Labelled  #: images to learn from
    test: Labelled  #: images to score
    names: Sequence[str]  #: the classes, by number
    image_size: int  #: side of the central square that the network sees, px
    batch_size: int  #: images in a pass of the network
    reduction: Whitening | None = None  #: the map from features to reduced ones; None: none

    @property
    def facts(self) -> dict[str, float]:
        """The first figures of a protocol; ``chance`` is the accuracy of the most frequent training class."""
        chance = float((self.test.classes == self.train.classes.bincount().argmax()).double().mean())
        images = {"train_images": len(self.train.classes), "images": len(self.test.classes)}
        return {**images, "classes": len(self.names), "chance": chance}


def hold_out(source: Source, labels: Sequence[str], seed: int) -> tuple[Source, list[str], Source, list[str]]:
    """Return labelled images to learn from with their labels, and a fifth of all (rounded down, at least one) to score.

    Both are in the order of the source. DataError if fewer than two images have a label.
    """
    labelled = [i for i, label in enumerate(labels) if label]
    count = len(labelled)
    tests = max(1, count // 5)
    if count < 2:
        raise DataError(f"{count} labelled images cannot be split into some to learn from and some to score: give more")
    order = torch.randperm(count, generator=generator(seed, "held out")).tolist()
    train, test = ([labelled[i] for i in sorted(rows)] for rows in (order[tests:], order[:tests]))
    return source.rows(train), [labels[i] for i in train], source.rows(test), [labels[i] for i in test]


def check_apart(train: Source, test: Source) -> None:
    """Raise DataError if an image is in both sources."""
    learnt = {*_identities(train)}
    if shared := sum(identity in learnt for identity in _identities(test)):
        raise DataError(
            f"{shared:,} images of {test.name} are among those to learn from: give others, or leave IMAGES out to"
            " hold out a fifth"
        )


def _identities(source: Source) -> Iterator[tuple[object, str]]:
    """Yield the identities of the images under any name: device and inode of its file, and the member in that file."""

    @cache
    def identity(path: str) -> object:
        with suppress(OSError, ValueError):  # no file, or no path
            status = os.stat(path)  # noqa: PTH116
            return (status.st_dev, status.st_ino) if status.st_ino else path  # 0: a file system without numbers
        return path

    for origin in map(source.origin, range(len(source.paths))):
        yield identity(origin.source), origin.member


def accuracies(scores: Tensor, classes: Tensor) -> dict[str, float]:
    """Return ``top1`` of scores (N x K) for the right classes (N); for more than 5 classes also ``top5``."""
    best = scores.topk(min(5, scores.shape[1]), dim=1).indices == classes.unsqueeze(1)
    figures = {"top1": float(best[:, 0].double().mean())}
    if scores.shape[1] > 5:
        figures["top5"] = float(best.any(1).double().mean())
    return figures


def numbers(text: str, option: str) -> list[int]:
    """Return the numbers in a list such as ``20,200``. Raise UsageError if it is no list of whole numbers above 0."""
    try:
        values = [int(value) for value in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value < 1e9 for value in values):
        raise UsageError(f"{option}={text}: give whole numbers above 0, with commas between them")
    return values


def clustering(
    clusters: Sequence[int],
    labels: Sequence[str],
    options: ClusteringOptions | None = None,
    *,
    seed: int = 0,
) -> Iterator[NamedFigure]:
    """Yield ``acc``, ``nmi`` (geometric mean), ``ami`` and ``ari``, then their ``_chance``: for shuffled labels.

    Args:
        clusters: Clusters of the images.
        labels: Labels of the images; "" if it has none.
        options: None: the defaults.
        seed: Seed of the shuffles.

    Raises:
        DataError: No image has a label.
    """
    options = options or ClusteringOptions()
    labelled = [i for i, label in enumerate(labels) if label]
    if not labelled:
        raise DataError("no image that has a cluster has a label: check --labels")
    truth = [labels[i] for i in labelled]
    assigned = [clusters[i] for i in labelled]

    yield from {"images": len(truth), "classes": len({*truth}), "clusters": len({*assigned})}.items()
    yield from agreement.scores(truth, assigned).items()
    drawn = []
    for i in range(options.shuffles):
        order = torch.randperm(len(truth), generator=generator(seed, "chance", i)).tolist()
        drawn.append(agreement.scores([truth[j] for j in order], assigned))
    if drawn:
        yield from ((f"{name}_chance", sum(result[name] for result in drawn) / len(drawn)) for name in drawn[0])


def knn(task: ProbeTask, options: KnnOptions | None = None, *, display: Display | None = None) -> Iterator[NamedFigure]:
    """Yield ``top1_kN`` for N neighbours (at most all images to learn from); for more than 5 classes also ``top5_kN``.

    ``chance`` is the accuracy of the most frequent class. Source: Wu, Xiong, Yu, Lin, "Unsupervised Feature Learning
    via Non-Parametric Instance Discrimination", CVPR 2018, section 3.4; it takes the network's features, not reduced.
    """
    options = options or KnnOptions()
    counts = [min(k, len(task.train.classes)) for k in numbers(options.neighbours, "neighbours")]
    yield from task.facts.items()
    train, test = _features(task, display or Silent(), reduced=options.reduced)
    votes = weighted_votes(train, task.train.classes, test, counts, options.temperature, len(task.names))
    for k, shares in zip(counts, votes, strict=True):
        figures = accuracies(task.test.partition.all_gather(shares), task.test.classes)
        yield from ((f"{name}_k{k}", value) for name, value in figures.items())


def linear(
    task: ProbeTask, options: LinearOptions | None = None, *, display: Display | None = None
) -> Iterator[NamedFigure]:
    """Yield ``top1`` of scikit-learn's logistic regression; for more than 5 classes also ``top5``.

    Every feature has mean 0 and variance 1 over the images to learn from. ``chance`` is as for :func:`knn`.

    Raises:
        DataError: The images to learn from have one class.
    """
    options = options or LinearOptions()
    display = display or Silent()
    classes = task.train.classes.numpy()
    if (classes == classes[0]).all():
        raise DataError("the images to learn from have one label: give images of several")
    yield from task.facts.items()
    train, test = _features(task, display, reduced=options.reduced)
    test = task.test.partition.all_gather(test)

    def scored() -> dict[str, float]:
        from sklearn.exceptions import ConvergenceWarning  # takes a second
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        regression = LogisticRegression(C=options.c, max_iter=options.iterations)
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
            classifier = make_pipeline(StandardScaler(), regression).fit(train.numpy(), classes)
        if regression.n_iter_.max() == options.iterations:
            display.say("Solver", f"stopped after {options.iterations:,} iterations: allow more, --set iterations=N")
        scores = torch.zeros(len(test), len(task.names))  # a class to score may not have been learnt
        scores[:, classifier.classes_] = torch.from_numpy(classifier.predict_proba(test.numpy())).float()
        return accuracies(scores, task.test.classes)

    yield from task.train.partition.processes.broadcast_json(scored).items()


def _features(task: ProbeTask, display: Display, *, reduced: bool) -> tuple[Tensor, Tensor]:
    """Return the features of all images to learn from, and those of this rank's images to score."""
    reduction = task.reduction if reduced else None

    def features(images: Tensor) -> Tensor:
        compute = Compute.of(
            task.network, images, size=task.image_size, batch_size=task.batch_size, progress=display.progress
        )
        rows = extract(task.network, images, compute).cpu().float()
        # In place: a copy would double the memory.
        return F.normalize(rows, eps=1e-12, out=rows) if reduction is None else reduction(rows)

    return task.train.partition.all_gather(features(task.train.images)), features(task.test.images)


def weighted_votes(
    train: Tensor, classes: Tensor, test: Tensor, counts: Sequence[int], temperature: float, of: int
) -> list[Tensor]:
    """Return for every k in ``counts`` the votes of the k nearest rows, weighted by exp(cosine / temperature).

    Rows of ``train`` (N x D, of ``classes``) and ``test`` (M x D) have length 1. The votes are shares, M x ``of``.
    """
    cosines, rows = nearest(test, max(counts), train)
    votes = []
    for k in counts:
        # Subtracting the largest changes no share, and keeps exp(1 / .01) within float32.
        weights = ((cosines[:, :k] - cosines[:, :1]) / temperature).exp()
        shares = weights / weights.sum(1, keepdim=True)
        votes.append(torch.zeros(len(test), of).scatter_add_(1, classes[rows[:, :k]], shares))
    return votes
