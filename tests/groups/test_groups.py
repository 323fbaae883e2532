"""The groups that a person sees: their cut, their merge tree, their number, and when a new fit is due."""

import re
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.optimize import brentq
from scipy.sparse import csr_array
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from deepcluster.clustering import kmeans
from deepcluster.clustering.agreement import ari, nmi
from deepcluster.groups import choose_k, cut, graph
from deepcluster.groups import tree as trees
from deepcluster.groups.choose_k import (
    candidates,
    cut_measures,
    finest_plausible,
    noun_count,
    plausible_numbers,
    spectral_number,
)
from deepcluster.groups.cut import ROWS_EACH, Cut, as_clusters, cut_features, placement_of
from deepcluster.groups.due import Drift, drift
from deepcluster.groups.graph import (
    extended_layout,
    graph_layout,
    layout,
    modularity,
    neighbour_ties,
    spectral_positions,
)
from deepcluster.groups.tree import Tree, merge_tree, nodes_at, ward
from deepcluster.seeding import derive, generator
from tests.helpers.features import blobs, normal


def clusters_of(x: torch.Tensor, k: int, seed: int = 0) -> torch.Tensor:
    return placement_of(x, cut_features(x, k, seed=seed), x[:1]).cluster


def test_few_rows_are_cut_as_well_as_by_scikit_learn():
    x = blobs([9] * 12, width=12, spread=0.2)
    placement = placement_of(x, cut_features(x, 12), x[:1])
    theirs = KMeans(12, n_init=20, random_state=0).fit(x.numpy())
    assert placement.distance.square().sum().item() <= theirs.inertia_ * 1.03


def test_the_largest_cluster_is_number_0_if_equal_rows_make_it_so():
    few, many = blobs([20]), blobs([0, 40])
    assert clusters_of(torch.cat([many, few.repeat(5, 1)]), 2).tolist() == [1] * 40 + [0] * 100


def test_ten_images_have_a_centroid():
    assert cut_features(blobs([100, 60]), 2).cluster_of.tolist() == [0] * 10 + [1] * 6


def test_groups_may_be_long_and_new_rows_go_where_their_neighbours_are():
    """Rows along two parallel lines: more than twice as long as far apart."""
    labels = torch.arange(400) % 2
    rows = 0.08 * normal(400, 8)
    rows[:, 0] += 1
    rows[:, 1] += 1.4 * torch.rand(400, generator=generator(0, "along")) - 0.7
    rows[:, 2] += 0.6 * labels - 0.3
    x = F.normalize(rows)
    clusters = placement_of(x, cut_features(x[:200], 2), x[:1]).cluster
    assert ari(labels[:200], clusters[:200]) > 0.95 and ari(labels[200:], clusters[200:]) > 0.9
    theirs = KMeans(2, n_init=10, random_state=0).fit(x[:200].numpy())
    assert ari(labels[:200], theirs.labels_) < 0.2  # else the case would show nothing


def test_order_seed_and_a_sample_of_the_rows_change_nothing_that_is_clear(monkeypatch):
    sizes = [80, 60, 40]
    x, labels = blobs(sizes), torch.arange(3).repeat_interleave(torch.tensor(sizes))
    order = torch.randperm(180, generator=generator(0, "order"))
    for seed, sample in ((0, 180), (1, 60)):
        monkeypatch.setattr(graph.graph_rows, "__defaults__", (0, sample))
        assert torch.equal(clusters_of(x[order], 3, seed), labels[order])


