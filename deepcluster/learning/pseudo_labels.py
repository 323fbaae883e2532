"""Learning (step 5): train the body and a new linear classifier to predict the cluster numbers."""

import math
from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from deepcluster.errors import NonFiniteError
from deepcluster.images.augment import Augmentation, random_views
from deepcluster.images.sampling import uniform_over_clusters
from deepcluster.nets.backbone import Network
from deepcluster.records import Trained
from deepcluster.runtime.devices import CPU, moved
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import Processes
from deepcluster.runtime.threads import made_ahead
from deepcluster.seeding import generator, lent_global

IGNORED = -100  # the label of an image that only fills up a part of a batch
Sampler = Callable[[Tensor, int, torch.Generator], Tensor]
Step = float | Callable[[float], float]  # a learning rate, or one that depends on the time in rounds


def body_optimizer(network: Network, *, momentum: float = 0.9, weight_decay: float = 1e-5) -> SGD:
    """SGD for everything below the head. It lives as long as the run: its momentum outlasts the rounds."""
    return SGD(network.body_parameters(), lr=0.0, momentum=momentum, weight_decay=weight_decay)


def momenta(optimizer: SGD) -> tuple[Tensor, ...]:
    """The momentum of each parameter; an empty tensor where there is none yet."""
    states = [optimizer.state[each] for each in optimizer.param_groups[0]["params"]]
    return tuple(torch.empty(0) if (found := each.get("momentum_buffer")) is None else found for each in states)


def restore_momentum(optimizer: SGD, momentum: Sequence[Tensor]) -> None:
    """Put back what :func:`momenta` took; nothing where ``momentum`` is empty."""
    for parameter, each in zip(optimizer.param_groups[0]["params"] if momentum else (), momentum, strict=True):
        if each.numel():
            optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(each)


