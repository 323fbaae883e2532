import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.metrics import homogeneity_score

from deepcluster.clustering import kmeans, pic
from deepcluster.clustering.pic import _leads_to, _masses, _nearest, _ties, _without_singletons, power_iteration
from deepcluster.errors import NonFiniteError
from deepcluster.images.views import Augmentation
from deepcluster.learning.heads import CentroidHead, new_linear_head
from deepcluster.nets.network import build
from deepcluster.seeding import generator
from tests.drawings import drawings
from tests.helpers.features import normal
from tests.loop import loop


def reference(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Masses and labels by full matrices and loops, from the description alone."""
    rows = len(x)
    distances = ((x[:, None] - x[None]) ** 2).sum(2)
    others = [sorted((j for j in range(rows) if j != i), key=lambda j, i=i: distances[i, j])[:5] for i in range(rows)]
    one = np.zeros((rows, rows))
    for i in range(rows):
        for j in others[i]:
            one[i, j] = math.exp(-distances[i, j] / 0.2**2)
    ties = one + one.T
    masses = np.full(rows, 1 / rows)
    for _ in range(200):
        masses = 0.001 * ties @ masses + 0.999 / rows
        masses = masses / masses.sum()
    top = []
    for i in range(rows):
        at = i
        while True:
            gains = ties[at] * (masses - masses[at])
            if gains.max() <= 0:
                break
            at = int(gains.argmax())
        top.append(at)
    clusters = {peak: [i for i in range(rows) if top[i] == peak] for peak in sorted(set(top))}
    for i in range(rows):
        if clusters.get(top[i]) == [i]:
            del clusters[top[i]]
            top[i] = top[others[i][0]]
            clusters[top[i]] = [*clusters[top[i]], i]
    names = sorted(clusters)
    return masses, np.array([names.index(peak) for peak in top])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [0.1, 0.3])
def test_the_same_as_full_matrices_and_loops(seed, scale):
    x = scale * normal(120, 3, seed)
    masses, labels = reference(x.double().numpy())
    ours = _masses(_ties(*_nearest(x, 5)))
    np.testing.assert_allclose(ours, masses, rtol=1e-9)
    found = pic(x)
    assert found.labels.tolist() == labels.tolist()
    assert 3 < len(found.sizes) < 60


def test_rings_that_kmeans_mixes():
    """Two rings, 4.5 times as far apart as their rows are. Into as many clusters, k-means takes pieces of both."""
    which = torch.arange(1200) % 2
    place = torch.arange(1200) // 2 + 0.3 * torch.rand(1200, generator=generator(0, "rings"))
    angle = 2 * math.pi * place / 600
    radius = 0.3 * (1 + 4.5 * 2 * math.pi / 600 * which)
    x = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    found = pic(x)
    k = len(found.sizes)
    assert homogeneity_score(which, found.labels) == pytest.approx(1)
    assert max(homogeneity_score(which, kmeans(x, k, seed=seed).labels) for seed in range(3)) < 0.7


def test_singletons_that_are_each_others_nearest_become_a_pair():
    tops, nearest = np.array([0, 1, 2, 2, 4]), np.array([[1, 3], [0, 3], [3, 0], [2, 0], [1, 2]])
    assert _without_singletons(tops, nearest).tolist() == [0, 0, 1, 1, 0]


def test_a_singleton_that_another_one_has_come_to_stays():
    tops, nearest = np.array([0, 1, 2, 2]), np.array([[1], [2], [3], [2]])
    assert _without_singletons(tops, nearest).tolist() == [0, 0, 1, 1]


def test_rows_of_equal_mass_do_not_point_to_each_other():
    chain = csr_array(np.array([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]]))
    assert _leads_to(chain, np.full(3, 1 / 3)).tolist() == [0, 1, 2]
    assert _leads_to(chain, np.array([0.2, 0.3, 0.5])).tolist() == [2, 2, 2]


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
    k = len(found.sizes)
    assert found.labels.unique().tolist() == list(range(k))
    assert found.sizes.min() >= 2
    assert torch.equal(found.sizes, torch.bincount(found.labels))
    means = torch.stack([x[found.labels == number].double().mean(0) for number in range(k)])
    torch.testing.assert_close(found.centroids.double(), means, rtol=1e-4, atol=1e-5 * max(scale, 1))
    inertia = (x.double() - means[found.labels]).square().sum().item()
    assert found.inertia == pytest.approx(inertia, rel=1e-3, abs=1e-6)
    assert torch.equal(found.labels, pic(x).labels)


def test_one_row_and_none_and_not_finite():
    assert pic(torch.ones(1, 3)).labels.tolist() == [0]
    with pytest.raises(ValueError, match="no rows"):
        pic(torch.ones(0, 3))
    with pytest.raises(NonFiniteError, match="1 of 3 rows"):
        pic(torch.tensor([[0.0], [math.nan], [1.0]]))


OPTIONS = {"clusters": 6, "batch_size": 16, "views": [Augmentation(crop=(0.5, 1))], "dims": 16, "lr": 0.05}


@pytest.mark.parametrize("head", [new_linear_head, CentroidHead(0.1)])
def test_the_alternation_takes_it_and_as_many_clusters_as_there_are_each_round(head):
    images, _ = drawings(20)
    net = build("compact", image_size=24)
    counts = []
    for round in loop(net, images, rounds=3, **OPTIONS, clustering=power_iteration, head=head):
        counts.append(len(round.clustering.sizes))
        assert torch.equal(round.clustering.labels, pic(round.reduced).labels)
        rows = net.head.out_features if head is new_linear_head else len(net.head.directions)
        assert rows == counts[-1]
        assert round.chance_loss == pytest.approx(math.log(counts[-1]))
        assert math.isfinite(round.loss)
    assert len(set(counts)) > 1
