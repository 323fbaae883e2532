"""The alternation: its rounds are what they say, and what one step makes is what the next one uses."""

import copy
import itertools
import math
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from deepcluster import algorithm
from deepcluster.algorithm import alternate, conclude
from deepcluster.clustering import kmeans, whiten
from deepcluster.clustering.agreement import compared, is_settled, nmi, repeated
from deepcluster.clustering.kmeans import KMeans
from deepcluster.clustering.whitening import Reduction
from deepcluster.errors import DataError, DeepClusterWarning, UsageError
from deepcluster.fitting import fit
from deepcluster.images.views import Augmentation
from deepcluster.learning import Learning
from deepcluster.learning.draws import each_once
from deepcluster.learning.features import extract, features_of
from deepcluster.learning.heads import CentroidHead, CrossEntropy, WithInstances, new_linear_head
from deepcluster.learning.training import measure_statistics
from deepcluster.nets.network import as_network, build
from deepcluster.recipes.presets import read_request
from deepcluster.records import Clustering, State
from deepcluster.runtime.compute import Compute, Stopwatch
from deepcluster.seeding import generator
from tests.helpers.drawings import drawings
from tests.helpers.loop import loop
from tests.helpers.runs import OPTIONS as SMALL_FIT

OPTIONS = {"clusters": 6, "batch_size": 16, "views": [Augmentation(crop=(0.5, 1))], "dims": 16, "lr": 0.05}


def network(seed: int = 0):
    return build("compact", image_size=24, seed=seed)


class Watched:
    """Head, loss, sample and progress of a loop, which write down what the training of each round gets."""

    def __init__(self, head=new_linear_head, loss=None):
        self.labels, self.features, self.weights = [], [], []
        self.watched_head, self.loss = head, loss or CrossEntropy()
        self.sums_images, self.cluster_weight = self.loss.sums_images, self.loss.cluster_weight
        self.options = {"sample": self.sample, "head": self.head, "loss": self}

    def __call__(self, outputs, cluster_weight, processes):
        self.weights.append(cluster_weight)
        return self.loss(outputs, cluster_weight, processes)

    def head(self, network, features, *rest):
        self.features.append(features.rows.clone())
        self.watched_head(network, features, *rest)

    def sample(self, labels, draws, random):  # labels: by which the images of an epoch are drawn
        self.labels.append(labels.clone())
        return each_once(labels, draws, random)


def test_rounds_are_what_they_say():
    options = {**OPTIONS, "lr": lambda time: 0.1 / (math.floor(time) + 1)}
    rounds = list(loop(network(), drawings(10)[0], rounds=3, **options))
    assert [round.index for round in rounds] == [0, 1, 2]
    assert [round.lr for round in rounds] == pytest.approx([0.1, 0.05, 0.1 / 3])
    rises = {**OPTIONS, "lr": lambda time: 0.1 * min(1, 2 * time)}  # in the middle of a round: not 0 with a warm-up
    assert [round.lr for round in loop(network(), drawings(10)[0], rounds=1, **rises)] == [0.1]
    assert [round.chance_loss for round in rounds] == pytest.approx([math.log(6)] * 3)
    assert math.isnan(rounds[0].nmi_previous) and math.isnan(rounds[0].changed)
    for before, after in itertools.pairwise(rounds):
        gone_on = kmeans(after.reduced, 6, start=before.clustering.labels).labels
        assert (after.nmi_previous, after.changed) == pytest.approx(compared(before.clustering.labels, gone_on))
        assert after.change == pytest.approx(1 - after.nmi_previous)


def test_of_too_many_rows_some_are_clustered_and_all_get_the_nearest_centroids(monkeypatch):
    monkeypatch.setattr(algorithm, "MAX_CLUSTERED", 16)  # of 60: every fourth
    rows_of = []

    def recorded(rows, clusters, previous, **named):
        rows_of.append(rows)
        assert previous is None or len(previous) == 15
        return KMeans()(rows, clusters, previous, **named)

    for round in loop(network(), drawings(20)[0][:60], rounds=2, **OPTIONS, clustering=recorded):
        clustering = round.clustering
        assert torch.equal(rows_of.pop(), round.reduced[::4])
        assert torch.equal(clustering.labels, torch.cdist(round.reduced, clustering.centroids).argmin(1))
        assert torch.equal(clustering.sizes, clustering.labels.bincount(minlength=6))


