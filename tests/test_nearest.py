"""The search for nearest rows against all distances."""

import pytest
import torch

from deepcluster.clustering import blocks as room
from deepcluster.clustering.blocks import nearest
from tests.helpers.features import normal


@pytest.mark.parametrize(("scores", "chunk"), [(room.SCORES, room.CHUNK), (1000, 50), (70, 10)])
@pytest.mark.parametrize("k", [1, 7, 100])
def test_in_blocks_of_any_size(monkeypatch, scores, chunk, k):
    monkeypatch.setattr(room, "SCORES", scores)
    monkeypatch.setattr(room, "CHUNK", chunk)
    rows, others = normal(83, 12), normal(61, 12)
    products, numbers = nearest(rows, k, others)
    whole = (rows @ others.T).sort(dim=1, descending=True)
    assert torch.allclose(products, whole.values[:, :k], atol=1e-5)
    assert torch.equal(numbers, whole.indices[:, :k])
    # Among themselves, and by distance: a row is not its own neighbour.
    offsets = rows.square().sum(1) / 2
    _, numbers = nearest(rows, k, offsets=offsets)
    whole = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf).argsort(1)
    assert torch.equal(numbers, whole[:, : min(k, 82)])


def test_one_row_has_no_neighbour_and_a_twin_is_one():
    assert nearest(normal(1, 12), 3)[1].shape == (1, 0)
    assert nearest(normal(1, 12).repeat(2, 1), 3)[1].tolist() == [[1], [0]]
