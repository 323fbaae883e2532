import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch.nn import functional as F

from deepcluster.clustering import kmeans
from deepcluster.clustering.kmeans import segment_sums, squared_distances
from deepcluster.errors import NonFiniteError
from deepcluster.seeding import generator


def normal(rows: int, width: int, *index: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=generator(0, "test", rows, width, *index))


def test_four_points_by_hand():
    x = torch.tensor([[0.0, 0], [0, 2], [10, 0], [10, 2]])
    found = kmeans(x, 2, start=torch.tensor([[1.0, 0], [9, 0]]), precision="fp32")
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(found.centroids, torch.tensor([[0.0, 1], [10, 1]]))
    assert found.sizes.tolist() == [2, 2]
    assert found.inertia == pytest.approx(4.0)
    assert found.reseeded == 0


@pytest.mark.parametrize(("rows", "width", "k"), [(500, 8, 5), (3000, 32, 40), (200, 3, 1)])
def test_same_as_scikit_learn_from_the_same_start(rows, width, k):
    x = normal(rows, width) + 3 * torch.randint(0, 3, (rows, 1), generator=generator(1, "test"))
    start = x[torch.randperm(rows, generator=generator(2, "test"))[:k]]
    ours = kmeans(x, k, start=start, iterations=12, precision="fp32")
    theirs = KMeans(k, init=start.double().numpy(), n_init=1, max_iter=12, tol=0).fit(x.double().numpy())
    assert (ours.labels.numpy() == theirs.labels_).mean() > 0.999
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-4)
    np.testing.assert_allclose(ours.centroids.numpy(), theirs.cluster_centers_, atol=0.02)


def test_rows_far_from_zero():
    """At 4,000 a float32 product of 16 numbers is 2.6e8: it has no digits left for distances of 1."""
    x = normal(600, 16) + 4 * torch.eye(16)[torch.arange(600) % 16] + 4000
    for precision in ("fp32", "bf16"):
        ours = kmeans(x, 16, start=x[:16], iterations=10, precision=precision)
        theirs = KMeans(16, init=x[:16].double().numpy(), n_init=1, max_iter=10, tol=0).fit(x.double().numpy())
        assert (ours.labels.numpy() == theirs.labels_).mean() > 0.98
        assert ours.inertia == pytest.approx(theirs.inertia_, rel=2e-3)


def test_labels_belong_to_the_returned_centroids():
    x = F.normalize(normal(2000, 16))
    for precision in ("fp32", "bf16"):
        found = kmeans(x, 30, iterations=3, precision=precision)
        distances = torch.cdist(x.double(), found.centroids.double())
        assert torch.equal(found.labels, distances.argmin(1))
        assert torch.equal(found.sizes, torch.bincount(found.labels, minlength=30))
        assert found.inertia == pytest.approx(distances.min(1).values.square().sum().item(), rel=1e-5)


