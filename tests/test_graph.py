"""The neighbour graph, its embedding and the map: cases by hand, references, and no case too small."""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.sparse import csr_array
from sklearn.neighbors import KNeighborsClassifier

from deepcluster.groups import graph
from deepcluster.groups.graph import embedding, extended_layout, layout, neighbour_ties, spectral_start
from deepcluster.seeding import derive
from tests.helpers.features import blobs, normal


@pytest.mark.parametrize("neighbours", [2, 3])
def test_ties_are_those_of_umap(monkeypatch, neighbours):
    """Sections 3.1 and 4 of McInnes et al., row by row: the weights of a row sum to log2 of their number."""
    monkeypatch.setattr(graph, "NEIGHBOURS", neighbours)
    angle = torch.tensor([0.0, 0.1, 0.25, 0.45, 1.5])
    rows = torch.stack([angle.cos(), angle.sin()], 1)
    distances = torch.cdist(rows.double(), rows.double()).fill_diagonal_(torch.inf).numpy()
    weights = np.zeros((5, 5))
    for row, order in enumerate(np.argsort(distances)[:, :neighbours]):
        beyond = distances[row, order] - distances[row, order[0]]
        sigma = brentq(lambda s, b=beyond: np.exp(-b / s).sum() - np.log2(neighbours) - 1e-9, 1e-6, 1e3)
        weights[row, order] = np.exp(-beyond / sigma)
    assert np.allclose(neighbour_ties(rows).toarray(), weights + weights.T - weights * weights.T, atol=1e-4)
    assert weights[:4, 4].max() == 0 < weights[4, 3]  # the far row is nobody's neighbour, and has some


def test_eigenvalues_by_hand():
    """Two pairs that nothing ties together: two blocks [[0, 1], [1, 0]], with the eigenvalues 1, 1, -1, -1."""
    ties = np.kron(np.eye(2), [[0, 1], [1, 0]])
    values, vectors = graph.leading_eigenvectors(csr_array(ties), 3, 0)
    assert values.tolist() == sorted(values, reverse=True)
    assert np.allclose(values, [1, 1 - graph.TIES, -1 + graph.TIES], atol=1e-9)  # the spread ties join the pairs
    assert np.allclose(np.abs(vectors[:, :2]), 0.5)


def test_the_sparse_way_finds_the_dense_eigenvalues(monkeypatch):
    rows = torch.nn.functional.normalize(torch.randn(200, 5, generator=torch.Generator().manual_seed(0)))
    ties = neighbour_ties(rows)
    dense, _ = graph.leading_eigenvectors(ties, 8, 0)
    monkeypatch.setattr(graph, "DENSE", 10)
    sparse, vectors = graph.leading_eigenvectors(ties, 8, 0)
    assert np.allclose(dense, sparse, atol=1e-6)
    assert np.allclose(vectors.T @ vectors, np.eye(8), atol=1e-6)


def test_a_graph_of_distinct_rows_or_of_a_sample():
    rows = torch.eye(5)[[0, 1, 1, 2, 0, 3]]
    assert graph.graph_rows(rows).tolist() == [0, 1, 3, 5]
    samples = [graph.graph_rows(rows, seed, 2).tolist() for seed in (1, *range(1, 9))]
    assert samples[0] == samples[1] and len({*map(tuple, samples)}) > 1
    assert all(len(sample) == 2 and sample == sorted(sample) for sample in samples)
    for few in (0, 1):
        assert neighbour_ties(rows[:few]).shape == (few, few)


@pytest.mark.parametrize("landmarks", [graph.LANDMARKS, 60])
def test_groups_are_apart(monkeypatch, landmarks):
    monkeypatch.setattr(graph, "LANDMARKS", landmarks)
    rows = blobs([50, 50, 50, 50])
    places, kinds = layout(rows, 3), np.repeat(range(4), 50)
    assert np.array_equal(places, layout(rows, 3)) and not np.array_equal(places, layout(rows, 4))
    assert KNeighborsClassifier(5).fit(places, kinds).score(places, kinds) == 1
    # A row is no farther from its nearest row on the map than its group is wide, whether both are landmarks or not.
    closest = (rows @ rows.T).fill_diagonal_(-1).argmax(1).numpy()
    widest = max(np.ptp(places[kinds == kind], axis=0).max() for kind in range(4))
    assert np.linalg.norm(places - places[closest], axis=1).max() <= widest < np.ptp(places, axis=0).max() / 2


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 12, 17])
def test_few_images_have_places_of_their_own(size):
    """A graph of few images has fewer eigenvectors than an embedding has dimensions."""
    rows = blobs([size])
    for places, width in ((embedding(neighbour_ties(rows), 10, 0), 10), (layout(rows), 2)):
        assert places.shape == (size, width) and places.dtype == np.float32 and np.isfinite(places).all()
        assert len(np.unique(places, axis=0)) == size


def test_equal_rows_share_a_place():
    rows = blobs([20, 20])
    places = layout(torch.cat([rows, rows[3:4], rows[3:4]]))
    assert np.allclose(places[40], places[3], atol=1e-3) and np.allclose(places[41], places[3], atol=1e-3)
    assert np.isfinite(layout(torch.ones(10, 4) / 2)).all()
    assert np.isfinite(layout(torch.tensor([[1.0], [-1.0], [0.0]]))).all()


def test_a_row_between_two_by_hand():
    """Landmarks at 0 and 9, at squared distances .8 and 2.56."""
    rows, places = torch.tensor([[1.0, 0], [0.6, -0.8], [0.6, 0.8]]), np.array([[0, 0], [9, 9]], np.float32)
    longer, (near, far) = extended_layout(places, [0, 1], [2, 1], rows), (0.8, 2.56)
    assert longer[0] == pytest.approx(9 * near / (near + far)) and longer[1].tolist() == [9, 9]


@pytest.mark.parametrize("curve", graph.CURVES)
def test_rows_move_along_the_gradient_of_their_similarity(monkeypatch, curve):
    """One step without pushes: two tied rows and one that stays, by torch's gradient of w log(1 / (1 + a d^2b))."""
    monkeypatch.setattr(graph, "STEPS", 1)
    monkeypatch.setattr(graph, "PUSH", 0)
    a, b = curve
    places = torch.tensor([[0.0, 0], [1.5, 0.5], [4, 4]], requires_grad=True)
    (-0.5 * (1 + a * (places[0] - places[1]).square().sum() ** b).log()).backward()
    moved = (places + places.grad).detach().numpy()
    ties = csr_array(np.array([[0, 0.5, 0], [0.5, 0, 0], [0, 0, 0]]))
    found = embedding(ties, 2, 0, places.detach().numpy(), curve)
    np.testing.assert_allclose(found, moved - moved.mean(0), atol=0.01)


def test_embeddings_take_the_curves_in_turn():
    rows = normal(40, 6)
    ties = neighbour_ties(rows)
    start = spectral_start(ties, graph.DIMENSIONS, derive(3, "start"))
    wanted = [embedding(ties, graph.DIMENSIONS, 3, start, curve) for curve in (*graph.CURVES, graph.CURVES[0])]
    np.testing.assert_array_equal(graph.embedded(ties, [3, 3, 3]), np.stack(wanted))
    assert np.abs(wanted[0] - wanted[1]).max() > 0.1
