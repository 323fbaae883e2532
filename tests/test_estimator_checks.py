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
# They fit many times: untrained in `make test`.
UNTRAINED = {"check_clustering", "check_transformer_general"}
PAIRS = [(*pair, pair[1].func.__name__) for pair in estimator_checks.estimator_checks_generator(QUICK)]
CHECKS = [
    pytest.param(estimator, check, id=name, marks=() if name in QUICKLY - UNTRAINED else pytest.mark.slow)
    for estimator, check, name in PAIRS
]
CHECKS_UNTRAINED = [
    pytest.param(clone(estimator).set_params(rounds=0), check, id=f"{name}-untrained")
    for estimator, check, name in PAIRS
    if name in UNTRAINED and not check.keywords.get("readonly_memmap")
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


@pytest.mark.parametrize(("estimator", "check"), CHECKS + CHECKS_UNTRAINED)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_the_checks_are_not_left_out():
    """For an estimator whose tags say that it takes no tables, there would be none."""
    assert len(CHECKS) >= 45
    assert {check.id for check in CHECKS} >= QUICKLY and len(CHECKS_UNTRAINED) == len(UNTRAINED)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_the_checks_of_scikit_learns_own_estimators(name):
    if "pandas" in name or "dataframe" in name:
        pytest.importorskip("pandas")
    getattr(estimator_checks, name)("DeepCluster", clone(QUICK))
