import inspect
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from deepcluster import algorithm
from deepcluster.algorithm import alternate, conclude
from deepcluster.clustering import kmeans, whiten
from deepcluster.clustering.agreement import Drift, changed, nmi, repeated
from deepcluster.clustering.kmeans import KMeans
from deepcluster.clustering.whitening import Reduction
from deepcluster.errors import DataError
from deepcluster.images.views import Augmentation, each_once
from deepcluster.learning import Learning
from deepcluster.learning.heads import CentroidHead, WithInstances, repeated_weight
from deepcluster.learning.training import renumbered
from deepcluster.nets.network import build
from deepcluster.seeding import generator
from tests.drawings import drawings
from tests.loop import loop

OPTIONS = {"clusters": 6, "batch_size": 16, "views": [Augmentation(crop=(0.5, 1))], "dims": 16, "lr": 0.05}


def network(seed: int = 0):
    return build("compact", image_size=24, seed=seed)


def weights(net) -> torch.Tensor:
    return torch.cat([value.detach().double().flatten() for value in net.body.state_dict().values()])


@pytest.fixture
def trainings(monkeypatch) -> list[SimpleNamespace]:
    """What each training got (the memory also as it was afterwards)."""
    recorded: list[SimpleNamespace] = []
    original = algorithm.train_on_pseudo_labels

    def train(network, images, labels, *arguments, memory, cluster_weight, **options):
        directions = getattr(network.head, "directions", torch.empty(0)).clone()
        before = None if memory is None else memory.clone()
        loss = original(network, images, labels, *arguments, memory=memory, cluster_weight=cluster_weight, **options)
        assert torch.equal(getattr(network.head, "directions", directions), directions)  # a training leaves them alone
        after = None if memory is None else memory.clone()
        recorded.append(
            SimpleNamespace(
                labels=labels.clone(),
                outputs=getattr(network.head, "out_features", None),
                directions=directions,
                memory=before,
                memory_after=after,
                cluster_weight=cluster_weight,
            )
        )
        return loss

    monkeypatch.setattr(algorithm, "train_on_pseudo_labels", train)
    return recorded


def test_rounds_are_what_they_say():
    images, _ = drawings(10)
    rounds = list(loop(network(), images, rounds=3, **OPTIONS))
    assert [round.index for round in rounds] == [0, 1, 2]
    assert math.isnan(rounds[0].nmi_previous)
    assert math.isnan(rounds[0].changed)
    for before, after in itertools.pairwise(rounds):
        gone_on = kmeans(after.reduced, 6, start=before.clustering.labels).labels
        assert after.nmi_previous == pytest.approx(nmi(before.clustering.labels, gone_on))
        assert after.changed == pytest.approx(changed(before.clustering.labels, gone_on))
        assert after.change == pytest.approx(1 - after.nmi_previous)
    for round in rounds:
        assert round.chance_loss == pytest.approx(math.log(6))
        assert round.clustering.labels.shape == (30,)
        assert round.clustering.sizes.sum() == 30
        assert round.reduced.shape[0] == 30
        assert round.lr == 0.05


def test_the_labels_trained_on_are_the_labels_recorded(trainings):
    images, _ = drawings(10)
    rounds = list(loop(network(), images, rounds=3, **OPTIONS))
    for training, round in zip(trainings, rounds, strict=True):
        assert torch.equal(training.labels[:, 0], round.clustering.labels)


def test_renumbered_labels_are_places_among_the_clusters_that_are_not_empty():
    assert renumbered(torch.tensor([7, 2, 7, 5])).tolist() == [2, 0, 2, 1]
    drawn_by = []

    def sample(labels, count, random):
        drawn_by.append(labels)
        return each_once(labels, count, random)

    images, _ = drawings(3)
    images = images.repeat(4, 1, 1, 1)  # 9 distinct images, so 3 of 12 clusters are empty
    options = {**OPTIONS, "clusters": 12, "empty": "faiss", "lr": 0.0, "sample": sample}
    (ours,) = loop(network(), images, rounds=1, **options)
    (theirs,) = loop(network(), images, rounds=1, **options, renumber=True)
    assert torch.equal(ours.clustering.labels, theirs.clustering.labels)
    numbers, renumbered_ones = drawn_by
    assert torch.equal(numbers, ours.clustering.labels)
    assert renumbered_ones.unique().tolist() == list(range(9))
    assert numbers.max() > 8
    assert all(len(renumbered_ones[numbers == number].unique()) == 1 for number in numbers.unique())


def test_a_round_really_uses_its_pseudo_labels():
    """The head after round 0 predicts the recorded labels of the images far better than chance."""
    images, _ = drawings(20)
    net = network()
    (round,) = loop(net, images, rounds=1, **{**OPTIONS, "epochs": 40, "views": [Augmentation(crop=(1, 1))]})
    net.eval()
    with torch.no_grad():
        predicted = net(images.float() / 255).argmax(1)
    assert (predicted == round.clustering.labels).float().mean() > 0.8


