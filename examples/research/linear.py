"""The paper's linear protocol by layers: the accuracy of a linear classifier on the maps of each layer of a run.

Section 4.3, after Zhang et al. 2016, with the settings of the release's eval_linear.sh: the network is frozen, SGD sees
random crops, mirrored or not, and the figure is that of the last epoch by ten crops (the release reports its best epoch
by the test images). The published learning rate suits the maps of a trained AlexNet, and SGD diverges on others, so
maps are normalised; --raw takes them as they are, as published. Classes are the folders of the images.

python examples/research/linear.py runs/cifar10 cifar10/train cifar10/test
"""

import argparse
import math
from collections.abc import Callable
from contextlib import suppress
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

import deepcluster
from deepcluster.images import find, read_once

MAX_NUMBERS = 9_999  # of a pooled map
# Kernel, stride and padding of the average over the maps of the convolutions at 224 px. AlexNet: paper, section 4.3 and
# eval_linear.py of the release; the zeros of the padding count. VGG-16: DeeperCluster's, for its five blocks.
ALEXNET = ((6, 6, 3), (4, 4, 0), (3, 3, 1), (3, 3, 1), (2, 2, 0))
VGG16 = ((18, 18, 0),) * 2 + ((14, 14, 0),) * 2 + ((9, 9, 0),) * 3 + ((6, 6, 0),) * 3 + ((3, 3, 0),) * 3
SCALE_IMAGES = 1024  # images by which maps are normalised
MIN_DEVIATION = 0.1  # of the usual standard deviation: do not blow up nearly constant numbers to variance 1
# The Hessian of the cross-entropy is at most half the covariance, so lr=0.01 times its largest eigenvalue is at most 1;
# SGD with momentum .9 diverges from 3.8 on.
STEEPEST = 200.0


def stages_of(body: nn.Module) -> dict[str, tuple[nn.Module, int]]:
    """Return the stages that timm lists, each with the number of its channels."""
    modules = dict(body.named_modules())
    listed = [stage for stage in getattr(body, "feature_info", ()) if stage["module"] in modules]
    return {stage["module"]: (modules[stage["module"]], stage["num_chs"]) for stage in listed}


