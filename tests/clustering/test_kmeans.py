import importlib
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch.nn import functional as F

from deepcluster.clustering import as_clustering, blocks, kmeans
from deepcluster.clustering.agreement import ari, compared, nmi, repeated, scores
from deepcluster.clustering.blocks import nearest
from deepcluster.clustering.kmeans import spread_rows
from deepcluster.errors import NonFiniteError
from deepcluster.seeding import generator
from fuzz.harness import peak_memory
from tests.helpers.features import normal

assignment = importlib.import_module("deepcluster.clustering.kmeans")


@pytest.mark.parametrize(("rows", "width", "k"), [(500, 8, 5), (3000, 32, 40), (200, 3, 1)])
def test_same_as_scikit_learn_from_the_same_start(rows, width, k):
    x = normal(rows, width) + 3 * torch.randint(0, 3, (rows, 1), generator=generator(1, "test"))
    start = x[torch.randperm(rows, generator=generator(2, "test"))[:k]]
    ours = kmeans(x, k, start=start, iterations=12)
    theirs = KMeans(k, init=start.double().numpy(), n_init=1, max_iter=12, tol=0).fit(x.double().numpy())
    assert (ours.labels.numpy() == theirs.labels_).mean() > 0.999
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-4)
    np.testing.assert_allclose(ours.centroids.numpy(), theirs.cluster_centers_, atol=0.02)


