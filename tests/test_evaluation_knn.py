"""The protocol ``knn`` against scikit-learn and by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from deepcluster.evaluation import KnnOptions
from deepcluster.evaluation.common import Labelled, ProbeTask, knn, weighted_votes
from deepcluster.nets.network import build
from deepcluster.runtime.partition import Partition
from tests.drawings import drawings


def points(count: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, 12, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_as_scikit_learn(temperature):
    train, test = points(333, 0), points(100, 1)
    classes = torch.randint(4, (333,), generator=torch.Generator().manual_seed(2))
    counts = [20, 5, 333]
    for k, votes in zip(counts, weighted_votes(train, classes, test, counts, temperature, 4), strict=True):
        theirs = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
        )
        theirs.fit(train.numpy(), classes.numpy())
        np.testing.assert_allclose(votes.numpy(), theirs.predict_proba(test.numpy()), atol=2e-5)


def test_by_hand():
    # Cosines .6, .8 and 0 to the test row: by number it is class 0 (twice), by weight class 1 where T is small.
    train = torch.tensor([[0.6, 0.8], [0.8, 0.6], [0.6, -0.8]])
    test, classes = torch.tensor([[1.0, 0.0]]), torch.tensor([0, 1, 0])
    for temperature in (0.1, 10.0):
        (votes,) = weighted_votes(train, classes, test, [3], temperature, 2)
        low, high = 2 * math.exp(0.6 / temperature), math.exp(0.8 / temperature)
        assert votes[0].tolist() == pytest.approx([low / (low + high), high / (low + high)], abs=1e-6)
    assert votes[0].argmax() == 0
    assert weighted_votes(train, classes, test, [3], 0.1, 2)[0].argmax() == 1


def test_a_small_temperature_does_not_overflow():
    (votes,) = weighted_votes(points(50, 0), torch.arange(50) % 3, points(9, 1), [50], 1e-3, 3)
    assert torch.isfinite(votes).all()


def task_of(seed: int = 0) -> ProbeTask:
    images, kinds = drawings(12, size=16)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    images, classes = images[order], torch.tensor(kinds)[order]
    train = Labelled(images[:24], classes[:24], Partition.single(24))
    test = Labelled(images[24:], classes[24:], Partition.single(12))
    network = build("compact", image_size=16, seed=seed).eval()
    return ProbeTask(network, train, test, ("bars", "blob", "checks"), 16, 8, seed)


def test_the_protocol_on_the_features_of_the_backbone():
    task = task_of()
    figures = dict(knn(task, KnnOptions(neighbours="3,1000")))
    assert list(figures) == ["train_images", "images", "classes", "chance", "top1_k3", "top1_k24"]
    most = int(torch.bincount(task.train.classes).argmax())
    assert figures["chance"] == pytest.approx(float((task.test.classes == most).float().mean()))

    with torch.no_grad():
        train, test = (
            F.normalize(task.network.features(each.images.float() / 255)) for each in (task.train, task.test)
        )
    theirs = KNeighborsClassifier(3, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    right = theirs.fit(train, task.train.classes).score(test, task.test.classes)
    assert figures["top1_k3"] == pytest.approx(right)