def layers_of(network: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of a run's network by name, from the image to the features.

    These are every convolution of AlexNet and VGG-16 (after its ReLU, before pooling), every stage that timm lists, and
    every block of another network.
    """
    body = network.body
    if hasattr(body, "sobel"):
        activations = [module for module in body.features if isinstance(module, nn.ReLU)]
        return {f"conv{number}": module for number, module in enumerate(activations, 1)}
    blocks = [module for module in body.children() if any(True for _ in module.parameters())]
    stages = {name: module for name, (module, _) in stages_of(body).items()}
    return stages or {f"block{number}": module for number, module in enumerate(blocks, 1)}


class Reached(Exception):
    """End a pass once its maps are computed: the layers above are not needed."""


def maps_at(network: nn.Module, layer: nn.Module, images: Tensor) -> Tensor:
    """Return the maps (B x C x H x W) of B x 3 x S x S images in [0, 1] at a layer; tokens are a square map."""
    body, outputs = network.body, []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        outputs.append(output)
        raise Reached

    handle = layer.register_forward_hook(keep)
    normalised = (images - network.mean) / network.std
    try:
        with suppress(Reached), torch.no_grad():
            if hasattr(body, "sobel"):  # its linear layers take one size, its convolutions any
                body.features(normalised if body.sobel is None else body.sobel(normalised))
            else:
                body(normalised)
    finally:
        handle.remove()
    (maps,) = outputs
    if maps.dim() == 3:
        tokens = maps[:, getattr(body, "num_prefix_tokens", 0) :]
        return tokens.transpose(1, 2).unflatten(2, (isqrt(tokens.shape[1]), -1))
    channels = dict(stages_of(body).values()).get(layer)
    return maps.permute(0, 3, 1, 2) if maps.shape[1] != channels == maps.shape[3] else maps


def pooling_of(name: str, network: nn.Module, maps: Tensor, image_size: int) -> nn.Module:
    """Return the literature's average for AlexNet and VGG-16 at 224 px, else one to fewer than 10,000 numbers."""
    if hasattr(network.body, "sobel") and image_size == 224:
        averages = ALEXNET if len(layers_of(network)) == len(ALEXNET) else VGG16
        return nn.AvgPool2d(*averages[int(name.removeprefix("conv")) - 1], count_include_pad=True)
    most = max(1, isqrt(MAX_NUMBERS // maps.shape[1]))
    return nn.AdaptiveAvgPool2d((min(most, maps.shape[2]), min(most, maps.shape[3])))


def normalisation(sample: Tensor) -> tuple[Tensor, Tensor]:
    """Return a shift to subtract from N x d numbers and a scale to multiply the rest by, so that SGD converges.

    Numbers get variance 1, nearly constant ones less. Then one scale makes the largest eigenvalue of their covariance
    ``STEEPEST``.
    """
    shift = sample.mean(0)
    deviation = (sample - shift).square().mean(0).sqrt()
    least = MIN_DEVIATION * deviation.square().mean().sqrt()
    scale = 1 / deviation.clamp_min(max(float(least), torch.finfo(sample.dtype).tiny))
    rows = (sample - shift) * scale
    steepest = torch.linalg.eigvalsh(rows @ rows.T)[-1] / len(rows)
    return shift, scale * (STEEPEST / steepest).sqrt() if steepest > 0 else scale


def random_crops(images: Tensor, size: int, random: torch.Generator) -> Tensor:
    """Return random crops of B x 3 x S x S images, ``size`` px wide, mirrored or not, without resampling."""
    room = images.shape[-1] - size + 1
    tops, lefts = torch.randint(room, (2, len(images)), generator=random).tolist()
    crops = torch.stack([image[:, y : y + size, x : x + size] for image, y, x in zip(images, tops, lefts, strict=True)])
    mirrored = torch.rand(len(images), generator=random) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), crops.flip(3), crops)


def centre_crop(images: Tensor, size: int) -> Tensor:
    edge = (images.shape[-1] - size) // 2
    return images[..., edge : edge + size, edge : edge + size]


def ten_crops(images: Tensor, size: int) -> list[Tensor]:
    """Return ten crops of B x 3 x S x S images, ``size`` px wide: corners (by rows), centre, and the same mirrored."""
    far = images.shape[-1] - size
    corners = [images[..., y : y + size, x : x + size] for y in (0, far) for x in (0, far)]
    five = [*corners, centre_crop(images, size)]
    return five + [crop.flip(3) for crop in five]


def probe(
    features: Callable[[Tensor], Tensor], images: Tensor, classes: Tensor, size: int, options: argparse.Namespace
) -> tuple[nn.Linear, float]:
    """Train a linear classifier on the features of random crops; return it with the mean loss of the last epoch."""
    random = torch.Generator().manual_seed(options.seed)
    dims = features(centre_crop(images[:1], size)).shape[1]
    head = nn.Linear(dims, int(classes.max()) + 1)
    nn.init.normal_(head.weight, 0, 0.01, generator=random)
    nn.init.zeros_(head.bias)
    optimizer = SGD(head.parameters(), lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay)
    total, iteration = 0.0, 0
    for _ in range(options.epochs):
        total = 0.0
        for rows in torch.randperm(len(images), generator=random).split(options.batch_size):
            for group in optimizer.param_groups:  # as in eval_linear.py of the release
                group["lr"] = options.lr / math.sqrt(1 + options.lr * options.weight_decay * iteration)
            loss = F.cross_entropy(head(features(random_crops(images[rows], size, random))), classes[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, iteration = total + loss.item() * len(rows), iteration + 1
    return head, total / len(images)


def features_of(
    network: nn.Module, name: str, images: Tensor, size: int, options: argparse.Namespace
) -> Callable[[Tensor], Tensor]:
    """Return the features of crops at a layer, normalised by ``images`` to learn from unless the maps are raw."""
    layer = layers_of(network)[name]
    pooling = pooling_of(name, network, maps_at(network, layer, centre_crop(images[:1], size) / 255), size)

    def pooled(crops: Tensor) -> Tensor:
        return pooling(maps_at(network, layer, crops / 255)).flatten(1)

    if options.raw:
        return pooled
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(options.seed))[:SCALE_IMAGES]
    shift, scale = normalisation(torch.cat([*map(pooled, centre_crop(images[rows], size).split(options.batch_size))]))
    return lambda crops: (pooled(crops) - shift) * scale


def accuracy(
    features: Callable[[Tensor], Tensor], head: nn.Linear, images: Tensor, classes: Tensor, size: int, batch_size: int
) -> float:
    """Return the share of images whose mean probabilities over ten crops are highest for their class."""
    right = 0
    with torch.no_grad():
        for part, truth in zip(images.split(batch_size), classes.split(batch_size), strict=True):
            mean = torch.stack([head(features(crop)).softmax(1) for crop in ten_crops(part, size)]).mean(0)
            right += int((mean.argmax(1) == truth).sum())
    return right / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("train", help="images to learn from, a folder per class")
    parser.add_argument("test", help="images to score")
    parser.add_argument("--layers", nargs="*", help="names of layers, for example conv3 conv5; all without it")
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--weight-decay", type=float, default=1e-7)
    parser.add_argument("--raw", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = deepcluster.load(options.run)
    names: dict[str, int] = {}

    def read(place: str) -> tuple[Tensor, Tensor]:
        source = find(place)
        store = read_once(source, round(model.image_size * 256 / 224))
        folders = [source.paths[i].rpartition("/")[0] for i in store.usable]
        return store.images, torch.tensor([names.setdefault(folder, len(names)) for folder in folders])

    train, test = read(options.train), read(options.test)
    network, size = model.network.eval(), model.image_size
    for name in options.layers or layers_of(network):
        features = features_of(network, name, train[0], size, options)
        head, loss = probe(features, *train, size, options)
        top1 = accuracy(features, head, *test, size, options.batch_size)
        print(f"{name:24} top1 {top1:.4f}  loss {loss:.4f}  {head.in_features} numbers", flush=True)


if __name__ == "__main__":
    main()
