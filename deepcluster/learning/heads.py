"""The classifier that a round puts on top of the network (step 5)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepcluster.clustering.kmeans import means
from deepcluster.clustering.whitening import unit_rows
from deepcluster.nets.backbone import Network
from deepcluster.records import Clustering
from deepcluster.runtime.partition import Partition

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
