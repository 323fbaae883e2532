"""The merge tree: cases by hand, scipy as a reference, and invariants."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import linkage

from deepcluster.groups.cut import Cut, cut, placement_of
from deepcluster.groups.tree import Tree, medoids_of, merge_tree, nodes_at, ward
from deepcluster.runtime.partition import Partition
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
    assert ward(rows[:1], np.ones(1)) == []


# The tree


def cuts(tree: Tree) -> list[list[int]]:
    """The node of each piece, for P, P - 1, ..., 1 groups."""
    pieces = len(tree.groups)
    each = [nodes_at(pieces, tree.merges, count) for count in range(pieces, 0, -1)]
    return [[next(node for node in nodes if piece in nodes[node]) for piece in range(pieces)] for nodes in each]


def test_a_tree_by_hand():
    """Two groups on a line: 0, 1, 2 of one, 10 and 11 of the other; one piece each."""
    rows = torch.tensor([[0.0], [1], [2.5], [10], [11], [11]])
    tree = merge_tree(rows, Cut(torch.tensor([[10.0], [0], [2.5], [11], [1]]), torch.tensor([1, 0, 0, 1, 0])))
    # Pieces are numbered by the order of their centroids: 10, 0, 2.5, 11, 1.
    assert tree.medoids[:5] == (3, 0, 2, 4, 1)
    assert tree.groups == (1, 0, 0, 1, 0)
    # 0 and 1 cost 1/2; 10 and twice 11 cost 2/3; 0.5 and 2.5 cost 2 * 4 * 2/3; then both groups.
    assert [set(pair) for pair in tree.merges] == [{1, 4}, {0, 3}, {5, 2}, {6, 7}]
    assert tree.sizes == (1, 1, 1, 2, 1, 2, 3, 3, 6)
    # The mean of 0, 1 and 2.5 is 1.17: row 1; of 10, 11 and 11 it is 10.67: row 4; of all 5.9: row 2 (2.5).
    assert [tree.medoids[node] for node in (6, 7, 8)] == [4, 1, 2]
    assert cuts(tree) == [[0, 1, 2, 3, 4], [0, 5, 2, 3, 5], [6, 5, 2, 6, 5], [6, 7, 7, 6, 7], [8, 8, 8, 8, 8]]


def test_groups_that_are_not_nearest_still_make_a_cut():
    # The groups say that 0 and 10 belong together, and 1 to 11: Ward alone would never find them.
    rows = torch.tensor([[0.0], [1], [10], [11]])
    tree = merge_tree(rows, Cut(rows, torch.tensor([0, 1, 0, 1])))
    two = cuts(tree)[-2]
    assert two[0] == two[2] != two[1] == two[3] and tree.medoids[:4] == (0, 1, 2, 3)


@pytest.mark.parametrize("k", [1, 2, 7])
def test_the_present_groups_are_a_cut_and_others_only_merge_or_split(k):
    rows = blobs([30, 40, 50, 60, 70], seed=k)
    groups = cut(rows, k)
    tree = merge_tree(rows, groups)
    assert len(tree.groups) == (1 if k == 1 else min(30, len(groups.centroids)))
    every = cuts(tree)
    assert [len(set(nodes)) for nodes in every] == list(range(len(tree.groups), 0, -1))
    present = next(nodes for nodes in every if len(set(nodes)) == k)
    assert len(set(zip(present, tree.groups, strict=True))) == k
    for finer, coarser in pairwise(every):
        assert len(set(zip(finer, coarser, strict=True))) == len(set(finer))
    assert tree.sizes[-1] == len(rows) and sum(tree.sizes[: len(tree.groups)]) == len(rows)
    cluster = placement_of(rows, groups, rows[:1]).cluster
    for node, group in set(zip(present, tree.groups, strict=True)):
        assert tree.sizes[node] == (cluster == group).sum() and cluster[tree.medoids[node]] == group


def test_a_centroid_without_rows_is_left_out_and_one_piece_is_a_tree():
    rows = torch.tensor([[0.0], [1.0]])
    tree = merge_tree(rows, Cut(torch.tensor([[0.0], [5.0], [1.0]]), torch.tensor([0, 2, 3])))  # numbers have gaps
    assert tree.groups == (0, 3) and tree.sizes == (1, 1, 2)
    one = Cut(torch.ones(1, 3), torch.tensor([0]))
    for images in (1, 20):
        assert merge_tree(torch.ones(images, 3), one) == Tree(groups=(0,), merges=(), sizes=(images,), medoids=(0,))


def test_many_groups_are_merged_only():
    rows = torch.nn.functional.normalize(torch.randn(600, 4, generator=torch.Generator().manual_seed(0)))
    tree = merge_tree(rows, Cut(rows, torch.arange(600) % 120))
    assert len(tree.groups) == 120


def test_medoids_block_by_block(monkeypatch):
    monkeypatch.setattr("deepcluster.groups.tree.ROWS_AT_ONCE", 3)
    random = torch.Generator().manual_seed(0)
    rows, middles, own = torch.randn(8, 4, generator=random), torch.randn(3, 4, generator=random), torch.arange(8) // 3
    distances = torch.cdist(middles, rows).masked_fill(own != torch.arange(3).unsqueeze(1), torch.inf)
    assert torch.equal(medoids_of(middles, rows, own, Partition.single(8)), distances.argmin(1))
