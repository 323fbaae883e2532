"""DeepCluster (Caron et al., ECCV 2018): cluster the features, train on the cluster numbers, repeat.

Step 1, the backbone, is the ``network`` that is passed in; steps 2 to 6 are the body of :func:`alternate`; step 7, the
result, is :func:`conclude` on the network that it leaves behind.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import mean
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from deepcluster.clustering.agreement import compared
from deepcluster.clustering.kmeans import ClusteringStep, KMeans
from deepcluster.clustering.outliers import Outliers, fit_outliers
from deepcluster.clustering.whitening import Reduction, Whitening
from deepcluster.images.arrays import as_images
from deepcluster.learning.features import extract
from deepcluster.learning.training import (
    Learning,
    body_optimizer,
    momenta,
    restore_momentum,
    train_on_pseudo_labels,
)
from deepcluster.nets.network import Network, as_network
from deepcluster.records import Clustering, Round, State
from deepcluster.runtime.devices import CPU, holds_rows
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import ALONE, Processes
from deepcluster.seeding import derive, generator

Progress = Callable[[str, int, int], None]  # phase, images done, images in all
PAPER_REDUCTION, PAPER_KMEANS, PAPER_LEARNING = Reduction(), KMeans(), Learning()
BEGINNING = State()
SLACK = 1e-9  # the NMI of two equal assignments may be 4e-16 below 1


def ignore_progress(phase: str, done: int, total: int) -> None:
    """Do nothing."""


def alternate(
    network: nn.Module,
    images: Tensor | npt.NDArray[Any],
    *,
    clusters: int | Sequence[int],
    rounds: int,
    seed: int = 0,
    size: int | None = None,
    reduction: Reduction = PAPER_REDUCTION,
    clustering: ClusteringStep = PAPER_KMEANS,
    learning: Learning = PAPER_LEARNING,
    tolerance: float = 0.0,
    patience: int = 3,
    state: State = BEGINNING,
    progress: Progress = ignore_progress,
    processes: Processes = ALONE,
) -> Iterator[Round]:
    """Yield a Round after each clustering and the training on it; ``network``, from images to features, is trained.

    A generator does nothing until it is iterated. All randomness is derived from ``seed``.

    Args:
        images: N x 3 x S x S, uint8, or floats in [0, 1]; with several processes, this rank's.
        clusters: Number of pseudo-labels, or one for each of several clusterings that are learnt together.
        size: Side of what the network sees of an image, px. None: S.
        tolerance, patience: End where 1 - NMI to the previous round is at most the first, so many times in a row.
        state: Go on from the ``state`` of a round, with the network as it was then, to the same result.
    """
    numbers = (clusters,) if isinstance(clusters, int) else tuple(clusters)
    network, images, size = _as_network_and_images(network, images, size)
    partition = Partition.of(processes, len(images))
    optimizer = body_optimizer(network, momentum=learning.momentum, weight_decay=learning.weight_decay)
    restore_momentum(optimizer, state.momentum)
    features_on, cluster_on = devices(network, len(images), network.embedding_dim, reduction.dims, processes)
    while state.round < rounds and state.settled < patience:
        index, clocks = state.round, [time.perf_counter()]

        # Step 2, features.
        features = None if state.features is None else state.features.to(features_on)
        if features is None:
            features = extract(
                network, images, size=size, batch_size=learning.batch_size, embedded=True, dtype=learning.dtype,
                where=features_on, progress=partial(progress, "features"),
            )  # fmt: skip
        clocks.append(time.perf_counter())

        # Step 3, reduction, and step 4, clustering: the cluster numbers are the pseudo-labels.
        reduced = reduction(features, processes, cluster_on)
        clusterings, current = clustering(reduced, numbers, state.previous, seed=seed, round=index, partition=partition)
        reduced = reduced.cpu()
        clocks.append(time.perf_counter())

        # Step 5, learning, with a new classifier on top.
        learning.head(network, features, clusterings, partition, generator(seed, "head", index))
        state = replace(state, features=features if learning.reuse_features else None)
        del features
        previous = None if state.previous is None else state.previous[:, 0]
        weight = learning.loss.cluster_weight(previous, current, seed, index)
        loss = train_on_pseudo_labels(
            network, images, targets(clusterings, renumber=learning.renumber), optimizer, learning, size=size,
            clusters=[len(each.centroids) for each in clusterings], cluster_weight=weight,
            seed=seed, round=index, memory=state.features, partition=partition, progress=partial(progress, "training"),
        )  # fmt: skip
        clocks.append(time.perf_counter())

        # Step 6, alternation.
        nmi, changed = _compared(previous, current, partition)
        settled = state.settled + 1 if 1 - nmi <= tolerance + SLACK else 0
        state = State(index + 1, targets(clusterings), settled, state.features, momenta(optimizer))
        yield _record(state, reduced, clusterings, learning, clocks, partition.total, loss, weight, nmi, changed)


def _as_network_and_images(
    network: nn.Module, images: Tensor | npt.NDArray[Any], size: int | None
) -> tuple[Network, Tensor, int]:
    images = as_images(images)
    size = size or images.shape[-1]
    return as_network(network, size), images, size


def devices(
    network: Network, rows: int, width: int, dims: int | None, processes: Processes
) -> tuple[torch.device, torch.device]:
    """Where ``rows`` features of ``width`` numbers are kept, and where they are clustered by ``dims`` of them."""
    dims_kept, dims_clustered = (0, width) if dims is None else (dims, dims)
    return (
        clustering_device(network, rows, width + dims_kept, processes),
        clustering_device(network, rows, 2 * dims_clustered, processes),
    )


def clustering_device(network: Network, rows: int, width: int, processes: Processes = ALONE) -> torch.device:
    """Where ``rows`` of ``width`` numbers are kept and clustered: with the network where all ranks have room."""
    device = next(network.parameters()).device
    return CPU if processes.any(not holds_rows(device, rows, width)) else device


def targets(clusterings: Sequence[Clustering], *, renumber: bool = False) -> Tensor:
    """The pseudo-labels (int64, N x H) of H clusterings; renumbered: see :class:`Learning`."""
    labels = [clustering.labels for clustering in clusterings]
    return torch.stack([renumbered(column) for column in labels] if renumber else labels, 1)


def renumbered(labels: Tensor) -> Tensor:
    """Each label's place among the labels that occur, ascending."""
    places: Tensor = torch.unique(labels, return_inverse=True)[1]
    return places


