"""Groups of any shape and density, whatever the order of the rows; and how long they take."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.datasets import make_circles, make_moons
from torch.nn import functional as F

from deepcluster.clustering.agreement import ari
from deepcluster.clustering.kmeans import kmeans
from deepcluster.groups import consensus
from deepcluster.groups.consensus import agreed, consensus_cut, ward_labels
from deepcluster.groups.cut import cut, place
from deepcluster.groups.embedding import embedding
from deepcluster.groups.neighbour_graph import neighbour_ties, normalised_cut
from deepcluster.runs.groups import groups_of
from deepcluster.seeding import derive, generator
from tests.helpers.features import blobs


def raised(points: np.ndarray) -> torch.Tensor:
    """Points of a plane as rows of length 1: seen from the middle of a sphere that touches it."""
    flat = torch.from_numpy(points).float()
    flat = (flat - flat.mean(0)) / (2 * flat.std())
    return F.normalize(torch.cat([flat, torch.ones(len(flat), 1)], 1))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "shape", [make_moons(400, noise=0.05, random_state=0), make_circles(400, noise=0.03, factor=0.4, random_state=0)]
)
def test_moons_and_rings(shape, seed):
    rows, labels = raised(shape[0]), torch.from_numpy(shape[1])
    assert ari(labels, consensus_cut(neighbour_ties(rows), 2, seed)) == 1
    assert ari(labels, place(rows, cut(rows, 2, seed=seed, parts_of=consensus_cut), rows[:1]).cluster) > 0.98


def test_groups_of_different_densities():
    rows = torch.cat([blobs([n], spread=s)[:, torch.arange(8).roll(i)] for i, (n, s) in enumerate(DENSITIES)])
    labels = torch.arange(3).repeat_interleave(torch.tensor([n for n, _ in DENSITIES]))
    assert ari(labels, consensus_cut(neighbour_ties(rows), 3, 0)) == 1


DENSITIES = ((200, 0.15), (60, 0.02), (100, 0.06))


def test_the_order_of_the_rows_and_the_seed_change_nothing_that_is_clear():
    rows = blobs([70, 50, 40])
    labels = torch.arange(3).repeat_interleave(torch.tensor([70, 50, 40]))
    order = torch.randperm(160, generator=torch.Generator().manual_seed(0))
    for seed in (0, 1):
        assert ari(labels[order], consensus_cut(neighbour_ties(rows[order]), 3, seed)) == 1
    assert torch.equal(consensus_cut(neighbour_ties(rows), 3, 0), consensus_cut(neighbour_ties(rows), 3, 0))


def test_equal_rows_are_together():
    rows = torch.cat([blobs([40, 40]), blobs([40, 40])])
    found = place(rows, cut(rows, 2, parts_of=consensus_cut), rows[:1]).cluster
    assert torch.equal(found[:80], found[80:])
    assert found.bincount().tolist() == [80, 80]


def test_ties_by_the_share_of_labelings_by_hand():
    ties = csr_array(np.array([[0, 1, 0.5], [1, 0, 0], [0.5, 0, 0]]))
    labelings = [torch.tensor([0, 0, 0]), torch.tensor([0, 0, 1]), torch.tensor([1, 0, 1])]
    # Of four labelings, one of which has a single group: 0 and 1 share a group in three, 0 and 2 in three.
    assert agreed(ties, labelings).toarray() == pytest.approx(np.array([[0, 0.75, 0.375], [0.75, 0, 0], [0.375, 0, 0]]))


def test_beyond_the_tree_rows_follow_the_nearest(monkeypatch):
    monkeypatch.setattr(consensus, "WARD_ROWS", 50)
    places = (3 + blobs([100, 100]).numpy()) * [[1.0]] + np.repeat([[0.0], [9.0]], 100, 0)
    labels = ward_labels(places.astype(np.float32), 2, 0)
    assert ari(labels, torch.arange(2).repeat_interleave(100)) == 1


def test_very_many_rows_are_cut_once(monkeypatch):
    monkeypatch.setattr(consensus, "MOST_ROWS", 100)
    ties = neighbour_ties(blobs([60, 60]))
    assert torch.equal(consensus_cut(ties, 2, 0), normalised_cut(ties, 2, 0))


def test_an_embedding_brings_neighbours_together():
    rows = blobs([50, 50, 50])
    places = embedding(neighbour_ties(rows), 10, 0)
    assert places.shape == (150, 10) and places.dtype == np.float32
    middles = places.reshape(3, 50, 10).mean(1)
    spread = np.linalg.norm(places.reshape(3, 50, 10) - middles[:, None], axis=2).max()
    assert min(np.linalg.norm(middles[a] - middles[b]) for a, b in ((0, 1), (0, 2), (1, 2))) > 2 * spread
    assert embedding(neighbour_ties(rows[:4]), 10, 0).shape == (4, 2)  # no more than eigenvectors


@pytest.mark.parametrize(("grouping", "parts_of"), [("cut", normalised_cut), ("consensus", consensus_cut)])
def test_the_option_decides(grouping, parts_of):
    """Two blobs that touch: both ways cut them, each in its own way."""
    rows = F.normalize(torch.randn(200, 8, generator=generator(0, "rows")) + torch.eye(8)[[0, 1]].repeat(100, 1), dim=1)
    fine = kmeans(rows, 4)
    groups = groups_of(rows, fine, 2, 0, grouping)
    expected = cut(rows, 2, seed=derive(0, "groups"), parts_of=parts_of)
    assert torch.equal(groups.groups, expected.groups) and torch.equal(groups.centroids, expected.centroids)
