import numpy as np
import pytest
import torch

from deepcluster.clustering import whiten
from deepcluster.clustering.whitening import ClassProbabilities, Preparation, square_roots, within_image_scaling
from deepcluster.errors import NonFiniteError
from deepcluster.seeding import generator


def correlated(rows: int, width: int, *, rank: int | None = None, offset: float = 0.0) -> torch.Tensor:
    random = generator(0, "test", rows, width)
    rank = rank or width
    mixing = torch.randn(rank, width, generator=random) + 3 * torch.eye(rank, width)
    return torch.randn(rows, rank, generator=random) @ mixing + offset


@pytest.mark.parametrize(("rows", "width", "dims"), [(2000, 300, 64), (500, 24, 24), (100, 300, 256), (9000, 20, 8)])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_whitened_covariance_is_the_identity(rows, width, dims, offset):
    x = correlated(rows, width, offset=offset)
    projected = whiten(x, dims)(x, unit=False).double().numpy()
    for same in (x.numpy(), x.double()):
        np.testing.assert_allclose(abs(whiten(same, dims)(same, unit=False)), abs(projected), atol=2e-3)
    components = min(dims, width, rows - 1)
    assert projected.shape == (rows, components)
    np.testing.assert_allclose(np.cov(projected.T), np.eye(components), atol=2e-3 if offset else 1e-4)
    np.testing.assert_allclose(projected.mean(0), 0, atol=2e-3 if offset else 1e-4)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_the_whitening_of_two_axes_by_hand(strength):
    """The standard deviations of two axes are 2 s and s: each is divided by its own ** strength."""
    x = torch.tensor([[2.0, 0], [-2, 0], [0, 1], [0, -1], [0, 0]])
    s = 0.5**0.5
    reduction = whiten(x, strength=strength)
    one, other = 2 / (2 * s) ** strength, 1 / s**strength
    expected = torch.tensor([[one, 0], [one, 0], [0, other], [0, other], [0, 0]])
    assert torch.allclose(reduction(x, unit=False).abs(), expected)
    assert torch.equal(reduction(x)[4], torch.zeros(2))  # the row at the mean


def test_constant_features_become_zeros():
    for x in torch.full((50, 8), 3.7).split([1, 2, 47]):
        assert torch.equal(whiten(x)(x), torch.zeros(len(x), 1))


@pytest.mark.parametrize(("rows", "width", "rank"), [(400, 64, 5), (30, 64, 5), (400, 64, 63)])
def test_rank_deficient_features_keep_their_rank(rows, width, rank):
    x = correlated(rows, width, rank=rank)
    x[:, 3] = 0  # a dead unit
    reduced = whiten(x)(x)
    assert reduced.shape[1] == rank
    assert torch.allclose(reduced.norm(dim=1), torch.ones(rows), atol=1e-5)


@pytest.mark.parametrize("rows", [9, 3])  # more than columns, and fewer
def test_square_roots_by_hand(rows):
    """Each number's root, with its sign, divided by the length of its row; then as ever."""
    x = torch.tensor([[4.0, 0, -9, 16]]) * torch.arange(1.0, 10).unsqueeze(1)
    x = (x + correlated(9, 4))[:rows]
    roots = np.sign(x.numpy()) * np.sqrt(np.abs(x.numpy()))
    roots /= np.linalg.norm(roots, axis=1, keepdims=True)
    fitted, by_hand = whiten(x, 3, 0.5, prepare=Preparation(root=True)), whiten(roots, 3, 0.5)
    for ours, wanted in ((fitted(x), by_hand(roots)), (fitted(x, unit=False), by_hand(roots, unit=False))):
        assert torch.allclose(ours.abs(), wanted.abs(), atol=1e-4)
    assert torch.allclose(fitted(7 * x), fitted(x), atol=1e-4)  # the length of a row counts no more


