"""The memory format of a network: channels last, in which convolutions on a CPU are fastest."""

from typing import TypeVar

import torch
from torch import Tensor, nn

Body = TypeVar("Body", bound=nn.Module)


def channels_last(network: Body) -> Body:
    """Put the network into channels-last order, except layers whose gradient would be wrong in that order.

    torch 2.13 on a CPU (oneDNN): in channels-last order the weight gradient of a strided 1 x 1 convolution on fewer
    than 16 channels writes beyond its memory, and the process dies ("double free or corruption") or computes with
    wrong values. RepVGG, MobileOne and FastViT begin with one. These layers take and give the default order.
    """
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and _is_corrupted(module):
            # Not contiguous(): a 1 x 1 kernel counts as contiguous in both orders, and nothing would change.
            module.weight.data = module.weight.data.clone(memory_format=torch.contiguous_format)
            module.register_forward_pre_hook(_contiguous)
    return network


def _is_corrupted(layer: nn.Conv2d) -> bool:
    # Tried: 2 to 15 channels crash with strides of 2 and 4, from 64 px on; more channels, groups, larger kernels never.
    return max(layer.kernel_size) == 1 and max(layer.stride) > 1 and layer.groups == 1 and layer.in_channels < 16


def _contiguous(layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].contiguous(),)
