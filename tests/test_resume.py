"""An alternation goes on from any state to the same end, bit by bit."""

import copy
from dataclasses import replace

import pytest
import torch

from deepcluster.images.augment import Augmentation
from deepcluster.learning.heads import CentroidHead
from deepcluster.learning.instances import WithInstances
from deepcluster.nets.backbone import build
from deepcluster.records import State
from tests.drawings import drawings
from tests.loop import loop

LINEAR = {"clusters": 5, "dims": 8, "epochs": 2}
CENTROIDS = {
    "clusters": (4, 8), "dims": None, "head": CentroidHead(0.1), "spherical": True, "reuse_features": True, "epochs": 1,
    "loss": WithInstances(0.2), "views": [Augmentation(crop=(0.5, 1))] * 2,
}  # fmt: skip
REST = {"rounds": 3, "batch_size": 10, "lr": lambda time: 0.05 * (1 - time / 3), "seed": 4}


def network(projection: bool):
    return build("compact", image_size=16, projection=(16, 8) if projection else None, seed=1)


def run(options, images, *, keep=None, begin=None):
    """The end of an alternation: parameters, momentum, and the labels of its rounds with their NMI to those before."""
    net = network("reuse_features" in options)
    start = State()
    if begin is not None:
        start, parameters = begin
        net.restore(parameters, options["head"].temperature if "head" in options else None)
    last = []

    def kept(state):
        last[:] = [state]
        if keep is not None:
            keep(net, state)

    rounds = list(loop(net, images, state=start, on_state=kept, **REST, **options))
    labels = [torch.cat([each.clustering.labels, torch.tensor([each.nmi_previous]).nan_to_num(9)]) for each in rounds]
    return net.state_dict(), last[0], labels


GOING_ON = {"clusters": (5, 3), "dims": 8, "epochs": 1, "start": "previous"}


@pytest.mark.parametrize("options", [LINEAR, CENTROIDS, GOING_ON], ids=["linear", "centroids", "previous"])
def test_from_every_state_to_the_same_end(options):
    images, _ = drawings(8, 16)
    states = []
    wanted, end, labels = run(
        options, images, keep=lambda net, state: states.append(copy.deepcopy((state, net.state_dict())))
    )
    # 24 images in 3 batches: the start of the round, the clustering, and each step; and once at the end.
    assert len(states) == 3 * (2 + 3 * options["epochs"]) + 1
    for begin in states:
        got, got_end, got_labels = run(options, images, begin=copy.deepcopy(begin))
        assert wanted.keys() == got.keys()
        assert all(torch.equal(wanted[name], got[name]) for name in wanted)
        assert all(map(torch.equal, end.momentum, got_end.momentum))
        assert all(map(torch.equal, labels[begin[0].round :], got_labels))
        assert (got_end.round, got_end.settled) == (end.round, end.settled)


@pytest.mark.parametrize("lost", ["momentum", "memory", "step", "previous"])
def test_a_state_without_one_of_its_parts_ends_elsewhere(lost):
    """The negative control: each part is needed, and the test above would see it missing."""
    images, _ = drawings(8, 16)
    states = []
    wanted, _, _ = run(
        CENTROIDS, images, keep=lambda net, state: states.append(copy.deepcopy((state, net.state_dict())))
    )
    state, parameters = states[5 if lost != "step" else 7]  # the start of round 1, or its first step
    assert (state.work is None) == (lost != "step")
    name = "work" if lost == "step" else lost
    state = replace(state, **{name: () if lost == "momentum" else None})
    got, _, _ = run(CENTROIDS, images, begin=(state, parameters))
    assert not all(torch.equal(wanted[name], got[name]) for name in wanted if name in got)


def test_a_settled_alternation_stays_so():
    images, _ = drawings(8, 16)
    options = {**LINEAR, "tolerance": 1.0, "patience": 1}
    _, end, labels = run(options, images)
    assert (end.round, end.settled, len(labels)) == (2, 1, 2)
    net = network(False)
    assert list(loop(net, images, state=end, **REST, **options)) == []