def test_the_scaling_of_two_axes_by_hand():
    """Views that differ along the first axis alone: S is diag(s, 0), so its mean eigenvalue is s / 2."""
    one = torch.tensor([[1.0, 0], [0, 1], [4, 2], [1, 3]])
    pairs = torch.stack([one, one + torch.tensor([[1.0, 0], [-1, 0], [2, 0], [0, 0]]) + 7])
    np.testing.assert_allclose(within_image_scaling(pairs, 4.0), np.diag([1 / 3, 1]), atol=1e-6)
    # Pairs that show one axis of 100 scale it by their own mean eigenvalue, and not by a hundredth of it.
    wide = torch.zeros(2, 2, 100)
    wide[1, :, 0] = torch.tensor([3.0, -3])
    np.testing.assert_allclose(np.diag(within_image_scaling(wide, 3.0))[:2], [1 / 2, 1], atol=1e-6)
    for same in (pairs[:, :1], torch.stack([one, one]), torch.stack([one, one + 7]), torch.zeros(2, 3, 100)):
        np.testing.assert_allclose(within_image_scaling(same, 4.0), np.eye(same.shape[2]))


@pytest.mark.parametrize("rows", [200, 9])  # more than columns, and fewer
def test_features_are_scaled_before_the_components(rows):
    x = correlated(rows, 12)
    pairs = torch.stack([x[:8], x[:8] + 0.3 * correlated(8, 12)])
    scaled = x @ torch.from_numpy(within_image_scaling(pairs, 2.0)).float()
    fitted = whiten(x, 5, 0.5, pairs=(pairs, 2.0))
    assert torch.allclose(fitted(x, unit=False).abs(), whiten(scaled, 5, 0.5)(scaled, unit=False).abs(), atol=1e-3)
    assert not torch.allclose(fitted(x).abs(), whiten(x, 5, 0.5)(x).abs(), atol=1e-2)


@pytest.mark.parametrize("rows", [200, 9])  # more than columns, and fewer
def test_class_probabilities_are_features_beside_the_roots(rows):
    x = correlated(rows, 12)
    weight, bias = 0.1 * correlated(3, 12), torch.tensor([0.0, 1, -1])
    probabilities = torch.exp(x @ weight.T + bias)
    probabilities /= probabilities.sum(1, keepdim=True)
    by_hand = torch.cat([square_roots(x), 0.5 * probabilities.sqrt()], 1)
    pairs = torch.stack([x[:6], x[:6] + 0.3 * correlated(6, 12)])
    prepare = Preparation(root=True, classes=ClassProbabilities(weight, bias, torch.tensor(0.5)))
    fitted = whiten(x, 5, 0.5, prepare=prepare, pairs=(pairs, 1.0))
    assert torch.allclose(prepare(x), by_hand, atol=1e-5)
    views = torch.stack([by_hand[:6], prepare(pairs[1])])
    wanted = whiten(by_hand, 5, 0.5, pairs=(views, 1.0))(by_hand, unit=False)
    assert torch.allclose(fitted(x, unit=False).abs(), wanted.abs(), atol=1e-3)
    for count in (1, 2, 3):  # a row has the same bits alone and among others
        assert torch.equal(torch.cat([fitted(few) for few in x.split(count)]), fitted(x))


def test_numbers_that_are_not_finite_or_too_small_or_large_are_refused():
    x = correlated(20, 4)
    x[3, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="1 of 20"):
        whiten(x)
    for scale in (1e-20, 1e25, 1e34):
        for rows in (scale * correlated(20, 4), scale**2 * correlated(20, 4).double(), scale * correlated(4, 20)):
            with pytest.raises(NonFiniteError):
                whiten(rows)
    for rows in (20, 3):  # more than columns, and fewer
        pairs = torch.stack([correlated(3, 4), correlated(3, 4)])
        pairs[1, 2, 0] = torch.inf
        with pytest.raises(NonFiniteError):
            whiten(correlated(rows, 4), pairs=(pairs, 1.0))
    x = 1e-15 * correlated(200, 4)
    assert torch.allclose(whiten(x)(x, unit=False).T.cov(), torch.eye(4), atol=1e-3)
