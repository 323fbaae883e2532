"""An alternation goes on from the state after any round to the same end, bit by bit."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch

from deepcluster.images.views import Augmentation
from deepcluster.learning.heads import CentroidHead, WithInstances
from deepcluster.nets.network import build
from deepcluster.records import State
from tests.drawings import drawings
from tests.loop import loop

LINEAR = {"clusters": 5, "dims": 8, "epochs": 2}
CENTROIDS = {
    "clusters": (4, 8), "dims": None, "head": CentroidHead(0.1), "spherical": True, "reuse_features": True, "epochs": 1,
    "loss": WithInstances(0.2), "views": [Augmentation(crop=(0.5, 1))] * 2,
}  # fmt: skip
OWN = {**LINEAR, "optimizer": partial(torch.optim.AdamW, weight_decay=0.1)}
REST = {"rounds": 3, "batch_size": 10, "lr": lambda time: 0.05 * (1 - time / 3), "seed": 4}


def run(options, images, state=None, parameters=None):
    """Return for each round its labels with its NMI to those before, and what a checkpoint holds then."""
    network = build("compact", image_size=16, projection=(16, 8) if "reuse_features" in options else None, seed=1)
    if parameters is not None:
        network.load_state_dict(parameters)
    rounds, saved = [], []
    for each in loop(network, images, state=state or State(), **REST, **options):
        rounds.append(torch.cat([each.clustering.labels, torch.tensor([each.nmi_previous]).nan_to_num(9)]))
        weights = {name: value for name, value in network.state_dict().items() if not name.startswith("head.")}
        saved.append(copy.deepcopy((each.state, weights)))
    return rounds, saved


@pytest.mark.parametrize("options", [LINEAR, CENTROIDS, OWN], ids=["linear", "centroids", "AdamW"])
def test_from_every_round_to_the_same_end(options):
    images, _ = drawings(8, 16)
    labels, saved = run(options, images)
    assert [state.round for state, _ in saved] == [1, 2, 3]
    for state, parameters in saved:
        got = run(options, images, copy.deepcopy(state), parameters)
        wanted = labels[state.round :], [(vars(then), weights) for then, weights in saved[state.round :]]
        got_saved = [(vars(then), weights) for then, weights in got[1]]
        torch.testing.assert_close((got[0], got_saved), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("lost", ["optimizer", "features", "previous", "round"])
def test_a_state_without_one_of_its_parts_ends_elsewhere(lost):
    """The negative control: each part is needed, and the test above would see it missing."""
    images, _ = drawings(8, 16)
    _, saved = run(CENTROIDS, images)
    state, parameters = saved[0]
    _, got = run(CENTROIDS, images, replace(state, **{lost: getattr(State(), lost)}), parameters)
    assert not all(torch.equal(value, got[-1][1][name]) for name, value in saved[-1][1].items())


def test_a_settled_alternation_stays_so():
    images, _ = drawings(8, 16)
    options = {**LINEAR, "tolerance": 1.0, "patience": 1}
    _, saved = run(options, images)
    end = saved[-1][0]
    assert (end.round, end.settled, len(saved)) == (2, 1, 2)
    assert run(options, images, end) == ([], [])
