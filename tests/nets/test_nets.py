"""Networks: one contract for all of them, the paper's two layer by layer, and weights from files."""

import math
import re
from functools import cache, partial

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from deepcluster.errors import ModelError, UsageError
from deepcluster.fitting import fit as run
from deepcluster.fitting.plan import Request
from deepcluster.learning.features import extract
from deepcluster.nets import fast_pass, paper
from deepcluster.nets.fast_pass import FastLite0, features_pass
from deepcluster.nets.names import takes_one_size
from deepcluster.nets.network import IMAGENET_MEAN, IMAGENET_STD, Network, build
from deepcluster.nets.small import WIDTH, Lite0
from deepcluster.nets.timm import channels_last
from deepcluster.nets.weights import load_body, read_weights, shapes_only
from deepcluster.recipes.presets import read_request
from deepcluster.runtime.compute import Compute
from deepcluster.seeding import generator, lent_global
from deepcluster.storage import model_files as models
from tests.helpers.runs import rows

slow = pytest.mark.slow
# name, image size, Sobel, features of one image
NETWORKS = [
    ("compact", 32, False, 8 * WIDTH),
    ("compact", 96, False, 8 * WIDTH),
    pytest.param(("alexnet", 224, False, 4096), marks=slow),
    ("alexnet", 224, True, 4096),
    pytest.param(("vgg16", 224, True, 4096), marks=slow),
    ("timm:resnet18", 64, False, 512),
    ("timm:mobilenetv3_small_050", 64, False, 1024),
    ("timm:test_vit", 96, False, 64),
]


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda row: f"{row[0]}-{row[1]}{'-sobel' * row[2]}")
def row(request):
    return request.param


@pytest.fixture(scope="module")
def network(row):
    name, image_size, sobel, _ = row
    return build(name, image_size=image_size, sobel=sobel, seed=3)


@pytest.fixture(scope="module")
def images(row):
    return torch.rand(2, 3, row[1], row[1], generator=generator(0, "test images"))


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


def same(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[key], other[key]) for key in state)


def first_conv(network: Network) -> nn.Conv2d:
    """The first convolution that is trained, which is not Sobel's."""
    convs = (module for module in network.body.modules() if isinstance(module, nn.Conv2d))
    return next(conv for conv in convs if conv.weight.requires_grad)


def test_features_are_one_finite_vector_per_image_and_extracting_them_changes_nothing(network, images, row):
    network.eval()
    before = snapshot(network)
    with torch.no_grad():
        features, alone = network.features(images), network.features(images[:1])
    assert same(before, network.state_dict())
    assert features.shape == (2, network.feature_dim) == (2, row[3])
    assert features.isfinite().all() and not torch.equal(features[0], features[1])
    assert row[0] not in LAYERS or features.min() < 0  # they end before the last ReLU
    torch.testing.assert_close(features[:1], alone, rtol=1e-4, atol=1e-5 * features.abs().max().item())


def test_a_head_is_put_on_top_and_the_gradient_reaches_the_first_convolution(network, images):
    network.head = None
    with pytest.raises(RuntimeError, match="new_head"):
        network(images)
    network.new_head(200, generator(0, "head"))
    assert network.head.weight.shape == (200, network.feature_dim)
    assert network.head.weight.std().item() == pytest.approx(0.01, rel=0.03)
    assert abs(network.head.weight.mean().item()) < 3e-4
    assert not network.head.bias.any()

    with lent_global(0, "dropout"):
        logits = network.train()(images)
    assert logits.shape == (2, 200)
    F.cross_entropy(logits, torch.tensor([3, 150])).backward()
    gradient = first_conv(network).weight.grad
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
    network.zero_grad(set_to_none=True)


def test_body_parameters_are_the_trained_ones_without_the_head(network):
    network.new_head(5, generator(0, "head"))
    body = {id(parameter) for parameter in network.body_parameters()}
    named = dict(network.named_parameters())
    out = {name for name, parameter in named.items() if id(parameter) not in body}
    sobel = {f"body.sobel.{layer}.{kind}" for layer in (0, 1) for kind in ("weight", "bias")}
    assert out == {"head.weight", "head.bias"} | (sobel if network.architecture["sobel"] else set())
    assert id(first_conv(network).weight) in body


