import pytest
import torch
from sklearn.cluster import KMeans
from torch.nn import functional as F

from deepcluster.clustering import kmeans
from deepcluster.clustering.agreement import ari, nmi
from deepcluster.groups import graph
from deepcluster.groups.cut import ROWS_EACH, Cut, as_groups, cut, placement_of
from deepcluster.seeding import generator
from tests.helpers.features import blobs


def groups_of(sizes: tuple[int, ...], spread: float = 0.05, width: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    centres = F.normalize(torch.randn(len(sizes), width, generator=generator(0, "centres")))
    labels = torch.cat([torch.full((size,), i) for i, size in enumerate(sizes)])
    noise = spread * torch.randn(len(labels), width, generator=generator(0, "noise"))
    return F.normalize(centres[labels] + noise), labels


def test_few_rows_are_cut_as_well_as_by_scikit_learn():
    x, _ = groups_of((9,) * 12, spread=0.2)
    found = placement_of(x, cut(x, 12), x[:1])
    theirs = KMeans(12, n_init=20, random_state=0).fit(x.numpy())
    assert found.distance.square().sum().item() <= theirs.inertia_ * 1.03


def two_long_groups(each: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows along two parallel lines: more than twice as long as far apart."""
    labels = torch.arange(2 * each) % 2
    rows = 0.08 * torch.randn(2 * each, 8, generator=generator(0, "noise"))
    rows[:, 0] += 1
    rows[:, 1] += 1.4 * torch.rand(2 * each, generator=generator(0, "along")) - 0.7
    rows[:, 2] += 0.6 * labels - 0.3
    return F.normalize(rows), labels


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_groups_may_be_long(seed):
    x, labels = two_long_groups()
    found = placement_of(x, cut(x, 2, seed=seed), x[:1])
    assert ari(labels, found.cluster) > 0.95
    theirs = KMeans(2, n_init=10, random_state=seed).fit(x.numpy())
    assert ari(labels, theirs.labels_) < 0.2  # else the case would show nothing


def test_new_rows_go_where_their_neighbours_are():
    x, labels = two_long_groups(200)
    groups = cut(x[:200], 2)
    assert len(groups.centroids) > 10
    assert ari(labels[200:], placement_of(x[200:], groups, x[:1]).cluster) > 0.9


def test_groups_of_different_densities():
    densities = ((200, 0.15), (60, 0.02), (100, 0.06))
    x = torch.cat([blobs([n], spread=s)[:, torch.arange(8).roll(i)] for i, (n, s) in enumerate(densities)])
    labels = torch.arange(3).repeat_interleave(torch.tensor([n for n, _ in densities]))
    assert ari(labels, placement_of(x, cut(x, 3), x[:1]).cluster) == 1


def test_the_order_of_the_rows_and_the_seed_change_nothing_that_is_clear():
    x, labels = groups_of((70, 50, 40))
    order = torch.randperm(160, generator=generator(0, "order"))
    for seed in (0, 1):
        assert torch.equal(placement_of(x[order], cut(x[order], 3, seed=seed), x[:1]).cluster, labels[order])


def test_a_few_rows_apart_from_all_are_no_group_of_their_own():
    """Twenty rows that are neighbours of each other alone: without a tie to the rest they would be a perfect group."""
    x, labels = groups_of((200, 200, 20), spread=0.3)
    found = placement_of(x, cut(x, 2), x[:1]).cluster
    assert nmi(labels[:400], found[:400]) > 0.9


def test_a_sample_of_the_rows_makes_the_groups(monkeypatch):
    monkeypatch.setattr(graph.graph_rows, "__defaults__", (0, 150))
    x, labels = groups_of((100, 300, 200))
    found = placement_of(x, cut(x, 3), x[:1])
    assert torch.bincount(found.cluster).tolist() == [300, 200, 100]
    assert nmi(labels, found.cluster) == pytest.approx(1)


def test_equal_rows_are_together_and_no_more_groups_than_distinct_rows():
    x = torch.eye(4)[[0] * 30 + [1] * 20]
    for k in (2, 5):
        assert placement_of(x, cut(x, k), x[:1]).cluster.tolist() == [0] * 30 + [1] * 20
    x = torch.cat([blobs([40, 40]), blobs([40, 40])])
    found = placement_of(x, cut(x, 2), x[:1]).cluster
    assert torch.equal(found[:80], found[80:]) and found.bincount().tolist() == [80, 80]


def test_as_many_groups_as_a_small_graph_can_have():
    x, _ = groups_of((12,) * 12)
    for k in range(1, 13):
        assert cut(x[: ROWS_EACH * k], k).count == k
    for rows, k in ((1, 1), (3, 1), (2, 2), (3, 2), (3, 3)):
        assert cut(x[:rows], k).groups.unique().tolist() == list(range(k))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_class_in_pieces_costs_no_other_its_place(seed):
    """Four large blobs, two of which touch, and a small one apart: cut into four, the large ones stay by themselves."""
    centres = torch.eye(8)[:5]
    centres[2, 3] = centres[3, 2] = 0.4
    labels = torch.arange(5).repeat_interleave(torch.tensor([150, 150, 150, 150, 40]))
    noise = 0.15 * torch.randn(len(labels), 8, generator=generator(seed, "noise"))
    x = F.normalize(F.normalize(centres)[labels] + noise)
    large = labels < 4
    assert nmi(labels[large], placement_of(x, cut(x, 4, seed=seed), x[:1]).cluster[large]) > 0.97


def test_fine_clusters_as_groups_leave_out_the_empty_ones():
    x = torch.tensor([[0.0], [0], [0], [1], [1], [9]])
    found = kmeans(x, 4)
    groups = as_groups(found)
    assert groups.count == 3
    assert torch.equal(placement_of(x, groups, found.centroids).cluster, torch.tensor([0, 0, 0, 1, 1, 2]))


def test_place_by_hand():
    groups = Cut(torch.tensor([[0.0, 0], [4, 0], [0, 10]]), torch.tensor([0, 1, 0]))  # two centroids make group 0
    found = placement_of(torch.tensor([[1.0, 0], [3, 0], [0, 9]]), groups, torch.tensor([[0.0, 8], [1, 1]]))
    assert found.cluster.tolist() == [0, 1, 0]
    assert found.distance.tolist() == pytest.approx([1, 1, 1])
    others = [3, 3, (16 + 81) ** 0.5]  # the nearest centroid of another group
    assert found.margin.tolist() == pytest.approx([1 - 1 / other for other in others])
    assert found.fine_cluster.tolist() == [1, 1, 0]
    one = Cut(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64))
    alone = placement_of(torch.tensor([[1.0], [2]]), one, torch.zeros(1, 1))
    assert alone.margin.tolist() == [1, 1]  # it has no border


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
    found = placement_of(x, groups, x[:3])
    for one, other in zip(
        (found.cluster, found.distance, found.margin), placed_by_all_distances(x, groups), strict=True
    ):
        assert torch.equal(one, other)
    own = (x - centroids[found.centroid]).norm(dim=1)
    assert torch.allclose(own, found.distance, atol=1e-6) and torch.equal(groups.groups[found.centroid], found.cluster)
    assert len(placement_of(x[:0], groups, x[:3]).centroid) == 0
