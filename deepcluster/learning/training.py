"""Learning (step 5): train the body and the classifier on top of it to predict the cluster numbers."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, Optimizer
from torch.optim.swa_utils import update_bn

from deepcluster.errors import ModelError, NonFiniteError, UsageError, first_line
from deepcluster.images.views import Augmentation, fixed_view, random_views
from deepcluster.learning.draws import uniform_over_clusters
from deepcluster.learning.heads import IGNORED, CrossEntropy, Head, Loss, Outputs, new_linear_head, objective_of
from deepcluster.nets.network import Network
from deepcluster.runtime.ahead import prefetched, to_device
from deepcluster.runtime.compute import TRAINING_PHASE, Compute
from deepcluster.runtime.devices import CPU, has_bf16
from deepcluster.seeding import generator, lent_global

# On a CPU a part of a step has at most so many pixels of views, but at least so many images. Backward keeps the outputs
# of all layers of a part: in EfficientNet-Lite0 some 470 numbers a pixel.
PART = 1 << 18
FEWEST = 8
STATISTICS_IMAGES = 10_000

Sampler = Callable[[Tensor, int, torch.Generator], Tensor]
LearningRate = float | Callable[[float], float]  # a function of the time in rounds
OptimizerOf = Callable[[list[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class Learning:
    """Step 5. The defaults are the paper's.

    Examples:
        >>> Learning(lr=lambda time: 0.1 / (1 + time)).lr_at(1)
        0.05
    """

    epochs: int = 1  #: passes over N images in a round
    batch_size: int = 256  #: images in an optimizer step, of all ranks together
    lr: LearningRate = 0.05  #: a number, or a function of the time in rounds
    #: Learning rate of a linear head, which is new in every round, so a low one teaches it nothing. If None, ``lr``.
    head_lr: float | None = None
    momentum: float = 0.9  #: of the body; a linear head has none, as published
    weight_decay: float = 1e-5  #: of body and head
    #: Makes the optimizer of the body's parameters, for instance ``torch.optim.AdamW``. Its learning rate is ``lr``;
    #: ``momentum`` and ``weight_decay`` of the body are its own. None: SGD, as published.
    optimizer: OptimizerOf | None = None
    views: Sequence[Augmentation] = (Augmentation(),)  #: of an image in an optimizer step
    sample: Sampler = uniform_over_clusters  #: draws the images of an epoch by their labels
    head: Head = new_linear_head  #: puts the classifier of a round on top
    #: The loss to minimise.
    loss: Loss = CrossEntropy()  # noqa: RUF009
    renumber: bool = False  #: train on the positions of the labels among the occupied clusters (the released code)
    reuse_features: bool = False  #: cluster the features that training saw, without a pass (DeepCluster-v2)

    def lr_at(self, time: float) -> float:
        """Return the learning rate of the body at a ``time`` in rounds."""
        return self.lr(time) if callable(self.lr) else self.lr


def body_optimizer(network: Network, learning: Learning, state: Mapping[str, Any] | None = None) -> Optimizer:
    """Return the optimizer of everything below the head, which lasts for all rounds.

    ``state``: The ``state_dict`` to continue with, which is copied. None or empty: a new optimizer.

    Raises ModelError if the state is not of this optimizer.
    """
    published = partial(SGD, lr=0.0, momentum=learning.momentum, weight_decay=learning.weight_decay)
    optimizer = (learning.optimizer or published)([*network.body_parameters()])
    if not isinstance(optimizer, Optimizer):
        raise UsageError(f"optimizer must return a torch.optim.Optimizer of the parameters, and returned {optimizer!r}")
    if state:
        try:
            optimizer.load_state_dict(copy.deepcopy({**state}))
        except (LookupError, ValueError) as error:
            raise ModelError(
                f"the state of the optimizer in a checkpoint does not fit this run ({first_line(error)[:200]}):"
                " --overwrite starts anew"
            ) from error
    return optimizer


class Batch(NamedTuple):
    """The images of one optimizer step. Tensors are on the device, except the indices of ``parts``."""

    step: int  # in the epoch
    drawn: Tensor  # indices of the images that all ranks train on together
    parts: list[Tensor]  # indices of the images of every rank (see strides)
    new: list[int]  # number of images of every rank without filling
    views: list[Tensor]  # of this rank's images
    targets: Tensor  # labels of this rank's images; IGNORED for filling


def strides(drawn: Tensor, world_size: int) -> list[Tensor]:
    """Divide a sample among the ranks: equal parts, filled up with its first images if it is too short.

    A part has at least two images, because batch normalisation has no variance of one.
    """
    if world_size == 1:
        return [drawn]
    size = max(2, -(-len(drawn) // world_size))
    filled = drawn[torch.arange(size * world_size) % len(drawn)]
    return [filled[rank::world_size] for rank in range(world_size)]


@dataclass(frozen=True)
class PseudoLabels:
    """The targets of a round.

    Examples:
        >>> PseudoLabels(torch.tensor([[0], [1], [1]]), clusters=[2]).labels.shape
        torch.Size([3, 1])
    """

    labels: Tensor  #: int64, N x H: clusters of all images in H clusterings; samples are drawn by them in turn
    clusters: Sequence[int]  #: number of clusters in each clustering
    weight: float = 1.0  #: for the loss
    round: int = 0  #: index of the round


def train_on_pseudo_labels(
    network: Network,
    images: Tensor,
    targets: PseudoLabels,
    optimizer: Optimizer,
    learning: Learning,
    compute: Compute | None = None,
    *,
    seed: int = 0,
    memory: Tensor | None = None,
) -> float:
    """Train ``network``, which has its head, for ``learning.epochs`` x N images.

    Each optimizer step trains on one sample of the images of all ranks. With W ranks, a rank takes every W-th image of
    the sample. Gradients are averaged over the ranks, which gives the gradient of the loss of the whole sample. (Batch
    normalisation uses this rank's images alone.)

    Args:
        images: uint8, n x 3 x S x S: this rank's.
        optimizer: Optimizer of the body. A linear head gets an SGD of its own, without momentum.
        compute: Device, precision, and the size of views that do not set one. None: one process has all images, and the
            views have S px.
        memory: n x D, changed in place: for each image that is trained on, its latest embedding. If the first two
            views have the same size, their mean; else the first view's.

    Returns:
        The mean over the epochs of the cross-entropy that the loss reports.

    Raises:
        NonFiniteError: At the end of the epoch in which the loss stopped being finite.
        UsageError: A step is one view of one image, which batch normalisation cannot train on.

    Examples:
        >>> network, images = build("compact", image_size=16), torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
        >>> network.new_head(2, torch.Generator())
        >>> targets, optimizer = PseudoLabels(torch.tensor([[0], [1], [1], [0]]), [2]), SGD(network.body_parameters())
        >>> train_on_pseudo_labels(network, images, targets, optimizer, Learning(epochs=2)) > 0
        True
    """
    assert network.head is not None, "a head comes before training"
    compute = compute or Compute.of(network, images)
    optimizers = [optimizer]
    if head_parameters := list(network.head.parameters()):
        optimizers.append(SGD(head_parameters, lr=0.0, weight_decay=learning.weight_decay))
    if learning.renumber:
        columns = [torch.unique(column, return_inverse=True)[1] for column in targets.labels.T]
        targets = replace(targets, labels=torch.stack(columns, 1))
    network.train()
    model = compute.partition.processes.data_parallel(_Pass(network))
    training = _Training(network, model, optimizers, images, targets, learning, compute, seed, memory)
    compute.progress(TRAINING_PHASE, 0, learning.epochs * compute.partition.total)
    losses = [training.epoch(epoch) for epoch in range(learning.epochs)]
    compute.partition.processes.broadcast_buffers(network)
    return sum(losses) / max(1, learning.epochs)


@dataclass(frozen=True)
class _Training:
    """The training of one round: the epochs and their optimizer steps."""

    network: Network
    model: nn.Module  # views to embeddings and logits by the network, on all ranks
    optimizers: Sequence[Optimizer]  # of the body, and of a linear head
    images: Tensor
    targets: PseudoLabels
    learning: Learning
    compute: Compute
    seed: int
    memory: Tensor | None

    def epoch(self, epoch: int) -> float:
        """Train on one sample of N images, and return the mean loss."""
        learning, targets, compute = self.learning, self.targets, self.compute
        processes = compute.partition.processes
        count = compute.partition.total
        # Batches of equal size, so that none is too small for batch normalisation.
        steps = max(1, math.ceil(count / learning.batch_size))
        by = targets.labels[:, (targets.round * learning.epochs + epoch) % targets.labels.shape[1]]
        drawn = learning.sample(by, count, generator(self.seed, "sample", targets.round, epoch)).tensor_split(steps)
        mean_loss = torch.zeros((), device=compute.device)
        # Collectives have an order, which a thread that works ahead would not keep.
        ahead_on = compute.device if processes.alone else CPU
        for batch in prefetched(partial(self.batch, epoch), enumerate(drawn), ahead_on):
            lr = learning.lr_at(targets.round + (epoch + batch.step / steps) / learning.epochs)
            mean_loss = mean_loss + self.step(epoch, lr, batch) * (len(batch.drawn) / count)
            done = epoch * count + (batch.step + 1) * count // steps
            compute.progress(TRAINING_PHASE, done, learning.epochs * count)
        mean_loss = processes.all_reduce(mean_loss) / processes.world_size
        if not torch.isfinite(mean_loss):
            lr = self.optimizers[0].param_groups[0]["lr"]
            loss = f"the loss of round {targets.round}, epoch {epoch}, is not finite with a learning rate of {lr:g}"
            raise NonFiniteError(f"{loss}: try a tenth of it (--lr {lr / 10:g})")
        return mean_loss.item()

    def batch(self, epoch: int, sample: tuple[int, Tensor]) -> Batch:
        """Return the batch of a sample: the number of its step, and the images that all ranks draw for it."""
        step, drawn = sample
        compute = self.compute
        processes = compute.partition.processes
        parts = strides(drawn, processes.world_size)
        new = [len(range(rank, len(drawn), len(parts))) for rank in range(len(parts))]
        targets = self.targets.labels[parts[processes.rank]]
        targets[new[processes.rank] :] = IGNORED
        # Channels-last, an image lies in one piece: else indexing goes pixel by pixel, which is ten times as slow.
        pixels = compute.partition.get_rows(self.images.permute(0, 2, 3, 1), parts)
        images = to_device(pixels, compute.device).permute(0, 3, 1, 2)
        random = generator(self.seed, "augment", self.targets.round, epoch, step, *processes.seed_index)
        views = [random_views(images, view.size or compute.size, view, random) for view in self.learning.views]
        return Batch(step, to_device(drawn, compute.device), parts, new, views, to_device(targets, compute.device))

    def step(self, epoch: int, lr: float, batch: Batch) -> Tensor:
        """Make one optimizer step, and return the loss that is reported."""
        loss = self.learning.loss
        head_lr = self.learning.head_lr
        compute = self.compute
        processes = compute.partition.processes
        device = compute.device
        for optimizer in self.optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = lr if optimizer is self.optimizers[0] or head_lr is None else head_lr
        pixels = sum(view.shape[-1] ** 2 for view in batch.views)
        parts = number_of_parts(self.network, len(batch.targets), pixels, loss, processes.world_size)
        reported = torch.zeros((), device=device)
        first, *others = self.learning.views
        alike = 2 if others and first.size == others[0].size else 1
        remembered = []
        # Dropout draws from the global generator.
        at = (self.targets.round, epoch, batch.step, *processes.seed_index)
        with lent_global(self.seed, "training", *at, device=device):
            split = (x.tensor_split(parts) for x in (*batch.views, batch.targets))
            for *views, labels in zip(*split, strict=True):
                with torch.autocast(device.type, compute.dtype, enabled=compute.dtype != torch.float32):
                    embeddings, logits = self.model(*views)
                outputs = Outputs(embeddings, logits, labels, self.targets.clusters, batch.drawn)
                objective, part_loss = objective_of(loss, outputs, self.targets.weight, processes)
                objective.backward()
                reported = reported + part_loss.detach()
                remembered.append(embeddings.detach().unflatten(0, (len(views), -1))[:alike].mean(0))
        if self.memory is not None:
            of_ranks = processes.all_gather(torch.cat(remembered))
            embeddings = torch.cat([part[:n] for part, n in zip(of_ranks, batch.new, strict=True)])
            rows = torch.cat([part[:n] for part, n in zip(batch.parts, batch.new, strict=True)])
            _remember(self.memory, embeddings, rows - compute.partition.local.start)
        for optimizer in self.optimizers:
            optimizer.step()
        return reported


def number_of_parts(network: Network, images: int, pixels: int, loss: Loss, processes: int = 1) -> int:
    """Return the number of parts of an optimizer step: only the layer outputs of one part are in memory at a time.

    It is 1 unless the gradients of the parts add up to the batch's: no image may have an effect on another, neither by
    batch normalisation nor by the loss. (The number changes the last bits, so it depends on sizes alone.)
    ``images`` and ``processes`` are the numbers of a step; ``pixels`` counts the pixels of all views of an image.
    """
    apart = network.frozen_statistics or not any(isinstance(module, _BatchNorm) for module in network.body.modules())
    if processes > 1 or network.mean.device.type != "cpu" or not (apart and loss.sums_images):
        return 1
    return max(1, min(-(-images * pixels // PART), images // FEWEST))


class _Pass(nn.Module):
    """From views to embeddings and logits in one call, as DistributedDataParallel needs it."""

    def __init__(self, network: Network):
        super().__init__()
        self.network = network

    def forward(self, *views: Tensor) -> tuple[Tensor, Tensor]:
        # Neighbouring views of one size share a forward pass.
        alike = [[*of_size] for _, of_size in groupby(views, key=lambda view: view.shape[-1])]
        stacked = (
            torch.cat(part).contiguous(memory_format=torch.channels_last) if part[1:] else part[0] for part in alike
        )
        try:
            embeddings = self.network.embed(torch.cat([self.network.features(batch) for batch in stacked]))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):  # torch's batch normalisation
                raise
            raise UsageError(
                "batch normalisation cannot train on one view of one image: give more images, a --batch-size of at"
                " least 2 or --set views=2"
            ) from error
        return embeddings, self.network.classify(embeddings)


def _remember(memory: Tensor, embeddings: Tensor, rows: Tensor) -> None:
    """Put embeddings into their rows of the memory, if it has them; of an image that comes more than once, the last.

    (To assign all at once leaves open which of them stays: with two threads it differed from run to run.)
    """
    last = {row: position for position, row in enumerate(rows.tolist()) if 0 <= row < len(memory)}
    numbers, positions = (torch.tensor([*of], dtype=torch.int64) for of in (last.keys(), last.values()))
    memory[to_device(numbers, memory.device)] = embeddings[to_device(positions, embeddings.device)].to(memory)


# Measured on 2 AMD cores with native bfloat16: the compact network takes .53 of float32's time in bfloat16,
# EfficientNet with its depthwise convolutions several times as long.
def network_precision(network: Network, device: torch.device, name: str = "auto") -> torch.dtype:
    """Return the type of the products of a network on ``device``: ``fp32``, ``bf16`` or ``auto``.

    That is bfloat16 if it is native, but not for grouped convolutions on a CPU, which have no fast kernel there.
    """
    if name == "auto":
        grouped = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in network.modules())
        name = "bf16" if has_bf16(device) and not (grouped and device.type == "cpu") else "fp32"
    return torch.bfloat16 if name == "bf16" else torch.float32


def measure_statistics(network: Network, images: Tensor, compute: Compute, seed: int) -> None:
    """Measure the statistics of batch normalisation anew, for weights that were not trained with them. A collective.

    ``images``: This rank's; the result is the main rank's. With old statistics, averaged weights of two rounds on
    CIFAR-10 have .576 right neighbours instead of .595.
    """
    order = torch.randperm(len(images), generator=generator(seed, "statistics"))[:STATISTICS_IMAGES]
    # A layer may see one value per channel of a single image, which has no variance.
    parts = order.tensor_split(max(1, len(order) // max(2, compute.batch_size)))
    views = (fixed_view(images[part], compute.size).to(compute.device) for part in parts)
    if len(order) > 1:
        with lent_global(seed, "statistics", device=compute.device):  # for dropout
            update_bn(((view - network.mean) / network.std for view in views), network.body)
    compute.partition.processes.broadcast_buffers(network)


def average_weights(body: nn.Module, before: Mapping[str, Tensor], share: float) -> None:
    """Give the body the mean of its weights ``before`` a round and, by their ``share``, its present ones.

    The mean keeps more of a pretrained network's knowledge than its last state does (WiSE-FT, Wortsman et al. 2022),
    and at a constant learning rate it is nearer to the point around which the weights lie (Izmailov et al. 2018).
    """
    last = body.state_dict()
    floats = {name: value for name, value in last.items() if value.is_floating_point()}
    body.load_state_dict(last | {name: before[name].to(x.device).lerp(x, share) for name, x in floats.items()})