@pytest.mark.parametrize(("middle", "apart"), [(0, 0), (4000, 0), (0, 1e3), (0, 1e4)])
def test_labels_belong_to_the_returned_centroids(middle, apart):
    """At 4,000 a float32 product of 16 numbers is 2.6e8: it has no digits left for distances of 1."""
    x = normal(600, 16, 6) + middle
    x[:300] += apart
    x[300:] -= apart
    clustering = kmeans(x, 12, iterations=3)
    distances = torch.cdist(x.double(), clustering.centroids.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.equal(clustering.labels, distances.argmin(1))
    assert torch.equal(clustering.sizes, torch.bincount(clustering.labels, minlength=12))
    assert clustering.inertia == pytest.approx(distances.min(1).values.square().sum().item(), rel=1e-5)


@pytest.mark.parametrize(("rows", "k"), [(2500, 7), (700, 600)])
def test_threads_and_chunks_change_nothing(monkeypatch, request, rows, k):
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    x = F.normalize(normal(rows, 24))
    first = kmeans(x, k, iterations=3)
    assert not torch.equal(first.centroids, kmeans(x, k, iterations=3, seed=1).centroids)
    monkeypatch.setattr(assignment, "SCORES_ON_CPU", dict.fromkeys(assignment.SCORES_ON_CPU, 0))
    for threads, chunk in ((1, 2048), (2, 2048), (3, 1), (2, 17), (5, 10_000)):
        torch.set_num_threads(threads)
        monkeypatch.setattr(assignment, "MIN_CHUNK", chunk)
        other = kmeans(x, k, iterations=3)
        assert torch.get_num_threads() == threads
        assert torch.equal(first.labels, other.labels) and torch.equal(first.centroids, other.centroids)
        assert first.inertia == other.inertia


@pytest.mark.parametrize("capability", ["AVX512", "AVX2"])  # products go to oneDNN on the first; torch chooses
@pytest.mark.parametrize("width", [8, 100, 256, 300])
def test_a_product_depends_on_its_row_alone(monkeypatch, capability, width):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(blocks, "_onednn_pays", blocks._onednn_pays.__wrapped__)  # without its cache
    rows, weight, offset = (normal(*shape) for shape in ((2000, width), (70, width), (1, 70)))
    multiply = blocks.product(weight, offset[0])
    whole = multiply(rows)
    assert torch.allclose(whole, rows @ weight.T + offset, atol=1e-3)
    for begin, count in [(0, 1), (5, 2), (900, 3), (37, 17), (1000, 1000)]:
        assert torch.equal(multiply(rows[begin : begin + count]), whole[begin : begin + count])


def test_a_clustering_of_given_labels_by_hand():
    clustering = as_clustering(np.array([0, 0, 2]), torch.tensor([[0.0, 0], [2, 0], [5, 5]]))
    assert clustering.centroids.tolist() == [[1, 0], [0, 0], [5, 5]] and clustering.sizes.tolist() == [2, 0, 1]
    assert (clustering.inertia, clustering.occupied, clustering.labels.dtype) == (2, 2, torch.int64)
    for labels in ([0, 1], [0, 1, -1]):
        with pytest.raises(ValueError):
            as_clustering(np.array(labels), torch.ones(3, 2))


def test_a_start_by_labels_is_the_means_of_their_rows():
    x, labels = normal(900, 5), torch.arange(3).repeat_interleave(300)
    means = x.unflatten(0, (3, 300)).mean(1)
    assert torch.allclose(kmeans(x, 3, start=labels, iterations=0).centroids, means, atol=1e-6)
    spherical = kmeans(x, 3, start=labels, iterations=0, spherical=True)
    assert torch.allclose(spherical.centroids, F.normalize(means), atol=1e-5)


def test_faiss_splits_by_hand():
    """Four rows and a centroid without any: it and its donor are each 1/1024 apart from where the donor is then."""
    x = torch.tensor([[1.0, 1, 1], [1, 1, 1], [3, 3, 3], [3, 3, 3]])
    clustering = kmeans(x, 2, start=torch.tensor([[2.0, 2, 2], [9, 9, 9]]), empty="faiss", iterations=1)
    away = torch.tensor([1, -1, 1]) / 1024
    assert torch.equal(clustering.centroids, torch.stack([2 * (1 - away), 2 * (1 + away)])) and clustering.reseeded == 1


def test_faiss_leaves_clusters_empty_and_draws_donors_by_size():
    """What was measured of faiss 1.15: 60 clusters of 30 distinct rows are 30 with rows, and 30 are split each time."""
    x = normal(30, 8).repeat(20, 1)
    clustering = kmeans(x, 60, empty="faiss", iterations=5)
    assert (clustering.occupied, clustering.reseeded) == (30, 30 * 5)
    places, rows = torch.tensor([[1.0, 1], [-1, -1], [5, 5]]), torch.tensor([700, 300, 1])
    start = torch.cat([places, torch.full((200, 2), 99.0)])
    new = kmeans(places.repeat_interleave(rows, 0), 203, start=start, empty="faiss", iterations=1).centroids[3:]
    assert not (new > 4).any()  # a single row has nothing to share
    assert 0.6 < (new[:, 0] > 0).float().mean() < 0.8


def test_mapped_file_and_other_types(tmp_path):
    x = F.normalize(normal(3000, 12))
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for one, same in ((mapped, x), (x.double(), x), (x.half(), x.half().float())):
        clustering, expected = kmeans(one, 15), kmeans(same, 15)
        assert torch.equal(clustering.labels, expected.labels) and torch.equal(clustering.centroids, expected.centroids)
        assert clustering.centroids.dtype == torch.float32


def test_input_is_not_copied():
    """Of 60 MB of rows a k-means may need less than half: chunks of scores, sums, labels."""
    x = normal(240_000, 64)
    kmeans(x[:3000], 50)
    before = peak_memory(anew=True)
    kmeans(x, 50, iterations=2)
    assert peak_memory() - before < 25e6


def test_split_puts_centroids_beside_large_clusters():
    """60 % of the rows are nearly one point: splitting must end with less inertia than random rows give."""
    x = F.normalize(torch.cat([normal(800, 16), normal(1200, 16, 1) * 0.05 + 1]))
    given = x.clone()
    from_random_rows = [kmeans(x, 200, empty="split", seed=seed).inertia for seed in range(3)]
    from_one_point = kmeans(x, 200, start=x[-200:], empty="split")
    assert from_one_point.inertia < 1.1 * min(from_random_rows)
    kmeans(x, 200, start=x[:1].expand(200, -1), iterations=0)
    assert torch.equal(x, given)  # neither rows nor start are written to


@pytest.mark.parametrize(
    ("k", "options", "message"),
    [
        (0, {}, "k=0"),
        (6, {}, "k=6 .* rows, 5"),
        (2, {"empty": "drop"}, "split.* sample"),
        (2, {"start": torch.zeros(3, 2)}, r"\(3, 2\).*\(2, 2\)"),
        (2, {"start": torch.zeros(4, dtype=torch.int64)}, "4 .* 5 "),
        (2, {"start": torch.tensor([0, 1, 2, 0, 1])}, "0 .*2.* 0 .*1"),
    ],
)
def test_a_wrong_argument_is_named(k, options, message):
    with pytest.raises(ValueError, match=message):
        kmeans(normal(5, 2), k, **options)


def test_numbers_that_are_not_finite_or_too_small_are_refused():
    x = normal(5, 2)
    x[1, 0] = torch.inf
    for iterations in (0, 3):
        with pytest.raises(NonFiniteError, match="1 of 5"):
            kmeans(x, 2, start=torch.zeros(2, 2), iterations=iterations)
    large, small = torch.full((4, 2), 1e200, dtype=torch.float64), 1e-60 * normal(8, 2).double()
    for rows in (torch.full((4, 2), 3e38), large, 1e-20 * normal(8, 2), small):
        with pytest.raises(NonFiniteError, match=r"--lr.* scale"):
            kmeans(rows, 2)
    assert kmeans(1e-15 * normal(80, 2), 2).sizes.min() > 0 == kmeans(torch.zeros(8, 2), 2).inertia


def test_it_ends_where_nothing_changes_any_more():
    x = normal(400, 6, 3)
    clustering = kmeans(x, 8, iterations=300)
    assert 1 < clustering.iterations < 100
    for more in (1, 7):
        again = kmeans(x, 8, start=clustering.centroids, iterations=more)
        assert again.iterations == 1
        assert torch.equal(again.centroids, clustering.centroids) and torch.equal(again.labels, clustering.labels)
    for fewer in (0, 1):
        assert kmeans(x, 8, iterations=clustering.iterations - fewer).iterations == clustering.iterations - fewer


@settings(max_examples=40)
@given(
    rows=st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=1, max_size=20),
    k=st.integers(1, 20),
    empty=st.sampled_from(["split", "sample"]),
    start=st.sampled_from(["rows", "one point", "labels"]),
    iterations=st.sampled_from([0, 20]),  # after the last update there is only the last repair
)
def test_never_an_empty_cluster_that_could_be_filled(rows, k, empty, start, iterations):
    x, filled = torch.tensor(rows, dtype=torch.float32), min(k, len(set(rows)))
    if k > len(x):
        return
    starts = {"rows": None, "one point": torch.zeros(k, 2), "labels": torch.zeros(len(x), dtype=torch.int32)}
    clustering = kmeans(x, k, start=starts[start], empty=empty, iterations=iterations)
    assert len(clustering.labels) == len(x) and clustering.labels.min() >= 0 and clustering.labels.max() < k
    assert int((clustering.sizes > 0).sum()) == filled
    assert start == "rows" or clustering.reseeded >= filled - 1


