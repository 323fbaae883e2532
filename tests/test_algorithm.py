"""The alternation: its rounds are what they say, and what one step makes is what the next one uses."""

import itertools
import math
import time

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from deepcluster.algorithm import alternate, conclude
from deepcluster.clustering import kmeans, whiten
from deepcluster.clustering.agreement import Drift, compared, nmi, repeated
from deepcluster.clustering.kmeans import KMeans
from deepcluster.clustering.whitening import Reduction
from deepcluster.errors import DataError
from deepcluster.images.views import Augmentation, each_once
from deepcluster.learning import Learning
from deepcluster.learning.heads import CentroidHead, CrossEntropy, WithInstances, new_linear_head, repeated_weight
from deepcluster.nets.network import build
from deepcluster.place import Stopwatch
from deepcluster.seeding import generator
from tests.drawings import drawings
from tests.loop import loop

OPTIONS = {"clusters": 6, "batch_size": 16, "views": [Augmentation(crop=(0.5, 1))], "dims": 16, "lr": 0.05}


def network(seed: int = 0):
    return build("compact", image_size=24, seed=seed)


def weights(net) -> torch.Tensor:
    return torch.cat([value.detach().double().flatten() for value in net.body.state_dict().values()])


class Watched:
    """Head, loss, sample and progress of a loop, which write down what the training of each round gets."""

    def __init__(self, head=new_linear_head, loss=None):
        self.labels, self.features, self.weights, self.passes = [], [], [], 0
        self.watched_head, self.loss = head, loss or CrossEntropy()
        self.sums_images, self.cluster_weight = self.loss.sums_images, self.loss.cluster_weight
        self.options = {"sample": self.sample, "progress": self.progress, "head": self.head, "loss": self}

    def __call__(self, outputs, cluster_weight, processes):
        self.weights.append(cluster_weight)
        return self.loss(outputs, cluster_weight, processes)

    def head(self, network, features, *rest):
        self.features.append(features.clone())
        self.watched_head(network, features, *rest)

    def sample(self, labels, draws, random):  # labels: by which the images of an epoch are drawn
        self.labels.append(labels.clone())
        return each_once(labels, draws, random)

    def progress(self, phase, done, total):
        self.passes += phase == "features" and done == total


def test_rounds_are_what_they_say():
    images, _ = drawings(10)
    options = {**OPTIONS, "lr": lambda time: 0.1 / (math.floor(time) + 1)}
    rounds = list(loop(network(), images, rounds=3, **options))
    assert [round.index for round in rounds] == [0, 1, 2]
    assert [round.lr for round in rounds] == pytest.approx([0.1, 0.05, 0.1 / 3])
    assert math.isnan(rounds[0].nmi_previous) and math.isnan(rounds[0].changed)
    for before, after in itertools.pairwise(rounds):
        gone_on = kmeans(after.reduced, 6, start=before.clustering.labels).labels
        assert (after.nmi_previous, after.changed) == pytest.approx(compared(before.clustering.labels, gone_on))
        assert after.change == pytest.approx(1 - after.nmi_previous)
    for round in rounds:
        assert round.chance_loss == pytest.approx(math.log(6))
        assert round.clustering.labels.shape == (30,) and round.clustering.sizes.sum() == len(round.reduced) == 30


@pytest.mark.parametrize("renumber", [False, True])
def test_the_labels_trained_on_are_the_labels_recorded(renumber):
    """Renumbered, by the released code: positions among the clusters that are not empty."""
    images = drawings(3)[0].repeat(4, 1, 1, 1)  # 9 distinct images, so 3 of 12 clusters are empty
    watched, net = Watched(), network()
    options = {**OPTIONS, "clusters": 12, "empty": "faiss", "renumber": renumber, **watched.options}
    for round in loop(net, images, rounds=2, **options):
        labels = round.clustering.labels
        assert torch.equal(round.state.previous[:, 0], labels) and labels.max() > 8
        assert torch.equal(watched.labels[-1], torch.unique(labels, return_inverse=True)[1] if renumber else labels)
        assert net.head.out_features == 12


def test_same_seed_bit_identical_other_seed_not():
    images, _ = drawings(8)

    def run(seed):
        net = network(seed)
        labels = [round.clustering.labels for round in loop(net, images, rounds=2, seed=seed, **OPTIONS)]
        result = conclude(net, images, clusters=6, seed=seed, reduction=Reduction(16))
        return weights(net), torch.stack(labels), result.reduced

    first, second, other = run(0), run(0), run(1)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0]) and not torch.equal(first[1], other[1])


