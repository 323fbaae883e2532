import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.backends import cudnn
from torch.nn import functional as F
from torch.optim import SGD

from deepcluster.errors import NonFiniteError
from deepcluster.images import views as augment
from deepcluster.images.views import Augmentation, fixed_view, random_views
from deepcluster.learning import training
from deepcluster.learning.draws import each_once, official_draws, uniform_over_clusters
from deepcluster.learning.features import extract
from deepcluster.learning.heads import WithInstances, instance_loss
from deepcluster.learning.training import network_precision
from deepcluster.nets.network import Network, build
from deepcluster.runtime.compute import Compute
from deepcluster.seeding import generator
from tests.helpers.drawings import drawings
from tests.helpers.loop import learn

STILL = Augmentation(crop=(1, 1), stretch=1, flip=0)
IMAGES, LABELS = map(torch.as_tensor, drawings(4))


def network(seed: int = 0) -> Network:
    return build("compact", image_size=24, seed=seed)


def with_head(classes: int = 3) -> Network:
    net = network()
    net.new_head(classes, generator(0, "head"))
    return net


def train(net, images, labels, **options):
    settings = {"size": 24, "lr": 0.05, "epochs": 2, "batch_size": 16, "views": [STILL]} | options
    return learn(net, images, labels, **settings)


def test_features_are_the_network_in_evaluation_mode_whatever_the_batch():
    net = network()
    before, compute = copy.deepcopy(net.state_dict()), Compute.of(net, IMAGES, batch_size=8)
    features = extract(net, IMAGES, compute)
    assert torch.equal(features, torch.cat([extract(net, image[None], compute) for image in IMAGES]))
    assert net.training and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net.eval()
    with torch.no_grad():
        assert torch.allclose(features, net.features(fixed_view(IMAGES, 24)), atol=1e-5)


def test_progress_counts_all_images():
    net, seen = with_head(), []
    options = {"batch_size": 5, "progress": lambda *call: seen.append(call)}
    extract(net, IMAGES, Compute.of(net, IMAGES, **options))
    train(net, IMAGES, LABELS, **options)
    assert seen[:3] == [("features", done, 12) for done in (5, 10, 12)]
    assert seen[3:] == [("training", done, 24) for done in (0, 4, 8, 12, 16, 20, 24)]


@pytest.mark.parametrize("head_lr", [None, 0.2])
def test_the_same_as_torch_with_momentum_for_the_body_alone(head_lr):
    images, labels, ours = IMAGES[::4], LABELS[::4], with_head()
    theirs, losses = copy.deepcopy(ours), []
    body = SGD([*theirs.body_parameters()], 0.5, momentum=0.9, weight_decay=0.1)
    head = SGD(theirs.head.parameters(), head_lr or 0.5, weight_decay=0.1)
    for _ in range(3):
        losses.append(F.cross_entropy(theirs.classify(theirs.embed(theirs.features(images.float() / 255))), labels))
        body.zero_grad()
        head.zero_grad()
        losses[-1].backward()
        body.step()
        head.step()
    loss = train(ours, images, labels, epochs=3, lr=0.5, head_lr=head_lr, weight_decay=0.1, sample=each_once)
    assert loss == pytest.approx(sum(losses).item() / 3, rel=1e-4)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name], rtol=1e-3, atol=1e-4, msg=name)


def test_training_leaves_the_global_generator_alone_and_makes_no_float64(monkeypatch):
    """Dropout draws from the global generator; Apple's GPUs have no float64."""
    monkeypatch.setattr(torch.Tensor, "double", None)
    net = Network(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 24 * 24, 8)), 8)
    net.new_head(3, generator(0, "head"))
    before = torch.get_rng_state()
    train(net, IMAGES, LABELS)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loss_that_is_not_finite_stops_the_run():
    with pytest.raises(NonFiniteError, match=r"1e\+30"):
        train(with_head(), IMAGES, LABELS, lr=1e30, epochs=3)


def test_memory_keeps_what_was_not_drawn_and_changes_nothing_else():
    memory = torch.zeros(12, network().feature_dim)
    options = {"sample": lambda labels, draws, random: torch.arange(draws) % 5}
    losses = [train(with_head(), IMAGES, LABELS, memory=rows, **options) for rows in (None, memory)]
    assert losses[0] == losses[1]
    assert memory[:5].abs().sum(1).min() > 0 == memory[5:].abs().max()


