"""The order of a network's numbers in memory: channels last, in which convolutions on a CPU are fastest."""

from typing import TypeVar

import torch
from torch import Tensor, nn

Body = TypeVar("Body", bound=nn.Module)


def channels_last(network: Body) -> Body:
    """Put the network into channels-last order, but for the layers whose gradient that order would spoil.

    torch 2.13 on a CPU (oneDNN): the weight gradient of a convolution of 1 x 1 pixels with a stride, on fewer than 16
    channels in this order, writes beyond its memory, and the process dies ("double free or corruption") or computes
    with spoilt numbers. RepVGG, MobileOne and FastViT begin with one. These layers get and give the usual order.
    """
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and _is_spoilt(module):
            # Not contiguous(): for a kernel of one pixel both orders count as that, and nothing would change.
            module.weight.data = module.weight.data.clone(memory_format=torch.contiguous_format)
            module.register_forward_pre_hook(_contiguous)
    return network


def _is_spoilt(layer: nn.Conv2d) -> bool:
    # Tried: 2 to 15 channels crash with strides of 2 and 4, from 64 px on; more channels, groups, larger kernels never.
    return max(layer.kernel_size) == 1 and max(layer.stride) > 1 and layer.groups == 1 and layer.in_channels < 16


def _contiguous(layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].contiguous(),)
