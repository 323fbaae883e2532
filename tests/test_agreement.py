import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from deepcluster.clustering.agreement import compared, nmi, repeated, scores
from deepcluster.seeding import generator

LABELS = ["a", "a", "a", "b", "b", "c"]


def test_renumbering_changes_nothing():
    clusters = [2, 2, 2, 0, 0, 1]
    assert scores(LABELS, clusters) == pytest.approx({"acc": 1, "nmi": 1, "ami": 1, "ari": 1})


def test_accuracy_by_hand():
    # Both clusters would like class a; one-to-one, cluster 0 gets a (2) and cluster 1 gets b (2).
    assert scores(LABELS, [0, 0, 1, 1, 1, 0])["acc"] == pytest.approx(4 / 6)
    # More clusters than classes: the third cluster counts for nothing.
    assert scores(["a", "a", "b", "b"], [0, 1, 2, 2])["acc"] == pytest.approx(3 / 4)


def test_changed_by_hand():
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
