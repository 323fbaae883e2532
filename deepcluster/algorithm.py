"""DeepCluster (Caron et al., ECCV 2018): cluster the features, train on the cluster numbers, repeat.

Step 1, the backbone, is the ``network`` that is passed in; steps 2 to 6 are the body of :func:`alternate`; step 7, the
result, is :func:`conclude` on the network that it leaves behind.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import SGD

from deepcluster.clustering.agreement import compared
from deepcluster.clustering.steps import ClusteringStep, KMeans, Reduction
from deepcluster.clustering.whitening import Whitening
from deepcluster.images.arrays import as_images
from deepcluster.learning.features import extract
from deepcluster.learning.pseudo_labels import (
    Learning,
    body_optimizer,
    momenta,
    restore_momentum,
    train_on_pseudo_labels,
)
from deepcluster.nets.backbone import Network, as_network
from deepcluster.records import Clustering, Round, State, Trained, Work
from deepcluster.runtime.devices import CPU, holds_rows
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import ALONE, Processes
from deepcluster.seeding import derive, generator

# True after an optimizer step ends the training of the round; true where the round has only clustered ends everything.
OnState = Callable[[State], bool | None]
Progress = Callable[[str, int, int], None]  # phase, images done, images in all
PAPER_REDUCTION, PAPER_KMEANS, PAPER_LEARNING = Reduction(), KMeans(), Learning()
SLACK = 1e-9  # the NMI of two equal assignments may be 4e-16 below 1


def ignore_state(state: State) -> None:
    """Do nothing."""


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
    reuse_features: bool = False,
    reduction: Reduction = PAPER_REDUCTION,
    clustering: ClusteringStep = PAPER_KMEANS,
    learning: Learning = PAPER_LEARNING,
    tolerance: float = 0.0,
    patience: int = 3,
    state: State | None = None,
    on_state: OnState = ignore_state,
    progress: Progress = ignore_progress,
    processes: Processes = ALONE,
) -> Iterator[Round]:
    """Yield a Round after each clustering and the training on it; ``network``, from images to features, is trained.

    A generator does nothing until it is iterated. All randomness is derived from ``seed``.

    Args:
        images: N x 3 x S x S, uint8, or floats in [0, 1]; with several processes, this rank's.
        clusters: Number of pseudo-labels, or one for each of several clusterings that are learnt together.
        size: Side of what the network sees of an image, px. None: S.
        reuse_features: After the first round cluster the features that training saw (DeepCluster-v2), without a pass.
        tolerance, patience: End where 1 - NMI to the previous round is at most the first, so many times in a row.
        state: Go on from here, to the same result.
        on_state: Called at the start of a round, when it has clustered, after each step, and at the end; see OnState.
    """
    numbers = (clusters,) if isinstance(clusters, int) else tuple(clusters)
    network, images, size = _as_network_and_images(network, images, size)
    partition = Partition.of(processes, len(images))
    optimizer = body_optimizer(network, momentum=learning.momentum, weight_decay=learning.weight_decay)
    features_on, cluster_on = devices(network, len(images), network.embedding_dim, reduction.dims, processes)
    state = _on_device(state or State(), features_on)
    restore_momentum(optimizer, state.momentum)
    while state.round < rounds and state.settled < patience:
        index, work = state.round, state.work
        on_state(state)
        if work is None:
            clocks = [time.perf_counter()]

            # Step 2, features.
            features = state.memory
            if features is None:
                features = extract(
                    network, images, size=size, batch_size=learning.batch_size, embedded=True, dtype=learning.dtype,
                    where=features_on, progress=partial(progress, "features"),
                )  # fmt: skip
            clocks.append(time.perf_counter())

            # Step 3, reduction, and step 4, clustering: the cluster numbers are the pseudo-labels.
            reduced = reduction(features, processes, cluster_on)
            found = clustering(reduced, numbers, state.previous, seed=seed, round=index, partition=partition)
            clocks.append(time.perf_counter())

            # Step 5, learning, with a new classifier on top.
            learning.head(network, features, found[0], partition, generator(seed, "head", index))
            work = _compared(state, features, reduced, *found, learning, seed, clocks, partition)
            state = replace(state, memory=features if reuse_features else None)
            del features, reduced
        if on_state(replace(state, work=work)):
            return
        work = replace(work, features=None)  # without a memory only the reduced features stay, and these on the CPU
        begin = time.perf_counter()
        loss = train_on_pseudo_labels(
            network, images, targets(work.clusterings, renumber=learning.renumber), optimizer, learning, size=size,
            clusters=[len(each.centroids) for each in work.clusterings], cluster_weight=work.cluster_weight,
            seed=seed, round=index, memory=state.memory, partition=partition, resume_from=work.trained,
            on_step=partial(_report, on_state, state, work, optimizer), progress=partial(progress, "training"),
        )  # fmt: skip

        # Step 6, alternation.
        yield _record(index, work, loss, learning, time.perf_counter() - begin, partition.total)
        settled = state.settled + 1 if 1 - work.agreement <= tolerance + SLACK else 0
        state = State(index + 1, targets(work.clusterings), settled, state.memory, momenta(optimizer))
    on_state(state)


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


def _on_device(state: State, device: torch.device) -> State:
    return state if state.memory is None else replace(state, memory=state.memory.to(device))


def _report(on_state: OnState, state: State, work: Work, optimizer: SGD, trained: Trained) -> bool | None:
    """Hand on the state in the middle of a training."""
    return on_state(replace(state, momentum=momenta(optimizer), work=replace(work, trained=trained)))


def targets(clusterings: Sequence[Clustering], *, renumber: bool = False) -> Tensor:
    """The pseudo-labels (int64, N x H) of H clusterings; renumbered: see :class:`Learning`."""
    labels = [clustering.labels for clustering in clusterings]
    return torch.stack([renumbered(column) for column in labels] if renumber else labels, 1)


def renumbered(labels: Tensor) -> Tensor:
    """Each label's place among the labels that occur, ascending."""
    places: Tensor = torch.unique(labels, return_inverse=True)[1]
    return places


