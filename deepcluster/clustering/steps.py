"""Steps 3 and 4 with their settings: the values that the alternation is given."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from deepcluster.clustering.kmeans import kmeans
from deepcluster.clustering.pic import pic
from deepcluster.clustering.whitening import Whitening, unit_rows, whiten
from deepcluster.records import Clustering
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import ALONE, Processes
from deepcluster.seeding import derive

STARTS = ("random", "previous")


@dataclass(frozen=True)
class Reduction:
    """Step 3. The defaults are the paper's.

    Attributes:
        dims: Number of principal components at most. None: no PCA, only L2.
        whitening: Each component is divided by its standard deviation to this power: 1 whitens, 0 only rotates.
        root: The square roots of the features are reduced, as rows of length 1.
    """

    dims: int | None = 256
    whitening: float = 1.0
    root: bool = False

    def __call__(self, features: Tensor, processes: Processes = ALONE, device: torch.device | None = None) -> Tensor:
        """The features (N x D) as rows of length 1 (N x d), on ``device``."""
        if self.dims is None:
            return unit_rows(features, device)
        return self.fit(features, processes, device)(features, device)

    def fit(self, features: Tensor, processes: Processes = ALONE, device: torch.device | None = None) -> Whitening:
        """The map, for new images too. Needs ``dims``."""
        if self.dims is None:
            raise ValueError("dims=None fits no map: give a number of dimensions")
        return whiten(features, self.dims, self.whitening, processes, device, root=self.root)


class ClusteringStep(Protocol):
    """Step 4."""

    def __call__(
        self, rows: Tensor, clusters: Sequence[int], previous: Tensor | None, *, seed: int, round: int,
        partition: Partition,
    ) -> tuple[tuple[Clustering, ...], Tensor]:  # fmt: skip
        """Cluster the rows, once for each number of clusters.

        Args:
            rows: This rank's, n x d.
            clusters: A number of clusters for each clustering.
            previous: Labels (N x the number of clusterings) of the previous round; None in the first.

        Returns:
            The clusterings, with the labels of all rows, on the CPU; and what the first clustering of the previous
            round has become in these rows (labels, N), to tell what has changed.
        """


@dataclass(frozen=True)
class KMeans:
    """Step 4 by k-means. The defaults are the paper's; see :func:`kmeans` for the attributes not named here.

    Attributes:
        start: "random" starts each round from a random sample, "previous" from the clusters of the previous round.
    """

    iterations: int = 20
    empty: str = "split"
    spherical: bool = False
    start: str = "random"

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise ValueError(f"start={self.start!r}: choose {' or '.join(STARTS)}")

    def __call__(
        self, rows: Tensor, clusters: Sequence[int], previous: Tensor | None, *, seed: int, round: int,
        partition: Partition,
    ) -> tuple[tuple[Clustering, ...], Tensor]:  # fmt: skip
        before = () if previous is None else previous[partition.local].unbind(1)
        settings: dict[str, Any] = {
            "empty": self.empty, "spherical": self.spherical, "processes": partition.processes,
        }  # fmt: skip
        clusterings = []
        for i, k in enumerate(clusters):
            start = before[i] if before and self.start == "previous" else None
            random = derive(seed, "k-means", round, i)
            clustering = kmeans(rows, k, start=start, iterations=self.iterations, seed=random, **settings)
            clusterings.append(_with_all_labels(clustering, partition))
        if not before or self.start == "previous":
            return tuple(clusterings), clusterings[0].labels
        # A random start finds other clusters in features that have not changed at all, so what has changed is told by a
        # second k-means from the previous clusters.
        again = kmeans(rows, clusters[0], start=before[0], iterations=self.iterations, **settings)
        return tuple(clusterings), _with_all_labels(again, partition).labels

    def exact(self, rows: Tensor, clusters: int, seed: int, partition: Partition) -> Clustering:
        """The clustering of the result (step 7): in float32, every label the nearest of all centroids."""
        clustering = kmeans(
            rows, clusters, iterations=self.iterations, seed=seed, empty=self.empty,
            processes=partition.processes,
        )  # fmt: skip
        return _with_all_labels(clustering, partition)


def power_iteration(
    rows: Tensor, clusters: Sequence[int], previous: Tensor | None, *, seed: int, round: int, partition: Partition
) -> tuple[tuple[Clustering, ...], Tensor]:
    """Step 4 by :func:`pic` on the main rank. It finds the number of clusters itself."""
    gathered, processes = partition.gather(rows), partition.processes
    found = [_on_cpu(pic(gathered))] if processes.is_main else []
    tensors = processes.broadcast_tensors(
        lambda: {name: getattr(found[0], name) for name in ("labels", "centroids", "sizes")}
    )
    inertia, iterations, reseeded = processes.broadcast_json(
        lambda: [found[0].inertia, found[0].iterations, found[0].reseeded]
    )
    clustering = Clustering(**tensors, inertia=inertia, iterations=int(iterations), reseeded=int(reseeded))
    return (clustering,), clustering.labels


def _with_all_labels(clustering: Clustering, partition: Partition) -> Clustering:
    """The same with the labels of all rows, not only this rank's, on the CPU."""
    local = _on_cpu(clustering)
    return replace(local, labels=partition.all_gather(local.labels.int()).long())


def _on_cpu(clustering: Clustering) -> Clustering:
    return replace(
        clustering,
        labels=clustering.labels.cpu(),
        centroids=clustering.centroids.cpu(),
        sizes=clustering.sizes.cpu(),
    )
