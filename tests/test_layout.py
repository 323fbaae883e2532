"""The map: neighbours stay neighbours, equal rows share a place, the same every time, and no case is too small."""

import numpy as np
import pytest
import torch
from sklearn.manifold import trustworthiness
from sklearn.neighbors import KNeighborsClassifier

from deepcluster.groups import map2d as layouts
from deepcluster.groups.map2d import layout
from tests.helpers.features import blobs


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


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 17])
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
    monkeypatch.setattr(layouts, "LANDMARKS", 60)
    rows, kinds = blobs([50, 50, 50, 50]), np.repeat(range(4), 50)
    places = layout(rows)
    assert KNeighborsClassifier(5).fit(places, kinds).score(places, kinds) == 1
    assert np.array_equal(places, layout(rows))
    # Between landmarks at 0 and 9, twice as near to the first: weights 4 to 1.
    found = layouts.between(
        torch.tensor([[0.6, 0.8]]), torch.tensor([[1.0, 0], [0.6, -0.8]]), torch.tensor([[0.0, 0], [9, 9]])
    )
    near, far = 0.8, 2.56  # squared distances
    assert found[0].tolist() == pytest.approx([9 * near / (near + far)] * 2)
