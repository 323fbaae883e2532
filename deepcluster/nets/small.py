"""The small networks of our own code: the compact one, for small images, and EfficientNet-Lite0, which is installed.

The latter has timm's names and numbers, but without the import of timm: that takes longer than torch's, and `predict`
of one image would wait for it.
"""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 16  # channels
HALVED_FROM = 48  # px: a round at 64 px then costs as much as at 32
LITE0_NAMES = ("timm:tf_efficientnet_lite0", "timm:tf_efficientnet_lite0.in1k")
LITE0_CONFIG = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "classifier": "classifier"}
LITE0_DIM = 1280
# Kernel, stride, expansion, outputs and number of the blocks of a stage (Tan and Le 2019, without squeeze-excitation).
STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4),
          (3, 1, 6, 320, 1))  # fmt: skip


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


class Conv2dSame(nn.Conv2d):
    """A convolution with TensorFlow's padding: if both ends cannot have the same, the last one has a pixel more."""

    def forward(self, input: Tensor) -> Tensor:
        totals = [same_padding(side, self) for side in (input.shape[3], input.shape[2])]
        ends = [end for total in totals for end in (total // 2, total - total // 2)]
        return F.conv2d(F.pad(input, ends), self.weight, None, self.stride, 0, 1, self.groups)


def same_padding(side: int, conv: nn.Conv2d) -> int:
    """Return the number of zeros that TensorFlow puts at both ends of a side together."""
    stride = conv.stride[0]
    return max(0, (math.ceil(side / stride) - 1) * stride + conv.kernel_size[0] - side)


class BatchNormAct2d(nn.BatchNorm2d):
    """Batch normalisation and the activation after it, which the fast pass folds into the convolution before them."""

    def __init__(self, width: int, *, active: bool = True):
        super().__init__(width, eps=1e-3)
        self.act = nn.ReLU6(inplace=True) if active else nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.act(super().forward(input))
        return output


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    make, padding = (nn.Conv2d, kernel // 2) if stride == 1 else (Conv2dSame, 0)
    return make(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)


class Block(nn.Module):
    """An inverted residual: 1 x 1 to more channels (if ``expansion`` is above 1), depthwise, 1 x 1 to few."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        width = inputs * expansion
        layers = {"conv_dw": conv(width, width, kernel, stride, groups=width)}
        if expansion > 1:
            layers = {"conv_pw": conv(inputs, width), **layers, "conv_pwl": conv(width, outputs)}
        else:
            layers |= {"conv_pw": conv(width, outputs)}
        for number, (name, layer) in enumerate(layers.items(), 1):
            self.add_module(name, layer)
            self.add_module(f"bn{number}", BatchNormAct2d(layer.out_channels, active=number < len(layers)))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for layer in self.children():
            out = layer(out)
        return out + x if self.residual else out


class Lite0(nn.Sequential):
    """EfficientNet-Lite0 without its last layer: 1,280 features, the means over positions."""

    def __init__(self, generator: torch.Generator):
        stages: list[nn.Module] = []
        inputs = 32
        for kernel, stride, expansion, outputs, count in STAGES:
            blocks = [Block(inputs, outputs, kernel, stride, expansion)]
            blocks += [Block(outputs, outputs, kernel, 1, expansion) for _ in range(count - 1)]
            stages.append(nn.Sequential(*blocks))
            inputs = outputs
        super().__init__(
            OrderedDict(
                conv_stem=conv(3, 32, 3, 2),
                bn1=BatchNormAct2d(32),
                blocks=nn.Sequential(*stages),
                conv_head=conv(inputs, LITE0_DIM),
                bn2=BatchNormAct2d(LITE0_DIM),
                global_pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            )
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                deviation = math.sqrt(2 * layer.groups / (layer.kernel_size[0] ** 2 * layer.out_channels))
                nn.init.normal_(layer.weight, std=deviation, generator=generator)