def test_a_few_rows_apart_from_all_are_no_group_of_their_own():
    """Twenty rows that are neighbours of each other alone."""
    x = blobs([100, 100, 20], spread=0.2)
    assert nmi(torch.arange(200) // 100, clusters_of(x, 2)[:200]) > 0.9


def test_equal_rows_are_together_and_no_more_groups_than_distinct_rows():
    x = torch.eye(4)[[0] * 30 + [1] * 20]
    for k in (2, 5):
        assert clusters_of(x, k).tolist() == [0] * 30 + [1] * 20
    first, second = clusters_of(blobs([40, 40]).repeat(2, 1), 2).chunk(2)
    assert torch.equal(first, second) and first.bincount().tolist() == [40, 40]


def test_as_many_groups_as_a_small_graph_can_have():
    x = blobs([12] * 12, width=12)
    for k in (1, 3, 6):
        assert cut_features(x[: ROWS_EACH * k], k).count == k
    for rows, k in ((1, 1), (3, 1), (2, 2), (3, 2), (3, 3)):
        assert cut_features(x[:rows], k).cluster_of.unique().tolist() == list(range(k))


def test_a_class_in_pieces_costs_no_other_its_place():
    """Four large blobs, two of which touch, and a small one apart: cut into four, the large ones stay by themselves."""
    centres = torch.eye(8)[:5]
    centres[2, 3] = centres[3, 2] = 0.4
    labels = torch.arange(5).repeat_interleave(torch.tensor([75, 75, 75, 75, 20]))
    noise = 0.15 * torch.randn(len(labels), 8, generator=generator(0, "noise"))
    x = F.normalize(F.normalize(centres)[labels] + noise)
    assert nmi(labels[:300], clusters_of(x, 4)[:300]) > 0.97


def test_fine_clusters_as_groups_leave_out_the_empty_ones():
    x = torch.tensor([[0.0], [0], [0], [1], [1], [9]])
    groups = as_clusters(kmeans(x, 4))
    assert groups.count == 3 and placement_of(x, groups, x[:1]).cluster.tolist() == [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize(("width", "count"), [(1, 3), (2, 1), (64, 10), (128, 40), (2048, 7)])
def test_images_are_in_the_cluster_of_the_nearest_centroid(width, count):
    x = F.normalize(normal(400, width))
    x[::50] = 0
    centroids = x[:100] * torch.rand(100, 1, generator=generator(0, "lengths"))
    centroids[3] = centroids[4] = x[5]  # a tie, in two groups
    groups = Cut(centroids, torch.randperm(100, generator=generator(0, "groups")) % count)
    placement = placement_of(x, groups, x[:3])
    distances = torch.cdist(x.double(), centroids.double(), compute_mode="donot_use_mm_for_euclid_dist").float()
    by_cluster = torch.full((len(x), groups.count), torch.inf)
    by_cluster.scatter_reduce_(1, groups.cluster_of.expand(len(x), -1), distances, "amin")
    distance, cluster = by_cluster.min(1)
    others = by_cluster.scatter(1, cluster.unsqueeze(1), torch.inf).min(1).values
    assert torch.equal(placement.cluster, cluster) and torch.equal(placement.distance == 0, distance == 0)
    torch.testing.assert_close(placement.distance, distance, atol=1e-6, rtol=0)
    margin = 1 - distance / others.clamp(min=torch.finfo(torch.float32).tiny)
    torch.testing.assert_close(placement.margin, margin, atol=1e-4, rtol=1e-4)
    assert torch.equal(placement.fine_cluster, torch.cdist(x, x[:3]).argmin(1))
    to_centroid = (x - centroids[placement.centroid]).norm(dim=1)
    assert torch.allclose(to_centroid, placement.distance, atol=1e-6) and torch.equal(
        groups.cluster_of[placement.centroid], placement.cluster
    )
    for rows in ([7], [0, 1, 2], [*range(17, 34)], []):  # few rows have the bits that they have among many
        part = placement_of(x[rows], groups, x[:3])
        assert all(torch.equal(getattr(part, name), getattr(placement, name)[rows]) for name in vars(part))


def test_the_same_as_scipy_with_weights_as_repetitions():
    random = np.random.default_rng(0)
    rows, weights = random.normal(size=(30, 3)), random.integers(1, 5, 30)
    repeated = linkage(np.repeat(rows, weights, axis=0), "ward")
    heights = np.sort(repeated[:, 2] ** 2 / 2)[-29:]
    assert np.allclose([cost for cost, _, _ in ward(rows, weights.astype(float))], heights)
    assert ward(rows[:1], np.ones(1)) == []


def cuts(tree: Tree) -> list[list[int]]:
    """The node of each piece, for P, P - 1, ..., 1 groups."""
    pieces = len(tree.clusters)
    by_count = [nodes_at(pieces, tree.merges, count) for count in range(pieces, 0, -1)]
    return [[next(node for node in nodes if piece in nodes[node]) for piece in range(pieces)] for nodes in by_count]


def test_a_tree_by_hand(monkeypatch):
    """Two groups on a line: 0, 1, 2 of one, 10 and 11 of the other; one piece each."""
    monkeypatch.setattr(trees, "ROWS_AT_ONCE", 2)
    rows = torch.tensor([[0.0], [1], [2.5], [10], [11], [11]])
    tree = merge_tree(rows, Cut(torch.tensor([[10.0], [0], [2.5], [11], [1]]), torch.tensor([1, 0, 0, 1, 0])))
    # Pieces are numbered by the order of their centroids: 10, 0, 2.5, 11, 1.
    assert tree.medoids[:5] == (3, 0, 2, 4, 1)
    assert tree.clusters == (1, 0, 0, 1, 0)
    # 0 and 1 cost 1/2; 10 and twice 11 cost 2/3; 0.5 and 2.5 cost 2 * 4 * 2/3; then both groups.
    assert [set(pair) for pair in tree.merges] == [{1, 4}, {0, 3}, {5, 2}, {6, 7}]
    assert tree.sizes == (1, 1, 1, 2, 1, 2, 3, 3, 6)
    # The mean of 0, 1 and 2.5 is 1.17: row 1; of 10, 11 and 11 it is 10.67: row 4; of all 5.9: row 2 (2.5).
    assert [tree.medoids[node] for node in (6, 7, 8)] == [4, 1, 2]
    assert cuts(tree) == [[0, 1, 2, 3, 4], [0, 5, 2, 3, 5], [6, 5, 2, 6, 5], [6, 7, 7, 6, 7], [8, 8, 8, 8, 8]]


def test_added_rows_are_in_the_tree_and_do_not_change_it():
    """Nor if they are nearest to a centroid of their own, or if the fit has no row of their group."""
    rows = torch.tensor([[0.0], [1], [2.5], [10], [11], [11]])
    cut = Cut(torch.tensor([[10.0], [0], [2.5], [11], [1], [1.2], [30], [31]]), torch.tensor([1, 0, 0, 1, 0, 0, 3, 3]))
    before = merge_tree(rows, cut)
    for place, sizes in {0.0: (1, 91, 1, 2, 1), 2.5: (1, 1, 91, 2, 1), 1.2: (1, 1, 1, 2, 91)}.items():
        after = merge_tree(torch.cat([rows, torch.full((90, 1), place)]), cut, added=90)
        assert (after.clusters, after.merges, after.sizes[:5]) == (before.clusters, before.merges, sizes)
    last = merge_tree(torch.cat([rows, torch.tensor([[31.0], [30], [31]])]), cut, added=3)
    assert last.clusters == (*before.clusters, 3) and last.sizes[:6] == (*before.sizes[:5], 3)


def test_groups_that_are_not_nearest_still_make_a_cut():
    # The groups say that 0 and 10 belong together, and 1 to 11: Ward alone would never find them.
    rows = torch.tensor([[0.0], [1], [10], [11]])
    tree = merge_tree(rows, Cut(rows, torch.tensor([0, 1, 0, 1])))
    two = cuts(tree)[-2]
    assert two[0] == two[2] != two[1] == two[3] and tree.medoids[:4] == (0, 1, 2, 3)


@pytest.mark.parametrize("k", [1, 2, 7])
def test_the_present_groups_are_a_cut_and_others_only_merge_or_split(k):
    rows = blobs([15, 20, 25, 30, 35], seed=k)
    groups = cut_features(rows, k)
    tree = merge_tree(rows, groups)
    assert len(tree.clusters) == (1 if k == 1 else min(30, len(groups.centroids)))
    every = cuts(tree)
    assert [len(set(nodes)) for nodes in every] == list(range(len(tree.clusters), 0, -1))
    present = next(nodes for nodes in every if len(set(nodes)) == k)
    assert len(set(zip(present, tree.clusters, strict=True))) == k
    for finer, coarser in pairwise(every):
        assert len(set(zip(finer, coarser, strict=True))) == len(set(finer))
    assert tree.sizes[-1] == len(rows) and sum(tree.sizes[: len(tree.clusters)]) == len(rows)
    cluster = placement_of(rows, groups, rows[:1]).cluster
    for node, group in set(zip(present, tree.clusters, strict=True)):
        assert tree.sizes[node] == (cluster == group).sum() and cluster[tree.medoids[node]] == group


def test_a_centroid_without_rows_is_left_out_and_one_piece_is_a_tree():
    rows = torch.tensor([[0.0], [1.0]])
    tree = merge_tree(rows, Cut(torch.tensor([[0.0], [5.0], [1.0]]), torch.tensor([0, 2, 3])))  # numbers have gaps
    assert tree.clusters == (0, 3) and tree.sizes == (1, 1, 2)
    rows = normal(600, 4)
    assert len(merge_tree(rows, Cut(rows, torch.arange(600) % 120)).clusters) == 120  # many groups are merged only
    one = Cut(torch.ones(1, 3), torch.tensor([0]))
    for images in (1, 20):
        assert merge_tree(torch.ones(images, 3), one) == Tree(clusters=(0,), merges=(), sizes=(images,), medoids=(0,))


@pytest.mark.parametrize("count", [2, 8])
def test_a_clear_number_is_the_first_candidate(count, monkeypatch):
    monkeypatch.setattr(choose_k, "ROWS", 240)  # of 8 groups a sample
    suggested = plausible_numbers(blobs([40] * count))
    assert suggested[0].k == count == max(suggested, key=lambda candidate: candidate.silhouette).k
    assert {candidate.k for candidate in suggested[1:]} == ({4, 8} if count == 2 else {4, 16, 32})


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 12])
def test_few_rows_have_few_candidates(rows):
    suggested = plausible_numbers(torch.eye(12)[:rows])
    assert all(2 <= candidate.k < rows for candidate in suggested)
    assert bool(suggested) == (rows >= 4)
    assert plausible_numbers(torch.ones(50, 3)) == []


