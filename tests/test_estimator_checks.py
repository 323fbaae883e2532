"""scikit-learn's own checks of an estimator, on tables of numbers that the estimator takes for small images.

All of them pass, so there is no list of expected failures. One is skipped by scikit-learn itself, where the environment
has no SCIPY_ARRAY_API.
"""

import pytest
from sklearn.base import clone
from sklearn.utils import estimator_checks

from deepcluster import DeepCluster

QUICK = DeepCluster(n_clusters=2, rounds=1, epochs=1, image_size=8)
# In `make test`; each of the others fits as small a table, and is for `make test-slow`.
QUICKLY = {
    "check_clustering",
    "check_estimators_pickle",
    "check_fit_idempotent",
    "check_methods_sample_order_invariance",
    "check_n_features_in_after_fitting",
    "check_no_attributes_set_in_init",
    "check_transformer_general",
}
TWICE = {"check_clustering", "check_transformer_general"}  # of a table that cannot be written to once more: slow


def is_quick(name: str, options: dict[str, object]) -> bool:
    return name in QUICKLY and not (name in TWICE and options.get("readonly_memmap"))


CHECKS = [
    pytest.param(estimator, check, id=name, marks=() if is_quick(name, check.keywords) else pytest.mark.slow)
    for estimator, check in estimator_checks.estimator_checks_generator(QUICK)
    for name in [check.func.__name__]
]
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


@pytest.mark.parametrize(("estimator", "check"), CHECKS)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_the_checks_are_not_left_out():
    """For an estimator whose tags say that it takes no tables, there would be none."""
    assert len(CHECKS) >= 45
    assert {check.id for check in CHECKS} >= QUICKLY


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_the_checks_of_scikit_learns_own_estimators(name):
    if "pandas" in name or "dataframe" in name:
        pytest.importorskip("pandas")
    getattr(estimator_checks, name)("DeepCluster", clone(QUICK))
