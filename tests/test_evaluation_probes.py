"""The protocols ``knn`` and ``few``: votes against scikit-learn and by hand; labels, learning rates and learning."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F
from torch.optim import SGD

from deepcluster.errors import NonFiniteError, UsageError
from deepcluster.evaluation import FewLabelsOptions, KnnOptions
from deepcluster.evaluation import few as room
from deepcluster.evaluation.common import Labelled, ProbeTask, knn, weighted_votes
from deepcluster.evaluation.few import class_balanced, few
from deepcluster.images.views import fixed_view
from deepcluster.nets.network import build
from deepcluster.runtime.partition import Partition
from tests.drawings import drawings
from tests.helpers.features import normal


def task_of(seed: int = 0) -> ProbeTask:
    images, kinds = drawings(40, size=18)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    images, kinds = images[order], torch.tensor(kinds)[order]
    network = build("compact", image_size=16, seed=0).eval()
    train = Labelled(images[:90], kinds[:90], Partition.single(90))
    test = Labelled(images[90:], kinds[90:], Partition.single(30))
    return ProbeTask(network, train, test, ("bars", "blob", "checks"), 16, 16, seed)


# knn


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_as_scikit_learn(temperature):
    train, test = F.normalize(normal(333, 12, 0)), F.normalize(normal(100, 12, 1))
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
    (votes,) = weighted_votes(
        F.normalize(normal(50, 12, 0)), torch.arange(50) % 3, F.normalize(normal(9, 12, 1)), [50], 1e-3, 3
    )
    assert torch.isfinite(votes).all()


def test_the_protocol_on_the_features_of_the_backbone():
    task = task_of()
    figures = dict(knn(task, KnnOptions(neighbours="3,1000")))
    assert list(figures) == ["train_images", "images", "classes", "chance", "top1_k3", "top1_k90"]
    most = int(torch.bincount(task.train.classes).argmax())
    assert figures["chance"] == pytest.approx(float((task.test.classes == most).float().mean()))

    with torch.no_grad():
        train, test = (
            F.normalize(task.network.features(fixed_view(part.images, 16))) for part in (task.train, task.test)
        )
    theirs = KNeighborsClassifier(3, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    right = theirs.fit(train, task.train.classes).score(test, task.test.classes)
    assert figures["top1_k3"] == pytest.approx(right)


# few


def test_as_many_of_each_class():
    classes = torch.tensor([0] * 700 + [1] * 250 + [2] * 50)
    rows = class_balanced(classes, 0.03, torch.Generator().manual_seed(0))
    assert classes[rows].bincount().tolist() == [10, 10, 10]
    assert rows.unique().tolist() == rows.tolist()
    assert class_balanced(classes, 0.5, torch.Generator())[-50:].tolist() == list(range(950, 1000))  # all there are
    assert classes[class_balanced(classes, 1e-9, torch.Generator())].tolist() == [0, 1, 2]  # at least one
    others = class_balanced(classes, 0.03, torch.Generator().manual_seed(1))
    assert others.tolist() != rows.tolist()
    assert class_balanced(classes, 0.03, torch.Generator().manual_seed(0)).tolist() == rows.tolist()


def test_it_learns_and_leaves_the_network_alone():
    task = task_of()
    before = {name: value.clone() for name, value in task.network.state_dict().items()}
    figures = dict(few(task, FewLabelsOptions(shares="0.1,1", epochs=25, batch_size=18, lr="0.5", head_lr="2")))
    assert (figures["10%_labels"], figures["100%_labels"]) == (
        9,
        sum(min(30, int(n)) for n in task.train.classes.bincount()),
    )
    assert figures["chance"] < 0.5 < 0.9 <= figures["100%_top1"]
    assert all(torch.equal(value, before[name]) for name, value in task.network.state_dict().items())
    assert task.network.head is None
    assert not task.network.training


def test_it_depends_on_the_seed_alone_and_not_on_the_other_shares():
    options = {"epochs": 2, "batch_size": 9, "lr": "0.1", "head_lr": "1"}
    both = dict(few(task_of(), FewLabelsOptions(shares="0.1,0.3", **options)))
    torch.rand(7)
    alone = dict(few(replace(task_of(), batch_size=7), FewLabelsOptions(shares="0.3", **options)))
    assert alone.items() <= both.items()  # images are scored on their own
    assert dict(few(task_of(3), FewLabelsOptions(shares="0.3", **options)))["30%_loss"] != both["30%_loss"]


def test_the_steps(monkeypatch):
    seen = []

    class Watched(SGD):
        def step(self, closure=None):
            seen.append(tuple(group["lr"] for group in self.param_groups))
            return super().step(closure)

    monkeypatch.setattr(room, "SGD", Watched)
    dict(few(task_of(), FewLabelsOptions(shares="0.1", epochs=10, lr="0.02", head_lr="5")))
    # 9 images are a batch: 9/256 of the steps; a fifth from 6 of 10 epochs on, a 25th from 8 on.
    factors = [1] * 6 + [0.2] * 2 + [0.04] * 2
    assert seen == [pytest.approx((0.02 * 9 / 256 * each, 5 * 9 / 256 * each)) for each in factors]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"shares": "2"}, "at most 1"), ({"lr": "1,2,3"}, "2 numbers, one a share"), ({"head_lr": "much"}, "head_lr")],
)
def test_options_that_are_none(options, said):
    with pytest.raises(UsageError, match=said):
        list(few(task_of(), FewLabelsOptions(**options)))


def test_steps_that_are_too_large():
    with pytest.raises(NonFiniteError, match=r"10%.*head_lr"):
        list(
            few(
                task_of(),
                FewLabelsOptions(shares="0.1", head_lr="9e8", lr="9e8", momentum=0.99, weight_decay=9e8, epochs=9),
            )
        )
