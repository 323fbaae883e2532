"""The package's own addition to step 5: as long as the clusters change, every image also counts as its own cluster.

The first clusters of an untrained network are clusters of colours and little else, and to train on them teaches that.
So the pseudo-labels weigh as much as they repeat the previous ones, and the rest of the weight goes to the finest
clustering there is: telling images apart. No label is looked at.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from deepcluster.clustering.agreement import Drift, repeated
from deepcluster.learning.heads import Outputs, cross_entropy
from deepcluster.runtime.processes import Processes
from deepcluster.seeding import generator


@dataclass(frozen=True)
class WithInstances:
    """w * cross-entropy of the pseudo-labels + (1 - w) * :func:`instance_loss`, with w from :func:`repeated_weight`.

    Needs two views of an image. ``temperature`` divides the cosines of the instance loss.
    """

    temperature: float
    sums_images = False  # every other image of the batch is in its denominator

    def cluster_weight(self, change: Drift, seed: int, round: int) -> float:
        return repeated_weight(change.previous, change.labels, seed, round)

    def __call__(self, outputs: Outputs, cluster_weight: float, processes: Processes) -> tuple[Tensor, Tensor]:
        loss = cross_entropy(outputs, processes.world_size)
        if cluster_weight == 1:
            return loss, loss
        pairs = all_pairs(outputs.embeddings, len(outputs.labels), len(outputs.drawn), processes)
        instances = processes.world_size * instance_loss(pairs, outputs.drawn, self.temperature)
        return cluster_weight * loss + (1 - cluster_weight) * instances, loss


def repeated_weight(previous: Tensor | None, current: Tensor, seed: int, round: int) -> float:
    """a^2 / (a^2 + (1 - a)^2), where a is how far the current labels repeat the previous ones (0 to 1)."""
    if previous is None:
        return 0.0
    share = repeated(previous, current, generator(seed, "chance", round))
    return share**2 / (share**2 + (1 - share) ** 2)


def all_pairs(embeddings: Tensor, images: int, total: int, processes: Processes) -> Tensor:
    """The first two views (2 ``total`` x D) of the images of all ranks, in the order in which they were drawn.

    Only this rank's have a gradient. Each rank computes the loss of all images, so the sum of the gradients over the
    ranks is that of the loss, and nothing is exchanged in the backward pass.

    Args:
        embeddings: This rank's views of its ``images`` images, view after view.
        images: Number of images of each rank, filling included.
        total: Number of images of all ranks without filling.
    """
    local = embeddings[: 2 * images].float()
    if processes.alone:
        return local
    views = [gathered.unflatten(0, (2, images)) for gathered in processes.all_gather(local)]
    return torch.stack(views, 2).flatten(1, 2)[:, :total].flatten(0, 1)


def instance_loss(pairs: Tensor, numbers: Tensor, temperature: float) -> Tensor:
    """SimCLR's loss, the finest level of PCL: each view is to find the other view of its image among all others.

    Args:
        pairs: Embeddings of the first views of B images, then of their second views: 2B x D.
        numbers: Numbers of the B images. One that is drawn twice is not told from itself.
        temperature: Divides the cosines.
    """
    images = len(numbers)
    units = F.normalize(pairs[: 2 * images].float(), dim=1)
    other = torch.arange(2 * images, device=units.device).roll(images)
    twice = numbers.repeat(2)
    same = twice.unsqueeze(1) == twice
    same[torch.arange(2 * images, device=units.device), other] = False
    return F.cross_entropy((units @ units.T / temperature).masked_fill(same, -torch.inf), other)
