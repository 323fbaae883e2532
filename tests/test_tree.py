"""The merge tree and its curves: cases by hand, scipy and scikit-learn as references, and what must always hold."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.metrics import adjusted_rand_score, silhouette_score

from deepcluster.groups.cut import Cut, cut
from deepcluster.groups.merge_tree import cuts, merge_tree, ward
from deepcluster.groups.quality_by_k import levels, silhouettes, stabilities
from tests.helpers.features import blobs


def points(*rows: float) -> np.ndarray:
    return np.array(rows, dtype=np.float64).reshape(-1, 1)


# Ward


def test_ward_by_hand():
    # 0 and 1 merge at 1/2 (halfway, 0.25 each); 10 and 12 at 4/2; the middles 0.5 and 11 at 2*2/4 * 10.5^2.
    found = ward(points(0, 1, 10, 12), np.ones(4))
    assert [cost for cost, _, _ in found] == [0.5, 2.0, 110.25]
    assert [{a, b} for _, a, b in found[:2]] == [{0, 1}, {2, 3}]
    assert len({0, 1} & set(found[2][1:])) == 1  # one of each


def test_weights_are_repetitions():
    # Unweighted, 3 and 4 are the first to merge (1/2); where they stand for 100 points each it costs 50 and comes last.
    assert set(ward(points(0, 1.2, 3, 4), np.ones(4))[0][1:]) == {2, 3}
    weighted = ward(points(0, 1.2, 3, 4), np.array([1.0, 1, 100, 100]))
    assert weighted[0][0] == pytest.approx(0.72) and set(weighted[0][1:]) == {0, 1}
    assert weighted[1][0] == pytest.approx(2 * 100 / 102 * 2.4**2) and weighted[2][0] > 50
    random = np.random.default_rng(0)
    rows, weights = random.normal(size=(30, 3)), random.integers(1, 5, 30)
    repeated = linkage(np.repeat(rows, weights, axis=0), "ward")
    heights = np.sort(repeated[:, 2] ** 2 / 2)[-29:]
    assert np.allclose([cost for cost, _, _ in ward(rows, weights.astype(float))], heights)


def test_ward_is_that_of_scipy():
    rows = np.random.default_rng(1).normal(size=(200, 5))
    found = ward(rows, np.ones(200))
    assert np.allclose([cost for cost, _, _ in found], linkage(rows, "ward")[:, 2] ** 2 / 2)
    assert ward(rows[:1], np.ones(1)) == []


# The tree


def hand_tree():
    """Two groups on a line: 0, 1, 2 of one, 10 and 11 of the other; one piece each."""
    rows = torch.tensor([[0.0], [1], [2.5], [10], [11], [11]])
    return merge_tree(rows, Cut(torch.tensor([[10.0], [0], [2.5], [11], [1]]), torch.tensor([1, 0, 0, 1, 0])))


def test_a_tree_by_hand():
    tree, piece = hand_tree()
    # Pieces are numbered by the order of their centroids: 10, 0, 2.5, 11, 1.
    assert piece.tolist() == [1, 4, 2, 0, 3, 3]
    assert tree.groups == (1, 0, 0, 1, 0)
    # 0 and 1 cost 1/2; 10 and twice 11 cost 2/3; 0.5 and 2.5 cost 2 * 4 * 2/3; then both groups.
    assert [set(pair) for pair in tree.merges] == [{1, 4}, {0, 3}, {5, 2}, {6, 7}]
    assert tree.sizes == (1, 1, 1, 2, 1, 2, 3, 3, 6)
    # The mean of 0, 1 and 2.5 is 1.17: row 1; of 10, 11 and 11 it is 10.67: row 4; of all 5.9: row 2 (2.5).
    assert [tree.medoids[node] for node in (6, 7, 8)] == [4, 1, 2]
    assert list(cuts(tree)) == [(0, 1, 2, 3, 4), (0, 5, 2, 3, 5), (6, 5, 2, 6, 5), (6, 7, 7, 6, 7), (8, 8, 8, 8, 8)]


def test_groups_that_are_not_nearest_still_make_a_cut():
    # The groups say that 0 and 10 belong together, and 1 to 11: Ward alone would never find them.
    rows = torch.tensor([[0.0], [1], [10], [11]])
    tree, piece = merge_tree(rows, Cut(rows, torch.tensor([0, 1, 0, 1])))
    two = list(cuts(tree))[-2]
    assert two[0] == two[2] != two[1] == two[3] and piece.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("k", [1, 2, 7])
def test_the_present_groups_are_a_cut_and_others_only_merge_or_split(k):
    rows = blobs([30, 40, 50, 60, 70], seed=k)
    groups = cut(rows, k)
    tree, piece = merge_tree(rows, groups)
    assert len(tree.groups) == (1 if k == 1 else min(30, len(groups.centroids)))
    every = list(cuts(tree))
    assert [len(set(nodes)) for nodes in every] == list(range(len(tree.groups), 0, -1))
    present = next(nodes for nodes in every if len(set(nodes)) == k)
    assert len(set(zip(present, tree.groups, strict=True))) == k
    for finer, coarser in pairwise(every):
        assert len(set(zip(finer, coarser, strict=True))) == len(set(finer))
    assert tree.sizes[-1] == len(rows) and sum(tree.sizes[: len(tree.groups)]) == len(rows)
    inside = np.array([present[p] for p in piece.tolist()])
    for node in set(present):
        assert tree.sizes[node] == (inside == node).sum() and inside[tree.medoids[node]] == node


def test_a_centroid_without_rows_is_left_out():
    rows = torch.tensor([[0.0], [1.0]])
    tree, _ = merge_tree(rows, Cut(torch.tensor([[0.0], [5.0], [1.0]]), torch.tensor([0, 2, 3])))  # numbers have gaps
    assert tree.groups == (0, 3) and tree.sizes == (1, 1, 2)


def test_one_image():
    tree, piece = merge_tree(torch.ones(1, 3), Cut(torch.ones(1, 3), torch.tensor([0])))
    assert (tree.groups, tree.merges, tree.sizes, tree.medoids, piece.tolist()) == ((0,), (), (1,), (0,), [0])
    assert levels(torch.ones(1, 3), tree, piece) == []


def test_many_groups_are_merged_only():
    rows = torch.nn.functional.normalize(torch.randn(600, 4, generator=torch.Generator().manual_seed(0)))
    tree, _ = merge_tree(rows, Cut(rows, torch.arange(600) % 120))
    assert len(tree.groups) == 120


# The curves


def test_silhouettes_are_those_of_scikit_learn():
    rows = blobs([30, 40, 50], spread=0.3)
    tree, piece = merge_tree(rows, cut(rows, 3))
    found = silhouettes(rows.numpy(), piece.numpy(), tree)
    assert sorted(found) == list(range(2, len(tree.groups) + 1))
    for nodes in cuts(tree):
        labels = [nodes[p] for p in piece.tolist()]
        if len(set(labels)) > 1:
            assert found[len(set(labels))] == pytest.approx(silhouette_score(rows.numpy(), labels), abs=1e-4)


def test_a_silhouette_by_hand():
    tree, piece = hand_tree()
    rows = np.array([[0.0], [1], [2.5], [10], [11], [11]], dtype=np.float32)
    # 0: 1 - 1.75 / 10.667; 1: 1 - 1.25 / 9.667; 2.5: 1 - 2 / 8.167; 10: 1 - 1 / 8.833; 11, twice: 1 - .5 / 9.833.
    assert silhouettes(rows, piece.numpy(), tree)[2] == pytest.approx(
        np.mean([0.8359, 0.8707, 0.7551, 0.8868, 0.9492, 0.9492]), abs=1e-4
    )


def test_the_true_number_stands_out():
    rows = blobs([40, 40, 40, 40])
    tree, piece = merge_tree(rows, cut(rows, 4))
    found = {level.k: level for level in levels(rows, tree, piece)}
    assert max(found, key=lambda k: found[k].silhouette) == 4
    assert found[4].stability == pytest.approx(1) and found[4].stability > max(found[3].stability, found[5].stability)
    assert levels(rows, tree, piece) == list(found.values())  # again the same
    assert levels(rows, tree, piece, seed=1) != list(found.values())


def test_stability_is_the_agreement_of_the_cuts():
    rows = blobs([20, 20, 20]).numpy()
    assert stabilities(rows, [3], 0) == {3: pytest.approx(1)}
    noise = np.random.default_rng(0).normal(size=(200, 30)).astype(np.float32)
    assert stabilities(noise, [5], 0)[5] < 0.5
    assert stabilities(rows, [], 0) == {}
    whole = fcluster(linkage(rows, "ward"), 3, "maxclust")
    assert adjusted_rand_score(whole, np.repeat([0, 1, 2], 20)) == 1  # the reference itself finds them


def test_few_images_have_no_stability():
    rows = blobs([4, 4])
    tree, piece = merge_tree(rows, Cut(rows, torch.tensor([0] * 4 + [1] * 4)))
    assert [level.stability for level in levels(rows, tree, piece)] == [None] * 7
    assert all(level.silhouette is not None for level in levels(rows, tree, piece))


def test_equal_images():
    rows = torch.ones(20, 3) / 3**0.5
    tree, piece = merge_tree(rows, Cut(rows[:1], torch.tensor([0])))
    assert levels(rows, tree, piece) == [] and tree.sizes == (20,)
