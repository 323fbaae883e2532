"""Learning (step 5): train the body and a new linear classifier to predict the cluster numbers."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD

from deepcluster.errors import NonFiniteError
from deepcluster.images.augment import Augmentation, random_views
from deepcluster.images.sampling import uniform_over_clusters
from deepcluster.images.store import gather
from deepcluster.nets.backbone import Network
from deepcluster.seeding import generator, lent_global
from deepcluster.workers import made_ahead

Sampler = Callable[[Tensor, int, torch.Generator], Tensor]


def body_optimizer(network: Network, *, momentum: float = 0.9, weight_decay: float = 1e-5) -> SGD:
    """SGD for everything below the head. It lives as long as the run: its momentum outlasts the rounds."""
    return SGD(network.body_parameters(), lr=0.0, momentum=momentum, weight_decay=weight_decay)


def train_on_pseudo_labels(
    network: Network,
    images: Tensor,
    labels: Tensor,
    optimizer: SGD,
    *,
    size: int,
    lr: float,
    head_lr: float | None = None,
    epochs: int,
    batch_size: int,
    augmentation: Augmentation,
    sample: Sampler = uniform_over_clusters,
    seed: int = 0,
    round: int = 0,
    memory: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """Minimise the cross-entropy of ``labels`` (int64, N) over ``epochs`` x N views; returns its mean over them.

    ``network`` has a fresh head, which gets an SGD of its own: the same decay, the step ``head_lr`` (``lr`` where it is
    None, as published), no momentum. ``optimizer`` is the body's. ``sample`` draws the images of an epoch. Into
    ``memory`` (N x D) go the features of each image as they were when it was last trained on. Raises NonFiniteError at
    the end of the epoch in which the loss stopped being finite.
    """
    assert network.head is not None, "new_head comes before training"
    device = next(network.parameters()).device
    weight_decay = optimizer.param_groups[0]["weight_decay"]
    head_optimizer = SGD(network.head.parameters(), lr=lr if head_lr is None else head_lr, weight_decay=weight_decay)
    for group in optimizer.param_groups:
        group["lr"] = lr
    network.train()
    # Batches of equal size, so that none is too small for batch normalisation.
    steps = max(1, math.ceil(len(images) / batch_size))
    total = torch.zeros((), dtype=torch.float64)

    def prepare(batch: tuple[int, int, Tensor]) -> tuple[int, Tensor, Tensor]:
        epoch, step, rows = batch
        random = generator(seed, "augment", round, epoch, step)
        return step, rows, random_views(gather(images, rows).to(device), size, augmentation, random)

    with lent_global(seed, "training", round):  # dropout draws from the global generator
        for epoch in range(epochs):
            epoch_loss = torch.zeros((), device=device)
            drawn = sample(labels, len(images), generator(seed, "sample", round, epoch))
            batches = ((epoch, step, rows) for step, rows in enumerate(drawn.tensor_split(steps)))
            for step, rows, views in made_ahead(prepare, batches, device):
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    features = network.features(views)
                    logits = network.classify(features)
                if memory is not None:
                    memory[rows] = features.detach().to(memory)
                loss = F.cross_entropy(logits.float(), labels[rows].to(device))
                optimizer.zero_grad()
                head_optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                head_optimizer.step()
                epoch_loss += loss.detach() * (len(rows) / len(images))
                if progress is not None:
                    progress(epoch * len(images) + (step + 1) * len(images) // steps, epochs * len(images))
            if not math.isfinite(epoch_loss.item()):
                raise NonFiniteError(
                    f"the loss is no longer finite in round {round}, epoch {epoch}, with a learning rate of {lr:g}:"
                    " try a tenth of it (--lr)"
                )
            total += epoch_loss.double().cpu()
    return total.item() / max(1, epochs)