def test_the_finest_number_with_nearly_the_best_score_is_plausible():
    assert finest_plausible(np.array([0.5, 0.6, 0.4, 0.2, 0.52, 0.55, 0.3])) == 7  # .55 is more than .9 of .6
    assert finest_plausible(np.array([0.5, 0.6, 0.4, 0.2, 0.52, 0.53, 0.3])) == 3
    assert finest_plausible(np.zeros(6)) == 2  # no ties inside any groups


@pytest.mark.parametrize(
    ("guess", "most", "numbers"),
    [
        (1.4, 400, [2, 4, 8]),
        (9.3, 400, [9, 4, 18, 36]),
        (12.6, 20, [13, 6]),
        (40, 98, [40, 20, 80]),
        (99, 400, [60, 30, 120, 240]),
    ],
)
def test_candidates_are_the_guess_half_twice_and_four_times(guess, most, numbers):
    assert candidates(guess, most) == numbers


def test_many_nouns_raise_the_guess_and_few_do_not():
    """Three times as many nouns as tell nothing nearly double the guess."""
    assert noun_count([("cat", 0.5), ("dog", 0.2), ("cat", 0.1), ("dog", 0.4)]) == pytest.approx(2)
    assert noun_count([("cat", 0.8)]) == noun_count([]) == noun_count([("cat", 0.0)]) == 1
    rows, layouts = blobs([40] * 3), graph.Layouts()
    for count, guess in ((40, 3), (127, 6)):
        assert plausible_numbers(rows, [(str(i), 0.1) for i in range(count)], layouts=layouts)[0].k == guess


