"""The features of a network that does not learn, faster on a CPU: batch normalisation folded into the convolutions.

docs/decisions.md has the figures. The last bits differ from the plain pass, so a run must use the same pass throughout.
"""

import copy
from collections import Counter
from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from deepcluster.nets.names import MODULE
from deepcluster.nets.network import Network

# Numbers in the largest output of a layer for all images that go through the network at a time, so that they stay in
# the cache of the processor and in memory that is there already.
IN_CACHE = 5_000_000
MOST_AT_A_TIME = 64
# Activations that oneDNN applies to what a convolution has just computed: its name, and its numbers.
ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.Identity: ("none", []),
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
}


def features_pass(network: Network, dtype: torch.dtype = torch.float32) -> Callable[[Tensor], Tensor]:
    """Return ``network.features`` in evaluation mode, as it is now, or a faster equivalent of a copy.

    It exists for networks of ``build`` with depthwise convolutions and batch normalisation, in float32 on a CPU.
    """
    modules = list(network.body.modules())
    depthwise = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in modules)
    suited = depthwise and any(map(_is_norm, modules)) and network.mean.device.type == "cpu"
    built = network.architecture.get("name", MODULE) != MODULE
    if not (built and suited and dtype == torch.float32):
        return network.features
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")):
        return network.features
    if network.body not in _KNOWN:
        _KNOWN[network.body] = pairs(network.body), {}
    foldable, counts = _KNOWN[network.body]
    if not foldable:
        return network.features
    body = copy.deepcopy(network.body).eval()
    _fold(body, foldable)
    return _InPieces(body, network, counts)


# Computed once for a body: the layers to fold, and the number of images that go at a time, by their shape.
_KNOWN: WeakKeyDictionary[nn.Module, tuple[list[tuple[str, str]], dict[torch.Size, int]]] = WeakKeyDictionary()


class _InPieces:
    """The features of images, as many at a time as is fast. All pieces have one shape, the last one filled up."""

    def __init__(self, body: nn.Module, network: Network, counts: dict[torch.Size, int]):
        self.body, self.counts = body, counts
        self.scale, self.shift = 1 / network.std, -network.mean / network.std
        self.fused = [module for module in body.modules() if isinstance(module, _Fused)]

    def __call__(self, images: Tensor) -> Tensor:
        shape = images.shape[1:]
        if shape not in self.counts:
            self._features(images[:1])
            fitting = IN_CACHE // max(module.outputs for module in self.fused)
            # A power of two: with 9 images at a time the bits of EfficientNet-B0 depended on an image's place.
            self.counts[shape] = 1 << max(1, min(MOST_AT_A_TIME, fitting)).bit_length() - 1
        count = self.counts[shape]
        features = []
        for piece in images.split(count):
            missing = count - len(piece)
            filled = torch.cat([piece, piece.new_zeros(missing, *shape)]) if missing else piece
            features.append(self._features(filled)[: len(piece)])
        return torch.cat(features)

    def _features(self, images: Tensor) -> Tensor:
        normalised = torch.addcmul(self.shift, images, self.scale)
        features: Tensor = self.body(normalised.contiguous(memory_format=torch.channels_last))
        return features


def _fold(body: nn.Module, foldable: list[tuple[str, str]]) -> None:
    """Fold normalisations and their activations into the convolutions before them, in place."""
    for conv_name, norm_name in foldable:
        norm = body.get_submodule(norm_name)
        activation = getattr(norm, "act", nn.Identity())
        known = ACTIVATIONS.get(type(activation))
        fused = _Fused(body.get_submodule(conv_name), norm, *(known or ACTIVATIONS[nn.Identity]))
        body.set_submodule(conv_name, fused)
        body.set_submodule(norm_name, nn.Identity() if known else activation)


class _Leaves(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d) or _is_norm(m) or super().is_leaf_module(m, module_qualified_name)


def pairs(body: nn.Module) -> list[tuple[str, str]]:
    """Return convolutions and the normalisation that alone sees their output, by name; none if torch cannot trace."""
    try:
        graph = _Leaves().trace(body)
    except Exception:  # code that looks at values, as in transformers, fails in many ways
        return []
    modules = dict(body.named_modules(remove_duplicate=False))
    times = Counter(id(modules[str(node.target)]) for node in graph.nodes if node.op == "call_module")
    names = []
    for node in graph.nodes:
        before = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        conv, norm = modules[str(before.target)], modules[str(node.target)]
        alone = len(before.users) == 1 and times[id(conv)] == times[id(norm)] == 1
        if alone and _is_norm(norm) and _is_conv(conv):
            names.append((str(before.target), str(node.target)))
    return names


def _is_norm(module: nn.Module) -> bool:
    """Tell whether it is batch normalisation, torch's or timm's with an activation, that has statistics."""
    known = type(module) is nn.BatchNorm2d or type(module).__name__ == "BatchNormAct2d"
    return known and getattr(module, "running_mean", None) is not None


def _is_conv(module: nn.Module) -> bool:
    # Layers with hooks take their input in another order (timm.py).
    known = type(module) is nn.Conv2d or type(module).__name__ == "Conv2dSame"
    return known and not module._forward_pre_hooks and not isinstance(getattr(module, "padding", ""), str)


class _Fused(nn.Module):
    """A convolution with the normalisation and the activation after it, by oneDNN, with weights in its own order."""

    def __init__(self, conv: nn.Module, norm: nn.Module, activation: str, numbers: list[float]):
        super().__init__()
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None and norm.running_var is not None
        weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        self.weight, self.bias = weight.detach(), bias.detach()
        self.packed: dict[tuple[int, ...], Tensor] = {}
        self.kernel, self.stride, self.dilation = list(conv.kernel_size), list(conv.stride), list(conv.dilation)
        self.padding, self.groups = [int(side) for side in conv.padding], conv.groups
        self.same = type(conv) is not nn.Conv2d
        self.activation, self.numbers = activation, numbers
        self.outputs = 0  # numbers of the last pass

    def forward(self, images: Tensor) -> Tensor:
        rows, columns = slice(None), slice(None)
        padding = self.padding
        if self.same:
            (top, rows), (left, columns) = (self._same(images.shape[2 + axis], axis) for axis in (0, 1))
            padding = [top, left]
        shape = tuple(images.shape)
        if shape not in self.packed:
            self.packed[shape] = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, padding, self.stride, self.dilation, self.groups, list(shape)
            )
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(
            images, self.packed[shape], self.bias, padding, self.stride, self.dilation, self.groups, self.activation,
            self.numbers, "",
        )  # fmt: skip
        self.outputs = output.numel()
        if rows == columns == slice(None):
            return output
        return output[:, :, rows, columns].contiguous(memory_format=torch.channels_last)

    def _same(self, size: int, axis: int) -> tuple[int, slice]:
        """TensorFlow's padding of a side, which may have one more pixel at the end than at the start: the padding at
        both ends, and the part of the output that is wanted. To copy the input into a padded one takes longer."""
        stride = self.stride[axis]
        outputs = -(-size // stride)
        total = max(0, (outputs - 1) * stride + (self.kernel[axis] - 1) * self.dilation[axis] + 1 - size)
        start = total // 2
        padding = start
        while padding < total - start:
            padding += stride
        if padding == total - start:
            return padding, slice(None)
        first = (padding - start) // stride
        return padding, slice(first, first + outputs)