@pytest.mark.parametrize(("products", "least"), [(blocks.MAX_PRODUCTS, blocks.MIN_SEARCHING_ROWS), (1000, 5), (70, 1)])
@pytest.mark.parametrize("k", [1, 7, 100])
def test_nearest_rows_in_blocks_of_any_size(monkeypatch, products, least, k):
    monkeypatch.setattr(blocks, "MAX_PRODUCTS", products)
    monkeypatch.setattr(blocks, "MIN_SEARCHING_ROWS", least)
    rows, others = normal(83, 12), normal(61, 12)
    products, numbers = nearest(rows, k, others)
    whole = (rows @ others.T).sort(dim=1, descending=True)
    assert torch.allclose(products, whole.values[:, :k], atol=1e-5)
    assert torch.equal(numbers, whole.indices[:, :k])
    # Among themselves: a row is not its own neighbour.
    _, numbers = nearest(rows, k)
    whole = (rows @ rows.T).fill_diagonal_(-torch.inf).argsort(1, descending=True)
    assert torch.equal(numbers, whole[:, : min(k, 82)])
    assert nearest(rows[:1], k)[1].shape == (1, 0) and nearest(rows[[0, 0]], k)[1].tolist() == [[1], [0]]


def test_accuracy_and_changed_by_hand():
    labels = ["a", "a", "a", "b", "b", "c"]
    # Both clusters would like class a; one-to-one, cluster 0 gets a (2) and cluster 1 gets b (2).
    assert scores(labels, [0, 0, 1, 1, 1, 0])["acc"] == pytest.approx(4 / 6)
    # More clusters than classes: the third cluster counts for nothing.
    assert scores(["a", "a", "b", "b"], [0, 1, 2, 2])["acc"] == pytest.approx(3 / 4)
    # Cluster 0 goes to 5 but for one image, cluster 1 stays whole: 1 of 6 has left its own.
    before, after = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([5, 5, 5, 6, 6, 6])
    assert compared(before, after)[1] == pytest.approx(1 / 6)
    assert compared(before, 7 - before)[1] == 0