def test_same_seed_bit_identical_other_seed_not():
    images, _ = drawings(8)

    def run(seed):
        net = network(seed)
        rounds = list(loop(net, images, rounds=2, seed=seed, **OPTIONS))
        result = conclude(net, images, clusters=6, seed=seed, reduction=Reduction(16))
        return weights(net), torch.stack([round.clustering.labels for round in rounds]), result.reduced

    first, second, other = run(0), run(0), run(1)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])


def test_nothing_happens_before_iteration():
    images, _ = drawings(4)
    net = network()
    before = weights(net)
    generator = loop(net, images, rounds=2, **OPTIONS)
    assert inspect.isgenerator(generator)
    assert torch.equal(weights(net), before)
    next(generator)
    assert not torch.equal(weights(net), before)


@pytest.mark.parametrize("form", [np.asarray, lambda x: np.asarray(x.permute(0, 2, 3, 1)), lambda x: x.float() / 255])
def test_arrays_and_any_module(form):
    """The loop sees the same pixels in each form, and trains a plain module as it trains a Network."""
    images = drawings(40)[0]

    def rounds(net, pixels):
        return [round.loss for round in alternate(net, pixels, clusters=4, rounds=2, learning=Learning(batch_size=16))]

    module = network().body
    losses = rounds(module, form(images))
    assert losses == rounds(network(), images)
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


def test_ends_when_settled():
    images, _ = drawings(8)
    # With no learning the features stay, and one cluster can only be assigned in one way.
    rounds = list(loop(network(), images, rounds=50, **{**OPTIONS, "clusters": 1, "lr": 0.0}, patience=3))
    assert len(rounds) == 4
    assert rounds[-1].changed == 0


@pytest.mark.parametrize("start", ["random", "previous"])
def test_a_network_that_stands_still_has_settled(start):
    """From random rows k-means finds other clusters in the same features (an NMI of .4 here)."""
    images, _ = drawings(10)
    net = network()
    net.frozen_statistics = True
    options = {**OPTIONS, "lr": 0.0, "start": start, "tolerance": 0.02}
    rounds = list(loop(net, images, rounds=20, **options))
    assert len(rounds) == 4
    assert all(round.nmi_previous > 0.98 for round in rounds[1:])
    others = [nmi(rounds[0].clustering.labels, round.clustering.labels) for round in rounds[1:]]
    assert (min(others) < 0.9) == (start == "random")


@pytest.mark.parametrize("clusters", [6, (6, 3)])
def test_k_means_may_start_from_the_previous_clusters(clusters):
    images, _ = drawings(10)
    options = {**OPTIONS, "clusters": clusters, "start": "previous"}
    first, second = loop(network(), images, rounds=2, **options)
    assert torch.equal(
        second.clustering.labels, kmeans(second.reduced, 6, start=first.clustering.labels, iterations=20).labels
    )
    assert second.nmi_previous == pytest.approx(nmi(first.clustering.labels, second.clustering.labels))
    with pytest.raises(ValueError, match="start='last': choose random"):
        KMeans(start="last")


def test_the_rounding_of_an_nmi_is_no_change():
    labels = torch.arange(4)
    assert Drift(labels, labels, nmi=1 - 4e-16).settled(0.0)
    assert not Drift(labels, labels, nmi=1 - 1e-8).settled(0.0)
    assert not Drift(None, labels).settled(1.0)


def test_the_learning_rate_may_depend_on_the_round():
    images, _ = drawings(4)
    rounds = list(loop(network(), images, rounds=3, **{**OPTIONS, "lr": lambda index: 0.1 / (index + 1)}))
    assert [round.lr for round in rounds] == pytest.approx([0.1, 0.05, 0.1 / 3])


def test_the_head_is_new_each_round():
    images, _ = drawings(6)
    net = network()
    heads = []
    for _ in loop(net, images, rounds=2, **{**OPTIONS, "lr": 0.0}):
        heads.append(net.head.weight.detach().clone())
    assert not torch.equal(*heads)
    assert all(head.std().item() == pytest.approx(0.01, rel=0.2) for head in heads)


def test_conclude_is_a_fixed_function_of_the_network():
    images, _ = drawings(8)
    net = network()
    result = conclude(net, images, clusters=5, reduction=Reduction(8))
    assert torch.allclose(result.reduced.norm(dim=1), torch.ones(24), atol=1e-5)
    nearest = torch.cdist(result.reduced, result.clustering.centroids).argmin(1)
    assert torch.equal(nearest, result.clustering.labels)


def test_it_finds_shapes_where_the_untrained_network_does_not():
    """The method itself on a planted case: shapes in random colours and places, so the views take the colours away."""
    images, kinds = drawings(40, seed=3)

    def agreement(net) -> float:
        reduced = conclude(net, images, clusters=6, reduction=Reduction(whitening=0.5)).reduced
        return nmi(kinds, min((kmeans(reduced, 3, seed=i) for i in range(5)), key=lambda found: found.inertia).labels)

    net = network()
    before = agreement(net)
    how = Augmentation(crop=(0.5, 1.0), stretch=1.1, flip=0.5, colour=0.4, grey=1.0)
    for _ in loop(net, images, rounds=5, epochs=6, **{**OPTIONS, "views": [how], "dims": 256}, whitening=0.5):
        pass
    assert before < 0.75
    assert agreement(net) > 0.9