def test_the_seed_alone_decides_and_the_architecture_rebuilds_it(network, row):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    again, other = (build(**network.architecture, seed=seed) for seed in (3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in again.modules())
    assert network.architecture == dict(zip(("name", "image_size", "sobel"), row[:3], strict=True))
    assert all(map(torch.equal, network.body.parameters(), again.body.parameters()))
    assert not torch.equal(first_conv(network).weight, first_conv(other).weight)


def test_normalisation_is_inside(network, images):
    network.eval()
    with torch.no_grad():
        expected = network.body((images[:1] - network.mean) / network.std)
        assert torch.equal(network.features(images[:1]), expected)
    means_and_deviations = {"timm:test_vit": ((0.5,) * 3, (0.5,) * 3)}
    expected = means_and_deviations.get(network.architecture["name"], (IMAGENET_MEAN, IMAGENET_STD))
    assert torch.allclose(torch.stack([network.mean, network.std]).flatten(1), torch.tensor(expected))


# AlexNet, VGG-16 and Sobel, against the description in the paper


# Outputs, kernel, stride and padding of a convolution with batch normalisation and ReLU, or kernel and stride of a
# maximum; then the two linear layers.
LAYERS: dict[str, list[tuple[int, ...]]] = {
    "alexnet": [
        (96, 11, 4, 2), (3, 2), (256, 5, 1, 2), (3, 2), (384, 3, 1, 1), (384, 3, 1, 1), (256, 3, 1, 1), (3, 2),
    ],
    "vgg16": [
        *[(64, 3, 1, 1)] * 2, (2, 2), *[(128, 3, 1, 1)] * 2, (2, 2), *[(256, 3, 1, 1)] * 3, (2, 2),
        *[(512, 3, 1, 1)] * 3, (2, 2), *[(512, 3, 1, 1)] * 3, (2, 2),
    ],
}  # fmt: skip
LINEAR_INPUTS = {"alexnet": 9216, "vgg16": 25088}


def described(arch: str, *, sobel: bool) -> dict[str, nn.Sequential]:
    """The parts of a network of the paper by its description; it ends before the last ReLU."""
    inputs, features = 2 if sobel else 3, []
    for numbers in LAYERS[arch]:
        if len(numbers) == 2:
            features.append(nn.MaxPool2d(*numbers))
        else:
            features += [nn.Conv2d(inputs, *numbers), nn.BatchNorm2d(numbers[0]), nn.ReLU(inplace=True)]
            inputs = numbers[0]
    linear = [nn.Linear(LINEAR_INPUTS[arch], 4096), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(4096, 4096)]
    linear = [nn.Dropout(0.5), *linear] if arch == "alexnet" else linear
    parts = {"features": nn.Sequential(*features), "classifier": nn.Sequential(*linear)}
    return parts | ({"sobel": nn.Sequential(nn.Conv2d(3, 1, 1), nn.Conv2d(1, 2, 3, padding=1))} if sobel else {})


@pytest.mark.parametrize("arch", LAYERS)
@pytest.mark.parametrize("sobel", [True, False])
def test_the_layers_are_those_of_the_description(arch, sobel):
    with shapes_only():
        body = build(arch, image_size=224, sobel=sobel).body
        for name, layers in described(arch, sobel=sobel).items():
            assert str(body.get_submodule(name)) == str(layers)  # with all sizes


def test_sobel_is_that_of_scipy_on_the_mean_of_the_colours():
    """But left minus right and above minus below; zero is beyond the image."""
    image = torch.rand(1, 3, 9, 11, generator=generator(0, "sobel"))
    expected = [-ndimage.sobel(image[0].mean(0).numpy(), axis, mode="constant") for axis in (1, 0)]
    np.testing.assert_allclose(paper.sobel_filter()(image)[0], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["alexnet", pytest.param("vgg16", marks=slow)])
def test_weights_begin_as_the_paper_says(name):
    network = build(name, image_size=224, sobel=True, seed=5)
    for module in (*network.body.features, *network.body.classifier):
        if isinstance(module, nn.Conv2d | nn.Linear):
            kernel, samples = module.weight[0][0].numel(), module.weight.numel()
            expected = 0.01 if isinstance(module, nn.Linear) else math.sqrt(2 / (kernel * module.out_channels))
            assert module.weight.std().item() == pytest.approx(expected, rel=4 / math.sqrt(2 * samples)), module
            assert abs(module.weight.mean().item()) < 4 * expected / math.sqrt(samples), module
            assert not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight)) and not module.bias.any()
            assert not module.running_mean.any() and torch.equal(module.running_var, torch.ones_like(module.weight))


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [
        ("alexnet", {"image_size": 96}, ["alexnet", "96", "--image-size 224"]),
        ("compact", {"image_size": 32, "sobel": True}, ["sobel", "alexnet", "compact"]),
        ("compact", {"image_size": 2}, ["compact", "2 x 2", "--image-size"]),
        ("compact", {"image_size": 32, "weights": "timm"}, ["--weights timm", "compact", "give a file"]),
        ("timm:test_vit", {"image_size": 50}, ["timm:test_vit", "50", "--image-size"]),
        ("timm:maxvit_pico_rw_256", {"image_size": 100}, ["100 x 100", "--image-size 256"]),  # that of timm
        ("resnet18", {"image_size": 64}, ["resnet18", " timm:resnet18"]),
        ("timm:resnet81", {"image_size": 64}, ["timm:resnet81", "timm:resnet18"]),
        ("", {"image_size": 64}, ["compact, alexnet, vgg16 or timm:NAME"]),
    ],
)
def test_usage_errors_name_the_value_and_the_way_out(name, options, parts):
    with pytest.raises(UsageError) as caught:
        build(name, **options)
    for part in parts:
        assert part in str(caught.value)


