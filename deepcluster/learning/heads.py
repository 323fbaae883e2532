"""The classifier that a round puts on top of the network, and the losses that train both (step 5).

:class:`WithInstances` is the package's own addition: as long as the clusters change, every image also counts as its own
cluster. The first clusters of an untrained network are clusters of colours and little else, and to train on them
teaches that. So the weight of the pseudo-labels grows with the share by which they repeat the previous ones. The rest
of the weight goes to the finest clustering, which tells single images apart. True labels are never used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from deepcluster.clustering.agreement import LabelChange, repeated
from deepcluster.clustering.kmeans import means
from deepcluster.clustering.whitening import unit_rows
from deepcluster.errors import UsageError
from deepcluster.learning.features import Features
from deepcluster.nets.network import Network
from deepcluster.records import Clustering
from deepcluster.runtime.processes import Processes
from deepcluster.seeding import generator

IGNORED = -100  # the label of an image that only fills up a part of a batch


@dataclass(frozen=True)
class Outputs:
    """Outputs of the network for V views of this rank's B images in an optimizer step.

    Examples:
        >>> images, labels = torch.arange(4), torch.tensor([[0], [1], [2], [1]])
        >>> Outputs(torch.eye(4), torch.eye(4), labels, clusters=[4], drawn=images).logits.argmax(1)
        tensor([0, 1, 2, 3])
    """

    embeddings: Tensor  #: V*B x D, view after view
    logits: Tensor  #: V*B x the sum of ``clusters``, several clusterings side by side
    labels: Tensor  #: int64, B x the number of clusterings; IGNORED for images that only fill up the batch
    clusters: Sequence[int]  #: numbers of clusters of the clusterings
    drawn: Tensor  #: int64, indices of the images that all ranks together train on in this optimizer step


@runtime_checkable
class Loss(Protocol):
    """The loss that step 5 minimises. It has no state: checkpoints do not save it and optimizers do not train it.

    Examples:
        >>> isinstance(CrossEntropy(), Loss)
        True
    """

    sums_images: bool  #: the loss is a sum of independent per-image terms, so a batch may be split

    def cluster_weight(self, change: LabelChange, seed: int, round: int) -> float:
        """Return the weight (0 to 1) of this round's pseudo-labels by their change since the previous round."""

    def __call__(self, outputs: Outputs, cluster_weight: float, processes: Processes) -> tuple[Tensor, Tensor]:
        """Return the objective to minimise, and the cross-entropy that ``Round.loss`` averages.

        Gradients of the objective are averaged over the ranks. So a sum over this rank's views must be divided by
        V * len(outputs.drawn) / world_size.
        """


def objective_of(loss: Loss, outputs: Outputs, cluster_weight: float, processes: Processes) -> tuple[Tensor, Tensor]:
    """Call a loss, which may be the user's. UsageError unless it returns the values of :class:`Loss`."""
    match loss(outputs, cluster_weight, processes):
        case Tensor() as objective, Tensor() as figure if objective.requires_grad:
            if objective.numel() == figure.numel() == 1:
                return objective, figure
    raise UsageError("the loss must return two tensors of one number: the objective, with a gradient, and a figure")


class CrossEntropy:
    """The paper's loss: the cross-entropy of the pseudo-labels, with full weight.

    Examples:
        >>> Learning(loss=CrossEntropy()).loss.sums_images
        True
    """

    sums_images = True

    def cluster_weight(self, change: LabelChange, seed: int, round: int) -> float:
        return 1.0

    def __call__(self, outputs: Outputs, cluster_weight: float, processes: Processes) -> tuple[Tensor, Tensor]:
        loss = cross_entropy(outputs, processes.world_size)
        return loss, loss


def cross_entropy(outputs: Outputs, world_size: int = 1) -> Tensor:
    """Return the mean over views, clusterings and this rank's share of the images.

    The mean of its values over the ranks is the mean over the images of all ranks.
    """
    views = len(outputs.logits) // len(outputs.labels)
    count = views * (len(outputs.drawn) / world_size)
    columns = zip(outputs.logits.float().split(list(outputs.clusters), 1), outputs.labels.T, strict=True)
    losses = [
        F.cross_entropy(logits, labels.repeat(views), ignore_index=IGNORED, reduction="sum") / count
        for logits, labels in columns
    ]
    return torch.stack(losses).mean()


