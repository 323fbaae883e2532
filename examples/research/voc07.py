"""Multi-label classification of PASCAL VOC 2007 with the network of a run, by the paper's settings.

Train fc6 to fc8 of AlexNet and VGG-16 anew, of another network a new classifier; with --all every layer. Batch
normalisation keeps its statistics. The figure is the mean over the classes of scikit-learn's average precision (not the
11-point one of 2007), by the summed logits of 10 random crops. All images are kept in memory: 5 GB.

python examples/research/voc07.py runs/imagenet VOCdevkit/VOC2007
"""

import argparse
from itertools import count
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.transforms import v2

import deepcluster
from deepcluster.images import find
from deepcluster.nets import Network

SCORED_ON = {"trainval": "test", "train": "val"}  # by the part to learn from
MAX_GRADIENT = 10.0  # norm
TIE = 1e-5  # taken off the score of images with the class, so that a tie counts against them


def read(root: Path, part: str) -> tuple[list[Tensor], Tensor, list[str]]:
    """Return the images (uint8, 3 x H x W), their classes (N x C: 1 yes, -1 no, 0 difficult) and the class names."""
    lists = sorted((root / "ImageSets" / "Main").glob(f"*_{part}.txt"))
    columns = [dict(line.split() for line in file.read_text().splitlines()) for file in lists]
    source = find([root / "JPEGImages" / f"{name}.jpg" for name in columns[0]])
    images = [torch.from_numpy(np.array(source.read(i))).permute(2, 0, 1) for i in range(len(columns[0]))]
    truth = torch.tensor([[int(column[name]) for column in columns] for name in columns[0]])
    return images, truth, [file.stem.removesuffix(f"_{part}") for file in lists]


def trained_parts(network: Network, classes: int, *, every_layer: bool, norms: bool) -> list[nn.Parameter]:
    """Put a new classifier on the network, renew its linear layers, and return the parameters to train."""
    network.eval().requires_grad_(every_layer)
    network.new_head(classes, torch.Generator())
    top: list[nn.Module] = [network.head]
    if network.architecture.get("name") in ("alexnet", "vgg16"):
        top.append(network.body.classifier.train())  # with dropout
    for layer in (layer for module in top for layer in module.modules() if isinstance(layer, nn.Linear)):
        layer.requires_grad_(True)
        if layer is network.head or not every_layer:  # as the release has them
            nn.init.normal_(layer.weight, 0.0, 0.01)
            nn.init.constant_(layer.bias, 0.1)
    for module in network.body.modules():
        if norms and isinstance(module, _BatchNorm):
            module.requires_grad_(True)
    if getattr(network.body, "sobel", None) is not None:
        network.body.sobel.requires_grad_(False)
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def loss_of(logits: Tensor, truth: Tensor) -> Tensor:
    """Binary cross-entropy, summed over the classes and divided by the number of images; 0 where difficult."""
    losses = F.binary_cross_entropy_with_logits(logits, (truth == 1).float(), reduction="none")
    return (losses * (truth != 0)).sum() / len(logits)


def average_precisions(scores: Tensor, truth: Tensor) -> list[float]:
    """Return the average precision of each class over the images that are not difficult."""
    precisions = []
    for score, column in zip(scores.double().T, truth.T, strict=True):
        right = column[column != 0] == 1
        precisions.append(float(average_precision_score(right, score[column != 0] - TIE * right)))
    return precisions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("root", type=Path, help="the folder VOCdevkit/VOC2007")
    parser.add_argument("--split", choices=SCORED_ON, default="trainval", help="train: scored on val, to choose by")
    parser.add_argument("--all", action="store_true", help="train every layer")
    parser.add_argument("--train-batchnorm", action="store_true", help="train scale and shift of batch normalisation")
    parser.add_argument("--iterations", type=int, default=80_000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=0.003, help="halved every --halving iterations")
    parser.add_argument("--halving", type=int, default=5000)
    parser.add_argument("--crops", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    model = deepcluster.load(options.run)
    network = model.network
    crop = v2.Compose([
        v2.RandomResizedCrop(model.image_size, scale=(0.1, 0.5), ratio=(1, 1)), v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True),
    ])  # fmt: skip

    def views(images: list[Tensor], rows: Tensor) -> Tensor:
        return torch.stack([crop(images[i]) for i in rows])

    images, truth, names = read(options.root, options.split)
    parameters = trained_parts(network, len(names), every_layer=options.all, norms=options.train_batchnorm)
    optimizer = torch.optim.SGD(parameters, lr=options.lr, momentum=0.9, weight_decay=1e-6)
    halved = torch.optim.lr_scheduler.StepLR(optimizer, options.halving, 0.5)
    batches = (rows for _ in count() for rows in torch.randperm(len(images)).split(options.batch_size))
    for t, rows in zip(range(options.iterations), batches, strict=False):
        loss = loss_of(network(views(images, rows)), truth[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT)
        optimizer.step()
        halved.step()
        if t % 1000 == 0:
            print(f"iteration {t}: loss {loss.item():.3f}")

    images, truth, names = read(options.root, SCORED_ON[options.split])
    network.eval()
    with torch.no_grad():
        scores = [
            sum(network(views(images, rows)) for _ in range(options.crops))
            for rows in torch.arange(len(images)).split(options.batch_size)
        ]
    precisions = average_precisions(torch.cat(scores), truth)
    for name, value in zip(names, precisions, strict=True):
        print(f"{name}: {value:.4f}")
    print(f"map: {np.mean(precisions):.4f}")


if __name__ == "__main__":
    main()
