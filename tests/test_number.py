import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from torch.nn import functional as F

from deepcluster.groups import choose_k
from deepcluster.groups.choose_k import candidates, ranked, stability
from deepcluster.groups.graph import modularity
from deepcluster.seeding import generator
from tests.helpers.features import blobs


@pytest.mark.parametrize("count", [2, 5, 8])
def test_a_clear_number_is_the_first_candidate(count):
    found = candidates(blobs([200] * count))
    assert found[0].k == count
    assert found[0].stability > 0.9
    assert len(found) == 3
    assert max(found, key=lambda candidate: candidate.silhouette).k == count


def test_rows_without_groups_are_cut_unstably():
    rows = F.normalize(torch.randn(400, 16, generator=generator(0, "rows")))
    assert stability(rows, 5) < 0.5
    assert stability(blobs([80] * 5), 5) > 0.9


def test_no_stability_is_claimed_of_few_images():
    """It needs 300 images, 10 for each group and two groups."""
    rows = blobs([100] * 3)
    assert stability(rows, 3) is not None
    assert stability(rows[1:], 3) is None and stability(rows, 31) is None and stability(rows, 1) is None
    assert all(candidate.stability is None for candidate in candidates(rows[1:]))


def test_the_stability_of_a_candidate_is_that_of_its_number():
    rows = blobs([80] * 4, spread=0.5)
    for candidate in candidates(rows, seed=5):
        assert candidate.stability == stability(rows, candidate.k, seed=5)


def test_a_sample_of_the_rows_has_the_same_number(monkeypatch):
    monkeypatch.setattr(choose_k, "ROWS", 200)
    assert candidates(blobs([200] * 5))[0].k == 5


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 12])
def test_few_rows(rows):
    found = candidates(torch.eye(12)[:rows])
    assert all(2 <= each.k < rows for each in found)
    assert bool(found) == (rows >= 4)
    assert candidates(torch.ones(50, 3)) == []


def test_numbers_are_ranked_by_peaks_the_finest_of_the_nearly_best_first():
    scores = np.array([0.5, 0.6, 0.55, 0.2, 0.3, 0.1])
    assert (ranked(scores, 3), ranked(scores, 9)) == ([1, 4, 2], [1, 4, 2, 0, 3, 5])
    assert ranked(np.array([0.5, 0.5]), 1) == [0]
    assert ranked(np.array([0.5, 0.1, 0.495, 0.1, 0.4, 0.1]), 3) == [2, 0, 4]
    assert ranked(np.array([0.5, 0.1, 0.4]), 3) == [0, 2, 1]
    assert ranked(np.array([]), 3) == []


def test_modularity_by_hand():
    """Two triangles and a bridge: 12 of 14 ends are inside, and half of random ones would be."""
    ties = np.zeros((6, 6))
    for a, b in ((0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5), (2, 3)):
        ties[a, b] = ties[b, a] = 1
    assert modularity(csr_array(ties), np.array([0, 0, 0, 1, 1, 1])) == pytest.approx(12 / 14 - 1 / 2)
    assert modularity(csr_array(ties), np.zeros(6, np.int64)) == pytest.approx(0)


def test_halves_of_groups_are_not_all_there_is():
    """Nine groups in two families: the silhouette of two is good, too, and the answer is nine."""
    rows = blobs([60] * 9, width=12)
    families = torch.eye(12)[[10] * 240 + [11] * 300]
    assert candidates(F.normalize(rows + 0.5 * families))[0].k == 9
