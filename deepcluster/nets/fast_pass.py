"""The features of a network that does not learn, faster on a CPU: batch normalisation folded into the convolutions.

benchmarks/LOG.md has the figures. The last bits differ from the plain pass, so a run must use the same pass throughout.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from deepcluster.nets.names import MODULE
from deepcluster.nets.network import Network
from deepcluster.runtime.devices import in_threads

# Numbers in the largest output of a layer for all images that go through it at a time, so that they stay in the cache
# of the processor and in memory that is there already. In the first layers of an EfficientNet one image of 224 px has
# 1.2 million; in the later ones more images at a time make better use of the weights.
IN_CACHE = 2_000_000
LATE = 0.25  # later layers: those behind the last output that is larger than this share of the largest
MAX_AT_A_TIME = 64
# Activations that oneDNN applies to the output of a convolution: its name, and its numbers.
ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.Identity: ("none", []),
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
}


def features_pass(network: Network, batch_size: int, dtype: torch.dtype = torch.float32) -> Callable[[Tensor], Tensor]:
    """Return the features of any number of images in evaluation mode, by the network as it is now.

    ``batch_size``: Number of images in a plain pass. A faster one has a smaller number, so one image costs less.
    """
    return fast_pass(network, dtype) or partial(in_batches, network.features, batch_size)


def in_batches(function: Callable[[Tensor], Tensor], count: int, rows: Tensor) -> Tensor:
    """Return ``function`` of all rows, ``count`` at a time, the last batch filled up with zeros.

    A kernel may round differently for another shape, and an image must have the same features whatever comes with it.
    """
    parts = []
    for batch in rows.split(count):
        size = len(batch)
        if size < count:
            batch = functional.pad(batch, (*[0, 0] * (batch.dim() - 1), 0, count - size))
            if batch.dim() == 4:  # of one image the strides may not tell that it is channels last
                batch = batch.contiguous(memory_format=torch.channels_last)
        parts.append(function(batch)[:size])
    return torch.cat(parts)


def fast_pass(network: Network, dtype: torch.dtype = torch.float32) -> "_InPieces | None":
    """Return a faster equivalent of a copy of ``network.features``; None if there is none.

    Networks of ``build`` with depthwise convolutions and batch normalisation have one, in float32 on a CPU.
    """
    modules = list(network.body.modules())
    depthwise = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in modules)
    suited = depthwise and any(map(_is_norm, modules)) and network.mean.device.type == "cpu"
    built = network.architecture.get("name", MODULE) != MODULE
    if not (built and suited and dtype == torch.float32):
        return None
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")):
        return None
    if network.body not in _KNOWN:
        _KNOWN[network.body] = traced(network.body)
    graph, foldable = _KNOWN[network.body]
    if not foldable:
        return None
    body = copy.deepcopy(network.body).eval().requires_grad_(False)
    for conv_name, norm_name in foldable:
        norm = body.get_submodule(norm_name)
        activation = getattr(norm, "act", nn.Identity())
        known = ACTIVATIONS.get(type(activation))
        fused = _Fused(body.get_submodule(conv_name), norm, *(known or ACTIVATIONS[nn.Identity]))
        body.set_submodule(conv_name, fused)
        body.set_submodule(norm_name, nn.Identity() if known else activation)
    return _InPieces(body, graph, network)


# Computed once for a body: its graph, and the layers to fold by name.
_KNOWN: WeakKeyDictionary[nn.Module, tuple[fx.Graph, list[tuple[str, str]]]] = WeakKeyDictionary()


class _InPieces:
    """The features of images, as many at a time as is fast. All pieces have one shape, the last one filled up."""

    def __init__(self, body: nn.Module, graph: fx.Graph, network: Network):
        self.body = body
        self.graph = graph
        self.scale = 1 / network.std
        self.shift = -network.mean / network.std
        self.parts: dict[torch.Size, tuple[nn.Module, int, nn.Module, int]] = {}

    def __call__(self, images: Tensor) -> Tensor:
        shape = images.shape[1:]
        if shape not in self.parts:
            self.parts[shape] = self._parts(images[:1])
        early, few, late, count = self.parts[shape]

        def features(piece: Tensor) -> Tensor:
            hidden: Tensor = late(torch.cat([early(self._normalised(part)) for part in piece.split(few)]))
            return hidden

        # Also of few pieces: torch's threads would change the last bits, and an image must have the same ones alone.
        return torch.cat(in_threads(partial(in_batches, features, count), images.split(count)))

    def _normalised(self, images: Tensor) -> Tensor:
        ordered = torch.empty_like(images, memory_format=torch.channels_last)
        return torch.addcmul(self.shift, images, self.scale, out=ordered)

    def _parts(self, image: Tensor) -> tuple[nn.Module, int, nn.Module, int]:
        """Return the early and the later layers for images like this one, with the number of images at a time."""
        self.body(self._normalised(image))
        modules = dict(self.body.named_modules())
        nodes = list(self.graph.nodes)
        sizes = [getattr(modules.get(str(node.target)), "outputs", 0) for node in nodes]
        limit = LATE * max(sizes)
        last = next(i for i in breaks(self.graph) if max(sizes[i + 1 :], default=0) <= limit)
        early, late = (fx.GraphModule(self.body, part) for part in divided(self.graph, nodes[last], modules))
        few, count = (_at_a_time(max(part, default=0)) for part in (sizes[: last + 1], sizes[last + 1 :]))
        return early, min(few, count), late, count


def _at_a_time(outputs: int) -> int:
    # A power of two: with 9 images at a time the bits of EfficientNet-B0 depended on an image's place.
    return 1 << max(1, min(MAX_AT_A_TIME, IN_CACHE // max(1, outputs))).bit_length() - 1


class _Leaves(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d) or _is_norm(m) or super().is_leaf_module(m, module_qualified_name)


def traced(body: nn.Module) -> tuple[fx.Graph, list[tuple[str, str]]]:
    """Return the graph of a body in evaluation mode, and the convolutions and normalisations in it to fold.

    A pair of names is listed if nothing but the normalisation reads the convolution's output. The list is empty if
    torch cannot trace the body.
    """
    body = copy.deepcopy(body).eval()
    try:
        graph = _Leaves().trace(body)
    except Exception:  # code that looks at values, as in transformers, fails in many ways
        return fx.Graph(), []
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
    return graph, names


def breaks(graph: fx.Graph) -> Iterator[int]:
    """Yield the indices at which the graph can be divided: nodes behind such a node read nothing from before it."""
    number = {node: i for i, node in enumerate(graph.nodes)}
    last_seen = 0
    for node, i in number.items():
        if last_seen <= i and node.op != "output":
            yield i
        last_seen = max([last_seen, *(number[user] for user in node.users)])


def divided(graph: fx.Graph, last: fx.Node, modules: Mapping[str, nn.Module]) -> tuple[fx.Graph, fx.Graph]:
    """Return the graphs of the nodes up to ``last``, and of those behind it, without the modules that do nothing."""
    early, late = fx.Graph(), fx.Graph()
    part = early
    copies = dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        if node.op == "output":
            late.output(copies[node.args[0]])
        elif type(modules.get(str(node.target))) is nn.Identity:
            copies[node] = copies[node.args[0]]
        else:
            copies[node] = part.node_copy(node, copies.__getitem__)
        if node is last:
            early.output(copies[node])
            part = late
            copies = {node: late.placeholder("hidden")}
    return early, late


def _is_norm(module: nn.Module) -> bool:
    """Tell if a module is batch normalisation with statistics: torch's, or timm's with an activation."""
    known = type(module) is nn.BatchNorm2d or type(module).__name__ == "BatchNormAct2d"
    return known and getattr(module, "running_mean", None) is not None


def _is_conv(module: nn.Module) -> bool:
    # Layers with hooks take their input in another order (timm.py).
    known = type(module) is nn.Conv2d or (type(module).__name__ == "Conv2dSame" and module.dilation == (1, 1))
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
        self.weight = weight.detach()
        self.bias = bias.detach()
        self.kernel = list(conv.kernel_size)
        self.stride = list(conv.stride)
        self.dilation = list(conv.dilation)
        self.padding = [int(side) for side in conv.padding]
        self.groups = conv.groups
        self.same = type(conv) is not nn.Conv2d
        self.activation = activation
        self.numbers = numbers
        self.packed: dict[tuple[int, ...], tuple[Tensor, list[int]]] = {}
        self.outputs = 0  # numbers of the last pass

    def forward(self, images: Tensor) -> Tensor:
        shape = tuple(images.shape)
        if shape not in self.packed:
            self.packed[shape] = self._packed_for(shape)
        weight, padding = self.packed[shape]
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(
            images, weight, self.bias, padding, self.stride, self.dilation, self.groups, self.activation, self.numbers,
            "",
        )  # fmt: skip
        self.outputs = output.numel()
        return output

    def _packed_for(self, shape: tuple[int, ...]) -> tuple[Tensor, list[int]]:
        """Return the weight in oneDNN's order, and the padding of both ends of a side."""
        weight = self.weight
        padding = self.padding
        if self.same:
            (height, top), (width, left) = (self._same(shape[2 + axis], axis) for axis in (0, 1))
            weight = functional.pad(weight, (width, 0, height, 0))
            padding = [top, left]
        weight = torch.ops.mkldnn._reorder_convolution_weight(
            weight, padding, self.stride, self.dilation, self.groups, list(shape)
        )
        return weight, padding

    def _same(self, size: int, axis: int) -> tuple[int, int]:
        """Return the zeros to put before the kernel along a side, and the padding of both of its ends.

        TensorFlow's padding may have one pixel more at the end than at the start. A kernel that is larger by a zero
        makes both equal; to copy the input into a padded one takes longer.
        """
        outputs = -(-size // self.stride[axis])
        total = max(0, (outputs - 1) * self.stride[axis] + self.kernel[axis] - size)
        return total % 2, (total + 1) // 2
