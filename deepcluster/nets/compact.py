"""A compact residual network for small images, 16 to 96 px: they are halved three or four times, not five."""

import torch
from torch import Tensor, nn

WIDTH = 16  # channels
HALVED_FROM = 48  # px: at 64 px a round then costs what it costs at 32


def conv_bn_relu(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
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
    """Eight convolutions of 16 to 128 channels; features are the mean over positions.

    The first convolution halves images of ``HALVED_FROM`` px or more.
    """

    def __init__(self, image_size: int, generator: torch.Generator):
        stages: list[nn.Module] = [conv_bn_relu(3, WIDTH, stride=2 if image_size >= HALVED_FROM else 1)]
        for level in (1, 2, 4):
            stages += [conv_bn_relu(level * WIDTH, 2 * level * WIDTH), nn.MaxPool2d(2)]
            if level != 2:
                stages += [Residual(2 * level * WIDTH)]
        stages += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(*stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
