"""Features with batch normalisation folded into the convolutions: the network's own, up to the last bits."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from deepcluster.learning.features import extract
from deepcluster.nets import fast_pass as module
from deepcluster.nets.fast_pass import fast_pass
from deepcluster.nets.network import Network, build
from deepcluster.nets.timm import channels_last
from deepcluster.runtime.compute import Compute
from deepcluster.seeding import generator, lent_global
from tests.test_nets import same, snapshot

LITE = "timm:tf_efficientnet_lite0"


def as_trained(network: nn.Module) -> nn.Module:
    """With normalisation that does something, and numbers that neither vanish nor grow from layer to layer."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
        elif isinstance(layer, nn.BatchNorm2d):
            for values in (layer.weight.data, layer.running_var):
                values.uniform_(0.5, 1.5)
            for values in (layer.bias.data, layer.running_mean):
                values.normal_(0, 0.2)
    return network.eval()


def network_of(name: str, size: int) -> Network:
    with lent_global(0, "network"):
        return channels_last(as_trained(build(name, image_size=size)))


def pictures(count: int, size: int) -> Tensor:
    images = torch.rand(count, 3, size, size, generator=generator(0, "images"))
    return images.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        (LITE, 64),  # "same" padding, of even sizes and
        (LITE, 75),  # odd ones
        ("timm:mobilenetv3_small_050", 64),  # hardswish, squeeze and excitation
        ("timm:efficientnet_b0", 48),  # SiLU
        ("timm:mobileone_s0", 64),  # branches
    ],
)
def test_features_are_those_of_the_network(name, size):
    network = network_of(name, size)
    images = pictures(5, size)
    compute = fast_pass(network)
    assert compute is not None
    assert name != LITE or not any(isinstance(module, nn.BatchNorm2d) for module in compute.body.modules())
    before = snapshot(network)
    with torch.no_grad():
        expected, found = network.features(images), compute(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5 * expected.abs().max().item())
    assert same(network.state_dict(), before)


def test_any_number_of_threads_has_the_same_bits(request, monkeypatch):
    """Five pieces, by one thread, by three and by eight."""
    monkeypatch.setattr(module, "MAX_AT_A_TIME", 8)
    images = pictures(40, 64)
    compute = fast_pass(network_of("timm:mobilenetv3_small_050", 64))  # not all of its layers are folded
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    results = []
    for threads in (1, 3, 8):
        torch.set_num_threads(threads)
        results.append(compute(images))
        assert torch.get_num_threads() == threads
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_networks_of_the_user_or_without_depthwise_convolutions_or_normalisation_are_left_alone(monkeypatch):
    monkeypatch.delattr(module, "traced")  # nor are they traced, which takes .4 s
    ours = [network_of(name, 32) for name in ("compact", "timm:resnet18", "timm:test_vit", "timm:test_convnext")]
    for network in (*ours, Network(build("timm:test_efficientnet", image_size=32).body, 256)):
        assert fast_pass(network) is None


class Shared(nn.Module):
    """A convolution that is used twice, and one whose output is needed without normalisation too."""

    def __init__(self):
        super().__init__()
        self.twice, self.seen, self.fine = (nn.Conv2d(3, 3, 3, padding=1, groups=3) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.twice(x)) + self.norms[1](self.twice(x))
        y = self.seen(x)
        return self.norms[3](self.fine(self.norms[2](y) + y)).mean((2, 3))


def test_only_a_normalisation_that_alone_sees_a_convolution_is_folded():
    body = Shared().eval()
    _, foldable = module.traced(body)
    assert foldable == [("fine", "norms.3")]


def test_an_image_has_the_same_features_whatever_comes_with_it(monkeypatch):
    monkeypatch.setattr(module, "IN_CACHE", 500_000)
    network = network_of(LITE, 64)
    images = (pictures(9, 64) * 255).byte().contiguous()
    compute = Compute.of(network, images, batch_size=8)
    features = extract(network, images, compute)
    for some in ([8, 2], [3], [*range(8, -1, -1)]):
        assert torch.equal(extract(network, images[some], compute), features[some])