@pytest.mark.parametrize("form", [np.asarray, lambda x: np.asarray(x.permute(0, 2, 3, 1)), lambda x: x.float() / 255])
def test_arrays_and_any_module(form):
    """The loop sees the same pixels in each form, and trains a plain module as it trains a Network."""
    images = drawings(10)[0]

    def rounds(net, pixels):
        return [round.loss for round in alternate(net, pixels, clusters=4, rounds=2, learning=Learning(batch_size=16))]

    module = network().body
    assert rounds(module, form(images)) == rounds(network(), images)
    assert any((a != b).any() for a, b in zip(module.parameters(), network().body.parameters(), strict=True))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((4, 8, 8), np.uint8), "shape"),
        (np.full((4, 3, 8, 8), 7.0), r"from 7 to 7"),
        (torch.zeros(4, 3, 8, 9), "shape"),
    ],
)
def test_what_the_loop_refuses(images, words):
    with pytest.raises(DataError, match=words):
        next(alternate(network(), images, clusters=2, rounds=1))


@pytest.mark.parametrize("start", ["random", "previous"])
def test_a_network_that_stands_still_has_settled(start):
    """From random rows k-means finds other clusters in the same features (an NMI of .4 here)."""
    net = network()
    net.frozen_statistics = True
    options = {**OPTIONS, "lr": 0.0, "start": start, "tolerance": 0.02}
    rounds = list(loop(net, drawings(10)[0], rounds=20, **options))
    assert len(rounds) == 4
    assert all(round.nmi_previous > 0.98 for round in rounds[1:])
    others = [nmi(rounds[0].clustering.labels, round.clustering.labels) for round in rounds[1:]]
    assert (min(others) < 0.9) == (start == "random")


def test_the_rounding_of_an_nmi_is_no_change():
    labels = torch.arange(4)
    assert Drift(labels, labels, nmi=1 - 4e-16).settled(0.0)
    assert not Drift(labels, labels, nmi=1 - 1e-8).settled(0.0)
    assert not Drift(None, labels).settled(1.0)


@pytest.mark.parametrize("clusters", [6, (6, 3)])
def test_k_means_may_start_from_the_previous_clusters(clusters):
    options = {**OPTIONS, "clusters": clusters, "start": "previous"}
    first, second = loop(network(), drawings(10)[0], rounds=2, **options)
    expected = kmeans(second.reduced, 6, start=first.clustering.labels, iterations=20).labels
    assert torch.equal(second.clustering.labels, expected)
    assert second.nmi_previous == pytest.approx(nmi(first.clustering.labels, second.clustering.labels))
    with pytest.raises(ValueError, match="start='last': choose random"):
        KMeans(start="last")


def test_the_head_is_new_each_round():
    net = network()
    options = {**OPTIONS, "lr": 0.0}
    heads = [net.head.weight.detach().clone() for _ in loop(net, drawings(6)[0], rounds=2, **options)]
    assert not torch.equal(*heads)
    assert all(head.std().item() == pytest.approx(0.01, rel=0.2) for head in heads)


def test_conclude_is_a_fixed_function_of_the_network():
    result = conclude(network(), drawings(8)[0], clusters=5, reduction=Reduction(8), clustering=KMeans(spherical=True))
    assert torch.allclose(result.reduced.norm(dim=1), torch.ones(24), atol=1e-5)
    nearest = torch.cdist(result.reduced, result.clustering.centroids).argmin(1)
    assert torch.equal(nearest, result.clustering.labels)
    assert not torch.allclose(result.clustering.centroids.norm(dim=1), torch.ones(5), atol=1e-3)


def shapes_in(net, images, kinds) -> float:
    """NMI of the shapes and of three clusters of a network's features."""
    reduced = conclude(net, images, clusters=6, reduction=Reduction(whitening=0.5)).reduced
    clusterings = [kmeans(reduced, 3, seed=seed) for seed in range(5)]
    return nmi(kinds, min(clusterings, key=lambda clustering: clustering.inertia).labels)


COLOURLESS = Augmentation(crop=(0.5, 1.0), stretch=1.1, flip=0.5, colour=0.4, grey=1.0)


def test_it_finds_shapes_where_the_untrained_network_does_not():
    """The method itself on a planted case: shapes in random colours and places, so the views take the colours away."""
    images, kinds = drawings(40, seed=3)
    net = network()
    before = shapes_in(net, images, kinds)
    for _ in loop(net, images, rounds=5, epochs=6, **{**OPTIONS, "views": [COLOURLESS], "dims": 256}, whitening=0.5):
        pass
    assert before < 0.75
    assert shapes_in(net, images, kinds) > 0.9


@pytest.mark.parametrize(("reuse_features", "passes"), [(False, 3), (True, 1)])
def test_where_the_features_come_from(reuse_features, passes):
    watched = Watched()
    options = {**OPTIONS, **watched.options, "reuse_features": reuse_features}
    rounds = list(loop(network(), drawings(10)[0], rounds=3, **options))
    assert watched.passes == passes
    assert all((round.state.features is not None) is reuse_features for round in rounds)
    for round, features in zip(rounds, watched.features, strict=True):
        assert torch.equal(round.reduced, whiten(features, 16)(features))


