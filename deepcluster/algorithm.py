"""DeepCluster (Caron et al., ECCV 2018): cluster the features, train on the cluster numbers, repeat.

Step 1, the backbone, is the ``network`` that is passed in; steps 2 to 6 are the body of :func:`alternate`; step 7, the
result, is :func:`conclude` on the network that it leaves behind.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deepcluster.clustering.agreement import changed, nmi
from deepcluster.clustering.kmeans import kmeans
from deepcluster.clustering.whitening import Whitening, whiten
from deepcluster.images.augment import Augmentation
from deepcluster.images.sampling import uniform_over_clusters
from deepcluster.learning.features import extract
from deepcluster.learning.pseudo_labels import Sampler, body_optimizer, train_on_pseudo_labels
from deepcluster.nets.backbone import Network
from deepcluster.records import Clustering, Round
from deepcluster.seeding import derive, generator

Progress = Callable[[str, int, int], None]
PAPER_VIEWS = Augmentation()
Schedule = float | Callable[[int], float]  # a step size, or a function of the round


def alternate(
    network: Network,
    images: Tensor,
    *,
    clusters: int,
    rounds: int,
    seed: int = 0,
    size: int | None = None,
    epochs: int = 1,
    batch_size: int = 256,
    lr: Schedule = 0.05,
    head_lr: Schedule | None = None,
    momentum: float = 0.9,
    weight_decay: float = 1e-5,
    dims: int = 256,
    whitening: float = 1.0,
    iterations: int = 20,
    empty: str = "split",
    augmentation: Augmentation = PAPER_VIEWS,
    sample: Sampler = uniform_over_clusters,
    tolerance: float = 0.0,
    patience: int = 3,
    dtype: torch.dtype = torch.float32,
    progress: Progress = lambda phase, done, total: None,
) -> Iterator[Round]:
    """Yield a Round after each clustering and the training on it; ``network`` is trained in place.

    A generator does nothing until it is iterated. images: uint8, N x 3 x S x S; the network sees ``size`` x ``size`` of
    them (S where it is None). clusters: the number K of pseudo-labels. epochs: passes over N images in a round. lr: a
    number, or a function of the round. Ends after ``rounds``, or when the assignments have settled: 1 - NMI to the
    previous round at most ``tolerance`` for ``patience`` rounds in a row. Everything is a function of ``seed``.
    """
    size = size or images.shape[-1]
    optimizer = body_optimizer(network, momentum=momentum, weight_decay=weight_decay)
    previous: Tensor | None = None
    settled = 0
    for index in range(rounds):
        begin = time.perf_counter()
        features = extract(
            network, images, size=size, batch_size=batch_size, dtype=dtype, progress=_named(progress, "features")
        )
        extracted = time.perf_counter()
        reduced = whiten(features, dims, whitening)(features)
        clustering = kmeans(reduced, clusters, iterations=iterations, seed=derive(seed, "k-means", index), empty=empty)
        clustered = time.perf_counter()
        network.new_head(clusters, generator(seed, "head", index))
        loss = train_on_pseudo_labels(
            network, images, clustering.labels, optimizer, size=size, lr=_at(lr, index),
            head_lr=None if head_lr is None else _at(head_lr, index), epochs=epochs,
            batch_size=batch_size, augmentation=augmentation, sample=sample, seed=seed, round=index, dtype=dtype,
            progress=_named(progress, "training"),
        )  # fmt: skip
        trained = time.perf_counter()
        agreement = math.nan if previous is None else nmi(previous, clustering.labels)
        yield Round(
            index=index,
            reduced=reduced,
            clustering=clustering,
            loss=loss,
            chance_loss=math.log(clustering.occupied),
            nmi_previous=agreement,
            changed=math.nan if previous is None else changed(previous, clustering.labels),
            lr=_at(lr, index),
            features_seconds=extracted - begin,
            clustering_seconds=clustered - extracted,
            training_seconds=trained - clustered,
            images_per_second=len(images) * epochs / (trained - clustered),
        )
        settled = settled + 1 if 1 - agreement <= tolerance else 0
        if settled >= patience:
            return
        previous = clustering.labels


@dataclass(frozen=True)
class Result:
    """Step 7: the map from features to ``reduced`` ones (N x d), and the final assignments and centroids."""

    reduction: Whitening
    reduced: Tensor
    clustering: Clustering


def conclude(
    network: Network, images: Tensor, *, clusters: int, seed: int = 0, size: int | None = None, batch_size: int = 256,
    dims: int = 256, whitening: float = 1.0, iterations: int = 20, empty: str = "split", progress: Progress = lambda phase, done, total: None,
) -> Result:  # fmt: skip
    """Cluster the features of the network as it is now, in float32, so that a new image can be placed exactly."""
    features = extract(
        network, images, size=size or images.shape[-1], batch_size=batch_size, progress=_named(progress, "features")
    )
    reduction = whiten(features, dims, whitening)
    reduced = reduction(features)
    clustering = kmeans(
        reduced, clusters, iterations=iterations, seed=derive(seed, "k-means final"), precision="fp32", empty=empty
    )
    return Result(reduction, reduced, clustering)


def _at(schedule: Schedule, index: int) -> float:
    return schedule(index) if callable(schedule) else schedule


def _named(progress: Progress, phase: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(phase, done, total)
