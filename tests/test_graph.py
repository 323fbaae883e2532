import numpy as np
import torch
from scipy.sparse import csr_array

from deepcluster.clustering import graph


def test_ties_are_to_the_nearest_and_never_to_oneself():
    angle = torch.tensor([0.0, 0.1, 0.25, 0.45, 1.5])
    ties = graph.neighbour_ties(torch.stack([angle.cos(), angle.sin()], 1)).toarray()
    assert (ties == ties.T).all()
    assert (ties.diagonal() == 0).all()
    # Three neighbours each: the first four have each other, the far row has three of them and is nobody's.
    assert ties[:4, :4].tolist() == (2 * (1 - np.eye(4))).tolist()
    assert ties[4].tolist() == [0, 1, 1, 1, 0]


def test_cut_by_hand():
    """Ties of two triangles with one weak bridge: the normalised cut goes through the bridge."""
    ties = torch.zeros(6, 6)
    for a, b, weight in ((0, 1, 2), (0, 2, 2), (1, 2, 2), (3, 4, 2), (3, 5, 2), (4, 5, 2), (2, 3, 1)):
        ties[a, b] = ties[b, a] = weight
    found = graph.normalised_cut(csr_array(ties.double().numpy()), 2, 0).tolist()
    assert found[:3] == [found[0]] * 3
    assert found[3:] == [1 - found[0]] * 3


def test_pieces_end_at_the_largest_gap_between_a_fifth_and_a_half_more_than_the_groups():
    values = np.array([1, 0.99, 0.5, 0.49, 0.48, 0.2, 0.1])
    assert graph._pieces(values, 3) == 5  # 4 or 5: .48 - .2; not 2 or 3, where .99 - .5 is
    assert graph._pieces(values, 4) == 5  # 5 or 6
    assert graph._pieces(values, 2) == 2
    assert graph._pieces(np.linspace(1, 0, 20) ** 2, 10) == 12


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