def test_a_paper_network_refuses_a_batch_of_another_size():
    with shapes_only(), pytest.raises(UsageError, match=r"224 x 224 .*227"):
        build("alexnet", image_size=224).features(torch.rand(1, 3, 227, 227))  # would pass through unnoticed otherwise


# Weights from files


@pytest.fixture(scope="module")
def trained():
    """A compact network whose every tensor differs from those that any seed gives."""
    network = build("compact", image_size=32, seed=1)
    network.new_head(7, generator(1, "head"))
    for tensor in network.state_dict().values():
        tensor.add_(1)
    return network


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in state.items()}


WRAPPINGS = {
    "plain": lambda body, whole: body,
    "network": lambda body, whole: whole,
    "network in parallel": lambda body, whole: prefixed("module.", whole),
    **{name: lambda body, whole, name=name: prefixed(name, body) for name in ("module.", "backbone.", "model.")},
    "wrapped": lambda body, whole: {"epoch": 3, "state_dict": body},
    "wrapped as model": lambda body, whole: {"epoch": 3, "model": body},
    "averaged first": lambda body, whole: {"state_dict": dict.fromkeys(body, torch.zeros(1)), "state_dict_ema": body},
}  # fmt: skip


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_weights_come_back_from_a_file(trained, tmp_path, wrapping):
    content = WRAPPINGS[wrapping](trained.body.state_dict(), trained.state_dict())
    for name in ("a.pt", "a.pth.tar"):
        torch.save(content, tmp_path / name)
    if all(isinstance(value, Tensor) for value in content.values()):
        save_file({key: value.clone() for key, value in content.items()}, tmp_path / "a.safetensors")
    for path in tmp_path.iterdir():
        loaded = build("compact", image_size=32, weights=str(path))
        assert same(loaded.body.state_dict(), trained.body.state_dict()), path
        assert loaded.head is None


# Last layers: fc; head.fc beside a head.norm that stays; head and head_dist; head.linear and a head.bn that goes too;
# and a network whose own names all begin with body.
V2_HEADS = {f"{name}.weight": torch.zeros(4, 4) for name in ("projection_head.0", "prototypes.prototypes0")}
TIMM_HEADS = ["test_resnet", "test_convnext", "deit_tiny_distilled_patch16_224", "efficientvit_m0", "tresnet_m"]