@dataclass(frozen=True)
class WithInstances:
    """w * cross-entropy of the pseudo-labels + (1 - w) * :func:`instance_loss`.

    w is a^2 / (a^2 + (1 - a)^2) for the share a by which the labels repeat the previous ones. Needs two views of an
    image. ``temperature`` divides the cosines of the instance loss.

    Examples:
        >>> Learning(loss=WithInstances(temperature=0.2), views=(Augmentation(), Augmentation())).loss
        WithInstances(temperature=0.2)
    """

    temperature: float
    sums_images = False  # every other image of the batch is in its denominator

    def cluster_weight(self, change: LabelChange, seed: int, round: int) -> float:
        if change.previous is None:
            return 0.0
        share = repeated(change.previous, change.labels, generator(seed, "chance", round))
        return share**2 / (share**2 + (1 - share) ** 2)

    def __call__(self, outputs: Outputs, cluster_weight: float, processes: Processes) -> tuple[Tensor, Tensor]:
        loss = cross_entropy(outputs, processes.world_size)
        if cluster_weight == 1:
            return loss, loss
        pairs = all_pairs(outputs.embeddings, len(outputs.labels), len(outputs.drawn), processes)
        instances = processes.world_size * instance_loss(pairs, outputs.drawn, self.temperature)
        return cluster_weight * loss + (1 - cluster_weight) * instances, loss


def all_pairs(embeddings: Tensor, images: int, total: int, processes: Processes) -> Tensor:
    """Return the first two views (2 ``total`` x D) of the images of all ranks, in the order in which they were drawn.

    Only this rank's ``embeddings`` (view after view of its ``images``, filling included) have a gradient. Each rank
    computes the loss of all images, so the ranks' gradients add up to the gradient of the loss, and nothing is
    exchanged in the backward pass. ``total``: Number of images of all ranks without filling.
    """
    local = embeddings[: 2 * images].float()
    if processes.alone:
        return local
    views = [gathered.unflatten(0, (2, images)) for gathered in processes.all_gather(local)]
    return torch.stack(views, 2).flatten(1, 2)[:, :total].flatten(0, 1)


def instance_loss(pairs: Tensor, numbers: Tensor, temperature: float) -> Tensor:
    """SimCLR's loss, the finest level of PCL: a view must be nearest to the other view of its image among all views.

    ``pairs``: Embeddings of the first views of B images, then of their second views: 2B x D.
    ``numbers``: Indices of the B images. If an image is drawn twice, its views are not told apart.
    """
    images = len(numbers)
    units = F.normalize(pairs[: 2 * images].float(), dim=1)
    other = torch.arange(2 * images, device=units.device).roll(images)
    twice = numbers.repeat(2)
    same = twice.unsqueeze(1) == twice
    same[torch.arange(2 * images, device=units.device), other] = False
    return F.cross_entropy((units @ units.T / temperature).masked_fill(same, -torch.inf), other)


# network, features, clusterings, random: puts the classifier of this round on top
Head = Callable[[Network, Features, Sequence[Clustering], Generator], None]


def new_linear_head(network: Network, features: Features, clusterings: Sequence[Clustering], random: Generator) -> None:
    """Put the paper's head on the network: a new linear classifier, with the outputs of all clusterings side by side.

    Examples:
        >>> Learning(head=new_linear_head).head is new_linear_head  # the default
        True
    """
    network.new_head(sum(len(clustering.centroids) for clustering in clusterings), random)


@dataclass(frozen=True)
class CentroidHead:
    """DeepCluster-v2's head: the frozen mean directions of the clusters; cosines are divided by ``temperature``.

    Examples:
        >>> Learning(head=CentroidHead(temperature=0.1)).head
        CentroidHead(temperature=0.1)
    """

    temperature: float

    def __call__(
        self, network: Network, features: Features, clusterings: Sequence[Clustering], random: Generator
    ) -> None:
        partition = features.compute.partition
        rows = partition.gather(unit_rows(features.rows))
        tensors = partition.processes.broadcast_tensors(
            lambda: {"means": torch.cat([means(rows, one.labels, len(one.centroids)) for one in clusterings])}
        )
        network.centroid_head(tensors["means"], self.temperature)
