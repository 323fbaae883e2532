import importlib

import numpy as np
import torch
from scipy.sparse import csr_array

from deepcluster.clustering.agreement import nmi
from deepcluster.groups.neighbour_graph import Graph

graph = importlib.import_module("deepcluster.groups.neighbour_graph")  # the package has a function of this name


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


def test_cut_by_hand():
    """Ties of two triangles with one weak bridge: the normalised cut goes through the bridge."""
    ties = torch.zeros(6, 6)
    for a, b, weight in ((0, 1, 2), (0, 2, 2), (1, 2, 2), (3, 4, 2), (3, 5, 2), (4, 5, 2), (2, 3, 1)):
        ties[a, b] = ties[b, a] = weight
    found = graph.normalised_cut(csr_array(ties.double().numpy()), 2, 0).tolist()
    assert found[:3] == [found[0]] * 3
    assert found[3:] == [1 - found[0]] * 3


def test_pieces_end_at_the_clearest_gap_between_a_fifth_and_a_half_more_than_the_groups():
    values = np.array([1, 0.99, 0.9, 0.89, 0.88, 0.6, 0.5])
    assert graph._pieces(values, 3) == 5  # 4 or 5: from .12 to .4; not 2, where it is from .01 to .1
    assert graph._pieces(values, 4) == 5  # 5 or 6
    assert graph._pieces(values, 2) == 2


def test_without_a_clear_gap_pieces_are_a_fifth_more_than_the_groups():
    even = 1 - 1.2 ** np.arange(20.0) / 100
    assert graph._pieces(even, 10) == 12
    even[14:] -= 0.1
    assert graph._pieces(even, 10) == 14


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


def graph_of(rows: list[int], *pairs: tuple[int, int, float]) -> Graph:
    ties = np.zeros((len(rows), len(rows)))
    for a, b, weight in pairs:
        ties[rows.index(a), rows.index(b)] = ties[rows.index(b), rows.index(a)] = weight
    return Graph(torch.tensor(rows), csr_array(ties))


def test_joined_graphs_by_hand():
    """The first counts 1, the others their weights divided by their number, between the rows that all have."""
    first = graph_of([0, 1, 2, 4], (0, 1, 1.0), (1, 4, 0.5), (0, 2, 1.0))
    second = graph_of([0, 1, 3, 4], (0, 1, 0.5), (3, 4, 1.0))
    third = graph_of([0, 1, 2, 3, 4], (0, 4, 0.5), (2, 3, 1.0))
    got = graph.joined_graphs(first, [second, third], [1.0, 0.5])
    assert got.rows.tolist() == [0, 1, 4]
    want = graph_of([0, 1, 4], (0, 1, 1.25 / 1.75), (1, 4, 0.5 / 1.75), (0, 4, 0.125 / 1.75))
    assert np.allclose(got.ties.toarray(), want.ties.toarray())
    assert graph.joined_graphs(first, [], []) is first
    assert graph.joined_graphs(first, [second, third], [0.0, 0.0]) is first


def test_two_bad_graphs_do_not_outvote_the_first():
    """Rows in three groups; the others know nothing, and each of its own."""
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 60)
    good = torch.nn.functional.normalize(torch.eye(3)[labels] + 0.1 * torch.from_numpy(random.normal(size=(180, 3))))
    graphs = [graph.neighbour_graph(good.float())]
    for _ in range(2):
        noise = torch.from_numpy(random.normal(size=(180, 8))).float()
        graphs.append(graph.neighbour_graph(torch.nn.functional.normalize(noise)))
    found = graph.normalised_cut(graph.joined_graphs(graphs[0], graphs[1:], [1.0, 1.0]).ties, 3, 0)
    assert nmi(labels, found) > 0.95
    assert nmi(labels, graph.normalised_cut(graph.joined_graphs(graphs[1], graphs[2:], [1.0]).ties, 3, 0)) < 0.2


def test_inside_by_hand():
    """Three ties of four are inside the two groups; their ends' shares are 5/8 and 3/8, so chance gives 34/64."""
    path = graph_of([0, 1, 2, 3, 4], (0, 1, 1.0), (0, 2, 1.0), (2, 3, 1.0), (3, 4, 1.0))
    got = graph.inside(path, path.rows, torch.tensor([0, 0, 0, 1, 1]))
    assert np.isclose(got, (3 / 4 - 34 / 64) / (1 - 34 / 64))
    assert graph.inside(path, torch.tensor([0, 1, 3, 4]), torch.tensor([0, 0, 1, 1])) == 1


def test_a_graph_of_distinct_rows_or_of_a_sample(monkeypatch):
    rows = torch.eye(5)[[0, 1, 1, 2, 0, 3]]
    assert graph.neighbour_graph(rows).rows.tolist() == [0, 1, 3, 5]
    monkeypatch.setattr(graph, "SAMPLE", 2)
    sample = graph.neighbour_graph(rows, 1).rows
    assert len(sample) == 2
    assert torch.equal(sample, sample.sort().values)
    assert torch.equal(sample, graph.neighbour_graph(rows, 1).rows)
    assert graph.neighbour_graph(rows[:1]).ties.shape == (1, 1)
