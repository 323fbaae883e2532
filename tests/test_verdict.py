import pytest
import torch
from torch.nn import functional as F

from deepcluster.groups.confidence import (
    CLEAR,
    HARDLY,
    MIXED,
    Clarity,
    Confidence,
    clarity,
    confidence_of,
    confidence_text,
)
from deepcluster.groups.cut import cut, place
from deepcluster.seeding import generator
from tests.helpers.features import blobs


def of(rows: torch.Tensor, k: int) -> Confidence:
    found = confidence_of(rows, place(rows, cut(rows, k), rows[:1]).cluster)
    assert found is not None
    return found


def test_agreement_by_hand():
    """Two blobs of 30 far apart, and ten of each counted as the other: the share of neighbours that agree is known."""
    rows = blobs([30] * 2, spread=0.02)
    truth = torch.arange(2).repeat_interleave(30)
    assert confidence_of(rows, truth).agreement == pytest.approx(1)
    mixed = truth.clone()
    mixed[torch.randperm(60, generator=generator(0, "some"))[:20]] ^= 1
    likeness = (rows @ rows.T).fill_diagonal_(-torch.inf)
    alike = sum((mixed[row.topk(10).indices] == mixed[i]).sum().item() for i, row in enumerate(likeness)) / 600
    share = mixed.float().mean().item()
    chance = share**2 + (1 - share) ** 2
    assert confidence_of(rows, mixed).agreement == pytest.approx((alike - chance) / (1 - chance), abs=1e-5)


def test_labels_by_chance_have_no_agreement():
    rows = blobs([100] * 4)
    random = torch.randint(0, 4, (400,), generator=generator(0, "labels"))
    assert abs(confidence_of(rows, random).agreement) < 0.1


def test_clear_groups_and_none():
    clear, none = of(blobs([60] * 5), 5), of(F.normalize(torch.randn(400, 32, generator=generator(0, "rows"))), 5)
    assert clear.score > CLEAR
    assert clear.stability > none.stability + 0.2
    assert none.score < MIXED
    assert "clear" in confidence_text(clear)
    assert "weak" in confidence_text(none)
    assert "mixed" in confidence_text(Confidence(0.95, 0.8, 0.1))  # the score is the product
    assert "clear" in confidence_text(Confidence(0.95, 0.9, 0.1))


@pytest.mark.parametrize(("rows", "k"), [(60, 1), (20, 2)])
def test_of_too_little_nothing_is_said(rows, k):
    found = confidence_of(torch.eye(60)[:rows], torch.arange(rows) % k)
    assert found is None
    assert "Too few" in confidence_text(found)


@pytest.mark.parametrize(("rows", "k"), [(3200, 3200), (3200, 1501), (40, 21)])
def test_of_more_groups_than_the_sample_can_show_nothing_is_said(rows, k):
    """The sample of 3,000 rows cannot be cut into more groups; with a row or less for each no neighbour can agree."""
    found = confidence_of(F.normalize(torch.randn(rows, 4, generator=generator(0, "rows"))), torch.arange(rows) % k)
    assert found is None
    assert "too few images a group" in confidence_text(found)


def test_the_trained_network_is_kept_unless_it_is_clearly_worse():
    clear = blobs([20] * 5)
    none = F.normalize(torch.randn(100, 32, generator=generator(0, "rows")))
    lost, gained = clarity(clear, none, 5, seed=0), clarity(none, clear, 5, seed=0)
    assert lost.after > 10 * lost.before
    assert not lost.kept
    assert lost.text.startswith("network before training kept")
    assert gained.kept
    assert gained.text.startswith("trained network kept")
    assert clarity(clear, clear, 5, seed=0).kept
    assert Clarity(1.0, HARDLY).kept
    assert not Clarity(1.5, 1.6).kept
    assert Clarity(2.7, 2.4).kept


def test_collapsed_features_are_no_groups():
    clear = blobs([20] * 5)
    collapsed = torch.ones_like(clear) / clear.shape[1] ** 0.5
    assert not clarity(clear, collapsed, 5, seed=0).kept
    assert clarity(collapsed, clear, 5, seed=0).kept
    assert clarity(collapsed, collapsed, 5, seed=0) is None
