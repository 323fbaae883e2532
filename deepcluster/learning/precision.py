"""Which precision a network trains fastest in, on this machine: by a rule, or by a trial.

Measured on 2 AMD cores with native bfloat16: the compact network takes .53 of float32's time in bfloat16, EfficientNet
with its depthwise convolutions several times as long.
"""

import time

import torch
from torch import Tensor, nn

from deepcluster.nets.backbone import Network
from deepcluster.runtime.devices import has_bf16

# A little more speed is not worth eight bits, nor a choice that the noise of a measurement could turn.
CLEARLY_FASTER = 1.25
PIXELS = 128 * 32**2  # in a trial batch: enough to keep all threads at work


def network_precision(network: Network, device: torch.device) -> torch.dtype:
    """bfloat16 where that is native, but not for grouped convolutions on a CPU, which have no fast kernel there."""
    grouped = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in network.modules())
    return torch.bfloat16 if has_bf16(device) and not (grouped and device.type == "cpu") else torch.float32


def fastest_precision(network: Network, size: int, batch_size: int) -> tuple[torch.dtype, float]:
    """bfloat16 or float32, and the time of a training step in bfloat16 as a share of float32's (NaN: not native here).

    Times forward and backward passes in evaluation mode on a small batch; the network is left as it was.
    """
    device = next(network.parameters()).device
    if not has_bf16(device):
        return torch.float32, float("nan")
    count = max(1, min(batch_size, max(8, PIXELS // size**2)))
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    training = network.training
    network.eval()
    try:
        share = _seconds(network, images, torch.bfloat16) / _seconds(network, images, torch.float32)
    finally:
        network.train(training)
        network.zero_grad(set_to_none=True)
    return torch.bfloat16 if share * CLEARLY_FASTER < 1 else torch.float32, share


def _seconds(network: Network, images: Tensor, dtype: torch.dtype) -> float:
    """The faster of two steps, after one that warms up."""

    def step() -> float:
        begin = time.perf_counter()
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            features = network.features(images)
        features.float().sum().backward()
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)
        return time.perf_counter() - begin

    step()
    return min(step(), step())
