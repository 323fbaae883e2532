import numpy as np
import torch
from scipy.sparse import csr_array

from deepcluster.groups import graph


def on_circle(*angles: float) -> torch.Tensor:
    angle = torch.tensor(angles, dtype=torch.float64)
    return torch.stack([angle.cos(), angle.sin()], 1).float()


def test_ties_are_to_the_nearest_and_never_to_oneself(monkeypatch):
    monkeypatch.setattr(graph, "NEIGHBOURS", 3)
    ties = graph.neighbour_ties(on_circle(0.0, 0.1, 0.25, 0.45, 1.5)).toarray()
    assert np.allclose(ties, ties.T)
    assert (ties.diagonal() == 0).all()
    # Three neighbours each: the first four have each other, the far row has three of them and is nobody's.
    assert (ties[:4, :4][~np.eye(4, dtype=bool)] > 0).all()
    assert (ties[4] > 0).tolist() == [False, True, True, True, False]
    assert ties.max() <= 1
    # The far row alone decides its ties: 1 to the nearest, less to the others, log2 of 3 in all.
    assert np.isclose(ties[4, 3], 1)
    assert ties[4, 3] > ties[4, 2] > ties[4, 1]
    assert np.isclose(ties[4].sum(), np.log2(3))


def test_ties_by_hand(monkeypatch):
    """With 2 neighbours the weights of a row sum to log2(2) = 1: the nearest has 1, the other next to nothing."""
    monkeypatch.setattr(graph, "NEIGHBOURS", 2)
    ties = graph.neighbour_ties(on_circle(0.0, 0.1, 0.3, 0.6)).toarray()
    assert np.allclose(ties, [[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0]], atol=1e-6)


def test_ties_of_both_sides_are_joined(monkeypatch):
    monkeypatch.setattr(graph, "NEIGHBOURS", 3)
    monkeypatch.setattr(graph, "_weights", lambda distances: torch.full_like(distances, 0.5))
    ties = graph.neighbour_ties(on_circle(0.0, 0.1, 0.25, 0.45, 1.5)).toarray()
    assert np.isclose(ties[0, 1], 0.5 + 0.5 - 0.25)  # both are neighbours of each other
    assert np.isclose(ties[4, 3], 0.5)


def test_ties_do_not_depend_on_how_dense_a_place_is():
    """A blob and the same blob three times as wide, far apart: the ties inside each are alike."""
    small = 0.02 * torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    pole = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]])
    basis = torch.tensor([[[0.0, 1, 0], [0, 0, 1]], [[1.0, 0, 0], [0, 1, 0]]])
    rows = torch.cat([pole[0] + small @ basis[0], pole[1] + 3 * small @ basis[1]])
    ties = graph.neighbour_ties(torch.nn.functional.normalize(rows)).toarray()
    assert np.abs(ties[:40, :40] - ties[40:, 40:]).max() < 0.05
    assert ties[:40, 40:].max() == 0


def test_eigenvalues_by_hand():
    """Two pairs that nothing ties together: two blocks [[0, 1], [1, 0]], with the eigenvalues 1, 1, -1, -1."""
    ties = torch.zeros(4, 4, dtype=torch.float64)
    for a, b in ((0, 1), (2, 3)):
        ties[a, b] = ties[b, a] = 1
    values, vectors = graph.leading_eigenvectors(csr_array(ties.numpy()), 3, 0)
    assert values.tolist() == sorted(values, reverse=True)
    assert np.allclose(values, [1, 1 - graph.TIES, -1 + graph.TIES], atol=1e-9)  # the spread ties join the pairs
    assert np.allclose(np.abs(vectors[:, :2]), 0.5)


def test_the_sparse_way_finds_the_dense_eigenvalues(monkeypatch):
    rows = torch.nn.functional.normalize(torch.randn(200, 5, generator=torch.Generator().manual_seed(0)))
    ties = graph.neighbour_ties(rows)
    dense, _ = graph.leading_eigenvectors(ties, 8, 0)
    monkeypatch.setattr(graph, "DENSE", 10)
    sparse, vectors = graph.leading_eigenvectors(ties, 8, 0)
    assert np.allclose(dense, sparse, atol=1e-6)
    assert np.allclose(vectors.T @ vectors, np.eye(8), atol=1e-6)


def test_a_graph_of_distinct_rows_or_of_a_sample():
    rows = torch.eye(5)[[0, 1, 1, 2, 0, 3]]
    assert graph.graph_rows(rows).tolist() == [0, 1, 3, 5]
    sample = graph.graph_rows(rows, 1, 2)
    assert len(sample) == 2
    assert torch.equal(sample, sample.sort().values)
    assert torch.equal(sample, graph.graph_rows(rows, 1, 2))
    assert any(not torch.equal(sample, graph.graph_rows(rows, seed, 2)) for seed in range(2, 9))
    for few in (0, 1):
        assert graph.neighbour_ties(rows[:few]).shape == (few, few)