def test_memory_keeps_the_last_of_an_image_that_a_batch_has_twice(request):
    """To assign all at once kept another one in 295 of 300 such draws, with two threads."""
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(2)
    rows = torch.randint(0, 64, (128,), generator=generator(0, "rows"))
    embeddings = torch.randn(128, 128, generator=generator(0, "embeddings"))
    memory = torch.zeros(65, 128)
    training._remember(memory, embeddings, rows)
    last = dict(zip(rows.tolist(), embeddings, strict=True))
    assert all(torch.equal(memory[row], embedding) for row, embedding in last.items())
    assert not memory[64].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_network_computes_in_the_precision_of_its_place(dtype):
    """And features in float32 are computed with all bits, without TF32."""
    net, seen = with_head(), []
    net.body.register_forward_hook(lambda *hooked: seen.append((hooked[-1].dtype, cudnn.conv.fp32_precision)))
    features = extract(net, IMAGES, Compute.of(net, IMAGES, dtype=dtype))
    assert {*seen} == {(dtype, "ieee" if dtype == torch.float32 else "tf32")}
    assert features.dtype == dtype and torch.allclose(features.float(), extract(net, IMAGES), atol=0.05, rtol=0.05)
    seen.clear()
    train(net, IMAGES, LABELS, dtype=dtype)
    assert {*seen} == {(dtype, "tf32")}


def test_the_rule_for_the_precision(monkeypatch):
    monkeypatch.setattr(training, "has_bf16", lambda device: True)
    cpu = torch.device("cpu")
    assert network_precision(network(), cpu) == torch.bfloat16
    grouped = Network(nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 6)
    assert network_precision(grouped, cpu) == torch.float32
    assert network_precision(grouped, torch.device("cuda")) == torch.bfloat16
    monkeypatch.setattr(training, "has_bf16", lambda device: False)
    assert network_precision(network(), cpu) == torch.float32


def linear_network(centroids: torch.Tensor) -> tuple[Network, nn.Linear]:
    """Mean colours through a linear projection, and frozen centroids on top: small enough to do by hand."""
    layer = nn.Linear(3, 4)
    body = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = Network(body, 3, projection=layer, embedding_dim=4, mean=(0, 0, 0), std=(1, 1, 1))
    net.centroid_head(centroids, 0.1)
    return net, layer


def by_hand(images, layer, centroids, labels) -> torch.Tensor:
    embeddings = F.normalize((images.float() / 255).mean((2, 3)) @ layer.weight.T + layer.bias, dim=1)
    return F.cross_entropy(embeddings @ F.normalize(centroids, dim=1).T / 0.1, labels)


def test_several_clusterings_by_hand():
    """The loss is the mean over the clusterings, for three views of one image that all show the same mean colours: two
    whole ones, one of half the size. The projection learns, the centroids do not."""
    images, _ = drawings(2)
    centroids = torch.randn(5, 4, generator=generator(0, "centroids"))
    labels = torch.tensor([[0, 1], [1, 2], [0, 0], [1, 1], [1, 2], [0, 0]])
    net, layer = linear_network(centroids)
    before = copy.deepcopy(layer)
    parts = zip((centroids[:2], centroids[2:]), labels.T, strict=True)
    expected = sum(by_hand(images, before, *part) for part in parts) / 2
    expected.backward()
    head = net.head.weight.clone()
    options = {"views": [STILL, STILL, replace(STILL, size=12)], "sample": each_once, "epochs": 1, "batch_size": 6}
    assert train(net, images, labels, clusters=(2, 3), lr=0.5, **options) == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(layer.weight, before.weight - 0.5 * (before.weight.grad + 1e-5 * before.weight), atol=1e-5)
    assert torch.equal(net.head.weight, head)


@pytest.mark.parametrize("second", [Augmentation(crop=(1, 1), stretch=1, flip=1), replace(STILL, size=16)])
def test_memory_has_the_mean_of_the_first_two_views_if_they_have_one_size(second):
    net = with_head()
    net.frozen_statistics = True
    memory = torch.full((12, net.feature_dim), torch.nan)
    options = {"views": [STILL, second, STILL], "epochs": 1, "lr": 0.0, "sample": each_once}
    train(net, IMAGES, LABELS, memory=memory, **options)
    with torch.no_grad():
        whole, flipped = net.features(IMAGES / 255), net.features(IMAGES.flip(3) / 255)
    assert torch.allclose(memory, whole if second.size else (whole + flipped) / 2, atol=1e-4)