@pytest.mark.parametrize("renumber", [False, True])
def test_the_labels_trained_on_are_the_labels_recorded(renumber):
    """Renumbered, by the released code: positions among the clusters that are not empty."""
    images = drawings(3)[0].repeat(4, 1, 1, 1)  # 9 distinct images, so 3 of 12 clusters are empty
    watched, net = Watched(), network()
    options = {**OPTIONS, "clusters": 12, "empty": "faiss", "renumber": renumber, **watched.options}
    for round in loop(net, images, rounds=2, **options):
        labels = round.clustering.labels
        assert torch.equal(round.state.previous[:, 0], labels) and labels.max() > 8 and net.head.out_features == 12
        assert torch.equal(watched.labels[-1], torch.unique(labels, return_inverse=True)[1] if renumber else labels)


@pytest.mark.parametrize("form", [np.asarray, lambda x: np.asarray(x.permute(0, 2, 3, 1)), lambda x: x.float() / 255])
def test_arrays_and_any_module(form):
    """The loop sees the same pixels in each form, and trains a plain module as it trains a Network."""
    images = drawings(10)[0]

    def rounds(net, pixels):
        k, learning = np.int64(4), Learning(batch_size=16)
        return [round.loss for round in alternate(net, pixels, clusters=k, rounds=2, learning=learning)]

    module = network().body
    assert rounds(module, form(images)) == rounds(network(), images)
    assert any((a != b).any() for a, b in zip(module.parameters(), network().body.parameters(), strict=True))


def test_the_loop_refuses_images_of_a_wrong_shape_or_range():
    whole = np.full((4, 3, 8, 8), 0.5)
    for images, words in ((whole[0], "shape"), (whole[..., 1:], "shape"), (14 * whole, "from 7 to 7")):
        with pytest.raises(DataError, match=words):
            next(alternate(network(), images, clusters=2, rounds=1))


def test_a_network_that_stands_still_has_settled_and_its_head_is_new_each_round():
    """From random rows k-means finds other clusters in the same features (an NMI of .4 here)."""
    net, rounds, heads = network(), [], []
    net.frozen_statistics = True
    options = {**OPTIONS, "lr": 0.0, "tolerance": 0.02}
    for round in loop(net, drawings(10)[0], rounds=20, **options):
        rounds.append(round)
        heads.append(net.head.weight.detach().clone())
    assert len(rounds) == 4 and not torch.equal(*heads[:2])
    assert [head.std().item() for head in heads] == pytest.approx([0.01] * 4, rel=0.2)
    assert all(round.nmi_previous > 0.98 for round in rounds[1:])
    others = [nmi(rounds[0].clustering.labels, round.clustering.labels) for round in rounds[1:]]
    assert min(others) < 0.9


@pytest.mark.parametrize(("nmi", "settled"), [(1 - 4e-16, True), (1 - 1e-8, False), (math.nan, False)])
def test_the_rounding_of_an_nmi_is_no_change(nmi, settled):
    assert is_settled(nmi, 0.0) is settled


def test_conclude_is_a_fixed_function_of_the_network():
    module = network().body.eval()
    result = conclude(module, drawings(8)[0], clusters=5, reduction=Reduction(8), clustering=KMeans(spherical=True))
    assert not any(part.training for part in module.modules())
    assert torch.allclose(result.reduced.norm(dim=1), torch.ones(24), atol=1e-5)
    nearest = torch.cdist(result.reduced, result.clustering.centroids).argmin(1)
    assert torch.equal(nearest, result.clustering.labels)
    assert not torch.allclose(result.clustering.centroids.norm(dim=1), torch.ones(5), atol=1e-3)


def test_the_differences_between_images_and_their_centre_crops_scale_the_features(monkeypatch):
    """In the rounds and in the result. Of 24 images, 7 are compared here: all as far apart."""
    monkeypatch.setattr("deepcluster.learning.features.MAX_PAIRS", 7)
    chosen = [0, 3, 7, 11, 15, 19, 23]
    images, net = drawings(8)[0], network()
    compute = Compute.of(net, images, size=21)
    features = extract(net, images, compute)
    pairs = features_of(net, images, compute, pairs=True).pairs
    framed = images[chosen].clone()
    framed[:, :, [0, 1, 2, 3, -4, -3, -2, -1]] = 255  # the crop is 15 of 24 px
    framed[..., [0, 1, 2, 3, -4, -3, -2, -1]] = 255
    assert torch.equal(pairs[0], features[chosen])
    assert torch.equal(pairs[1], extract(net, framed, Compute.of(net, framed, size=15)))
    reduction = Reduction(8, within_image=2.0)
    reduced = whiten(features, 8, pairs=(pairs, 2.0))(features)
    assert not torch.allclose(reduced, whiten(features, 8)(features), atol=0.01)
    assert torch.equal(conclude(net, images, clusters=5, reduction=reduction, compute=compute).reduced, reduced)
    rounds = alternate(net, images, clusters=5, rounds=1, reduction=reduction, compute=compute)
    assert torch.equal(next(rounds).reduced, reduced)


