"""The feature maps inside a network: its layers by name, and their pooling to fewer than 10,000 numbers."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isqrt

from torch import Tensor, nn

from deepcluster.errors import UsageError
from deepcluster.nets.network import Network
from deepcluster.nets.paper import IMAGE_SIZE, PaperNet
from deepcluster.nets.timm import checked_size

MAX_NUMBERS = 9_999  # of a pooled map
# Kernel, stride and padding of the average over the maps of the convolutions at 224 px. AlexNet: paper, section 4.3 and
# eval_linear.py of the release; the zeros of the padding count. VGG-16: DeeperCluster's, for its five blocks.
ALEXNET = ((6, 6, 3), (4, 4, 0), (3, 3, 1), (3, 3, 1), (2, 2, 0))
VGG16 = ((18, 18, 0),) * 2 + ((14, 14, 0),) * 2 + ((9, 9, 0),) * 3 + ((6, 6, 0),) * 3 + ((3, 3, 0),) * 3


@dataclass(frozen=True)
class Layer:
    """A layer: its name in options and figures, and the module whose output is feature maps."""

    name: str
    module: nn.Module
    channels: int | None = None  # of the maps, if known
    # Kernel, stride and padding of the average for images of 224 px, if the literature has one.
    pooling: tuple[int, int, int] | None = None


def layers_of(network: Network) -> tuple[Layer, ...]:
    """Return the layers of a network, from the image to the features.

    These are every convolution of AlexNet and VGG-16 (after its ReLU, before pooling), every block of the compact
    network, and every stage that timm lists.
    """
    body = network.body
    if isinstance(body, PaperNet):
        activations = [module for module in body.features if isinstance(module, nn.ReLU)]
        poolings = ALEXNET if len(activations) == len(ALEXNET) else VGG16
        return tuple(
            Layer(f"conv{number}", module, pooling=pooling)
            for number, (module, pooling) in enumerate(zip(activations, poolings, strict=True), 1)
        )
    modules = dict(body.named_modules())
    stages = [stage for stage in getattr(body, "feature_info", ()) if stage["module"] in modules]
    if stages:
        return tuple(Layer(stage["module"], modules[stage["module"]], stage["num_chs"]) for stage in stages)
    blocks = [module for module in body.children() if any(True for _ in module.parameters())]
    return tuple(Layer(f"block{number}", module) for number, module in enumerate(blocks, 1))


def chosen_layers(network: Network, names: str) -> tuple[Layer, ...]:
    """Return the layers with these names (``conv3,conv5``; "": all), from the image to the features."""
    layers = {layer.name: layer for layer in layers_of(network)}
    chosen = [name.strip() for name in names.split(",")] if names else [*layers]
    if missing := [name for name in chosen if name not in layers]:
        raise UsageError(f"layers={names}: there is no layer {missing[0]!r}; the network has {', '.join(layers)}")
    return tuple(layer for name, layer in layers.items() if name in chosen)


class _Reached(Exception):
    """End a pass once its maps are computed: the layers above are not needed."""


def maps_at(network: Network, layer: Layer, images: Tensor) -> Tensor:
    """Return the maps (B x C x H x W) of B x 3 x S x S images in [0, 1] at a layer; the layers above are not computed.

    The tokens of a transformer are a square map.

    Raises:
        UsageError: The network cannot take images of this size, or has no maps there.
    """
    body = network.body
    maps: Tensor | None = None

    def at_layer(module: nn.Module, inputs: object, output: Tensor) -> None:
        nonlocal maps
        maps = _as_maps(output, layer, getattr(body, "num_prefix_tokens", 0))
        raise _Reached

    handle = layer.module.register_forward_hook(at_layer)
    try:
        normalised = (images - network.mean) / network.std
        with suppress(_Reached), checked_size("the network", images.shape[-1]):
            if isinstance(body, PaperNet):  # its linear layers take one size, its convolutions any
                body.features(normalised if body.sobel is None else body.sobel(normalised))
            else:
                body(normalised)
    finally:
        handle.remove()
    if maps is None:
        raise UsageError(f"images do not pass through the layer {layer.name}: choose others, --layers")
    return maps


def _as_maps(output: Tensor, layer: Layer, prefix: int) -> Tensor:
    if output.dim() == 3:  # tokens, the first of which may stand for the whole image
        tokens = output[:, prefix:]
        side = isqrt(tokens.shape[1])
        if side * side == tokens.shape[1]:
            square: Tensor = tokens.transpose(1, 2).unflatten(2, (side, side))
            return square
    if output.dim() != 4:
        raise UsageError(
            f"the layer {layer.name} gives no maps but shape {tuple(output.shape)}: choose others, --layers"
        )
    last = layer.channels is not None and output.shape[1] != layer.channels == output.shape[3]
    return output.permute(0, 3, 1, 2) if last else output


def pooling_of(layer: Layer, shape: Sequence[int], image_size: int) -> tuple[str, nn.Module]:
    """Return the average over the maps of a layer, of shape B x C x H x W, in words and as a module.

    AlexNet and VGG-16 at 224 px have the literature's average, all others an adaptive one to fewer than 10,000 numbers.
    """
    if layer.pooling is not None and image_size == IMAGE_SIZE:
        kernel, stride, padding = layer.pooling
        text = f"average {kernel} x {kernel}, step {stride}, border {padding}"  # a figure of cached evaluations
        return text, nn.AvgPool2d(kernel, stride, padding, count_include_pad=True)
    channels, height, width = shape[1:]
    most = max(1, isqrt(MAX_NUMBERS // channels))
    rows, columns = min(most, height), min(most, width)
    return f"adaptive average to {rows} x {columns}", nn.AdaptiveAvgPool2d((rows, columns))
