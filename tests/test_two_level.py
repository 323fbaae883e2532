"""k-means in two levels: the flat one where the answer is clear, its invariants, any number of processes."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from deepcluster.clustering import kmeans, two_level, two_level_kmeans
from deepcluster.clustering.agreement import nmi
from deepcluster.clustering.two_level import _apportioned, _balanced, _fine_numbers, _hashes, _in_parts, coarse_number
from deepcluster.errors import NonFiniteError
from deepcluster.records import Clustering
from deepcluster.runtime.processes import Processes
from deepcluster.seeding import derive, generator


def normal(rows: int, width: int, *index: int) -> Tensor:
    return torch.randn(rows, width, generator=generator(0, "two-level", rows, width, *index))


def nested(rows: int, groups: int = 5, each: int = 4, width: int = 6) -> tuple[Tensor, Tensor]:
    """Blobs in groups, ``each`` of them near each other, and the blob of every row."""
    random = generator(0, "nested", rows, groups, each)
    centres = 100 * normal(groups, width, 1).repeat_interleave(each, 0) + 10 * normal(groups * each, width, 2)
    blobs = torch.arange(rows) % len(centres)
    return centres[blobs] + 0.1 * torch.randn(rows, width, generator=random), blobs


def equal(first: Clustering, second: Clustering) -> bool:
    return (
        torch.equal(first.labels, second.labels)
        and torch.equal(first.centroids, second.centroids)
        and torch.equal(first.sizes, second.sizes)
        and (first.inertia, first.iterations, first.reseeded) == (second.inertia, second.iterations, second.reseeded)
    )


def two_levels(x: Tensor, k: int, *, coarse: int | None = None, **options: Any) -> Clustering:
    """``two_level_kmeans`` with another number of coarse clusters."""
    with pytest.MonkeyPatch.context() as patch:
        if coarse is not None:
            patch.setattr(two_level, "coarse_number", lambda k: coarse)
        return two_level_kmeans(x, k, **options)


def coarse_of(found: Clustering, x: Tensor, number: int, seed: int = 0, **options: object) -> Tensor:
    return kmeans(x, number, seed=derive(seed, "two-level coarse"), **options).labels


def test_six_points_by_hand():
    """Two groups of three rows and four clusters: two for each group, its outlier and the mean of the other two."""
    x = torch.tensor([[0.0, 0], [0, 2], [0, 12], [1000, 0], [1000, 2], [1000, 12]])
    found = two_levels(x, 4, coarse=2)
    assert sorted(found.centroids.tolist()) == [[0, 1], [0, 12], [1000, 1], [1000, 12]]
    assert found.labels[0] == found.labels[1]
    assert found.labels[3] == found.labels[4]
    assert len(found.labels.unique()) == 4
    assert sorted(found.sizes.tolist()) == [1, 1, 2, 2]
    assert found.inertia == pytest.approx(4.0)


def test_separated_blobs_are_found_as_by_flat_kmeans():
    x, blobs = nested(240, groups=3, each=2)
    # The start of a k-means is random: the best of several seeds found the blobs at each level.
    found = min((two_levels(x, 6, coarse=3, seed=seed) for seed in range(40)), key=lambda each: each.inertia)
    flat = kmeans(x, 6, start=torch.stack([x[blobs == blob].mean(0) for blob in range(6)]))
    assert nmi(found.labels, blobs) == pytest.approx(1)
    assert nmi(found.labels, flat.labels) == pytest.approx(1)
    assert found.inertia == pytest.approx(flat.inertia, rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"precision": "bf16"}, {"spherical": True}, {"empty": "sample"}], ids=str)
def test_labels_are_the_nearest_centroids_inside_their_coarse_cluster(options):
    x = F.normalize(normal(1500, 8))
    found = two_levels(x, 100, coarse=9, iterations=4, **options)
    coarse = coarse_of(found, x, 9, iterations=4, **options)
    owner = torch.full((100,), -1)
    owner[found.labels] = coarse
    assert torch.equal(owner[found.labels], coarse)  # a fine cluster has rows of one coarse cluster only
    assert torch.equal(owner, owner.sort().values)  # and those of one coarse cluster have numbers in a row
    distances = torch.cdist(x.double(), found.centroids.double())
    inside = distances.masked_fill(coarse.unsqueeze(1) != owner, math.inf)
    assert torch.equal(found.labels, inside.argmin(1))
    assert not torch.equal(found.labels, distances.argmin(1))  # which is not the nearest of all
    assert torch.equal(found.sizes, torch.bincount(found.labels, minlength=100))
    assert found.sizes.min() >= 1
    assert found.inertia == pytest.approx(inside.min(1).values.square().sum().item(), rel=1e-5)
    if "spherical" in options:
        assert torch.allclose(found.centroids.norm(dim=1), torch.ones(100), atol=1e-5)
    shares = torch.bincount(owner) / 100 - torch.bincount(coarse) / 1500
    assert shares.abs().max() < 1 / 100


def test_centroids_are_the_means_of_their_rows():
    x = normal(600, 4)
    found = two_level_kmeans(x, 40, iterations=100)
    assert found.iterations < 100  # it ended by itself
    for cluster in range(40):
        assert torch.allclose(found.centroids[cluster], x[found.labels == cluster].mean(0), atol=1e-5)


def test_flat_kmeans_goes_on_from_it():
    x = normal(900, 6)
    found = two_level_kmeans(x, 60)
    placed = kmeans(x, 60, start=found.centroids, iterations=0)
    assert torch.equal(placed.labels, torch.cdist(x.double(), placed.centroids.double()).argmin(1))
    assert placed.inertia < found.inertia


def test_one_coarse_cluster_is_flat_kmeans():
    x = normal(500, 5)
    found = two_levels(x, 30, coarse=1)
    flat = kmeans(x, 30, seed=derive(0, "two-level fine", 0))
    assert torch.equal(found.labels, flat.labels)
    assert torch.equal(found.centroids, flat.centroids)
    assert torch.allclose(two_level_kmeans(x, 1).centroids[0], x.mean(0), atol=1e-6)


@pytest.mark.parametrize("coarse", [None, 1, 7, 70])
def test_as_many_clusters_as_rows(coarse):
    x = normal(70, 3)
    found = two_levels(x, 70, coarse=coarse)
    assert found.sizes.tolist() == [1] * 70
    assert torch.equal(found.centroids[found.labels], x)
    assert found.inertia == 0


def test_all_rows_equal():
    found = two_level_kmeans(torch.full((40, 3), 0.3), 9)
    assert sorted(found.sizes.tolist()) == [0] * 8 + [40]
    assert found.inertia == 0
    assert torch.isfinite(found.centroids).all()


def test_no_cluster_is_empty_where_copies_crowd_a_coarse_cluster():
    """By its rows a coarse cluster of copies would get most of the fine ones; it has 2 distinct rows."""
    x = torch.cat([normal(60, 2), torch.tensor([[500.0, 0], [500, 1]]).repeat(500, 1)])
    found = two_levels(x, 62, coarse=2)
    assert found.sizes.min() >= 1
    assert found.inertia == 0


def drawn(data: st.DataObject) -> tuple[Tensor, int, dict[str, object]]:
    """A few rows, many of them equal, a number of clusters and options."""
    values = data.draw(st.lists(st.sampled_from([-2.0, -0.0, 0.0, 1.0, 1.5, 64.0]), min_size=2, max_size=60))
    x = torch.tensor(values[: len(values) // 2 * 2]).view(-1, 2)
    k = data.draw(st.integers(1, len(x)))
    options = {
        "coarse": data.draw(st.none() | st.integers(1, k)),
        "empty": data.draw(st.sampled_from(["split", "sample"])),
        "seed": data.draw(st.integers(0, 9)),
        "iterations": data.draw(st.sampled_from([0, 1, 4])),
    }
    return x, k, options


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_cluster_is_empty_where_there_are_enough_distinct_rows(data):
    x, k, options = drawn(data)
    found = two_levels(x, k, **options)
    assert found.occupied == min(k, len(torch.unique(x + 0.0, dim=0)))
    assert found.labels.min() >= 0
    assert found.labels.max() < k
    assert found.centroids.shape == (k, 2)
    assert torch.isfinite(found.centroids).all()
    assert torch.equal(found.sizes, torch.bincount(found.labels, minlength=k))


@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_all_processes_find_the_same_of_few_rows(ranks, data):
    x, k, options = drawn(data)
    (alone,) = ranks[1](clustered, x, k, options)
    same_on_all(alone, ranks[data.draw(st.integers(2, 3))](clustered, x, k, options))


def clustered(processes: Processes, x: Tensor, k: int, options: dict[str, object], part: int = 1 << 24) -> Clustering:
    two_level.PART, usual = part, two_level.PART
    share = processes.part(len(x))
    try:
        return two_levels(x[share.start : share.stop], k, processes=processes, **options)
    finally:
        two_level.PART = usual


def same_on_all(alone: Clustering, on_ranks: list[Clustering]) -> None:
    assert torch.equal(torch.cat([clustering.labels for clustering in on_ranks]), alone.labels)
    assert all(equal(replace(clustering, labels=alone.labels), alone) for clustering in on_ranks)


@pytest.mark.parametrize(
    ("count", "part", "options"),
    [
        (2, 1 << 24, {}),
        (3, 2500, {}),
        (2, 2500, {"precision": "bf16"}),
        (3, 1 << 24, {"spherical": True}),
        (3, 2500, {"empty": "sample"}),
    ],
    ids=str,
)
def test_any_number_of_processes_finds_the_same(ranks, count, part, options):
    x = F.normalize(nested(6001, 7, 9, 12)[0])
    (alone,) = ranks[1](clustered, x, 300, options)
    same_on_all(alone, ranks[count](clustered, x, 300, options, part))


def test_processes_without_rows_or_clusters(ranks):
    x = normal(2, 3)
    (alone,) = ranks[1](clustered, x, 2, {"coarse": 1})
    same_on_all(alone, ranks[3](clustered, x, 2, {"coarse": 1}))


@pytest.mark.parametrize("part", [1, 999, 5000])
def test_parts_and_threads_change_nothing(part):
    x, _ = nested(3000, 6, 5, 8)
    whole = two_level_kmeans(x, 120)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert equal(clustered(Processes(), x, 120, {}, part), whole)
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)


def test_seed():
    x = normal(700, 5)
    first, second, other = (two_level_kmeans(x, 40, seed=seed) for seed in (0, 0, 1))
    assert equal(first, second)
    assert not torch.equal(first.labels, other.labels)


def test_mapped_file_and_other_types(tmp_path):
    x = normal(900, 7)
    expected = two_level_kmeans(x, 50)
    np.save(tmp_path / "x.npy", x.numpy())
    assert equal(two_level_kmeans(np.load(tmp_path / "x.npy", mmap_mode="r"), 50), expected)
    assert equal(two_level_kmeans(x.half(), 50), two_level_kmeans(x.half().float(), 50))


@pytest.mark.parametrize(
    ("k", "options", "message"),
    [
        (0, {}, "k=0 must be at least 1 and at most the number of rows, 20"),
        (21, {}, "k=21 must"),
        (5, {"empty": "drop"}, "split or sample"),
    ],
)
def test_what_is_wrong_is_said(k, options, message):
    with pytest.raises(ValueError, match=message):
        two_level_kmeans(normal(20, 2), k, **options)


def test_not_finite():
    x = normal(20, 2)
    x[3, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="1 of 20 rows"):
        two_level_kmeans(x, 4)


def test_fine_clusters_by_hand():
    """10 of 100, 30, 70 rows (5.0, 1.5, 3.5): the remainders are equal, the first gets it."""
    sizes = np.array([100, 30, 70])
    assert _fine_numbers(10, sizes, sizes).tolist() == [5, 2, 3]
    assert _fine_numbers(10, sizes, np.array([2, 30, 70])).tolist() == [2, 2, 6]  # 8 of 30, 70: 2.4, 5.6
    assert _fine_numbers(3, sizes, sizes).tolist() == [1, 1, 1]
    assert _fine_numbers(4, np.array([1000, 0, 1]), np.array([999, 0, 1])).tolist() == [3, 0, 1]
    # 3 distinct rows for 5 clusters: two must stay empty, but none has more clusters than rows.
    assert _fine_numbers(5, np.array([6, 2]), np.array([1, 2])).tolist() == [3, 2]


@settings(max_examples=200, deadline=None)
@given(
    weights=st.lists(st.integers(0, 10**6) | st.integers(0, 9), min_size=1, max_size=40),
    share=st.floats(0, 1),
    least=st.integers(0, 1),
)
def test_apportionment(weights, share, least):
    most = np.array(weights)
    fewest = np.minimum(most, least)
    seats = round(int(fewest.sum()) + share * int((most - fewest).sum()))
    found = _apportioned(seats, most, fewest, most)
    assert found.sum() == seats
    assert (found >= fewest).all()
    assert (found <= most).all()
    order = np.argsort(most, kind="stable")
    assert (np.diff(found[order])[np.diff(most[order]) > 0] >= 0).all()  # more rows never get fewer


def test_clusters_are_balanced_and_cut_into_parts():
    sizes = np.array([5, 9, 0, 4, 4, 1])
    owners = _balanced(sizes, 2)
    assert owners == [[1], [0, 3, 4, 5]]  # 81 | 25 + 16 + 16 + 1
    assert [*_in_parts(owners, sizes, 8)] == [([1], [0]), ((), [3, 4]), ((), [5])]
    assert [*_in_parts([[], []], sizes, 8)] == [([], [])]


def test_hashes_tell_rows_apart():
    random = generator(0, "hashes")
    x = torch.randint(-1, 2, (50_000, 24), generator=random).float()  # few bits differ, as in binary features
    assert len(_hashes(x).unique()) == len(torch.unique(x, dim=0))
    assert torch.equal(_hashes(torch.tensor([[0.0, 1]])), _hashes(torch.tensor([[-0.0, 1]]).half()))
    assert len(_hashes(torch.tensor([[0.0, 1], [1, 0], [2, 3], [3, 2]])).unique()) == 4


def test_rows_are_copied_in_parts(monkeypatch):
    """No more rows at a time than a part, or one coarse cluster, and never N x k distances."""
    gathered = []
    usual = two_level.Route.there

    def there(route, values):
        if values.ndim == 2:
            gathered.append(len(route.rows))
        return usual(route, values)

    monkeypatch.setattr(two_level.Route, "there", there)
    clustered(Processes(), normal(4000, 4), 400, {}, 4 * 700)
    assert sum(gathered) == 4000
    assert max(gathered) <= 700


def test_twice_the_root_of_k_coarse_clusters():
    assert [coarse_number(k) for k in (1, 2, 4, 100, 100_000)] == [1, 2, 4, 20, 632]
