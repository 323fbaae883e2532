"""Protocol ``few``: the whole network trained on few labels.

Settings of DeepCluster-v2's semi-supervised evaluation (1 % and 10 % of ImageNet's labels): 20 epochs, a larger
learning rate for the head than for the body. The learning rates are for batches of 256, and scaled with the batch.
"""

import math
from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD

from deepcluster.errors import UsageError
from deepcluster.evaluation import FewLabelsOptions
from deepcluster.evaluation.common import Figure, NamedFigure, ProbeTask, numbers, score
from deepcluster.images.views import Augmentation, fixed_view, random_views
from deepcluster.learning.batches import Batch, batches, check_finite
from deepcluster.runtime.console import Display, Silent
from deepcluster.seeding import generator, lent_global

BATCH = 256  # images in a batch of the options' learning rates
DECAY = ((0.6, 0.2), (0.8, 0.2))  # from this share of the epochs on: the factor of the learning rates


def few(
    task: ProbeTask, options: FewLabelsOptions | None = None, *, display: Display | None = None
) -> Iterator[NamedFigure]:
    """Yield ``S_labels`` (their number), ``S_loss`` and ``S_top1`` of the last epoch for every share S of the labels.

    Of more than 5 classes also ``S_top5``. ``chance`` is the accuracy of the most frequent class.
    """
    options, display = options or FewLabelsOptions(), display or Silent()
    shares = numbers(options.shares, "shares", float)
    if max(shares) > 1:
        raise UsageError(f"shares={options.shares}: a share of the labels is at most 1")
    rates = _rates(options.lr, "lr", len(shares)), _rates(options.head_lr, "head_lr", len(shares))
    yield from task.facts.items()
    for share, lr, head_lr in zip(shares, *rates, strict=True):
        name = f"{100 * share:g}%"
        yield from fine_tune(task, name, share, lr, head_lr, options, display).items()


def _rates(text: str, option: str, count: int) -> list[float]:
    values = [float(value) for value in numbers(text, option, float)]
    if len(values) not in (1, count):
        raise UsageError(f"{option}={text}: give one number, or {count} numbers, one a share")
    return values * count if len(values) == 1 else values


def class_balanced(classes: Tensor, share: float, random: torch.Generator) -> Tensor:
    """Return rows (ascending) of ``share`` of the images, equally many per class: at least one, at most all it has."""
    present = classes.unique().tolist()
    per_class = max(1, round(share * len(classes) / len(present)))
    order = torch.randperm(len(classes), generator=random)
    return torch.cat([order[classes[order] == number][:per_class] for number in present]).sort().values


def fine_tune(
    task: ProbeTask, name: str, share: float, lr: float, head_lr: float, options: FewLabelsOptions, display: Display
) -> dict[str, Figure]:
    """Train a copy of the network with a new linear classifier on a share of the labels, and score it."""
    rows = class_balanced(task.train.classes, share, generator(task.seed, "few labels"))
    network, device = deepcopy(task.network), task.network.mean.device
    partition = task.train.partition
    processes = partition.processes
    network.new_head(len(task.names), generator(task.seed, "few head"))
    assert network.head is not None
    batch_size = min(options.batch_size, len(rows))
    steps, scale = -(-len(rows) // batch_size), batch_size / BATCH
    trunk = [parameter for parameter in network.body.parameters() if parameter.requires_grad]
    groups = [{"params": trunk, "full": scale * lr}, {"params": [*network.head.parameters()], "full": scale * head_lr}]
    optimizer = SGD(groups, lr=0.0, momentum=options.momentum, weight_decay=options.weight_decay)
    how, size = Augmentation(), task.image_size
    total = torch.zeros((), device=device)

    def prepare(batch: Batch) -> tuple[Batch, Tensor]:
        random = generator(task.seed, "few views", epoch, batch.step, *processes.seed_index)
        return batch, random_views(batch.images, size, how, random)

    network.train()
    model = processes.data_parallel(network)
    for epoch in range(options.epochs):
        drawn = rows[torch.randperm(len(rows), generator=generator(task.seed, "few order", epoch))].tensor_split(steps)
        factor = math.prod(by for begin, by in DECAY if epoch >= begin * options.epochs)
        for group in optimizer.param_groups:
            group["lr"] = factor * group["full"]
        total.zero_()
        for batch, views in batches(task.train.images, partition, enumerate(drawn), prepare, device):
            # Dropout draws from the global generator.
            with lent_global(task.seed, "few training", epoch, batch.step, *processes.seed_index, device=device):
                logits = model(views)
            targets = batch.targets(task.train.classes).to(device)
            loss = F.cross_entropy(logits, targets, reduction="sum") * processes.world_size / len(batch.drawn)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(batch.drawn)
            display.progress(name, epoch * steps + batch.step + 1, options.epochs * steps)
        total = processes.all_reduce(total) / processes.world_size
        check_finite(total, f"fine-tuning on {name} of the labels", "--set head_lr=", head_lr)
    processes.broadcast_buffers(network)
    network.eval()
    figures: dict[str, Figure] = {"labels": len(rows), "loss": total.item() / len(rows)}
    figures |= score(task, lambda images: network(fixed_view(images.to(device), size)), task.batch_size)
    return {f"{name}_{figure}": value for figure, value in figures.items()}