def test_the_smallest_images_are_their_own_centre_crops():
    net, images = build("compact", image_size=8, seed=0), drawings(3, size=8)[0]
    compute = Compute.of(net, images)
    assert torch.equal(*features_of(net, images, compute, pairs=True).pairs)


def shapes_in(net, images, kinds) -> float:
    """NMI of the shapes and of three clusters of a network's features."""
    reduced = conclude(net, images, clusters=6, reduction=Reduction(whitening=0.5)).reduced
    clusterings = [kmeans(reduced, 3, seed=seed) for seed in range(5)]
    return nmi(kinds, min(clusterings, key=lambda clustering: clustering.inertia).labels)


def test_it_finds_shapes_where_the_untrained_network_does_not():
    """The method itself on a planted case: shapes in random colours and places, so the views take the colours away."""
    images, kinds = drawings(40, seed=3)
    net = network()
    assert shapes_in(net, images, kinds) < 0.75
    views = [Augmentation(crop=(0.5, 1.0), stretch=1.1, flip=0.5, colour=0.4, grey=1.0)]
    list(loop(net, images, rounds=4, epochs=4, **{**OPTIONS, "views": views, "dims": 256}, whitening=0.5))
    assert shapes_in(net, images, kinds) > 0.9


@pytest.mark.parametrize("reuse_features", [False, True])
def test_where_the_features_come_from_and_how_long_the_steps_take(reuse_features, monkeypatch):
    clock = itertools.count()  # a second passes between two looks at it
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    phases, watch, watched = [], Stopwatch(lambda *call: phases.append(call[0])), Watched()
    options = {**OPTIONS, **watched.options, "reuse_features": reuse_features, "progress": watch}
    rounds = loop(network(), drawings(10)[0], rounds=3, **options)
    for index in range(3):
        begin = time.perf_counter()
        watch.start()
        round = next(rounds)
        seconds, passed = watch.seconds(), time.perf_counter() - begin
        features = watched.features[index]
        assert torch.equal(round.reduced, whiten(features, 16)(features))
        assert (round.state.features is not None) is reuse_features
        assert (seconds["features"] > 0) == (index == 0 or not reuse_features)  # else those that training saw
        assert min(seconds["clustering"], seconds["training"]) > 0
        assert sum(seconds.values()) == passed - 2  # none is lost between the first look of the watch and the last
    assert set(phases) == {"features", "clustering", "training"}


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
        assert torch.allclose(net.head.weight, F.normalize(torch.stack(means), dim=1), atol=1e-4)
        # No empty cluster, so no centroid that nothing belongs to.
        assert [len(column.unique()) for column in labels.T] == [4, 6, 8]
    assert not torch.equal(watched.features[0], watched.features[1])


@pytest.mark.parametrize("loss", [None, WithInstances(0.2)])
def test_pseudo_labels_are_trusted_as_far_as_they_repeat(loss):
    watched = Watched(V2["head"], loss)
    rounds = list(loop(v2_network(), drawings(10)[0], rounds=3, **{**V2, **watched.options}))
    expected = [0.0 if loss else 1.0]
    for before, after in itertools.pairwise(rounds):
        labels = before.clustering.labels
        again = kmeans(after.reduced, 4, start=labels, spherical=True).labels
        share = repeated(labels, again, generator(0, "chance", after.index))
        expected.append(1 / (1 + (1 / share - 1) ** 2) if loss else 1.0)
    assert [round.cluster_weight for round in rounds] == pytest.approx(expected)
    assert watched.weights == [round.cluster_weight for round in rounds for _ in range(2)]  # two optimizer steps


# ---- from the state after any round to the same end, bit by bit ------------------------------------------------------

LINEAR = {"clusters": 5, "dims": 8, "epochs": 2}
CENTROIDS = {**V2, "clusters": (4, 8), "epochs": 1, "loss": WithInstances(0.2)}
REST = {"rounds": 3, "batch_size": 10, "lr": lambda time: 0.05 * (1 - time / 3), "seed": 4}


def rounds_and_states(options, images, state=None, parameters=None):
    """Return for each round its labels with its NMI to those before, and what a checkpoint holds then."""
    network = build("compact", image_size=16, projection=(16, 8) if "reuse_features" in options else None, seed=1)
    if parameters is not None:
        network.load_state_dict(parameters)
    rounds, saved = [], []
    for round in loop(network, images, state=state or State(), **{**options, **REST}):
        rounds.append(torch.cat([round.clustering.labels, torch.tensor([round.nmi_previous]).nan_to_num(9)]))
        weights = {name: value for name, value in network.state_dict().items() if not name.startswith("head.")}
        saved.append(copy.deepcopy((round.state, weights)))
    return rounds, saved


