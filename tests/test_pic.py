import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from deepcluster.clustering import pic
from deepcluster.clustering.pic import _leads_to, _masses, _nearest, _ties, _without_singletons, power_iteration
from deepcluster.errors import NonFiniteError
from deepcluster.learning.heads import CentroidHead, new_linear_head
from tests.drawings import drawings
from tests.helpers.features import normal
from tests.loop import loop
from tests.test_algorithm import OPTIONS, network


def reference(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Masses and labels by full matrices and loops, from the description alone."""
    rows = np.arange(len(x))
    distances = ((x[:, None] - x[None]) ** 2).sum(2)
    np.fill_diagonal(distances, np.inf)
    others = distances.argsort(1)[:, :5]
    one = np.zeros_like(distances)
    for i in rows:
        one[i, others[i]] = np.exp(-distances[i, others[i]] / 0.2**2)
    ties = one + one.T
    masses = np.full(len(x), 1 / len(x))
    for _ in range(200):
        masses = 0.001 * ties @ masses + 0.999 / len(x)
        masses /= masses.sum()
    gains = ties * (masses - masses[:, None])
    top = up = np.where(gains.max(1) > 0, gains.argmax(1), rows)
    for _ in rows:
        top = up[top]
    for i in rows:
        if (top == top[i]).sum() == 1:
            top[i] = top[others[i, 0]]
    return masses, np.unique(top, return_inverse=True)[1]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [0.1, 0.3])
def test_the_same_as_full_matrices_and_loops(seed, scale):
    x = scale * normal(120, 3, seed)
    masses, labels = reference(x.double().numpy())
    np.testing.assert_allclose(_masses(_ties(*_nearest(x, 5))), masses, rtol=1e-9)
    found = pic(x)
    assert found.labels.tolist() == labels.tolist() and 3 < len(found.sizes) < 60


def test_singletons_by_hand():
    tops, nearest = np.array([0, 1, 2, 2, 4]), np.array([[1, 3], [0, 3], [3, 0], [2, 0], [1, 2]])
    assert _without_singletons(tops, nearest).tolist() == [0, 0, 1, 1, 0]  # 0 and 1 become a pair
    tops, nearest = np.array([0, 1, 2, 2]), np.array([[1], [2], [3], [2]])
    assert _without_singletons(tops, nearest).tolist() == [0, 0, 1, 1]  # 0 has come to 1, which stays


def test_rows_of_equal_mass_do_not_point_to_each_other():
    chain = csr_array(np.array([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]]))
    assert _leads_to(chain, np.full(3, 1 / 3)).tolist() == [0, 1, 2]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(2, 60),
    width=st.integers(1, 5),
    scale=st.sampled_from([0.0, 0.01, 0.3, 30.0]),
    twice=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_invariants(rows, width, scale, twice, seed):
    x = scale * normal(rows, width, seed)
    x = torch.cat([x, x]) if twice else x
    found = pic(x)
    assert found.labels.unique().tolist() == list(range(len(found.sizes))) and found.sizes.min() >= 2
    assert torch.equal(found.labels, pic(x).labels)


def test_one_row_and_none_and_not_finite():
    assert pic(torch.ones(1, 3)).labels.tolist() == [0]
    with pytest.raises(ValueError, match="no rows"):
        pic(torch.ones(0, 3))
    with pytest.raises(NonFiniteError, match="1 of 3 rows"):
        pic(torch.tensor([[0.0], [math.nan], [1.0]]))


@pytest.mark.parametrize("head", [new_linear_head, CentroidHead(0.1)])
def test_the_alternation_takes_it_and_as_many_clusters_as_there_are_each_round(head):
    net, counts = network(), []
    for round in loop(net, drawings(20)[0], rounds=3, **OPTIONS, clustering=power_iteration, head=head):
        counts.append(len(round.clustering.sizes))
        assert torch.equal(round.clustering.labels, pic(round.reduced).labels)
        rows = net.head.out_features if head is new_linear_head else len(net.head.directions)
        assert rows == counts[-1] and round.chance_loss == pytest.approx(math.log(rows))
        assert math.isfinite(round.loss)
    assert len(set(counts)) > 1
