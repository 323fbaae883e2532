"""The classifier that a round puts on top of the network, and the loss that trains both (step 5)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from deepcluster.clustering.agreement import Drift
from deepcluster.clustering.kmeans import means
from deepcluster.clustering.whitening import unit_rows
from deepcluster.nets.network import Network
from deepcluster.records import Clustering
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import Processes

IGNORED = -100  # the label of an image that only fills up a part of a batch


@dataclass(frozen=True)
class Outputs:
    """Outputs of the network for V views of this rank's B images in an optimizer step.

    Attributes:
        embeddings: V*B x D, view after view.
        logits: V*B x the sum of ``clusters``, those of several clusterings side by side.
        labels: int64, B x the number of clusterings; IGNORED for images that only fill up the batch.
        clusters: Number of clusters of each clustering.
        drawn: Numbers of the images of all ranks.
    """

    embeddings: Tensor
    logits: Tensor
    labels: Tensor
    clusters: Sequence[int]
    drawn: Tensor


class Loss(Protocol):
    """The loss that step 5 minimises.

    sums_images: It is a sum over the images of a batch, which no two of them share a term of.
    """

    sums_images: bool

    def cluster_weight(self, change: Drift, seed: int, round: int) -> float:
        """Return the weight (0 to 1) of this round's pseudo-labels by their change since the previous round."""

    def __call__(self, outputs: Outputs, cluster_weight: float, processes: Processes) -> tuple[Tensor, Tensor]:
        """Return the value to minimise (all ranks take its mean gradient), and the cross-entropy to report."""


class CrossEntropy:
    """The paper's: the cross-entropy of the pseudo-labels, which count in full."""

    sums_images = True

    def cluster_weight(self, change: Drift, seed: int, round: int) -> float:
        return 1.0

    def __call__(self, outputs: Outputs, cluster_weight: float, processes: Processes) -> tuple[Tensor, Tensor]:
        loss = cross_entropy(outputs, processes.world_size)
        return loss, loss


def cross_entropy(outputs: Outputs, world_size: int = 1) -> Tensor:
    """The mean over views, images and clusterings. The mean of it over the ranks is that over the images of all."""
    views = len(outputs.logits) // len(outputs.labels)
    count = views * (len(outputs.drawn) / world_size)
    losses = [
        F.cross_entropy(logits, labels.repeat(views), ignore_index=IGNORED, reduction="sum") / count
        for logits, labels in zip(
            outputs.logits.float().split(list(outputs.clusters), 1), outputs.labels.T, strict=True
        )
    ]
    return torch.stack(losses).mean()


# network, this rank's features (n x D), clusterings, partition, random: puts the classifier of this round on top
Head = Callable[[Network, Tensor, Sequence[Clustering], Partition, torch.Generator], None]


def new_linear_head(
    network: Network,
    features: Tensor,
    clusterings: Sequence[Clustering],
    partition: Partition,
    random: torch.Generator,
) -> None:
    """The paper's: a new linear classifier, with the outputs of all clusterings side by side."""
    network.new_head(sum(len(clustering.centroids) for clustering in clusterings), random)


@dataclass(frozen=True)
class CentroidHead:
    """DeepCluster-v2's: the mean directions of the clusters, frozen; their cosines are divided by ``temperature``."""

    temperature: float

    def __call__(
        self,
        network: Network,
        features: Tensor,
        clusterings: Sequence[Clustering],
        partition: Partition,
        random: torch.Generator,
    ) -> None:
        rows = unit_rows(features)
        centroids = [
            means(rows, clustering.labels[partition.local], len(clustering.centroids), partition)
            for clustering in clusterings
        ]
        network.centroid_head(torch.cat(centroids), self.temperature)