@pytest.mark.parametrize("name", [*TIMM_HEADS[:4], pytest.param(TIMM_HEADS[4], marks=slow)])
def test_timm_weights_with_their_classifier(tmp_path, name):
    size = 64 if name.startswith("test_") else 224
    with lent_global(8, "elsewhere"):
        theirs = timm.create_model(name, num_classes=10)
    given = theirs.state_dict()
    as_published = {"epoch": 400, "state_dict": prefixed("module.", given | V2_HEADS)}
    torch.save(as_published, tmp_path / "a.pt")
    network = build(f"timm:{name}", image_size=size, weights=str(tmp_path / "a.pt"))
    assert all(torch.equal(value, given[key]) for key, value in network.body.state_dict().items())
    if name in TIMM_HEADS[:2]:  # one linear layer on the features
        images = torch.rand(2, 3, size, size, generator=generator(0, "images"))
        logits = F.linear(network.eval().features(images), *network.classifier)
        torch.testing.assert_close(logits, theirs.eval()((images - network.mean) / network.std), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("0.1.running_var", None, "(0.1.running_var)"),
        ("extra.weight", torch.zeros(2), "(extra.weight)"),
        ("0.1.running_var", torch.zeros(3), "0.1.running_var (3,)"),
        ("0.1.bias", torch.tensor([0.0] * 15 + [-torch.inf]), "0.1.bias"),
        ("0.1.bias", torch.ones(16, dtype=torch.int64), "0.1.bias (16,) torch.int64"),
        ("0.1.bias", torch.ones(16).to(torch.float8_e4m3fn), "0.1.bias (16,) torch.float8_e4m3fn"),
    ],
)
def test_one_wrong_tensor_is_enough_and_nothing_is_loaded(trained, name, tensor, message):
    state = trained.body.state_dict() | {name: tensor}
    body = build("compact", image_size=32, seed=2).body
    before = snapshot(body)
    with pytest.raises(ModelError, match=re.escape(message)):
        load_body(body, {key: value for key, value in state.items() if value is not None}, path="w.pt", name="compact",
                  heads=("head",))  # fmt: skip
    assert same(before, body.state_dict())


@pytest.mark.parametrize(
    "content",
    [[1, 2], {"epoch": 3}, {"state_dict": {}}, {1: torch.zeros(1)}, {"a": torch.zeros(1, device="meta")}],
    ids=str,
)
def test_files_without_a_table_of_tensors(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ModelError, match=r"a\.pt"):
        read_weights(tmp_path / "a.pt")


# Files as the authors of DINO, DINOv2, DINOv3 and SigLIP publish them, with random numbers


def published(name: str) -> dict[str, Tensor]:
    """The tensors of a network of timm with random weights, in the size and with the head that it is published with."""
    with lent_global(0, "published"):
        state = timm.create_model(name).state_dict()
        return {key: value + 0.02 * torch.randn(value.shape) for key, value in state.items()}


def in_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    others = {"logit_scale": torch.zeros(()), "text.token_embedding.weight": torch.zeros(5, 4)}
    return prefixed("visual.trunk.", state) | others


# Position tables are resampled as timm does it; attention pooling stays.
@pytest.mark.parametrize("name", ["test_vit", "test_vit3"])
@pytest.mark.parametrize(
    ("size", "change"),
    [(160, dict), (96, lambda state: state | {"mask_token": torch.zeros(1, 64)}), (224, in_open_clip)],
)
def test_vision_transformers_are_those_that_timm_makes_of_the_file(tmp_path, name, size, change):
    state = published(name)
    save_file(change(state), tmp_path / "a.safetensors")
    overlay = {"state_dict": dict(state), "num_classes": len(state["head.weight"]) if "head.weight" in state else 0}
    expected = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, img_size=size)
    network = build(f"timm:{name}", image_size=size, weights=str(tmp_path / "a.safetensors")).eval()
    images = torch.rand(2, 3, size, size, generator=generator(0, "images"))
    with torch.no_grad():
        torch.testing.assert_close(network.body(images), expected.eval()(images))


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("patch_embed.proj.weight", torch.zeros(64, 3, 8, 8), r"\(64, 3, 8, 8\) .*\(64, 3, 16"),
        ("pos_embed", torch.full((1, 101, 64), torch.nan), "pos_embed "),
        ("pos_embed", torch.zeros(1, 101, 48), r"pos_embed \(1, 37, 48\) .*\(1, 37, 64\)"),
    ],
)
def test_files_that_do_not_fit_are_refused_after_resampling_too(tmp_path, name, tensor, message):
    save_file(published("test_vit") | {name: tensor}, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=message):
        build("timm:test_vit", image_size=96, weights=str(tmp_path / "a.safetensors"))


