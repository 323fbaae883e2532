"""scikit-learn's own checks of an estimator, on rows of numbers, which are features.

All of them pass, so there is no list of expected failures. One is skipped by scikit-learn itself, if the environment
has no SCIPY_ARRAY_API. They fit many times: `make test` runs a few of them.
"""

from functools import partial

import pytest
from sklearn.base import clone
from sklearn.utils import estimator_checks

from deepcluster import DeepCluster

FEW = DeepCluster(n_clusters=2)
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
ALL = [(check.func.__name__, check) for _, check in estimator_checks.estimator_checks_generator(FEW)]
ALL += [(name, partial(getattr(estimator_checks, name), "DeepCluster")) for name in MORE]
CHECKS = [pytest.param(check, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, check in ALL]

# Of tables with few distinct rows.
pytestmark = pytest.mark.filterwarnings("ignore::deepcluster.errors.DeepClusterWarning")


@pytest.mark.parametrize("check", CHECKS)
def test_scikit_learns_checks(check):
    check(clone(FEW))


def test_the_checks_are_not_left_out():
    """For an estimator whose tags say that it takes no tables, there would be none."""
    assert len(ALL) >= 50 and {name for name, _ in ALL} >= QUICK
