"""The two networks of the paper, AlexNet and VGG-16 with batch normalisation, and the fixed Sobel filter before them.

Caron et al., "Deep Clustering for Unsupervised Learning of Visual Features", ECCV 2018: AlexNet without local response
normalisation and without groups, VGG-16 of configuration D. Both end before the last ReLU: these 4096 numbers are
clustered.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from deepcluster.errors import UsageError

IMAGE_SIZE = 224
FEATURE_DIM = 4096


class PaperNet(nn.Module):
    """Features (B x 4096) of B x 3 x 224 x 224 normalised images: Sobel or nothing, convolutions, two linear layers."""

    def __init__(self, features: nn.Sequential, classifier: nn.Sequential, sobel: nn.Sequential | None = None):
        super().__init__()
        self.features = features
        self.classifier = classifier
        self.sobel = sobel

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
            raise wrong_size("this network", max(images.shape[-2:]))
        if self.sobel is not None:
            images = self.sobel(images)
        features: Tensor = self.classifier(self.features(images).flatten(1))
        return features


def alexnet(*, sobel: bool, generator: torch.Generator) -> PaperNet:
    """Return AlexNet (Krizhevsky et al. 2012) with batch normalisation; its weights depend on ``generator`` alone."""
    features = nn.Sequential(
        *_conv_bn_relu(2 if sobel else 3, 96, 11, generator, stride=4, padding=2),
        nn.MaxPool2d(3, 2),
        *_conv_bn_relu(96, 256, 5, generator, padding=2),
        nn.MaxPool2d(3, 2),
        *_conv_bn_relu(256, 384, 3, generator, padding=1),
        *_conv_bn_relu(384, 384, 3, generator, padding=1),
        *_conv_bn_relu(384, 256, 3, generator, padding=1),
        nn.MaxPool2d(3, 2),
    )
    classifier = nn.Sequential(nn.Dropout(0.5), *_two_linear(256 * 6 * 6, generator))
    return PaperNet(features, classifier, sobel_filter() if sobel else None)


def vgg16(*, sobel: bool, generator: torch.Generator) -> PaperNet:
    """Return VGG-16 (Simonyan and Zisserman 2015, D) with batch normalisation, by ``generator`` alone."""
    layers: list[nn.Module] = []
    inputs = 2 if sobel else 3
    for outputs, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(convolutions):
            layers += _conv_bn_relu(inputs, outputs, 3, generator, padding=1)
            inputs = outputs
        layers.append(nn.MaxPool2d(2, 2))
    classifier = nn.Sequential(*_two_linear(512 * 7 * 7, generator))
    return PaperNet(nn.Sequential(*layers), classifier, sobel_filter() if sobel else None)


def _two_linear(inputs: int, generator: torch.Generator) -> list[nn.Module]:
    layers = [reset_linear(features, FEATURE_DIM, generator) for features in (inputs, FEATURE_DIM)]
    return [layers[0], nn.ReLU(inplace=True), nn.Dropout(0.5), layers[1]]


def sobel_filter() -> nn.Sequential:
    """Return a fixed filter from B x 3 x H x W colours to the gradients of their mean, B x 2 x H x W: across and down.

    It follows the normalisation. Outside the image is zero, so the border responds like an edge.
    """
    grey = nn.Conv2d(3, 1, 1)
    gradient = nn.Conv2d(1, 2, 3, padding=1)
    across = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    # Zero biases, as in the published filter.
    grey.load_state_dict({"weight": torch.full((1, 3, 1, 1), 1 / 3), "bias": torch.zeros(1)})
    gradient.load_state_dict({"weight": torch.stack([across, across.T])[:, None], "bias": torch.zeros(2)})
    return nn.Sequential(grey, gradient).requires_grad_(False)


def wrong_size(name: str, image_size: int) -> UsageError:
    """Return the error for images of another size: the first linear layer fits one size of the last feature map."""
    return UsageError(
        f"{name} takes images of {IMAGE_SIZE} x {IMAGE_SIZE} pixels, not of {image_size}: "
        f"use --image-size {IMAGE_SIZE}, or --backbone compact for small images"
    )


def _conv_bn_relu(
    inputs: int, outputs: int, kernel: int, generator: torch.Generator, *, stride: int = 1, padding: int
) -> list[nn.Module]:
    """Return new layers: weights from N(0, sqrt(2 / (kernel^2 outputs))) (He et al. 2015), bias 0, scale 1, shift 0."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu", generator=generator)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def reset_linear(features: int, clusters: int, generator: torch.Generator) -> nn.Linear:
    """Return a linear layer with weights from N(0, 0.01) and bias 0 (paper section 3; DeepCluster code, main.py)."""
    # torch's own initialisation would draw from the global generator, and takes time for 4096 x 9216 weights.
    head: nn.Linear = skip_init(nn.Linear, features, clusters, device=torch.get_default_device())
    with torch.no_grad():
        head.weight.normal_(0.0, 0.01, generator=generator)
        head.bias.zero_()
    return head