@pytest.mark.parametrize("empty", ["split", "sample"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("iterations", [1, 20])
def test_no_cluster_is_empty_where_most_rows_are_one_point(empty, precision, iterations):
    x = torch.cat([normal(400, 8), torch.full((600, 8), 0.3)])
    found = kmeans(x, 300, empty=empty, precision=precision, iterations=iterations)
    assert found.sizes.min() >= 1
    assert found.sizes.sum() == 1000


def test_repair_after_the_last_update():
    # Two starts on one point: the second is empty at once, and with no iteration left only the last repair can help.
    x = torch.tensor([[0.0, 0], [0, 1], [5, 5]])
    found = kmeans(x, 2, start=torch.zeros(2, 2), iterations=0, precision="fp32")
    assert found.labels.tolist() == [0, 0, 1]
    assert found.reseeded == 1


@pytest.mark.parametrize("empty", ["split", "sample"])
def test_few_distinct_rows(empty):
    x = torch.arange(30.0).repeat(100).unsqueeze(1).repeat(1, 3)
    exact = kmeans(x, 30, empty=empty)
    assert exact.sizes.tolist() == [100] * 30
    assert all(len(exact.labels[x[:, 0] == value].unique()) == 1 for value in range(30))
    more = kmeans(x, 40, empty=empty)  # there are only 30 distinct rows, so ten clusters must stay empty
    assert int((more.sizes > 0).sum()) == 30
    assert torch.isfinite(more.centroids).all()


def test_policies_differ():
    x = torch.cat([normal(50, 4), torch.full((950, 4), 0.5)])
    start = torch.full((20, 4), 0.5)
    start[:10] = x[:10]
    split, sample = (
        kmeans(x, 20, start=start, empty=empty, iterations=1, precision="fp32") for empty in ("split", "sample")
    )
    assert split.reseeded >= 9
    assert sample.reseeded >= 9
    assert not torch.equal(split.centroids, sample.centroids)


def test_start_is_a_sample_of_distinct_rows():
    x = torch.cat([torch.zeros(990, 2), normal(10, 2)])
    found = kmeans(x, 11, iterations=0)
    assert len(torch.unique(found.centroids, dim=0)) == 11
    rows = {tuple(row) for row in x.tolist()}
    assert all(tuple(row) in rows for row in found.centroids.tolist())


def test_inertia_never_rises():
    x = normal(1500, 12)
    inertias = [kmeans(x, 25, iterations=i, precision="fp32").inertia for i in range(8)]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(inertias))


def test_seed():
    x = normal(500, 6)
    first, second, other = (kmeans(x, 9, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.labels, second.labels)
    assert torch.equal(first.centroids, second.centroids)
    assert not torch.equal(first.centroids, other.centroids)


@pytest.mark.parametrize("iterations", [0, 5])
def test_input_is_not_changed(iterations):
    x = normal(100, 4)
    start = x[:7].clone()
    start[1:] = start[0]  # so that there is something to repair
    kept, kept_start = x.clone(), start.clone()
    kmeans(x, 7, start=start, empty="split", iterations=iterations)
    assert torch.equal(x, kept)
    assert torch.equal(start, kept_start)


def test_spherical_centroids_have_length_one():
    x = F.normalize(normal(600, 10))
    found = kmeans(x, 8, spherical=True)
    assert torch.allclose(found.centroids.norm(dim=1), torch.ones(8), atol=1e-5)


def test_bf16_is_nearly_as_good():
    x = F.normalize(normal(4000, 64))
    exact, fast = (kmeans(x, 50, precision=precision).inertia for precision in ("fp32", "bf16"))
    assert fast == pytest.approx(exact, rel=2e-3)


def test_segment_sums_by_hand():
    x = torch.tensor([[1.0, 10], [2, 20], [3, 30], [4, 40]])
    sums, sizes = segment_sums(x, torch.tensor([2, 0, 2, 0]), 4)
    assert sums.tolist() == [[6, 60], [0, 0], [4, 40], [0, 0]]
    assert sizes.tolist() == [2, 0, 2, 0]


def test_squared_distances_of_equal_rows_are_zero():
    x = 1e3 + normal(50, 7)
    assert torch.equal(squared_distances(x, x, torch.arange(50)), torch.zeros(50))


@pytest.mark.parametrize(
    ("k", "options", "message"),
    [
        (0, {}, "k=0"),
        (6, {}, "k=6 .* rows, 5"),
        (2, {"empty": "drop"}, "split or sample"),
        (2, {"start": torch.zeros(3, 2)}, r"\(3, 2\).*\(2, 2\)"),
        (2, {"precision": "fp8"}, "fp8"),
    ],
)
def test_bad_arguments(k, options, message):
    with pytest.raises(ValueError, match=message):
        kmeans(normal(5, 2), k, **options)


def test_not_finite():
    x = normal(5, 2)
    x[1, 0] = torch.inf
    with pytest.raises(NonFiniteError, match="1 of 5"):
        kmeans(x, 2)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=1, max_size=20),
    k=st.integers(1, 20),
    empty=st.sampled_from(["split", "sample"]),
)
def test_never_an_empty_cluster_that_could_be_filled(rows, k, empty):
    x = torch.tensor(rows, dtype=torch.float32)
    if k > len(x):
        return
    found = kmeans(x, k, empty=empty, precision="fp32")
    assert int((found.sizes > 0).sum()) == min(k, len(set(rows)))
    assert found.labels.min() >= 0
    assert found.labels.max() < k