def test_dinov3_gives_its_class_token():
    """timm averages."""
    name = "timm:vit_small_patch16_dinov3"
    images = torch.rand(2, 3, 32, 32, generator=generator(0, "images"))
    network = build(name, image_size=32, feature_dim=384).eval()
    with torch.no_grad():
        tokens = network.body.forward_features(images)
        torch.testing.assert_close(network.body(images), tokens[:, 0])


def test_a_projection_is_between_features_and_head():
    network = build("compact", image_size=16, projection=(24, 8), seed=3)
    for seed in (3, 4):
        other = build("compact", image_size=16, projection=(24, 8), seed=seed)
        assert same(other.projection.state_dict(), network.projection.state_dict()) == (seed == 3)
    images = torch.rand(4, 3, 16, 16, generator=generator(0, "x"))
    features = network.features(images)
    assert features.shape == (4, network.feature_dim)
    assert network.embed(features).shape == (4, 8) == (4, network.embedding_dim)
    network.new_head(5, generator(0, "head"))
    torch.testing.assert_close(network(images), network.classify(network.embed(features)))


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_statistics_stay_while_their_layers_learn(frozen):
    network = build("timm:resnet18", image_size=64)
    network.frozen_statistics = frozen
    images = torch.rand(4, 3, 64, 64, generator=generator(0, "images"))
    before = snapshot(network)
    with torch.no_grad():
        expected = network.eval().features(images)
    features = network.train().features(images)
    assert network.training
    assert torch.allclose(features, expected, atol=1e-5) == frozen
    assert same(network.state_dict(), before) == frozen
    features.sum().backward()
    assert network.body.bn1.weight.grad.abs().max() > 0


@pytest.mark.parametrize("projection", [None, (16, 8)])
def test_nothing_is_between_embeddings_and_their_centroids(projection):
    """But the activation is between features and a linear head."""
    network = Network(nn.Identity(), 8, activation=nn.ReLU()).with_projection(projection, 0).eval()
    embeddings = torch.randn(6, 8, generator=generator(0, "x"))
    network.centroid_head(embeddings, 0.1)
    assert not list(network.head.parameters())
    cosines = F.cosine_similarity(embeddings[:, None], embeddings[None], dim=2)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(network.classify(embeddings), cosines / 0.1)  # of float32
    network.new_head(3, generator(0, "head"))
    inputs = embeddings if projection else embeddings.relu()
    torch.testing.assert_close(network.classify(embeddings), network.head(inputs))