def test_no_batch_is_too_small_for_batch_normalisation_and_views_have_their_sizes():
    images, kinds = drawings(11)  # 33 images in batches of 16 would leave one alone
    net = with_head()
    seen = []
    net.body.register_forward_hook(lambda module, inputs, output: seen.append(tuple(inputs[0].shape)))
    small = Augmentation(crop=(0.1, 0.3), size=16)
    train(net, images, torch.tensor(kinds), views=[STILL, STILL, small], epochs=1)
    assert seen == [(22, 3, 24, 24), (11, 3, 16, 16)] * 3


def test_instances_by_hand():
    """Each view must find its partner among the views of other images, of which one was drawn twice; a third, smaller
    view of each does not count."""
    rows = [7, 9, 7]
    views, image = torch.randn(2 * len(rows), 4, generator=generator(0, "views")), 2 * rows
    unit = F.normalize(views, dim=1)
    expected = 0.0
    for i in range(len(image)):
        partner = (i + len(rows)) % len(image)
        others = [j for j in range(len(image)) if image[j] != image[i] or j == partner]
        likeness = {j: math.exp((unit[i] @ unit[j]).item() / 0.5) for j in others}
        expected -= math.log(likeness[partner] / sum(likeness.values())) / len(image)
    loss = instance_loss(torch.cat([views, torch.ones(len(rows), 4)]), torch.tensor(rows), 0.5)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_weight_divides_a_step_between_clusters_and_instances():
    """One step is linear in the loss; the number returned is the clusters' alone."""
    net, layer = linear_network(torch.randn(3, 4, generator=generator(0, "centroids")))
    before, steps, losses = copy.deepcopy(layer.state_dict()), [], []
    options = {"views": [Augmentation()] * 2, "lr": 1.0, "epochs": 1, "batch_size": 12, "loss": WithInstances(0.2)}
    for weight in (1.0, 0.0, 0.25):
        layer.load_state_dict(before)
        losses.append(train(net, IMAGES, LABELS, cluster_weight=weight, **options))
        steps.append(layer.weight.detach() - before["weight"])
    clusters, instances, mixed = steps
    assert (clusters - instances).abs().max() > 0.01
    assert torch.allclose(mixed, 0.25 * clusters + 0.75 * instances, atol=1e-5)
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_the_learning_rate_has_the_time_in_rounds_and_clusterings_take_turns_in_the_sampling():
    labels = torch.stack([torch.zeros(12, dtype=torch.int64), torch.arange(12) % 3], 1)
    times, seen = [], []

    def sample(by, draws, random):
        seen.append(by.tolist())
        return torch.arange(draws)

    options = {"lr": lambda time: times.append(time) or 0.01, "sample": sample, "clusters": (1, 3)}
    train(with_head(4), IMAGES, labels, epochs=3, batch_size=4, round=5, **options)
    assert times == pytest.approx([5 + i / 9 for i in range(9)])
    assert seen == [labels[:, i].tolist() for i in (1, 0, 1)]


def taken_in_parts(monkeypatch, part: int, *, frozen: bool = True, **options) -> tuple[Network, float, set[int]]:
    """A network after a step, its loss, and the numbers of images that went through it at a time."""
    monkeypatch.setattr(training, "PART", part)
    images, labels = drawings(16)
    net, sizes = with_head(), set()
    net.frozen_statistics = frozen
    net.body.register_forward_pre_hook(lambda module, given: sizes.add(len(given[0])))
    return net, train(net, images, torch.tensor(labels), **{"epochs": 1, "batch_size": 48, **options}), sizes


def test_a_step_in_parts_is_the_step_on_the_whole_batch(monkeypatch):
    memories = torch.zeros(2, 48, network().feature_dim)
    options = {"views": [STILL, STILL], "sample": each_once}
    whole, loss, sizes = taken_in_parts(monkeypatch, 1 << 30, memory=memories[0], **options)
    assert sizes == {96}
    parts, loss_of_parts, sizes = taken_in_parts(monkeypatch, 16 * 2 * 24 * 24, memory=memories[1], **options)
    assert sizes == {32} and loss_of_parts == pytest.approx(loss, rel=1e-5)
    assert memories[0].abs().sum() > 0 and torch.allclose(*memories, atol=1e-4)
    start = with_head().state_dict()
    for name, value in whole.state_dict().items():
        if value.is_floating_point():
            moved = (value - start[name]).abs().max()
            assert (value - parts.state_dict()[name]).abs().max() <= 1e-3 * moved + 1e-7, name


