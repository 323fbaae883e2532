"""When a new fit is due: outliers, strange medians, other clusters, many images."""

import pytest
import torch

from deepcluster.groups.drift import Drift, drift


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (Drift(1000, 19, 10, 19), None),  # too few to tell
        (Drift(1000, 20, 0, 20), "100% of the images added since the fit are outliers, and 0.0% of its own"),
        (Drift(1000, 100, 10, 7), None),  # 7 %, twice 1 % and 5 more
        (Drift(1000, 100, 10, 8), "8% of the images added since the fit are outliers, and 1.0% of its own"),
        (Drift(1000, 100, 100, 24), None),
        (Drift(1000, 20, 0, 4), None),  # a fifth, and still only four
        (Drift(1000, 20, residual_rank=0.95), "half of the images added since the fit are stranger than 95%"),
        (Drift(1000, 20, residual_rank=0.8), None),
        (Drift(1000, 300, shift=0.12, shift_p=1e-9), "the images added since the fit changed the clusters' shares"),
        (Drift(1000, 300, shift=0.12, shift_p=0.01), None),
        (Drift(1000, 300, shift=0.05, shift_p=1e-9), None),
        (Drift(1000, 1000), None),
        (Drift(1000, 1001), "1,001 images were added to a fit of 1,000"),
        (Drift(5, 6), "6 images were added to a fit of 5"),
    ],
)
def test_when_a_new_fit_is_due(found, reason):
    assert found.reason is None if reason is None else found.reason.startswith(reason)


def test_a_drift_by_hand():
    # Of the fit: 6 and 2 images in clusters 0 and 2. Added: 1 and 3, and cluster 1 is empty.
    cluster = torch.tensor([0] * 6 + [2] * 2 + [0] + [2] * 3)
    residuals = torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 7, 5.5, 6.5, 8, 9])
    found = drift(cluster, residuals, 8, limit=6.4)
    assert (found.fitted, found.added, found.fitted_outliers, found.added_outliers) == (8, 4, 1, 3)
    assert found.residual_rank == 7 / 8  # the median of four is the lower of the two in the middle, 6.5
    assert found.shift == pytest.approx(0.5 * 4 / 12)  # 3/4 and 1/4, then 1/4 and 3/4
    assert found.shift_p == pytest.approx(0.0983, abs=1e-3)  # chi-squared: 12 * 16^2 / (8 * 4 * 7 * 5)
    assert drift(cluster, residuals, 8, limit=torch.inf).residual_rank is None
    assert drift(cluster[:8], residuals[:8], 8, limit=6.4) == Drift(8, 0)


def test_new_images_of_the_same_kind_do_not_shift_clusters():
    random = torch.Generator().manual_seed(0)
    for clusters in (2, 30, 500):
        cluster = torch.randint(clusters, (2000,), generator=random)
        assert drift(cluster, torch.rand(2000, generator=random), 1200, 0.99).shift_p > 0.001