@pytest.mark.parametrize(("sizes", "rows"), [([40, 50, 30, 60], 400), ([200] * 4, 100)])
def test_separate_groups_have_an_eigenvalue_each_in_samples_too(sizes, rows, monkeypatch):
    monkeypatch.setattr(choose_k, "SPECTRUM_ROWS", rows)
    assert spectral_number(blobs(sizes), seed=0) == 4
    assert spectral_number(torch.eye(12), seed=0) == 2  # at least


def test_more_rows_of_one_cloud_are_no_more_groups():
    """The share of eigenvalues above a limit is one of the rows, which the size of the samples stops."""
    cloud = F.normalize(normal(1200, 4))
    assert spectral_number(cloud, seed=0) <= 1.2 * spectral_number(cloud[:400], seed=0)


def test_silhouette_and_modularity_of_cuts_are_those_of_their_labels():
    positions = normal(60, 3).numpy()
    ties, numbers = neighbour_ties(blobs([30, 30])), np.arange(2, 58)
    silhouettes, modularities = cut_measures(positions, ties, numbers)
    cuts = cut_tree(linkage(positions, "ward"), numbers).T
    np.testing.assert_allclose(silhouettes, [silhouette_score(positions, labels) for labels in cuts], atol=1e-6)
    np.testing.assert_allclose(modularities, [modularity(ties, labels) for labels in cuts])


