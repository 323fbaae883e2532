"""scikit-learn's own checks of an estimator, on tables of numbers that the estimator takes for small images.

All of them pass, so there is no list of expected failures. One is skipped by scikit-learn itself, if the environment
has no SCIPY_ARRAY_API. They fit many times: `make test` runs a few of them, without training.
"""

import pytest
from sklearn.base import clone
from sklearn.utils import estimator_checks

from deepcluster import DeepCluster

TRAINED = DeepCluster(n_clusters=2, rounds=1, epochs=1, image_size=8)
QUICK = {
    "check_clustering",
    "check_estimators_pickle",
    "check_fit_idempotent",
    "check_methods_sample_order_invariance",
    "check_n_features_in_after_fitting",
    "check_no_attributes_set_in_init",
    "check_transformer_general",
}
# Asked of scikit-learn's own estimators only.
MORE = (
    "check_set_output_transform",
    "check_transformer_get_feature_names_out",
    "check_set_output_transform_pandas",
    "check_transformer_get_feature_names_out_pandas",
    "check_dataframe_column_names_consistency",
)
ALL = [(check.func.__name__, check) for _, check in estimator_checks.estimator_checks_generator(TRAINED)]
CHECKS = [pytest.param(TRAINED, check, id=name, marks=pytest.mark.slow) for name, check in ALL] + [
    pytest.param(clone(TRAINED).set_params(rounds=0), check, id=f"{name}-untrained")
    for name, check in ALL
    if name in QUICK and not check.keywords.get("readonly_memmap")
]

pytestmark = pytest.mark.filterwarnings(
    "ignore::deepcluster.errors.DeepClusterWarning"
)  # of tables with few distinct rows


@pytest.mark.parametrize(("estimator", "check"), CHECKS)
def test_scikit_learns_checks(estimator, check):
    check(clone(estimator))


def test_the_checks_are_not_left_out():
    """For an estimator whose tags say that it takes no tables, there would be none."""
    assert len(ALL) >= 45 and {name for name, _ in ALL} >= QUICK


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_the_checks_of_scikit_learns_own_estimators(name):
    getattr(estimator_checks, name)("DeepCluster", clone(TRAINED))
