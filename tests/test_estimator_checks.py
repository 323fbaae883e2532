"""scikit-learn's own checks of an estimator, on tables of numbers that the estimator takes for small images."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from deepcluster import DeepCluster

EXPECTED: dict[str, str] = {}

pytestmark = pytest.mark.filterwarnings("ignore::deepcluster.errors.DeepClusterWarning")


@parametrize_with_checks(
    [DeepCluster(n_clusters=2, rounds=1, epochs=1, image_size=8)],
    expected_failed_checks=lambda estimator: EXPECTED,
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)