@pytest.mark.parametrize("options", [LINEAR, CENTROIDS], ids=["linear", "centroids"])
def test_from_every_round_to_the_same_end(options):
    images, _ = drawings(8, 16)
    labels, saved = rounds_and_states(options, images)
    assert [state.round for state, _ in saved] == [1, 2, 3]
    for state, parameters in saved:
        got = rounds_and_states(options, images, copy.deepcopy(state), parameters)
        wanted = labels[state.round :], [(vars(then), weights) for then, weights in saved[state.round :]]
        got_saved = [(vars(then), weights) for then, weights in got[1]]
        torch.testing.assert_close((got[0], got_saved), wanted, rtol=0, atol=0)


def test_a_settled_alternation_stays_so():
    images, _ = drawings(8, 16)
    options = {**LINEAR, "tolerance": 1.0, "patience": 1}
    _, saved = rounds_and_states(options, images)
    end = saved[-1][0]
    assert (end.round, end.settled, len(saved)) == (2, 1, 2)
    assert rounds_and_states(options, images, end) == ([], [])


# ---- the network of a result: the mean of the weights before and after training --------------------------------------


def body(folder: Path) -> dict[str, Tensor]:
    """The network of a run's model."""
    tensors = load_file(folder / "model" / "model.safetensors")
    return {name: value for name, value in tensors.items() if name.startswith("body.")}


def test_after_several_rounds_it_is_the_mean_with_the_weights_before_the_last(fit_once):
    """But for the statistics, which are measured anew."""
    run = fit_once("--rounds", "2", "--set", "average=.25", "--keep-checkpoints")
    once, end = (load_file(run / f"checkpoints/00000{number}.safetensors") for number in (1, 2))
    for name, mean in body(run).items():
        parts = once[f"network.{name}"], end[f"network.{name}"]
        if mean.is_floating_point():
            assert torch.equal(mean, torch.lerp(*parts, 0.25)) != ("running_" in name), name
            assert not torch.equal(*parts) or not name.endswith("weight")


def test_the_statistics_of_averaged_weights_are_those_of_the_images():
    images = torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    network = as_network(nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 8)
    measure_statistics(network, images, Compute.of(network, images, batch_size=10), seed=0)
    seen = (images / 255 - network.mean) / network.std
    torch.testing.assert_close(network.body[0].running_mean, seen.mean((0, 2, 3)))
    torch.testing.assert_close(network.body[0].running_var, seen.var((0, 2, 3)), rtol=0.02, atol=0)

    deep = as_network(nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Flatten()), 8)
    for few, batch in ((images[:1], 10), (images[:3], 1)):  # of maps of 1 x 1
        measure_statistics(deep, few, Compute.of(deep, few, batch_size=batch), seed=0)


@pytest.mark.parametrize(
    ("sizes", "width", "collapsed"),
    [
        ([50, 30, 20], 4, False),
        ([60, 30, 10], 4, True),
        ([100, 0, 0], 1, True),
        ([40, 30, 30], 1, True),  # all features are alike
        ([40, 30, 30], 2, False),
        ([90, 10], 1, False),  # one of two has half of the images wherever training goes
        ([20, 5, 4], 4, False),  # too few images to tell
    ],
)
def test_a_collapse_is_one_cluster_or_equal_features(sizes, width, collapsed):
    clustering = Clustering(torch.empty(sum(sizes)), torch.empty(0), torch.tensor(sizes), 0.0, 1, 0)
    text = fit.collapse(SimpleNamespace(clustering=clustering, reduced=torch.zeros(sum(sizes), width)))
    assert ("--lr" in text) == bool(text) == collapsed


# Each step takes all of a weight away and adds a gradient, which vanishes: in the end all images have equal features.
COLLAPSING = {"epochs": 5, "lr": 1.0, "weight_decay": 1.0, "momentum": 0.0, "warmup": 0.0}


def test_a_run_that_collapses_says_so(tmp_path):
    """Of a healthy one, a warning is an error in every test."""
    images = drawings(16, 16)[0].permute(0, 2, 3, 1).numpy()
    recipe = read_request({**SMALL_FIT, "rounds": 1, **COLLAPSING}, "classic")
    with pytest.warns(DeepClusterWarning, match="100%.*--lr"), pytest.warns(match="only 1 of 3"):
        fit.fit(images, fit.Request(out=tmp_path, n_clusters=3, recipe=recipe))


def test_one_view_of_one_image_is_too_few_for_batch_normalisation(tmp_path):
    options = {"pseudo_labels": 1, "projection_hidden": 8, "projection_dim": 4, "rounds": 1, "instance_temperature": 0}
    recipe = read_request({**SMALL_FIT, "views": 1, **options})
    with pytest.raises(UsageError, match="views=2"):
        fit.fit(np.zeros((1, 16, 16, 3), np.uint8), fit.Request(out=tmp_path, n_clusters=1, recipe=recipe))