def test_the_guess_takes_the_layouts_of_the_cut():
    rows = blobs([40] * 3)
    layouts = graph.Layouts()
    cut_features(rows, 3, seed=5, layouts=layouts)
    known = len(layouts.known)
    assert plausible_numbers(rows, seed=5, layouts=layouts)[0].k == 3 and len(layouts.known) == known


def test_modularity_by_hand():
    """Two triangles and a bridge: 12 of 14 ends are inside, and half of random ones would be."""
    ties = np.kron(np.eye(2), 1 - np.eye(3))
    ties[2, 3] = ties[3, 2] = 1
    assert modularity(csr_array(ties), np.array([0, 0, 0, 1, 1, 1])) == pytest.approx(12 / 14 - 1 / 2)
    assert modularity(csr_array(ties), np.zeros(6, np.int64)) == pytest.approx(0)


def test_the_graph_chooses_among_a_layout_by_each_curve_however_many_rows_there_are(monkeypatch):
    monkeypatch.setattr("deepcluster.groups.cut.LAYOUT_ROWS", 90)
    rows = blobs([30, 40, 50])
    wrong = torch.arange(3.0).repeat(40)[:, None].expand(120, 10)  # by its inertia it is perfect
    right = 5 * torch.cat([rows, rows[:, :2]], 1)
    for positions in ([wrong, right], [right, wrong]):
        monkeypatch.setattr(
            graph, "graph_layouts", lambda _, seeds, chosen=positions: torch.stack(chosen[: len(seeds)])
        )
        cut = cut_features(rows, 3)
        assert torch.bincount(cut.cluster_of[torch.cdist(rows, cut.centroids).argmin(1)]).tolist() == [50, 40, 30]


@pytest.mark.parametrize("times", [1, 2])
def test_groups_that_a_single_start_finds_do_not_count(times, monkeypatch):
    """Two triangles: of 20 starts, once or twice the groups are these, and otherwise others with less modularity."""
    best, other = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 0, 1, 1, 1, 1])
    labelings = iter([best] * times + [other] * 20)
    monkeypatch.setattr("deepcluster.groups.cut.best_of", lambda *_: SimpleNamespace(labels=next(labelings)))
    ties = csr_array(np.kron(np.eye(2), 1 - np.eye(3)))
    labels = cut._labels(torch.zeros(2, 6, 10), 2, ties, seed=0)
    assert torch.equal(labels, other if times == 1 else best)


