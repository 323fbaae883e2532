import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcluster.images.views import each_once, official_draws, uniform_over_clusters
from deepcluster.seeding import generator

SIZES = (1, 5, 5000, 50, 0, 600)


def planted() -> torch.Tensor:
    """Labels with clusters of these sizes, in an order that has nothing to do with them."""
    labels = torch.cat([torch.full((size,), cluster) for cluster, size in enumerate(SIZES)])
    return labels[torch.randperm(len(labels), generator=generator(0, "test"))]


def test_every_image_of_a_cluster_comes_up():
    labels = planted()
    draws = torch.cat([uniform_over_clusters(labels, len(labels), generator(0, "draw", epoch)) for epoch in range(80)])
    times = torch.bincount(draws, minlength=len(labels))
    assert times.min() >= 1
    for cluster in (1, 3, 5):  # smaller than their share: within one epoch each image comes as often as any other
        inside = torch.bincount(uniform_over_clusters(labels, len(labels), generator(1, "draw")), minlength=len(labels))
        inside = inside[labels == cluster]
        assert inside.max() - inside.min() <= 1
    # Images of the large cluster: 80 epochs of 1131 draws without replacement from 5000, a mean of 18.1.
    large = times[labels == 2].double()
    assert large.mean() == pytest.approx(80 * len(labels) / 5 / 5000, rel=0.01)
    assert large.std() < 1.2 * (80 * 0.226 * 0.774) ** 0.5


def test_order_is_random():
    labels = planted()
    drawn = labels[uniform_over_clusters(labels, len(labels), generator(0, "draw"))]
    first, second = drawn.tensor_split(2)
    halves = torch.stack([torch.bincount(half, minlength=len(SIZES)) for half in (first, second)]).double()
    assert (halves[0] - halves[1]).abs().max() < 6 * (len(labels) / 5) ** 0.5


def test_the_official_sampler_by_hand():
    """Sorted by cluster the images are 1, 3, 0, 2: places 0 and 2 (cluster 1) hold images 1 and 0."""
    labels = torch.tensor([1, 0, 1, 0])
    drawn = official_draws(labels, 400, generator(0, "draw"))
    balanced = uniform_over_clusters(labels, 400, generator(0, "draw"))
    place = {0: 1, 1: 3, 2: 0, 3: 2}
    assert drawn.tolist() == [place[i] for i in balanced.tolist()]


def test_without_balancing_the_sizes_decide():
    labels = planted()
    drawn = each_once(labels, len(labels), generator(0, "draw"))
    assert torch.equal(drawn.sort().values, torch.arange(len(labels)))
    assert torch.bincount(each_once(labels, 2 * len(labels) + 3, generator(0, "draw"))).max() == 3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=40), st.integers(1, 60))
def test_shares_differ_by_at_most_one(labels, draws):
    labels = torch.tensor(labels)
    drawn = uniform_over_clusters(labels, draws, generator(0, "draw"))
    assert len(drawn) == draws
    counts = torch.bincount(labels[drawn], minlength=9)[torch.bincount(labels, minlength=9) > 0]
    assert counts.max() - counts.min() <= 1