def _compared(
    state: State, features: Tensor, reduced: Tensor, clusterings: tuple[Clustering, ...], current: Tensor,
    learning: Learning, seed: int, clocks: Sequence[float], partition: Partition,
) -> Work:  # fmt: skip
    """How much has changed since the previous round? (Of step 6; the loss may depend on it.)

    Args:
        current: What the first clustering of the previous round has become in the features of this one.
        clocks: Before and after the features, and after the clustering.
    """
    previous, agreement, moved = None, math.nan, math.nan
    if state.previous is not None:
        previous, own = state.previous[:, 0], partition.local
        agreement, moved = compared(previous[own], current[own], partition.processes)
    return Work(
        reduced=reduced.cpu(),
        clusterings=clusterings,
        agreement=agreement,
        moved=moved,
        cluster_weight=learning.loss.cluster_weight(previous, current, seed, state.round),
        seconds=(clocks[1] - clocks[0], clocks[2] - clocks[1]),
        features=features if state.memory is None else None,
    )


def _record(index: int, work: Work, loss: float, learning: Learning, seconds: float, images: int) -> Round:
    return Round(
        index=index,
        reduced=work.reduced,
        clustering=work.clusterings[0],
        loss=loss,
        chance_loss=mean(math.log(clustering.occupied) for clustering in work.clusterings),
        nmi_previous=work.agreement,
        changed=work.moved,
        cluster_weight=work.cluster_weight,
        lr=learning.lr_at(float(index)),
        features_seconds=work.seconds[0],
        clustering_seconds=work.seconds[1],
        training_seconds=seconds,
        images_per_second=images * learning.epochs / seconds,
    )


@dataclass(frozen=True)
class Result:
    """Step 7.

    Attributes:
        reduction: The map from features to reduced ones.
        reduced: The reduced features, N x d; with several processes, this rank's.
        lengths: Their lengths (N) before they had length 1.
        clustering: The final assignments and centroids.
    """

    reduction: Whitening
    reduced: Tensor
    lengths: Tensor
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
    reduced, lengths = mapping.measure(features.cpu())
    final = clustering.exact(reduced.to(where), clusters, derive(seed, "k-means final"), partition)
    return Result(mapping, reduced, lengths, final)