def test_halves_of_groups_are_not_all_there_is():
    """Nine groups in two families: the silhouette of two is good, too, and the answer is nine."""
    rows = blobs([30] * 9, width=12)
    families = torch.eye(12)[[10] * 120 + [11] * 150]
    assert plausible_numbers(F.normalize(rows + 0.5 * families))[0].k == 9


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (Drift(1000, 19, 10, 19), None),  # too few to tell
        (Drift(1000, 20, 0, 20), "100% .*0.0%"),
        (Drift(1000, 100, 10, 7), None),  # 7 %, twice 1 % and 5 more
        (Drift(1000, 100, 10, 8), "8% .*1.0%"),
        (Drift(1000, 20, 0, 4), None),  # a fifth, and still only four
        (Drift(1000, 20, residual_rank=0.95), ".*95%"),
        (Drift(1000, 20, residual_rank=0.8), None),
        (Drift(1000, 300, shift=0.12, shift_p=1e-9), ".*shares"),
        (Drift(1000, 300, shift=0.12, shift_p=0.01), None),
        (Drift(1000, 300, shift=0.05, shift_p=1e-9), None),
        (Drift(1000, 1001), "1,001 .*1,000"),
        (Drift(5, 6), "6 .*5"),
    ],
)
def test_when_a_new_fit_is_due(facts, reason):
    assert facts.reason is None if reason is None else re.match(reason, facts.reason)


def test_a_drift_by_hand():
    # Of the fit: 6 and 2 images in clusters 0 and 2. Added: 1 and 3, and cluster 1 is empty.
    cluster = np.array([0] * 6 + [2] * 2 + [0] + [2] * 3)
    residuals = np.array([0.0, 1, 2, 3, 4, 5, 6, 7, 5.5, 6.5, 8, 9], np.float32)
    measured = drift(cluster, residuals, 8, limit=6.4)
    assert (measured.fitted, measured.added, measured.fitted_outliers, measured.added_outliers) == (8, 4, 1, 3)
    assert measured.residual_rank == 7 / 8  # the median of four is the lower of the two in the middle, 6.5
    assert measured.shift == pytest.approx(0.5 * 4 / 12)  # 3/4 and 1/4, then 1/4 and 3/4
    assert measured.shift_p == pytest.approx(0.0983, abs=1e-3)  # chi-squared: 12 * 16^2 / (8 * 4 * 7 * 5)
    assert drift(cluster, residuals, 8, limit=np.inf).residual_rank is None
    assert drift(cluster[:8], residuals[:8], 8, limit=6.4) == Drift(8, 0)
    assert drift(np.zeros(12, np.int64), residuals, 8, limit=6.4).shift_p == 1  # in one cluster
    random = np.random.default_rng(0)  # new images of the same kind do not shift clusters
    for clusters in (2, 30, 500):
        cluster = random.integers(clusters, size=2000)
        assert drift(cluster, random.random(2000, np.float32), 1200, 0.99).shift_p > 0.001


# ---- the neighbour graph, its layouts and the map ------------------------------------------------------------------


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
    """A graph of few images has fewer eigenvectors than a layout has dimensions."""
    rows = blobs([size])
    for places, width in ((graph_layout(neighbour_ties(rows), 10, 0), 10), (layout(rows), 2)):
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
    monkeypatch.setattr(graph, "ITERATIONS", 1)
    monkeypatch.setattr(graph, "PUSH", 0)
    a, b = curve
    places = torch.tensor([[0.0, 0], [1.5, 0.5], [4, 4]], requires_grad=True)
    (-0.5 * (1 + a * (places[0] - places[1]).square().sum() ** b).log()).backward()
    moved = (places + places.grad).detach().numpy()
    ties = csr_array(np.array([[0, 0.5, 0], [0.5, 0, 0], [0, 0, 0]]))
    positions = graph_layout(ties, 2, 0, places.detach().numpy(), curve)
    np.testing.assert_allclose(positions, moved - moved.mean(0), atol=0.01)


def test_embeddings_take_the_curves_in_turn():
    rows = normal(40, 6)
    ties = neighbour_ties(rows)
    start = spectral_positions(ties, graph.DIMENSIONS, derive(3, "start"))
    wanted = [graph_layout(ties, graph.DIMENSIONS, 3, start, curve) for curve in (*graph.CURVES, graph.CURVES[0])]
    np.testing.assert_array_equal(graph.graph_layouts(ties, [3, 3, 3]), np.stack(wanted))
    assert np.abs(wanted[0] - wanted[1]).max() > 0.1