def test_the_loop_is_short():
    """It is to be read as the paper: the whole of it, signature and docstring included, on one screen."""
    assert len(inspect.getsource(alternate).splitlines()) <= 70
    assert len(inspect.signature(alternate).parameters) <= 14


@pytest.mark.parametrize(("reuse_features", "passes"), [(False, 3), (True, 1)])
def test_where_the_features_come_from(monkeypatch, trainings, reuse_features, passes):
    images, _ = drawings(10)
    extractions = []
    original = algorithm.extract
    monkeypatch.setattr(
        algorithm, "extract", lambda *args, **options: extractions.append(1) or original(*args, **options)
    )
    rounds = list(loop(network(), images, rounds=3, reuse_features=reuse_features, **OPTIONS))
    assert len(extractions) == passes
    memories = [training.memory_after for training in trainings]
    if not reuse_features:
        assert memories == [None] * 3
    else:
        for memory, later in zip(memories, rounds[1:], strict=False):
            assert torch.equal(later.reduced, whiten(memory, OPTIONS["dims"])(memory))


V2 = {
    "clusters": (4, 6, 8),
    "batch_size": 16,
    "views": [Augmentation(crop=(0.5, 1))] * 2,
    "lr": 0.05,
    "dims": None,
    "spherical": True,
    "head": CentroidHead(0.1),
    "reuse_features": True,
    "sample": each_once,
}


def v2_network():
    return build("compact", image_size=24, projection=(32, 8))


def test_version_2_runs_through_the_same_alternation(trainings):
    """Several clusterings of the embeddings as they are, the mean directions of their clusters as classifiers."""
    images, _ = drawings(10)
    rounds = list(loop(v2_network(), images, rounds=3, **V2))
    for round, training in zip(rounds, trainings, strict=True):
        rows, labels = F.normalize(training.memory.float(), dim=1), training.labels
        assert torch.allclose(round.reduced, rows, atol=1e-6)
        assert labels.shape == (30, 3)
        assert round.chance_loss == pytest.approx((math.log(4) + math.log(6) + math.log(8)) / 3)
        assert torch.equal(labels[:, 0], round.clustering.labels)
        means = [rows[labels[:, i] == k].mean(0) for i, number in enumerate((4, 6, 8)) for k in range(number)]
        assert torch.allclose(training.directions, F.normalize(torch.stack(means), dim=1), atol=1e-4)
        # No empty cluster, so no centroid that nothing belongs to.
        assert [len(column.unique()) for column in labels.T] == [4, 6, 8]
    assert not torch.equal(trainings[0].memory, trainings[1].memory)


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
    how = Augmentation(crop=(0.5, 1.0), stretch=1.1, flip=0.5, colour=0.4, grey=1.0)
    options = {**V2, "clusters": (6, 12), "views": [how, how], "epochs": 3, "seed": 1}
    options |= {"reuse_features": reuse_features}
    for round in loop(net, images, rounds=8, **options):
        assert round.loss < 2 * round.chance_loss
    reduced = conclude(net, images, clusters=6, reduction=Reduction(whitening=0.5)).reduced
    found = min((kmeans(reduced, 3, seed=i) for i in range(5)), key=lambda found: found.inertia).labels
    assert nmi(kinds, found) > 0.9


def test_pseudo_labels_are_trusted_as_far_as_they_repeat():
    labels = torch.arange(400) % 8
    shuffled = labels[torch.randperm(400, generator=generator(0, "x"))]
    assert repeated_weight(None, labels, 0, 0) == 0
    assert repeated_weight(labels, labels, 0, 1) == pytest.approx(1)
    assert repeated_weight(labels, shuffled, 0, 1) < 0.01
    half = torch.where(torch.arange(400) < 300, labels, shuffled)
    share = repeated(labels, half, generator(0, "chance", 1))
    assert repeated_weight(labels, half, 0, 1) == pytest.approx(1 / (1 + ((1 - share) / share) ** 2))


def test_the_weight_of_the_clusters_reaches_the_training(trainings):
    images, _ = drawings(10)
    rounds = list(loop(v2_network(), images, rounds=3, **V2, loss=WithInstances(0.2)))

    def weight(before, after):
        labels = before.clustering.labels
        return repeated_weight(labels, kmeans(after.reduced, 4, start=labels, spherical=True).labels, 0, after.index)

    weights = [training.cluster_weight for training in trainings]
    assert weights == [0.0, *(weight(*pair) for pair in itertools.pairwise(rounds))]
    assert [round.cluster_weight for round in rounds] == weights
    trainings.clear()
    rounds = list(loop(v2_network(), images, rounds=2, **V2))
    assert [training.cluster_weight for training in trainings] == [1.0, 1.0]
    assert [round.cluster_weight for round in rounds] == [1.0, 1.0]
