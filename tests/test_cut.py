import importlib

import pytest
import torch
from sklearn.cluster import KMeans
from torch.nn import functional as F

from deepcluster.clustering import kmeans
from deepcluster.clustering.agreement import nmi
from deepcluster.groups.cut import (
    LONG,
    ROWS_EACH,
    TAIL,
    Cut,
    as_groups,
    cut,
    outlier_distances,
    outlier_length,
    place,
)
from deepcluster.groups.neighbour_graph import Graph, neighbour_ties
from deepcluster.runs import groups as run_groups
from deepcluster.seeding import generator

graph = importlib.import_module("deepcluster.groups.neighbour_graph")  # the package has a function of this name


def groups_of(sizes: tuple[int, ...], spread: float = 0.05, width: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    centres = F.normalize(torch.randn(len(sizes), width, generator=generator(0, "centres")))
    labels = torch.cat([torch.full((size,), i) for i, size in enumerate(sizes)])
    noise = spread * torch.randn(len(labels), width, generator=generator(0, "noise"))
    return F.normalize(centres[labels] + noise), labels


def test_numbers_go_by_size():
    x, labels = groups_of((20, 70, 40))
    found = place(x, cut(x, 3), x[:1])
    assert torch.bincount(found.cluster).tolist() == [70, 40, 20]
    assert all(len(found.cluster[labels == i].unique()) == 1 for i in range(3))


def test_few_rows_are_cut_as_well_as_by_scikit_learn():
    x, _ = groups_of((9,) * 12, spread=0.2)
    found = place(x, cut(x, 12), x[:1])
    theirs = KMeans(12, n_init=20, random_state=0).fit(x.numpy())
    assert found.distance.square().sum().item() <= theirs.inertia_ * 1.03


def ring_and_cap(ring: int = 150, cap: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows around an equator and rows near a pole: two groups with a gap between, one of them of no blob's shape."""
    angle = 2 * torch.pi * torch.rand(ring, generator=generator(0, "angle"))
    equator = torch.stack([angle.cos(), angle.sin(), torch.zeros(ring)], 1)
    pole = torch.tensor([[0.0, 0, 1]]).repeat(cap, 1)
    noise = torch.randn(ring + cap, 3, generator=generator(0, "noise"))
    spread = torch.cat([torch.full((ring, 1), 0.05), torch.full((cap, 1), 0.2)])
    return F.normalize(torch.cat([equator, pole]) + spread * noise), (torch.arange(ring + cap) >= ring).long()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_groups_may_have_any_shape(seed):
    x, labels = ring_and_cap()
    found = place(x, cut(x, 2, seed=seed), x[:1])
    assert nmi(labels, found.cluster) > 0.95
    theirs = KMeans(2, n_init=10, random_state=seed).fit(x.numpy())
    assert nmi(labels, theirs.labels_) < 0.6  # else the case would show nothing


def test_new_rows_go_where_their_neighbours_are():
    x, labels = ring_and_cap(300, 200)
    groups = cut(x[::2], 2)
    assert len(groups.centroids) > 10
    assert nmi(labels[1::2], place(x[1::2], groups, x[:1]).cluster) > 0.9


def test_a_few_rows_apart_from_all_are_no_group_of_their_own():
    """Twenty rows that are neighbours of each other alone: without a tie to the rest they would be a perfect group."""
    x, labels = groups_of((200, 200, 20), spread=0.3)
    found = place(x, cut(x, 2), x[:1]).cluster
    assert nmi(labels[:400], found[:400]) > 0.9


def test_equal_rows_are_one_group():
    x = torch.eye(4)[[0] * 30 + [1] * 20]
    groups = cut(x, 2)
    assert place(x, groups, x[:1]).cluster.tolist() == [0] * 30 + [1] * 20


def test_a_sample_of_the_rows_makes_the_groups(monkeypatch):
    monkeypatch.setattr(graph, "SAMPLE", 150)
    x, labels = groups_of((300, 200, 100))
    found = place(x, cut(x, 3), x[:1])
    assert torch.bincount(found.cluster).tolist() == [300, 200, 100]
    assert nmi(labels, found.cluster) == pytest.approx(1)


@pytest.mark.parametrize("k", range(1, 13))
def test_as_many_groups_as_a_small_graph_can_have(k):
    x, _ = groups_of((12,) * 12)
    assert cut(x[: ROWS_EACH * k], k).count == k


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_class_in_pieces_costs_no_other_its_place(seed, monkeypatch):
    """Four large blobs, two of which touch, and a small one apart: cut into four, the large ones stay by themselves."""
    centres = torch.eye(8)[:5]
    centres[2, 3] = centres[3, 2] = 0.4
    labels = torch.arange(5).repeat_interleave(torch.tensor([150, 150, 150, 150, 40]))
    noise = 0.15 * torch.randn(len(labels), 8, generator=generator(seed, "noise"))
    x = F.normalize(F.normalize(centres)[labels] + noise)
    large = labels < 4

    def agreement() -> float:
        return nmi(labels[large], place(x, cut(x, 4, seed=seed), x[:1]).cluster[large])

    assert agreement() > 0.97
    monkeypatch.setattr(graph, "_pieces", lambda values, k: k)  # as many eigenvectors as groups
    assert agreement() < 0.9


def test_fine_clusters_as_groups_leave_out_the_empty_ones():
    x = torch.tensor([[0.0], [0], [0], [1], [1], [9]])
    found = kmeans(x, 4)
    groups = as_groups(found)
    assert groups.count == 3
    assert torch.equal(place(x, groups, found.centroids).cluster, torch.tensor([0, 0, 0, 1, 1, 2]))


def test_place_by_hand():
    groups = Cut(torch.tensor([[0.0, 0], [4, 0], [0, 10]]), torch.tensor([0, 1, 0]))  # two centroids make group 0
    found = place(torch.tensor([[1.0, 0], [3, 0], [0, 9]]), groups, torch.tensor([[0.0, 8], [1, 1]]))
    assert found.cluster.tolist() == [0, 1, 0]
    assert found.distance.tolist() == pytest.approx([1, 1, 1])
    others = [3, 3, (16 + 81) ** 0.5]  # the nearest centroid of another group
    assert found.margin.tolist() == pytest.approx([1 - 1 / other for other in others])
    assert found.fine_cluster.tolist() == [1, 1, 0]


def test_one_group_has_no_border():
    found = place(
        torch.tensor([[1.0], [2]]), Cut(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64)), torch.zeros(1, 1)
    )
    assert found.margin.tolist() == [1, 1]


def placed_by_all_distances(x, groups):
    distances = torch.cdist(x, groups.centroids, compute_mode="donot_use_mm_for_euclid_dist")
    by_group = torch.full((len(x), groups.count), torch.inf)
    by_group.scatter_reduce_(1, groups.groups.expand(len(x), -1), distances, "amin")
    distance, cluster = by_group.min(1)
    others = by_group.scatter(1, cluster.unsqueeze(1), torch.inf).min(1).values
    return cluster, distance, 1 - distance / others.clamp(min=torch.finfo(torch.float32).tiny)


@pytest.mark.parametrize(("width", "count"), [(1, 3), (2, 1), (64, 10), (128, 40), (2048, 7)])
def test_the_nearest_of_few_candidates_are_the_nearest_of_all(width, count):
    x = F.normalize(torch.randn(400, width, generator=generator(0, "rows")), dim=1)
    x[::50] = 0
    centroids = x[:100] * torch.rand(100, 1, generator=generator(0, "lengths"))
    centroids[3] = centroids[4] = x[5]  # a tie, in two groups
    groups = Cut(
        centroids,
        torch.cat([torch.arange(count), torch.randint(count, (100 - count,), generator=generator(0, "groups"))]),
    )
    found = place(x, groups, x[:3])
    for one, other in zip(
        (found.cluster, found.distance, found.margin), placed_by_all_distances(x, groups), strict=True
    ):
        assert torch.equal(one, other)
    own = (x - centroids[found.centroid]).norm(dim=1)
    assert torch.allclose(own, found.distance, atol=1e-6) and torch.equal(groups.groups[found.centroid], found.cluster)
    assert len(place(x[:0], groups, x[:3]).centroid) == 0


def test_place_alone_and_among_others_is_bit_identical():
    x, _ = groups_of((50, 50), spread=0.4, width=20)
    groups = cut(x, 7)
    together = place(x, groups, x[:5])
    alone = [place(x[i : i + 1], groups, x[:5]) for i in range(len(x))]
    assert torch.equal(torch.cat([one.distance for one in alone]), together.distance)
    assert torch.equal(torch.cat([one.cluster for one in alone]), together.cluster)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_as_many_groups_as_fine_clusters_are_a_cut_too(seed):
    """With up to 20 images for each group wanted there are no more pseudo-labels than groups."""
    x, labels = ring_and_cap()
    found = place(x, run_groups.groups_of(x, kmeans(x, 2, seed=seed), 2, seed, "cut"), x[:1])
    assert nmi(labels, found.cluster) > 0.95
    rows = torch.arange(len(x))
    other = Graph(rows, neighbour_ties(x[torch.randperm(len(x), generator=generator(seed, "order"))]))
    found = place(x, run_groups.groups_of(x, kmeans(x, 2, seed=seed), 2, seed, "cut", other), x[:1])
    assert nmi(labels, found.cluster) < 0.5  # by the graph that was passed, which is of other rows


def test_too_many_groups_for_a_cut_are_the_last_clustering(monkeypatch):
    monkeypatch.setattr(run_groups, "MOST_IN_CUT", 1)
    x, _ = ring_and_cap()
    fine = kmeans(x, 2)
    assert torch.equal(run_groups.groups_of(x, fine, 2, 0, "cut").centroids, as_groups(fine).centroids)
    assert len(run_groups.groups_of(x, fine, 3, 0, "cut").centroids) > 3


def test_outliers_by_hand():
    # Distances 0 to 4 from a centroid of five rows; without a row it is 5/4 as far: median 2.5, 90th percentile 4.5.
    groups = Cut(torch.tensor([[0.0], [1000]]), torch.tensor([0, 1]))
    fences = outlier_distances(torch.arange(5.0).unsqueeze(1), groups)
    assert fences[0].item() == pytest.approx(2.5 + TAIL * 2)
    assert fences[1] == torch.inf  # nobody is in it, so nothing is known


def test_a_row_alone_on_its_centroid_is_as_far_as_the_next():
    groups = Cut(torch.tensor([[0.0], [3]]), torch.tensor([0, 0]))
    assert outlier_distances(torch.tensor([[3.0]]), groups).item() == 3
    assert outlier_distances(torch.tensor([[0.0]]), Cut(torch.zeros(1, 1), torch.tensor([0]))).item() == torch.inf


def blobs_apart(rows: int, seed: int) -> torch.Tensor:
    """Three blobs of rows of length 1, in 24 dimensions."""
    labels = torch.randint(3, (rows,), generator=generator(seed, "labels"))
    return F.normalize(5 * torch.eye(24)[labels] + torch.randn(rows, 24, generator=generator(seed, "rows")))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_few_new_rows_of_the_same_kind_are_outliers(seed):
    x, new = blobs_apart(1000, seed).split(500)
    groups = cut(x, 3, seed=seed)
    fences = outlier_distances(x, groups)
    placements = [place(rows, groups, x) for rows in (x, new)]
    share = [(found.distance > fences[found.cluster]).float().mean() for found in placements]
    assert share[1] < 0.02
    assert share[0] < 0.02


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ten_alike_and_apart_from_all_others_are_outliers(seed):
    odd = F.normalize(torch.eye(24)[20] + 0.05 * torch.randn(10, 24, generator=generator(seed, "odd")))
    x = torch.cat([blobs_apart(600, seed), odd])
    groups = cut(x, 3, seed=seed)
    found = place(x, groups, x)
    assert (found.distance > outlier_distances(x, groups)[found.cluster])[-10:].sum() >= 8


def test_the_length_from_which_images_are_outliers():
    lengths = torch.linspace(1, 3, 21)  # median 2, 90th percentile 2.8
    assert outlier_length(lengths) == pytest.approx(2 + LONG * 0.8)
    assert outlier_length(torch.empty(0)) == torch.inf
