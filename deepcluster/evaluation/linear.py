"""Protocol ``linear``: the accuracy of a linear classifier on the maps of every layer.

Paper, section 4.3, after Zhang et al. 2016, with the settings of the release's eval_linear.sh. The network is frozen.
The figure belongs to the last epoch; the release reports the best epoch by the test images.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD

from deepcluster.evaluation import LinearOptions
from deepcluster.evaluation.common import Figure, NamedFigure, ProbeTask, score
from deepcluster.evaluation.feature_maps import Layer, chosen_layers, maps_at, pooling_of
from deepcluster.images.views import centre_crop, fixed_view
from deepcluster.learning.batches import Batch, batches, check_finite
from deepcluster.nets.paper import reset_linear
from deepcluster.runtime.console import Display, Silent
from deepcluster.seeding import generator

SCALE_IMAGES = 1024  # images by which maps are normalised
MIN_DEVIATION = 0.1  # of the usual standard deviation: do not blow up nearly constant numbers to variance 1
# The Hessian of the cross-entropy is at most half the covariance, so lr=0.01 times its largest eigenvalue is at most 1;
# SGD with momentum .9 diverges from 3.8 on.
STEEPEST = 200.0


def linear(
    task: ProbeTask, options: LinearOptions | None = None, *, display: Display | None = None
) -> Iterator[NamedFigure]:
    """Yield a row for every layer: ``top1``, ``loss`` (mean of the last epoch), ``dims`` and ``pooling``.

    For more than 5 classes also ``top5``. ``chance`` is the accuracy of the most frequent class.
    """
    options = options or LinearOptions()
    display = display or Silent()
    layers = chosen_layers(task.network, options.layers)
    yield from task.facts.items()
    for layer in layers:
        yield layer.name, probe(task, layer, options, display)


def probe(task: ProbeTask, layer: Layer, options: LinearOptions, display: Display) -> dict[str, Figure]:
    """Train a linear classifier on the pooled maps of one layer, and score it."""
    size = task.image_size
    device = task.network.mean.device
    partition = task.train.partition
    processes = partition.processes
    first = fixed_view(partition.index_select(task.train.images, torch.tensor([0])).to(device), size)
    with torch.no_grad():
        text, pooling = pooling_of(layer, maps_at(task.network, layer, first).shape, size)

    def pooled(views: Tensor) -> Tensor:
        with torch.no_grad():
            numbers: Tensor = pooling(maps_at(task.network, layer, views)).flatten(1)
            return numbers

    def features(views: Tensor) -> Tensor:
        return (pooled(views) - shift) * scale

    dims = pooled(first).shape[1]
    shift, scale = torch.zeros(dims, device=device), torch.ones(dims, device=device)
    if options.maps == "normalised":
        rows = torch.randperm(partition.total, generator=generator(task.seed, "linear scale"))[:SCALE_IMAGES]
        sample = partition.index_select(task.train.images, rows).split(options.batch_size)
        numbers = [pooled(as_numbers(centre_crop(part, size).to(device))) for part in sample]
        shift, scale = normalisation(torch.cat(numbers))
    head = reset_linear(dims, len(task.names), generator(task.seed, "linear head")).to(device)
    model = processes.data_parallel(head)
    optimizer = SGD(head.parameters(), lr=0.0, momentum=options.momentum, weight_decay=options.weight_decay)
    classes = task.train.classes
    steps = -(-len(classes) // options.batch_size)
    total = torch.zeros((), device=device)

    def prepare(batch: Batch) -> tuple[Batch, Tensor]:
        random = generator(task.seed, "linear crops", epoch, batch.step, *processes.seed_index)
        return batch, as_numbers(random_crops(batch.images, size, random))

    for epoch in range(options.epochs):
        order = torch.randperm(len(classes), generator=generator(task.seed, "linear order", epoch))
        samples = enumerate(order.split(options.batch_size))
        total.zero_()
        for batch, views in batches(task.train.images, partition, samples, prepare, device):
            t = epoch * steps + batch.step
            for group in optimizer.param_groups:
                group["lr"] = lr_at(t, options.lr, options.weight_decay)
            targets = batch.targets(classes).to(device)
            loss = F.cross_entropy(model(features(views)), targets, reduction="sum")
            loss = loss * processes.world_size / len(batch.drawn)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(batch.drawn)
            display.progress(layer.name, t + 1, options.epochs * steps)
        total = processes.all_reduce(total) / processes.world_size
        check_finite(total, f"the probe of {layer.name}", "--set lr=", options.lr)

    mean_loss = total.item() / len(classes)
    guessing = math.log(len(task.names))
    if options.epochs and mean_loss > guessing:
        way_out = "maps=normalised" if options.maps == "raw" else f"lr={options.lr / 10:g}"
        display.say(
            "Rate",
            f"the loss of {layer.name}, {mean_loss:.3g}, is above the loss of guessing, {guessing:.3g}:"
            f" lr={options.lr:g} is too large for its maps, try --set {way_out}",
        )

    def probabilities(images: Tensor) -> Tensor:
        crops = ten_crops(images, size) if options.ten_crops else [centre_crop(images, size)]
        return mean_probabilities([head(features(as_numbers(crop.to(device)))) for crop in crops])

    accuracies = score(task, probabilities, max(1, options.batch_size // (10 if options.ten_crops else 1)))
    return {**accuracies, "loss": mean_loss, "dims": dims, "pooling": text}


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


def lr_at(t: int, lr: float, weight_decay: float) -> float:
    """Return lr / sqrt(1 + lr weight_decay t) for iteration t, from 0, as in eval_linear.py of the release."""
    return lr / math.sqrt(1 + lr * weight_decay * t)


def mean_probabilities(logits: Sequence[Tensor]) -> Tensor:
    """Return the mean softmax over the crops of images; the logits of a crop are B x K."""
    return torch.stack([crop.softmax(1) for crop in logits]).mean(0)


def as_numbers(crops: Tensor) -> Tensor:
    """Return uint8 pixels as float32 in [0, 1], channels-last."""
    return crops.contiguous(memory_format=torch.channels_last).float().div_(255)


def random_crops(images: Tensor, size: int, random: torch.Generator) -> Tensor:
    """Return random crops of B x 3 x S x S images, ``size`` px wide, mirrored or not, without resampling."""
    room = images.shape[-1] - size + 1
    tops, lefts = torch.randint(room, (2, len(images)), generator=random).tolist()
    crops = torch.stack([image[:, y : y + size, x : x + size] for image, y, x in zip(images, tops, lefts, strict=True)])
    mirrored = (torch.rand(len(images), generator=random) < 0.5).to(images.device)
    return torch.where(mirrored.view(-1, 1, 1, 1), crops.flip(3), crops)


def ten_crops(images: Tensor, size: int) -> list[Tensor]:
    """Return ten crops of B x 3 x S x S images, ``size`` px wide: corners (by rows), centre, and the same mirrored."""
    far = images.shape[-1] - size
    corners = [images[..., y : y + size, x : x + size] for y in (0, far) for x in (0, far)]
    five = [*corners, centre_crop(images, size)]
    return five + [crop.flip(3) for crop in five]
