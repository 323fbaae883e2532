"""scikit-learn's own checks of an estimator, on tables of numbers that the estimator takes for small images.

All of them pass, so there is no list of expected failures. One is skipped by scikit-learn itself, where the environment
has no SCIPY_ARRAY_API.
"""

import pytest
from sklearn.base import clone
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

from deepcluster import DeepCluster

QUICK = DeepCluster(n_clusters=2, rounds=1, epochs=1, image_size=8)
# What scikit-learn asks of its own estimators only.
MORE = (
    "check_set_output_transform",
    "check_transformer_get_feature_names_out",
    "check_set_output_transform_pandas",
    "check_transformer_get_feature_names_out_pandas",
    "check_dataframe_column_names_consistency",
)

pytestmark = pytest.mark.filterwarnings(
    "ignore::deepcluster.errors.DeepClusterWarning"
)  # of tables with few distinct rows


@parametrize_with_checks([QUICK])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_the_checks_are_not_left_out():
    """For an estimator whose tags say that it takes no tables, there would be none."""
    names = [check.func.__name__ for _, check in estimator_checks.estimator_checks_generator(QUICK)]
    assert len(names) >= 45
    assert {"check_clustering", "check_transformer_general", "check_fit_idempotent"} <= set(names)


@pytest.mark.parametrize("name", MORE)
def test_the_checks_of_scikit_learns_own_estimators(name):
    if "pandas" in name or "dataframe" in name:
        pytest.importorskip("pandas")
    getattr(estimator_checks, name)("DeepCluster", clone(QUICK))
