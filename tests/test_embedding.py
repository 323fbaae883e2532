"""The embedding and the map: neighbours stay neighbours, equal rows share a place, and no case is too small."""

import numpy as np
import pytest
import torch
from sklearn.manifold import trustworthiness
from sklearn.neighbors import KNeighborsClassifier

from deepcluster.groups import graph as module
from deepcluster.groups.graph import between, embedding, layout, neighbour_ties
from tests.helpers.features import blobs


def test_an_embedding_brings_neighbours_together():
    rows = blobs([50, 50, 50])
    places = embedding(neighbour_ties(rows), 10, 0)
    assert places.shape == (150, 10) and places.dtype == np.float32
    middles = places.reshape(3, 50, 10).mean(1)
    spread = np.linalg.norm(places.reshape(3, 50, 10) - middles[:, None], axis=2).max()
    assert min(np.linalg.norm(middles[a] - middles[b]) for a, b in ((0, 1), (0, 2), (1, 2))) > 2 * spread


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 12])
def test_an_embedding_has_all_its_dimensions_even_of_few_images(size):
    """A graph of few images has fewer eigenvectors than dimensions."""
    places = embedding(neighbour_ties(blobs([size])), 10, 0)
    assert places.shape == (size, 10) and places.dtype == np.float32 and np.isfinite(places).all()
    assert len(np.unique(places, axis=0)) == size


def test_groups_are_apart():
    rows = blobs([50, 50, 50, 50])
    places, kinds = layout(rows), np.repeat(range(4), 50)
    assert places.shape == (200, 2) and places.dtype == np.float32 and np.isfinite(places).all()
    assert KNeighborsClassifier(5).fit(places, kinds).score(places, kinds) == 1
    middles = np.array([places[kinds == kind].mean(0) for kind in range(4)])
    widest = max(np.linalg.norm(places[kinds == kind] - middles[kind], axis=1).max() for kind in range(4))
    nearest = min(np.linalg.norm(a - b) for i, a in enumerate(middles) for b in middles[:i])
    assert nearest > widest


def test_neighbours_stay_better_than_in_the_principal_components():
    rows = blobs([20] * 12, width=12)
    centred = rows - rows.mean(0)
    flat = (centred @ torch.linalg.svd(centred).Vh[:2].T).numpy()
    good, poor = (trustworthiness(rows.numpy(), places, n_neighbors=10) for places in (layout(rows), flat))
    assert good > 0.95 > poor


def test_the_same_for_the_same_seed():
    rows = blobs([30, 30])
    assert np.array_equal(layout(rows, 3), layout(rows, 3)) and not np.array_equal(layout(rows, 3), layout(rows, 4))


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 17])
def test_few_images(size):
    rows = blobs([size])
    places = layout(rows)
    assert places.shape == (size, 2) and np.isfinite(places).all() and len(np.unique(places, axis=0)) == size


def test_one_dimension():
    assert np.isfinite(layout(torch.tensor([[1.0], [-1.0], [0.0]]))).all()


def test_equal_rows_share_a_place():
    rows = blobs([20, 20])
    places = layout(torch.cat([rows, rows[3:4], rows[3:4]]))
    assert np.allclose(places[40], places[3], atol=1e-3) and np.allclose(places[41], places[3], atol=1e-3)
    assert np.isfinite(layout(torch.ones(10, 4) / 2)).all()


def test_beyond_the_landmarks(monkeypatch):
    monkeypatch.setattr(module, "LANDMARKS", 60)
    rows, kinds = blobs([50, 50, 50, 50]), np.repeat(range(4), 50)
    places = layout(rows)
    assert KNeighborsClassifier(5).fit(places, kinds).score(places, kinds) == 1
    assert np.array_equal(places, layout(rows))
    # A row is no farther from its nearest row on the map than its group is wide, whether both are landmarks or not.
    closest = (rows @ rows.T).fill_diagonal_(-1).argmax(1).numpy()
    widest = max(np.ptp(places[kinds == kind], axis=0).max() for kind in range(4))
    assert np.linalg.norm(places - places[closest], axis=1).max() <= widest < np.ptp(places, axis=0).max() / 2


def test_between_by_hand():
    """Landmarks at 0 and 9, at squared distances .8 and 2.56."""
    found = between(torch.tensor([[0.6, 0.8]]), torch.tensor([[1.0, 0], [0.6, -0.8]]), torch.tensor([[0.0, 0], [9, 9]]))
    near, far = 0.8, 2.56
    assert found[0].tolist() == pytest.approx([9 * near / (near + far)] * 2)
