from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from deepcluster.groups import choose_k
from deepcluster.groups.choose_k import candidates
from deepcluster.seeding import generator
from tests.helpers.features import blobs


@pytest.mark.parametrize("count", [2, 5, 8])
def test_a_clear_number_is_the_first_candidate(count):
    found = candidates(blobs([60] * count))
    assert found[0].k == count
    assert found[0].stability > 0.9
    assert len(found) == 3
    assert all(one.gap >= other.gap for one, other in pairwise(found))
    assert max(found, key=lambda candidate: candidate.silhouette).k == count


def test_rows_without_groups_are_cut_unstably():
    rows = F.normalize(torch.randn(400, 16, generator=generator(0, "rows")))
    assert all(each.stability < 0.5 for each in candidates(rows))
    assert min(each.stability for each in candidates(blobs([60] * 5))[:1]) > 0.9


def test_a_sample_of_the_rows_has_the_same_number(monkeypatch):
    monkeypatch.setattr(choose_k, "ROWS", 200)
    assert candidates(blobs([200] * 5))[0].k == 5


def test_it_depends_on_the_seed_and_on_no_other_randomness():
    rows = F.normalize(torch.randn(400, 16, generator=generator(0, "rows")))
    once = candidates(rows, seed=3)
    with torch.random.fork_rng():
        torch.rand(1)
        assert candidates(rows, seed=3) == once
    assert [each.stability for each in candidates(rows, seed=4)] != [each.stability for each in once]


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 12])
def test_few_rows(rows):
    found = candidates(torch.eye(12)[:rows])
    assert all(2 <= each.k < rows for each in found)
    assert bool(found) == (rows >= 4)


def test_equal_rows_have_no_number():
    assert candidates(torch.ones(50, 3)) == []