def train_on_pseudo_labels(
    network: Network,
    images: Tensor,
    labels: Tensor,
    optimizer: SGD,
    *,
    size: int,
    lr: Step,
    head_lr: float | None = None,
    epochs: int,
    batch_size: int,
    views: Sequence[Augmentation],
    clusters: Sequence[int] | None = None,
    trust: float = 1.0,
    instance_temperature: float = 0.2,
    sample: Sampler = uniform_over_clusters,
    seed: int = 0,
    round: int = 0,
    memory: Tensor | None = None,
    partition: Partition | None = None,
    dtype: torch.dtype = torch.float32,
    begun: Trained | None = None,
    keep: Callable[[Trained], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """Minimise the cross-entropy of ``labels`` over ``epochs`` x N images; returns its mean over them.

    labels: int64, N; or N x H of H clusterings into ``clusters`` (H numbers), whose logits lie side by side in the
    head. The loss is the mean over them and over the ``views`` of an image. ``trust`` is its weight in what is
    minimised; the rest goes to the loss of the finest clustering, in which every image is a cluster of its own, and
    which is not part of the number returned. ``network`` has its head of this
    round. A linear one gets an SGD of its own: the same decay, the step ``head_lr`` (``lr`` where it is None, as
    published), no momentum. ``optimizer`` is the body's. ``sample`` draws the images of an epoch by the labels of one
    clustering, of each in turn. Into ``memory`` (N x D) go the embeddings of each image as they were when it was last
    trained on, the mean over its first two views where they are of one size. ``partition``: which rank has which
    images (None: one has all); then ``images`` and ``memory`` are the own rows of each, and ``labels`` those of all. Each
    step is made of one sample of all images, of which every process takes its stride and gets the pictures from whoever has
    them; gradients are those of the loss of the whole sample, in which each image is told from those of all processes.
    (Batch normalisation is of the own images of each.) ``keep`` is told after each step how far the training is, and
    goes on from there where it was ``begun``. Raises NonFiniteError at the end of the epoch in
    which the loss stopped being finite.
    """
    assert network.head is not None, "a head comes before training"
    device = next(network.parameters()).device
    labels = labels.reshape(len(labels), -1)
    optimizers = [optimizer]
    if head_parameters := list(network.head.parameters()):
        optimizers.append(SGD(head_parameters, lr=0.0, weight_decay=optimizer.param_groups[0]["weight_decay"]))
    network.train()
    partition = partition or Partition.single(len(images))
    processes, count = partition.processes, partition.total
    model = processes.data_parallel(_Pass(network))
    # Channels-last, an image lies in one piece: else indexing goes pixel by pixel, which is ten times as slow.
    pixels = images.permute(0, 2, 3, 1)
    mine = () if processes.alone else (processes.rank,)
    # Batches of equal size, so that none is too small for batch normalisation.
    steps = max(1, math.ceil(count / batch_size))
    whole = 2 if len(views) > 1 and views[0].size == views[1].size else 1
    begun = begun or Trained(0, torch.zeros(()), torch.zeros((), dtype=torch.float64))
    done, epoch_loss, total = begun.steps, begun.epoch_loss.to(device), begun.loss

    def prepare(batch: tuple[int, int, Tensor]) -> tuple[int, list[Tensor], list[Tensor], Tensor, Tensor]:
        epoch, step, drawn = batch
        random = generator(seed, "augment", round, epoch, step, *mine)
        wanted = strides(drawn, processes.world_size)
        targets = labels[wanted[processes.rank]]
        targets[new_images(len(drawn), processes.world_size)[processes.rank] :] = IGNORED
        pictures = moved(partition.get_rows(pixels, wanted), device).permute(0, 3, 1, 2)
        seen = [random_views(pictures, how.size or size, how, random) for how in views]
        return step, wanted, seen, moved(targets, device), moved(drawn, device)

    for epoch in range(done // steps, epochs):
        by = labels[:, (round * epochs + epoch) % labels.shape[1]]
        drawn = sample(by, count, generator(seed, "sample", round, epoch)).tensor_split(steps)
        batches = ((epoch, step, drawn[step]) for step in range(done % steps, steps))
        # What processes exchange has an order, which a thread that works ahead would not keep.
        for step, wanted, seen, targets, together in made_ahead(prepare, batches, device if processes.alone else CPU):
            _set_steps(optimizers, lr, head_lr, round + (epoch + step / steps) / epochs)
            # Dropout draws from the global generator.
            with (
                lent_global(seed, "training", round, epoch, step, *mine, device=device),
                torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
            ):
                embeddings, logits = model(*seen)
            if memory is not None:
                new = new_images(len(together), processes.world_size)
                own = embeddings.detach().unflatten(0, (len(seen), -1))[:whole].mean(0)[: new[processes.rank]]
                _remember(memory, *partition.put_rows(own, [rows[:n] for rows, n in zip(wanted, new, strict=True)]))
            # The mean gradient of all processes is to be that of the mean over the images of all.
            loss = _loss(logits, targets, clusters, len(together) / processes.world_size)
            goal = loss
            if trust < 1:
                pairs = _pairs(embeddings, len(targets), len(together), processes)
                instances = processes.world_size * _instance_loss(pairs, together, instance_temperature)
                goal = trust * loss + (1 - trust) * instances
            for each in optimizers:
                each.zero_grad()
            goal.backward()
            for each in optimizers:
                each.step()
            epoch_loss = epoch_loss + loss.detach() * (len(drawn[step]) / count)
            done += 1
            if step + 1 == steps:
                epoch_loss = processes.all_reduce(epoch_loss) / processes.world_size
                if not math.isfinite(epoch_loss.item()):
                    raise NonFiniteError(
                        f"the loss is no longer finite in round {round}, epoch {epoch}, with a learning rate of"
                        f" {optimizer.param_groups[0]['lr']:g}: try a tenth of it (--lr)"
                    )
                total, epoch_loss = total + epoch_loss.cpu().double(), torch.zeros((), device=device)
            if keep is not None:
                keep(Trained(done, epoch_loss, total))
            if progress is not None:
                progress(epoch * count + (step + 1) * count // steps, epochs * count)
    processes.broadcast_buffers(network)
    return total.item() / max(1, epochs)


class _Pass(nn.Module):
    """From views to embeddings and logits in one call, which is what several processes can share."""

    def __init__(self, network: Network):
        super().__init__()
        self.network = network

    def forward(self, *views: Tensor) -> tuple[Tensor, Tensor]:
        embeddings = self.network.embed(_features(self.network, views))
        return embeddings, self.network.classify(embeddings)


def strides(drawn: Tensor, count: int) -> list[Tensor]:
    """One sample of images for ``count`` processes: equal parts, filled up with its first images where it is too short.

    At least two images each, as batch normalisation has no variance of one.
    """
    if count == 1:
        return [drawn]
    each = max(2, -(-len(drawn) // count))
    filled = drawn[torch.arange(each * count) % len(drawn)]
    return [filled[rank::count] for rank in range(count)]


def new_images(drawn: int, count: int) -> list[int]:
    """How many images of each of the :func:`strides` are new: what is behind them fills up, and counts for nothing."""
    return [len(range(rank, drawn, count)) for rank in range(count)]


def _remember(memory: Tensor, embeddings: Tensor, rows: Tensor) -> None:
    """Put embeddings into their rows of the memory, the last where a batch has an image more than once.

    (To assign all at once leaves open which of them stays: with two threads it differed from run to run.)
    """
    last = np.unique(rows.flip(0).numpy(), return_index=True)[1]
    places = torch.from_numpy(len(rows) - 1 - last)
    memory[moved(rows[places], memory.device)] = embeddings[moved(places, embeddings.device)].to(memory)


def _set_steps(optimizers: Sequence[SGD], lr: Step, head_lr: float | None, time: float) -> None:
    """The learning rates at a ``time`` in rounds: the body's, and the head's where it learns."""
    body = lr(time) if callable(lr) else lr
    for each, step in zip(optimizers, (body, body if head_lr is None else head_lr), strict=False):
        for group in each.param_groups:
            group["lr"] = step


def _features(network: Network, views: Sequence[Tensor]) -> Tensor:
    """Features of all views, one after the other; views of one size go through the network together."""
    parts: list[Tensor] = []
    for _, alike in groupby(views, key=lambda view: view.shape[-1]):
        batch = list(alike)
        parts.append(network.features(batch[0] if len(batch) == 1 else _stacked(batch)))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _stacked(views: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(views)).contiguous(memory_format=torch.channels_last)


def _pairs(embeddings: Tensor, images: int, total: int, processes: Processes) -> Tensor:
    """The first two views of the ``total`` images of a step of all processes, in the order in which they were drawn.

    Those of this one alone have a gradient. Each computes the loss of all from them, so the sum of all gradients is
    that of the loss, and nothing goes round on the way back.
    """
    own = embeddings[: 2 * images].float()
    if processes.alone:
        return own
    views = [each.unflatten(0, (2, images)) for each in processes.all_gather(own)]
    return torch.stack(views, 2).flatten(1, 2)[:, :total].flatten(0, 1)


def _instance_loss(embeddings: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """The images of a batch as clusters: each of their first two views is to be told from all others by its likeness
    to the other one, which stands for the centroid (SimCLR's loss, the E-step of PCL's finest level).

    ``rows`` are the numbers of the images: one that a batch has twice is not told from itself.
    """
    images = len(rows)
    pair = F.normalize(embeddings[: 2 * images].float(), dim=1)
    other = torch.arange(2 * images, device=pair.device).roll(images)
    twice = rows.repeat(2)
    own = twice.unsqueeze(1) == twice
    own[torch.arange(2 * images, device=pair.device), other] = False
    return F.cross_entropy((pair @ pair.T / temperature).masked_fill(own, -torch.inf), other)


def _loss(logits: Tensor, labels: Tensor, clusters: Sequence[int] | None, images: float) -> Tensor:
    """Cross-entropy, the mean over views, ``images`` and clusterings; logits: views x labels, clusters side by side."""
    views = len(logits) // len(labels)
    parts = logits.float().split(list(clusters) if clusters else logits.shape[1], 1)
    losses = [
        F.cross_entropy(part, each.repeat(views), ignore_index=IGNORED, reduction="sum") / (views * images)
        for part, each in zip(parts, labels.T, strict=True)
    ]
    return torch.stack(losses).mean()
