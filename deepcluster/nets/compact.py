"""A compact residual network for small images, 16 to 96 px: its input is pooled three times, not thirty-two."""

import torch
from torch import Tensor, nn


def conv_bn_relu(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Residual(nn.Module):
    """x + two convolutions of x, at the same width and size."""

    def __init__(self, width: int):
        super().__init__()
        self.block = nn.Sequential(conv_bn_relu(width, width), conv_bn_relu(width, width))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.block(x)
        return out


class Compact(nn.Sequential):
    """Nine convolutions at ``width``, 2, 4 and 8 times ``width`` channels; features are the mean over positions."""

    def __init__(self, width: int, generator: torch.Generator):
        stages: list[nn.Module] = [conv_bn_relu(3, width)]
        for level in (1, 2, 4):
            stages += [conv_bn_relu(level * width, 2 * level * width), nn.MaxPool2d(2)]
            if level != 2:
                stages += [Residual(2 * level * width)]
        stages += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(*stages)
        self.feature_dim = 8 * width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
