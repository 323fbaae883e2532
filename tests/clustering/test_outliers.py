"""Outliers: images outside the principal directions of the images of a fit."""

import pytest
import torch

from deepcluster.clustering.outliers import MIN_ROWS, Outliers, fit_outliers, limit_of
from deepcluster.clustering.whitening import Preparation, square_roots

WIDTH, INSIDE = 40, 6


def near_a_plane(count: int, seed: int = 0, plane: int = 0) -> torch.Tensor:
    """Rows near ``INSIDE`` directions, which the number of the plane draws."""
    random, directions = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(100 + plane)
    basis = 3 * torch.randn(INSIDE, WIDTH, generator=directions)
    return 5 + torch.randn(count, INSIDE, generator=random) @ basis + 0.5 * torch.randn(count, WIDTH, generator=random)


def fitted(x: torch.Tensor, root: bool = False) -> Outliers:
    return fit_outliers(x, Preparation(root))


@pytest.mark.parametrize("root", [False, True])
def test_residuals_by_hand(root):
    x = near_a_plane(300)
    outliers = fitted(x, root=root)
    rows = (square_roots(x) if root else x).double()
    outside = []
    for half in (rows[::2], rows[1::2]):
        directions = torch.linalg.svd(half - half.mean(0))[2][: WIDTH // 2]
        centred = rows - half.mean(0)
        outside.append((centred - centred @ directions.T @ directions).norm(dim=1))
    wanted = torch.maximum(*outside)
    torch.testing.assert_close(outliers.residuals(x).double(), wanted, rtol=2e-3, atol=1e-4)
    assert outliers.limit == pytest.approx(limit_of(wanted), rel=1e-3)
    residuals = torch.linspace(1, 3, 21)  # median 2, 90th percentile 2.8
    assert limit_of(residuals, tail=0.5, quantile=1) == pytest.approx(2.4)
    assert limit_of(residuals, tail=5, quantile=0.95) == pytest.approx(2.9)


@pytest.mark.parametrize("count", [120, 600, 3000])
def test_strangers_are_outliers_and_new_images_of_the_same_kind_are_not(count):
    outliers = fitted(near_a_plane(count))
    new, strange = near_a_plane(1000, seed=1), near_a_plane(1000, seed=1, plane=1)
    assert (outliers.residuals(new) > outliers.limit).float().mean() < 0.02
    assert (outliers.residuals(strange) > outliers.limit).float().mean() > 0.98


def test_strangers_among_the_images_of_a_fit_are_outliers_alone_and_among_others():
    x, strange = near_a_plane(1000), torch.arange(1000) % 50 < 2
    x[::50] = near_a_plane(20, seed=1, plane=1)
    x[1::50] = near_a_plane(20, seed=2, plane=2)
    outliers = fitted(x)
    whole = outliers.residuals(x)
    outlier = whole > outliers.limit
    assert outlier[strange].float().mean() > 0.9 and outlier[~strange].float().mean() < 0.01
    for rows in (slice(0, 0), slice(0, 1), slice(7, 9), slice(100, 250)):
        assert torch.equal(outliers.residuals(x[rows]), whole[rows])


@pytest.mark.parametrize("x", [near_a_plane(MIN_ROWS - 1), near_a_plane(1), near_a_plane(200)[:, :1]])
def test_too_few_rows_or_columns_tell_no_outliers(x):
    outliers = fitted(x)
    assert outliers.limit == torch.inf and not (outliers.residuals(1e6 * x) > outliers.limit).any()


def test_rounding_errors_make_no_outliers():
    x = near_a_plane(1) + torch.randn(200, 2) @ torch.randn(2, WIDTH)  # nothing outside two directions
    outliers = fitted(x)
    assert not (outliers.residuals(x) > outliers.limit).any()
    assert not (fitted(x[:1].repeat(200, 1)).residuals(x[:1]) > 0).any()  # all equal
    assert (outliers.residuals(x + torch.randn(WIDTH)) > outliers.limit).all()


def test_of_very_many_images_some_are_enough():
    x = near_a_plane(2000)
    assert fitted(x[::4]).limit == pytest.approx(fitted(x).limit, rel=0.1)
