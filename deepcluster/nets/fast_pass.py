"""The features of EfficientNet-Lite0 when it does not learn, faster on a CPU: normalisation folded into convolutions.

benchmarks/log has the figures. The last bits differ from the plain pass, so a run must use the same pass throughout.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from deepcluster.nets.network import Network
from deepcluster.nets.small import BatchNormAct2d, Block, Conv2dSame, Lite0, same_padding
from deepcluster.runtime.threads import in_threads

# Numbers in the largest output of a layer, for the images of one call: it stays in the processor's cache, and malloc
# reuses its memory. In the first layers one image of 224 px has 1.2 million; in the later ones, more images at a time
# make better use of the weights.
IN_CACHE = 2_000_000
LATE = 0.25  # later layers: those behind the last output that is larger than this share of the largest
MAX_AT_A_TIME = 64


def features_pass(network: Network, batch_size: int, dtype: torch.dtype = torch.float32) -> Callable[[Tensor], Tensor]:
    """Return the features of any number of images in evaluation mode, by the network as it is now.

    ``batch_size``: Number of images at a time in a plain pass; the faster one chooses its own, smaller number.
    """
    suited = isinstance(network.body, Lite0) and network.mean.device.type == "cpu" and dtype == torch.float32
    has_kernel = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    return FastLite0(network) if suited and has_kernel else partial(in_batches, network.features, batch_size)


def in_batches(function: Callable[[Tensor], Tensor], count: int, rows: Tensor) -> Tensor:
    """Return ``function`` of all rows, ``count`` at a time, the last batch filled up with zeros.

    A kernel may round differently for another shape, and an image must have the same features in any batch.
    """
    parts = []
    for batch in rows.split(count):
        size = len(batch)
        if size < count:
            batch = functional.pad(batch, (*[0, 0] * (batch.dim() - 1), 0, count - size))
            if batch.dim() == 4:  # the strides of a single image may not show it
                batch = batch.contiguous(memory_format=torch.channels_last)
        parts.append(function(batch)[:size])
    return torch.cat(parts)


class FastLite0:
    """The features of images, as many at a time as is fast. All pieces have one shape, the last one filled up."""

    def __init__(self, network: Network):
        self.layers = [*folded(copy.deepcopy(network.body).eval().requires_grad_(False))]
        self.scale = 1 / network.std
        self.shift = -network.mean / network.std
        self.parts: dict[torch.Size, tuple[nn.Module, int, nn.Module, int]] = {}

    def __call__(self, images: Tensor) -> Tensor:
        shape = images.shape[1:]
        if shape not in self.parts:
            self.parts[shape] = self._parts(images[:1])
        early, early_count, late, count = self.parts[shape]

        def features(piece: Tensor) -> Tensor:
            hidden: Tensor = late(torch.cat([early(self._normalised(part)) for part in piece.split(early_count)]))
            return hidden

        # Few pieces, too: torch's own threads would change the last bits, and an image must have the same bits alone.
        return torch.cat(in_threads(partial(in_batches, features, count), images.split(count)))

    def _normalised(self, images: Tensor) -> Tensor:
        ordered = torch.empty_like(images, memory_format=torch.channels_last)
        return torch.addcmul(self.shift, images, self.scale, out=ordered)

    def _parts(self, image: Tensor) -> tuple[nn.Module, int, nn.Module, int]:
        """Return the early and the later layers for images like this one, with the number of images at a time."""
        nn.Sequential(*self.layers)(self._normalised(image))
        sizes = [max((m.outputs for m in layer.modules() if isinstance(m, Fused)), default=0) for layer in self.layers]
        early = max(number for number, size in enumerate(sizes, 1) if size > LATE * max(sizes))
        early_count, count = (_at_a_time(max(part)) for part in (sizes[:early], sizes[early:]))
        return nn.Sequential(*self.layers[:early]), min(early_count, count), nn.Sequential(*self.layers[early:]), count


def _at_a_time(outputs: int) -> int:
    # A power of two: with 9 images at a time the bits of EfficientNet-B0 depended on an image's place.
    return 1 << max(1, min(MAX_AT_A_TIME, IN_CACHE // max(1, outputs))).bit_length() - 1


def folded(body: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of ``body`` in order, with normalisation folded in. A residual block is one layer."""
    for parent in [*body.modules()]:
        for (conv_name, conv), (norm_name, norm) in pairwise([*parent.named_children()]):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, BatchNormAct2d):
                parent.set_submodule(conv_name, Fused(conv, norm))
                parent.set_submodule(norm_name, nn.Identity())
    yield from _flat(body)


def _flat(module: nn.Module) -> Iterator[nn.Module]:
    is_layer = isinstance(module, Fused) or (isinstance(module, Block) and module.residual)
    children = [] if is_layer else [*module.children()]
    for child in children:
        yield from _flat(child)
    if not children:
        yield module


class Fused(nn.Module):
    """A convolution with the normalisation and the activation after it, by oneDNN, with weights in its own order."""

    def __init__(self, conv: nn.Conv2d, norm: BatchNormAct2d):
        super().__init__()
        self.conv = fuse_conv_bn_eval(conv, norm)
        self.activation = ("hardtanh", [0.0, 6.0], "") if isinstance(norm.act, nn.ReLU6) else ("none", [], "")
        self.packed: dict[tuple[int, ...], tuple[Tensor, list[int]]] = {}
        self.outputs = 0  # numbers of the last pass

    def forward(self, images: Tensor) -> Tensor:
        shape = tuple(images.shape)
        if shape not in self.packed:
            self.packed[shape] = self._packed_for(shape)
        weight, padding = self.packed[shape]
        conv = self.conv
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(
            images, weight, conv.bias, padding, conv.stride, conv.dilation, conv.groups, *self.activation
        )
        self.outputs = output.numel()
        return output

    def _packed_for(self, shape: tuple[int, ...]) -> tuple[Tensor, list[int]]:
        """Return the weight in oneDNN's order, and the padding of both ends of a side."""
        conv = self.conv
        weight: Tensor = conv.weight
        padding = [int(side) for side in conv.padding]
        if isinstance(conv, Conv2dSame):
            # TensorFlow's padding may have one pixel more at the end than at the start. A kernel that is larger by a
            # zero makes both equal; to copy the input into a padded one takes longer.
            totals = [same_padding(side, conv) for side in shape[2:]]
            height, width = (total % 2 for total in totals)
            weight = functional.pad(weight, (width, 0, height, 0))
            padding = [(total + 1) // 2 for total in totals]
        weight = torch.ops.mkldnn._reorder_convolution_weight(
            weight, padding, conv.stride, conv.dilation, conv.groups, list(shape)
        )
        return weight, padding