def test_no_parts_if_images_have_an_effect_on_each_other(monkeypatch):
    assert taken_in_parts(monkeypatch, 24 * 24)[2] == {8}  # FEWEST
    assert taken_in_parts(monkeypatch, 24 * 24, frozen=False)[2] == {48}  # batch normalisation learns
    assert taken_in_parts(monkeypatch, 24 * 24, loss=WithInstances(0.2), views=[STILL, STILL])[2] == {96}


def test_every_image_of_a_cluster_comes_up_in_random_order():
    """Images of the larger cluster: 80 epochs of 2550 draws without replacement from 5000, a mean of 40.8."""
    labels = torch.arange(5100) % 51 // 50
    epochs = [uniform_over_clusters(labels, len(labels), generator(0, "draw", epoch)) for epoch in range(80)]
    times = torch.bincount(torch.cat(epochs))[labels == 0].double()
    assert times.min() > 0 and times.std() < 1.2 * (80 * 0.51 * 0.49) ** 0.5
    first, second = (labels[half].sum() for half in epochs[0].tensor_split(2))
    assert (first - second).abs() < 6 * 2550**0.5


def test_the_official_sampler_by_hand():
    """Sorted by cluster the images are 1, 3, 0, 2: places 0 and 2 (cluster 1) hold images 1 and 0."""
    labels = torch.tensor([1, 0, 1, 0])
    drawn = official_draws(labels, 400, generator(0, "draw"))
    balanced = uniform_over_clusters(labels, 400, generator(0, "draw"))
    assert torch.equal(drawn, torch.tensor([1, 3, 0, 2])[balanced])


def test_without_balancing_the_sizes_decide():
    labels = torch.arange(5656)
    drawn = each_once(labels, len(labels), generator(0, "draw"))
    assert torch.equal(drawn.sort().values, torch.arange(len(labels)))
    assert torch.bincount(each_once(labels, 2 * len(labels) + 3, generator(0, "draw"))).max() == 3


@settings(max_examples=60)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=40), st.integers(1, 60))
def test_shares_differ_by_at_most_one(labels, draws):
    labels = torch.tensor(labels)
    drawn = uniform_over_clusters(labels, draws, generator(0, "draw"))
    assert len(drawn) == draws
    counts = torch.bincount(labels[drawn], minlength=9)[torch.bincount(labels, minlength=9) > 0]
    assert counts.max() - counts.min() <= 1
    times = torch.bincount(drawn, minlength=len(labels))
    assert all(times[labels == k].max() - times[labels == k].min() <= 1 for k in labels)


# ---- views -----------------------------------------------------------------------------------------------------------


def random(*index: int) -> torch.Generator:
    return generator(0, "test", *index)


def test_a_fixed_view_is_the_middle_of_the_image():
    assert torch.equal(fixed_view(IMAGES, 20), IMAGES[:, :, 2:22, 2:22] / 255)


def test_crops_lie_inside_the_image_have_the_asked_areas_and_half_are_flipped():
    maps = augment.random_affine(5000, Augmentation(crop=(0.2, 0.9), stretch=1.3, flip=0.5), random())
    width, height = maps[:, 0, 0].abs(), maps[:, 1, 1].abs()
    area, ratio = width * height, width / height
    assert area.min() >= 0.2 - 1e-5 and area.max() <= 0.9 + 1e-5
    assert area.mean() == pytest.approx(0.55, abs=0.02)
    assert ratio.min() >= 1 / 1.3 - 1e-4 and ratio.max() <= 1.3 + 1e-4
    assert ((maps[:, 0, 2].abs() + width) <= 1 + 1e-5).all()
    assert ((maps[:, 1, 2].abs() + height) <= 1 + 1e-5).all()
    assert (maps[:, 0, 0] < 0).float().mean() == pytest.approx(0.5, abs=0.03)
    # Every place is possible: the crops reach all four sides.
    assert (maps[:, 0, 2] + width).max() > 0.99
    assert (maps[:, 1, 2] - height).min() < -0.99
    # Rotations go both ways.
    maps = augment.random_affine(400, replace(STILL, rotation=90), random())
    angles = torch.rad2deg(torch.atan2(maps[:, 1, 0], maps[:, 0, 0]))
    assert -90 <= angles.min() < -80 and 80 < angles.max() <= 90
    # Zooming out keeps the whole image in view.
    maps = augment.random_affine(1000, Augmentation(crop=(1.5, 1.5), stretch=1, flip=0), random())
    assert torch.allclose(maps[:, 0, 0], torch.full((1000,), math.sqrt(1.5)))
    assert ((maps[:, 0, 2].abs() + 1) <= math.sqrt(1.5) + 1e-5).all()


