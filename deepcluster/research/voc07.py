"""Protocol ``voc07``: multi-label classification of PASCAL VOC 2007.

Settings of the release's eval_voc_classif.py (paper, section 4.4), except that every epoch has a new order here.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD

from deepcluster.errors import DataError
from deepcluster.evaluation.common import Figure, NamedFigure, Once, anew, check_finite
from deepcluster.evaluation.options import Voc07Options
from deepcluster.images import Source, find
from deepcluster.images.augment import sampling_grid
from deepcluster.images.decode import explain
from deepcluster.images.store import gather, read_once
from deepcluster.nets.backbone import Network
from deepcluster.nets.heads import reset_linear
from deepcluster.nets.paper import PaperNet
from deepcluster.research.whole_images import whole
from deepcluster.runtime.console import Display, Silent
from deepcluster.runtime.threads import made_ahead
from deepcluster.seeding import generator, lent_global

SPLITS = {"trainval": "test", "train": "val"}  # images to learn from: images to score
LONGER_SIDE = 500  # px, of every image of VOC
MOST_GRADIENT = 10.0  # norm to which gradients are clipped
TIE = 1e-5  # taken off the score of images with the class, so that a tie counts against them


@dataclass(frozen=True)
class Split:
    """A part of VOC07.

    Attributes:
        source: Its N images.
        truth: int8 N x C: 1 where an image has the class, -1 where not, 0 where it is difficult and does not count.
    """

    source: Source
    truth: npt.NDArray[np.int8]

    def digest(self) -> str:
        return hashlib.sha256(self.truth.tobytes()).hexdigest()


def devkit(folder: str) -> Path:
    """The folder VOC2007 in or at ``folder``. DataError where there is none."""
    for root in (Path(folder), Path(folder) / "VOC2007", Path(folder) / "VOCdevkit" / "VOC2007"):
        if (root / "ImageSets" / "Main").is_dir() and (root / "JPEGImages").is_dir():
            return root
    raise DataError(f"{folder} has no ImageSets/Main and JPEGImages: give the folder VOCdevkit/VOC2007")


def splits(root: Path, split: str) -> tuple[Split, Split, list[str]]:
    """The images to learn from, those to score, and the names of the classes."""
    lists = root / "ImageSets" / "Main"
    names = sorted(path.name.removesuffix(f"_{split}.txt") for path in lists.glob(f"*_{split}.txt"))
    if not names:
        raise DataError(f"{lists} has no *_{split}.txt: give a whole VOC2007")
    train, test = (_split(root, part, names) for part in (split, SPLITS[split]))
    for part, images in ((split, train), (SPLITS[split], test)):
        if missing := [name for name, column in zip(names, images.truth.T, strict=True) if not (column == 1).any()]:
            raise DataError(f"{lists}: no image of {part} has the class {missing[0]}")
    return train, test, names


def _split(root: Path, part: str, names: Sequence[str]) -> Split:
    columns = [_column(root / "ImageSets" / "Main" / f"{name}_{part}.txt") for name in names]
    names_of_images = list(columns[0])
    for name, column in zip(names, columns, strict=True):
        if list(column) != names_of_images:
            raise DataError(f"{root}: the lists {names[0]}_{part}.txt and {name}_{part}.txt are not of the same images")
    truth = np.array([[column[image] for column in columns] for image in names_of_images], np.int8)
    return Split(find([root / "JPEGImages" / f"{image}.jpg" for image in names_of_images]), truth)


def _column(path: Path) -> dict[str, int]:
    """1, -1 or 0 for each image of a list such as ``cat_train.txt``."""
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        values = {image: int(value) for image, value in lines}
        if not values or not {*values.values()} <= {-1, 0, 1}:
            raise ValueError("each line must be an image and 1, 0 or -1")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be used: {explain(error)}") from None
    return values


def voc07(
    network: Network,
    train: Split,
    test: Split,
    names: Sequence[str],
    options: Voc07Options | None = None,
    *,
    image_size: int,
    scratch: Callable[[], AbstractContextManager[Path]],
    seed: int = 0,
    once: Once = anew,
    display: Display | None = None,
) -> Iterator[NamedFigure]:
    """Yield ``ap_CLASS`` and their mean ``map`` after the last iteration, and ``chance``, that of random scores.

    Args:
        network: In evaluation mode; it is not changed.
        train: Images to learn from.
        test: Images to score.
        names: The classes.
        options: None: the defaults.
        image_size: Side of the crops that the network sees, px.
        scratch: Lends folders for images that do not fit into memory.
        seed: Seed of all random numbers.
        once: Remembers parts.
        display: Shows progress.
    """
    options, display = options or Voc07Options(), display or Silent()
    yield from {"train_images": len(train.truth), "images": len(test.truth), "classes": len(names)}.items()
    chance = ((test.truth == 1).sum(0) / (test.truth != 0).sum(0)).mean()
    yield from once("chance", lambda: {"chance": float(chance)}).items()

    def compute() -> dict[str, Figure]:
        with scratch() as place:
            pictures = [_read(split, place / part, display) for part, split in (("train", train), ("test", test))]
            trained = _train(network, pictures[0], options, image_size, seed, display)
            scores = _scores(trained, pictures[1], options, image_size, seed, display)
        figures: dict[str, Figure] = {
            f"ap_{name}": value
            for name, value in zip(names, average_precisions(scores.numpy(), pictures[1].truth), strict=True)
        }
        return figures | {"map": float(np.mean([*figures.values()]))}

    yield from once("classification", compute).items()


def average_precisions(scores: npt.NDArray[np.float32], truth: npt.NDArray[np.int8]) -> list[float]:
    """The average precision of each class over the images that count (scikit-learn's: no interpolation)."""
    precisions = []
    for score, column in zip(scores.astype(np.float64).T, truth.T, strict=True):
        counted = column != 0
        right = column[counted] == 1
        precisions.append(float(average_precision_score(right, score[counted] - TIE * right)))
    return precisions


@dataclass(frozen=True)
class _Pictures:
    """Whole images (uint8, N x 3 x S x S), their heights and widths (N x 2), and their classes (as Split.truth)."""

    images: Tensor
    extents: Tensor
    truth: npt.NDArray[np.int8]


def _read(split: Split, place: Path, display: Display) -> _Pictures:
    wholes, extents = whole(split.source, LONGER_SIDE)
    place.mkdir()
    store = read_once(wholes, LONGER_SIDE, folder=place, progress=lambda *done: display.progress("reading", *done))
    usable = list(store.kept)
    if len(usable) < len(extents):
        path, reason = store.skipped[0]
        display.say("Skipped", f"{len(extents) - len(usable):,} images that cannot be used; {path}: {reason}")
    return _Pictures(store.images, torch.from_numpy(extents[usable]), split.truth[usable])


def _train(
    network: Network, pictures: _Pictures, options: Voc07Options, size: int, seed: int, display: Display
) -> Network:
    """A copy of the network with a classifier trained on the pictures."""
    network, device = deepcopy(network), network.mean.device
    trained = _prepare(network, pictures.truth.shape[1], options, seed)
    optimizer = SGD(trained, lr=0.0, momentum=options.momentum, weight_decay=options.weight_decay)
    truth = torch.from_numpy(pictures.truth)
    scale = (options.crop_min, options.crop_max)

    def prepare(task: tuple[int, Tensor]) -> tuple[int, Tensor, Tensor]:
        t, rows = task
        random = generator(seed, "voc07 crops", t)
        images, extents = gather(pictures.images, rows), pictures.extents[rows]
        return t, rows, square_crops(images.to(device), extents, size, scale, random)

    batches = enumerate(_batches(len(truth), options.batch_size, options.iterations, seed))
    for t, rows, views in made_ahead(prepare, batches, device):
        for group in optimizer.param_groups:
            group["lr"] = options.lr * 0.5 ** (t // options.step_size)
        with lent_global(seed, "voc07 training", t, device=device):  # dropout draws from the global generator
            loss = loss_of(network(views), truth[rows].to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, MOST_GRADIENT)
        optimizer.step()
        if t % 100 == 0 or t + 1 == options.iterations:
            check_finite(loss, "VOC07", "lr", options.lr)
            display.progress("training", t + 1, options.iterations)
    return network.eval()


def _prepare(network: Network, classes: int, options: Voc07Options, seed: int) -> list[nn.Parameter]:
    """Put a classifier on top, reset fc6 and fc7, and return the parameters to train.

    Batch normalisation keeps its statistics; dropout is active in the linear layers of AlexNet and VGG-16.
    """
    network.eval()
    random = generator(seed, "voc07 layers")
    body = network.body
    top: list[nn.Module] = []
    if isinstance(body, PaperNet):
        body.classifier.train()
        top.append(body.classifier)
        if options.layers == "top":
            for module in body.classifier:
                if isinstance(module, nn.Linear):
                    _as_new(module, random)
    head = reset_linear(network.feature_dim, classes, random).to(network.mean.device)
    _as_new(head, random)
    network.head = head
    network.requires_grad_(options.layers == "all")
    for module in (*top, head):
        module.requires_grad_(True)
    if options.train_batchnorm:
        for module in body.modules():
            if isinstance(module, _BatchNorm):
                module.requires_grad_(True)
    if isinstance(body, PaperNet) and body.sobel is not None:
        body.sobel.requires_grad_(False)
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def _as_new(layer: nn.Linear, random: torch.Generator) -> None:
    """Weights from N(0, 0.01) and bias 0.1, as the release has them."""
    with torch.no_grad():
        layer.weight.copy_(torch.empty(layer.weight.shape).normal_(0.0, 0.01, generator=random))
        layer.bias.fill_(0.1)


def _batches(count: int, batch_size: int, iterations: int, seed: int) -> Iterator[Tensor]:
    """The rows of each iteration: all of them in every epoch, in a new order."""
    done = epoch = 0
    while True:
        for rows in torch.randperm(count, generator=generator(seed, "voc07 order", epoch)).split(batch_size):
            if done == iterations:
                return
            yield rows
            done += 1
        epoch += 1


def loss_of(logits: Tensor, truth: Tensor) -> Tensor:
    """Binary cross-entropy, summed over the classes and divided by the number of images; 0 where ``truth`` is 0."""
    losses = F.binary_cross_entropy_with_logits(logits, (truth == 1).float(), reduction="none")
    return (losses * (truth != 0)).sum() / len(logits)


def _scores(
    network: Network, pictures: _Pictures, options: Voc07Options, size: int, seed: int, display: Display
) -> Tensor:
    """The sum of the logits of random crops of each image, N x C."""
    scores = []
    scale, device = (options.crop_min, options.crop_max), network.mean.device
    begins = range(0, len(pictures.images), options.batch_size)
    with torch.no_grad():
        for begin in begins:
            part = slice(begin, begin + options.batch_size)
            images, random = pictures.images[part].to(device), generator(seed, "voc07 test crops", begin)
            logits = [
                network(square_crops(images, pictures.extents[part], size, scale, random)) for _ in range(options.crops)
            ]
            scores.append(torch.stack(logits).sum(0).cpu())
            display.progress("scoring", begin + len(images), len(pictures.images))
    return torch.cat(scores)


def square_crops(
    images: Tensor, extents: Tensor, size: int, scale: tuple[float, float], random: torch.Generator
) -> Tensor:
    """A random square of each image, mirrored or not.

    Args:
        images: uint8 B x 3 x S x S, each image in the upper left corner.
        extents: B x 2, the heights and widths of the images, px.
        size: Side of the result, px.
        scale: Smallest and largest area of a square, as shares of the image's; its side is at most the shorter one's.
        random: Where the squares are drawn from.

    Returns:
        float32 B x 3 x ``size`` x ``size`` in [0, 1], channels-last.
    """
    count, side = len(images), images.shape[-1]
    share = torch.rand(count, generator=random) * (scale[1] - scale[0]) + scale[0]
    edge = (share * extents.prod(1)).sqrt().minimum(extents.amin(1))
    top, left = (torch.rand(2, count, generator=random) * (extents.T - edge)).unbind()
    mirror = 1 - 2 * (torch.rand(count, generator=random) < 0.5).float()
    zero, zoom = torch.zeros(count), edge / side
    x, y = (2 * (begin + edge / 2) / side - 1 for begin in (left, top))
    places = torch.stack([torch.stack([zoom * mirror, zero, x], 1), torch.stack([zero, zoom, y], 1)], 1)
    grid = sampling_grid(places.to(images.device), size)
    views = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return views.div_(255).contiguous(memory_format=torch.channels_last)