def _compared(previous: Tensor | None, current: Tensor, partition: Partition) -> tuple[float, float]:
    """Return the NMI and the share of images that moved since the previous round (NaN in the first round).

    Args:
        previous: The first clustering of the previous round.
        current: What it has become in the features of this round.
    """
    if previous is None:
        return math.nan, math.nan
    own = partition.local
    return compared(previous[own], current[own], partition.processes)


def _record(
    state: State, reduced: Tensor, clusterings: Sequence[Clustering], learning: Learning, clocks: Sequence[float],
    images: int, loss: float, cluster_weight: float, nmi: float, changed: float,
) -> Round:  # fmt: skip
    """Return the record of a round by the ``state`` after it and its ``clocks``: at its begin and after each step."""
    features, clustering, training = (end - begin for begin, end in pairwise(clocks))
    return Round(
        index=state.round - 1,
        reduced=reduced,
        clustering=clusterings[0],
        loss=loss,
        chance_loss=mean(math.log(each.occupied) for each in clusterings),
        nmi_previous=nmi,
        changed=changed,
        cluster_weight=cluster_weight,
        lr=learning.lr_at(float(state.round - 1)),
        features_seconds=features,
        clustering_seconds=clustering,
        training_seconds=training,
        images_per_second=images * learning.epochs / training,
        state=state,
    )


@dataclass(frozen=True)
class Result:
    """Step 7.

    Attributes:
        reduction: The map from features to reduced ones.
        reduced: The reduced features, N x d; with several processes, this rank's.
        outliers: The measure of outliers.
        residuals: How far the features (n) are outside the principal directions that it has.
        clustering: The final assignments and centroids.
    """

    reduction: Whitening
    reduced: Tensor
    outliers: Outliers
    residuals: Tensor
    clustering: Clustering


def conclude(
    network: nn.Module,
    images: Tensor | npt.NDArray[Any],
    *,
    clusters: int,
    seed: int = 0,
    size: int | None = None,
    batch_size: int = 256,
    reduction: Reduction = PAPER_REDUCTION,
    clustering: KMeans = PAPER_KMEANS,
    progress: Progress = ignore_progress,
    processes: Processes = ALONE,
    features: Tensor | None = None,
) -> Result:
    """Cluster the features of the network as it is now, in float32, so that a new image can be placed exactly.

    ``features``: those that :func:`extract` would give, where they are known already; it saves the pass.
    """
    network, images, size = _as_network_and_images(network, images, size)
    partition = Partition.of(processes, len(images))
    features_on, cluster_on = devices(network, len(images), network.feature_dim, reduction.dims, processes)
    if features is None:
        features = extract(
            network, images, size=size, batch_size=batch_size, where=features_on, progress=partial(progress, "features")
        )
    return result_of(
        features, clusters, seed=seed, reduction=reduction, clustering=clustering, where=cluster_on, partition=partition
    )


def result_of(
    features: Tensor,
    clusters: int,
    *,
    seed: int,
    reduction: Reduction,
    clustering: KMeans,
    where: torch.device,
    partition: Partition,
) -> Result:
    """Reduce the final features (n x D, this rank's) and cluster them on the device ``where``."""
    mapping = reduction.fit(features, partition.processes, where)
    # On the CPU, where a model reduces new images too: so the same image has the same bits.
    reduced = mapping(features.cpu())
    final = clustering.exact(reduced.to(where), clusters, derive(seed, "k-means final"), partition)
    outliers = fit_outliers(features, partition, root=reduction.root)
    return Result(mapping, reduced, outliers, outliers.residuals(features), final)
