import pytest
import torch
from sklearn.cluster import KMeans
from torch.nn import functional as F

from deepcluster.clustering import kmeans
from deepcluster.clustering.cut import Cut, as_groups, cut, outlier_distances, place, suggest_k
from deepcluster.seeding import generator


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


def test_cut_is_as_good_as_scikit_learn():
    x, _ = groups_of((30,) * 12, spread=0.2)
    found = place(x, cut(x, 12), x[:1])
    theirs = KMeans(12, n_init=20, random_state=0).fit(x.numpy())
    assert found.distance.square().sum().item() <= theirs.inertia_ * 1.03


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


def test_place_alone_and_among_others_is_bit_identical():
    x, _ = groups_of((50, 50), spread=0.4, width=20)
    groups = cut(x, 7)
    together = place(x, groups, x[:5])
    alone = [place(x[i : i + 1], groups, x[:5]) for i in range(len(x))]
    assert torch.equal(torch.cat([one.distance for one in alone]), together.distance)
    assert torch.equal(torch.cat([one.cluster for one in alone]), together.cluster)


def test_outliers_by_hand():
    # Distances 0, 1, 2, 3, 4: quartiles 1 and 3, so the fence is 3 + 1.5 * 2.
    groups = Cut(torch.tensor([[0.0], [1000]]), torch.tensor([0, 1]))
    found = place(torch.arange(5.0).unsqueeze(1), groups, torch.zeros(1, 1))
    fences = outlier_distances(found, 2)
    assert fences[0].item() == 6
    assert fences[1] == torch.inf  # nobody is in it, so nothing is known


def test_suggest_finds_a_clear_number():
    x, _ = groups_of((60, 60, 60, 60, 60))
    values = suggest_k(x)
    assert max(values, key=values.__getitem__) == 5


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_suggest_with_few_rows(rows):
    assert all(k < rows for k in suggest_k(torch.eye(3)[:rows]))