def test_nmi_is_the_geometric_mean():
    random = np.random.default_rng(0)
    few, many = random.integers(0, 3, 400), random.integers(0, 50, 400)
    assert nmi(few, many) == pytest.approx(normalized_mutual_info_score(few, many, average_method="geometric"))
    assert nmi(few, many) != pytest.approx(normalized_mutual_info_score(few, many, average_method="arithmetic"))
    pair = torch.from_numpy(few), torch.from_numpy(many)
    assert compared(*pair)[0] == pytest.approx(nmi(few, many))
    assert compared(pair[0], 0 * pair[1]) == (0, 0) and compared(*2 * (0 * pair[0],)) == (1, 0)


def test_repeated_is_one_for_the_same_and_zero_for_unrelated_assignments():
    random = generator(0, "labels")
    labels = torch.randint(0, 40, (2000,), generator=random)
    assert repeated(labels, labels, random) == pytest.approx(1)
    assert repeated(labels, (labels + 7) % 40, random) == pytest.approx(1)  # only renumbered
    other = torch.randint(0, 40, (2000,), generator=random)
    assert nmi(labels, other) > 0.05  # many clusters agree by chance
    assert repeated(labels, other, random) < 0.02
    half = torch.where(torch.rand(2000, generator=random) < 0.5, labels, other)
    assert 0.2 < repeated(labels, half, random) < 0.8
    assert repeated(0 * labels, 0 * labels, random) == 0  # one cluster tells nothing


@pytest.mark.parametrize(("count", "dims", "k"), [(50, 5, 3), (400, 3, 12), (2000, 5, 30), (1, 2, 1), (6, 2, 6)])
def test_spread_rows_are_those_of_scikit_learn(count: int, dims: int, k: int) -> None:
    for seed in range(5):
        rows = torch.randn(count, dims, generator=torch.Generator().manual_seed(seed))
        expected = kmeans_plusplus(rows.numpy(), k, random_state=seed)[1].tolist()
        assert spread_rows(rows, k, np.random.RandomState(seed)) == expected
    assert len(spread_rows(torch.ones(5, 2), 5, np.random.RandomState(0))) == 5  # all equal


def test_the_adjusted_rand_index_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    one = random.integers(0, 7, 300)
    for other in (one, np.where(random.random(300) < 0.5, one, 3), random.integers(0, 40, 300), np.zeros(300)):
        assert ari(one, other) == pytest.approx(adjusted_rand_score(one, other), abs=1e-12)
    for few in (([0], [0]), ([0, 0], [1, 1]), ([0, 1], [0, 1]), ([0, 0], [0, 1]), (["a", "b"], ["x", "x"])):
        assert ari(*few) == adjusted_rand_score(*few)