def test_the_steps_are_timed_by_the_calls_of_progress():
    told, watch = [], Stopwatch(lambda *call: told.append(call[0]))
    rounds = loop(network(), drawings(4)[0], rounds=2, **OPTIONS, reuse_features=True, progress=watch)
    for index in range(2):
        watch.start()
        begin = time.perf_counter()
        next(rounds)
        seconds, passed = watch.seconds(), time.perf_counter() - begin
        assert (seconds["features"] > 0) == (index == 0)  # the second round clusters what training saw
        assert min(seconds["clustering"], seconds["training"]) > 0
        assert sum(seconds.values()) == pytest.approx(passed, abs=0.02)
    assert set(told) == {"features", "clustering", "training"}


V2 = {
    "clusters": (4, 6, 8), "batch_size": 16, "views": [Augmentation(crop=(0.5, 1))] * 2, "lr": 0.05, "dims": None,
    "spherical": True, "head": CentroidHead(0.1), "reuse_features": True, "sample": each_once,
}  # fmt: skip


def v2_network():
    return build("compact", image_size=24, projection=(32, 8))


def test_version_2_runs_through_the_same_alternation():
    """Several clusterings of the embeddings as they are, the mean directions of their clusters as classifiers."""
    watched, net = Watched(head=V2["head"]), v2_network()
    for i, round in enumerate(loop(net, drawings(10)[0], rounds=3, **{**V2, **watched.options})):
        rows, labels = F.normalize(watched.features[i].float(), dim=1), round.state.previous
        assert torch.allclose(round.reduced, rows, atol=1e-6)
        assert round.chance_loss == pytest.approx((math.log(4) + math.log(6) + math.log(8)) / 3)
        assert torch.equal(labels[:, 0], round.clustering.labels)
        means = [rows[labels[:, i] == k].mean(0) for i, number in enumerate((4, 6, 8)) for k in range(number)]
        assert torch.allclose(net.head.directions, F.normalize(torch.stack(means), dim=1), atol=1e-4)
        # No empty cluster, so no centroid that nothing belongs to.
        assert [len(column.unique()) for column in labels.T] == [4, 6, 8]
    assert not torch.equal(watched.features[0], watched.features[1])


def test_version_2_takes_as_many_clusters_as_there_are_images_and_no_more():
    images, _ = drawings(4)
    (round,) = loop(v2_network(), images, rounds=1, **{**V2, "clusters": (12, 3)})
    assert math.isfinite(round.loss)
    with pytest.raises(ValueError, match="k=13 must be at least 1 and at most the number of rows, 12"):
        next(loop(v2_network(), images, rounds=1, **{**V2, "clusters": (3, 13)}))


@pytest.mark.slow
@pytest.mark.parametrize("reuse_features", [False, True])
def test_version_2_finds_shapes(reuse_features):
    # Of eight runs (seeds 0 to 3) one joins two kinds, by the last digits of a processor with AVX-512: seed 0.
    images, kinds = drawings(40, seed=3)
    net = v2_network()
    options = {**V2, "clusters": (6, 12), "views": [COLOURLESS] * 2, "epochs": 3, "seed": 1}
    for round in loop(net, images, rounds=8, **{**options, "reuse_features": reuse_features}):
        assert round.loss < 2 * round.chance_loss
    assert shapes_in(net, images, kinds) > 0.9


def test_pseudo_labels_are_trusted_as_far_as_they_repeat():
    labels = torch.arange(400) % 8
    shuffled = labels[torch.randperm(400, generator=generator(0, "x"))]
    assert repeated_weight(None, labels, 0, 0) == 0
    assert repeated_weight(labels, labels, 0, 1) == pytest.approx(1)
    assert repeated_weight(labels, shuffled, 0, 1) < 0.01
    half = torch.where(torch.arange(400) < 300, labels, shuffled)
    share = repeated(labels, half, generator(0, "chance", 1))
    assert repeated_weight(labels, half, 0, 1) == pytest.approx(1 / (1 + ((1 - share) / share) ** 2))


@pytest.mark.parametrize("loss", [None, WithInstances(0.2)])
def test_the_weight_of_the_clusters_reaches_the_training(loss):
    watched = Watched(V2["head"], loss)
    rounds = list(loop(v2_network(), drawings(10)[0], rounds=3, **{**V2, **watched.options}))

    def weight(before, after):
        labels = before.clustering.labels
        return repeated_weight(labels, kmeans(after.reduced, 4, start=labels, spherical=True).labels, 0, after.index)

    expected = [0.0, *itertools.starmap(weight, itertools.pairwise(rounds))] if loss else [1.0] * 3
    assert [round.cluster_weight for round in rounds] == expected
    assert watched.weights == [each for each in expected for _ in range(2)]  # two optimizer steps a round