def test_channels_last_but_where_the_gradient_would_be_spoilt():
    network = channels_last(torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 1, stride=2), torch.nn.Conv2d(8, 8, 3, stride=2), torch.nn.Conv2d(16, 8, 1, stride=2)
    ))  # fmt: skip
    # (A kernel of one pixel counts as contiguous in either order; torch looks at its strides.)
    assert [layer.weight.stride() for layer in network] == [(3, 1, 1, 1), (72, 1, 24, 8), (16, 1, 16, 16)]
    seen = []
    network[0].register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0].stride()))
    x = torch.rand(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    assert torch.equal(network[0](x), F.conv2d(x.contiguous(), network[0].weight, network[0].bias, stride=2))
    assert seen == [(3 * 64, 64, 8, 1)]


@pytest.mark.parametrize(
    ("name", "fixed"),
    [
        ("compact", False), ("timm:resnet18", False), ("alexnet", True), ("timm:no_such_network", False),
        ("timm:resnet18.no_such_tag", False), ("timm:vit_tiny_patch16_224", True),
        ("timm:tf_efficientnet_lite0.in1k", False),
    ],
)  # fmt: skip
def test_networks_of_one_image_size(name, fixed):
    assert takes_one_size(name) == fixed


@pytest.mark.parametrize("size", [64, 75])
def test_the_installed_network_is_timms(size):
    """Its tensors, features, statistics and gradients, to the last bit."""
    theirs, ours = timm.create_model("tf_efficientnet_lite0", num_classes=0), Lite0(generator(0, "network"))
    images = torch.rand(2, 3, size, size, generator=generator(0, "images")).contiguous(
        memory_format=torch.channels_last
    )
    ours.load_state_dict(theirs.state_dict())
    results = []
    for body in (theirs, ours):
        features = [body.train(training)(images) for training in (True, False)]
        features[0].square().sum().backward()
        results.append([*features, *body.state_dict().values(), *(value.grad for value in body.parameters())])
    assert list(theirs.state_dict()) == list(ours.state_dict())
    assert all(map(torch.equal, *results))


# Whole runs

# Windows, a size that the recipe would not choose, no attention, and two that once killed the process.
LARGER = {
    "timm:swin_tiny_patch4_window7_224": 224,
    "timm:vit_small_patch14_dinov2": 112,
    "timm:mixer_s16_224": 224,
    "timm:repvgg_a0": 150,
    "timm:fastvit_t8": 150,
    "alexnet": 224,
}


@pytest.mark.parametrize(
    ("name", "size"), [("timm:test_vit", 80), *(pytest.param(*item, marks=slow) for item in LARGER.items())]
)
def test_a_network_of_every_kind_completes_a_run_and_its_model_gives_the_same_features(tmp_path, name, size):
    small = np.random.default_rng(0).integers(0, 256, (24, 6, 6, 3), dtype=np.uint8)
    images = small.repeat(25, 1).repeat(25, 2)
    options = {"backbone": name, "rounds": 1, "epochs": 1, "batch_size": 12, "weights": "none"}
    recipe = read_request(options | {"image_size": size})
    path = run.fit(images, Request(out=tmp_path / "run", n_clusters=3, recipe=recipe, device="cpu")).path
    model = models.load(path)
    assert model.predict(images).tolist() == [int(row["cluster"]) for row in rows(path / "clusters.csv")]
    assert torch.equal(model.transform(images), torch.from_numpy(np.load(path / "features.npy")))


# ---- features with batch normalisation folded into the convolutions --------------------------------------------------

LITE = "timm:tf_efficientnet_lite0"


@cache
def network_of(name: str, size: int) -> Network:
    """With normalisation that does something, and numbers that neither vanish nor grow from layer to layer."""
    network = build(name, image_size=size).eval()
    with lent_global(0, "network"):
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
            elif isinstance(layer, nn.BatchNorm2d):
                for values in (layer.weight.data, layer.running_var):
                    values.uniform_(0.5, 1.5)
                for values in (layer.bias.data, layer.running_mean):
                    values.normal_(0, 0.2)
    return channels_last(network)


def pictures(count: int, size: int) -> Tensor:
    images = torch.rand(count, 3, size, size, generator=generator(0, "images"))
    return images.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [64, 75])  # "same" padding, of even sizes and of odd ones
def test_features_are_those_of_the_network(size):
    network = network_of(LITE, size)
    images = pictures(5, size)
    compute = features_pass(network, 5)
    assert isinstance(compute, FastLite0)
    before = snapshot(network)
    with torch.no_grad():
        expected, features = network.features(images), compute(images)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=2e-5 * expected.abs().max().item())
    assert same(network.state_dict(), before)


def test_any_number_of_threads_has_the_same_bits(request, monkeypatch):
    """Five pieces, by one thread, by three and by eight."""
    monkeypatch.setattr(fast_pass, "MAX_AT_A_TIME", 8)
    images = pictures(40, 64)
    compute = features_pass(network_of(LITE, 64), 40)
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    results = []
    for threads in (1, 3, 8):
        torch.set_num_threads(threads)
        results.append(compute(images))
        assert torch.get_num_threads() == threads
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_other_networks_and_types_have_the_plain_pass():
    for network in (network_of("compact", 32), network_of("timm:test_efficientnet", 32)):
        assert not isinstance(features_pass(network, 8), FastLite0)
    assert not isinstance(features_pass(network_of(LITE, 64), 8, torch.bfloat16), FastLite0)


def test_an_image_has_the_same_features_whatever_comes_with_it(monkeypatch):
    monkeypatch.setattr(fast_pass, "IN_CACHE", 500_000)
    network = network_of(LITE, 64)
    images = (pictures(9, 64) * 255).byte().contiguous()
    compute = Compute.of(network, images, batch_size=8)
    features = extract(network, images, compute)
    for order in ([8, 2], [3], [*range(8, -1, -1)]):
        assert torch.equal(extract(network, images[order], compute), features[order])