def test_view_of_an_image_does_not_depend_on_the_others(monkeypatch):
    images, _ = drawings(4)
    how = Augmentation(colour=0.4, grey=0.5, rotation=10)
    changed = images.clone()
    changed[3:] = 255 - changed[3:]
    first, second = random_views(images, 20, how, random()), random_views(changed, 20, how, random())
    assert torch.equal(first[:3], second[:3]) and first.is_contiguous(memory_format=torch.channels_last)
    same = random_views(images[:1].expand(16, -1, -1, -1), 24, how, random())
    assert len(torch.unique(same.flatten(1), dim=0)) == 16  # everyone has its own
    monkeypatch.setattr(augment, "PIXELS_AT_ONCE", 4 * images.shape[-1] ** 2)  # made in parts
    again, other = random_views(images, 20, how, random()), random_views(images, 20, how, random(1))
    assert torch.equal(again, first) and not torch.equal(other, first)


def test_colours_spread_over_their_range():
    factors = augment.random_colours(1000, Augmentation(colour=0.4), random())
    assert torch.allclose(factors.min(0).values, torch.tensor(0.6), atol=0.01)
    assert torch.allclose(factors.max(0).values, torch.tensor(1.4), atol=0.01)
    saturation = augment.random_colours(1000, Augmentation(grey=0.3), random())[:, 0]
    assert (saturation == 0).float().mean() == pytest.approx(0.3, abs=0.05)


def test_colours_by_their_definition():
    """Saturation, then contrast, then brightness, one after the other."""
    images, _ = drawings(3)
    views = images.float() / 255
    factors = augment.random_colours(9, Augmentation(colour=0.4, grey=0.3), random())
    saturation, contrast, brightness = (factors[:, i].view(-1, 1, 1, 1) for i in range(3))
    grey = (views * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    expected = grey + saturation * (views - grey)
    expected = grey.mean((2, 3), keepdim=True) + contrast * (expected - grey.mean((2, 3), keepdim=True))
    expected = (brightness * expected).clamp(0, 1)
    assert torch.allclose(augment.recolour(views.clone(), factors), expected, atol=1e-5)


@pytest.mark.parametrize("size", [60, 50, 40, 25])
def test_views_that_shrink_are_antialiased(size):
    images = (255 * torch.randint(0, 2, (4, 3, 64, 64), generator=generator(0, "noise"))).to(torch.uint8)
    views = random_views(images, size, STILL, generator(0, "views"))
    theirs, aliased = (
        F.interpolate(images / 255, size, mode="bilinear", antialias=antialias) for antialias in (True, False)
    )
    assert views.std() == pytest.approx(theirs.std().item(), rel=0.1)
    assert aliased.std() > 1.05 * theirs.std()  # else the case would show nothing
    torch.testing.assert_close(views.mean(), images.float().mean() / 255, atol=0.01, rtol=0)


@pytest.mark.parametrize("side", [64, 65, 91])
def test_views_that_shrink_stay_in_place(side):
    """Averages of a ramp are the ramp: only the rows at the border may differ."""
    ramp = (2.0 * torch.arange(side)).expand(1, 3, side, side)
    for size in (side // 2 + 5, side // 3, side // 6):
        views = random_views(ramp.byte(), size, STILL, random())[..., 2:-2] * 255
        expected = (2 * torch.arange(size) + 1) * side / size - 1
        torch.testing.assert_close(views, expected[2:-2].expand_as(views), atol=0.01, rtol=0)


def test_views_that_do_not_shrink_are_bilinear():
    images = torch.randint(0, 256, (3, 3, 21, 21), generator=generator(0, "noise"), dtype=torch.uint8)
    how = Augmentation(crop=(0.1, 0.5), rotation=40)
    grid = F.affine_grid(augment.random_affine(3, how, random()), [3, 3, 21, 21], align_corners=False)
    plain = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False) / 255
    assert torch.allclose(random_views(images, 21, how, random()), plain, atol=1e-4)
