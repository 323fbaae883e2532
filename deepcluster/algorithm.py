"""DeepCluster (Caron et al., ECCV 2018): cluster the features, train on the cluster numbers, repeat.

Step 1, the backbone, is the ``network`` that is passed in; steps 2 to 6 are the body of :func:`alternate`; step 7, the
result, is :func:`conclude` on the network that it leaves behind.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

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

Progress = Callable[[str, int, int], None]  # phase, images done, images in all
PAPER_VIEWS = Augmentation()
FEATURES = ("pass", "memory")


def unheard(phase: str, done: int, total: int) -> None:
    """Progress that nobody asked for."""


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
    lr: float | Callable[[int], float] = 0.05,
    head_lr: float | None = None,
    momentum: float = 0.9,
    weight_decay: float = 1e-5,
    dims: int = 256,
    whitening: float = 1.0,
    iterations: int = 20,
    empty: str = "split",
    features: str = "pass",
    augmentation: Augmentation = PAPER_VIEWS,
    sample: Sampler = uniform_over_clusters,
    tolerance: float = 0.0,
    patience: int = 3,
    dtype: torch.dtype = torch.float32,
    progress: Progress = unheard,
) -> Iterator[Round]:
    """Yield a Round after each clustering and the training on it; ``network`` is trained in place.

    A generator does nothing until it is iterated. images: uint8, N x 3 x S x S; the network sees ``size`` x ``size`` of
    them (S where it is None). clusters: the number K of pseudo-labels. epochs: passes over N images in a round. lr: a
    number, or a function of the round. features: ``pass`` computes them anew in each round, by one pass over the images
    (the paper); ``memory`` does so in the first only and then takes those that training saw, each image's last
    (DeepCluster-v2): less to compute, but of random views by a network that was still learning. Ends after ``rounds``,
    or when the assignments have settled: 1 - NMI to the previous round at most ``tolerance`` for ``patience`` rounds in
    a row. Everything is a function of ``seed``.
    """
    if features not in FEATURES:
        raise ValueError(f"features={features!r}: choose {' or '.join(FEATURES)}")
    size = size or images.shape[-1]
    optimizer = body_optimizer(network, momentum=momentum, weight_decay=weight_decay)
    previous: Tensor | None = None
    memory: Tensor | None = None
    settled = 0
    for index in range(rounds):
        step = lr(index) if callable(lr) else lr
        times = [time.perf_counter()]

        # Step 2, features.
        found = memory
        if found is None:
            found = extract(
                network, images, size=size, batch_size=batch_size, dtype=dtype, progress=partial(progress, "features")
            )
        times.append(time.perf_counter())

        # Step 3, reduction, and step 4, clustering: the cluster numbers are the pseudo-labels.
        reduced = whiten(found, dims, whitening)(found)
        memory = found if features == "memory" else None
        del found  # in the other case nothing but the reduced features stays
        clustering = kmeans(reduced, clusters, iterations=iterations, seed=derive(seed, "k-means", index), empty=empty)
        times.append(time.perf_counter())

        # Step 5, learning, with a new linear classifier.
        network.new_head(clusters, generator(seed, "head", index))
        loss = train_on_pseudo_labels(
            network, images, clustering.labels, optimizer, size=size, lr=step, head_lr=head_lr, epochs=epochs,
            batch_size=batch_size, augmentation=augmentation, sample=sample, seed=seed, round=index, memory=memory,
            dtype=dtype, progress=partial(progress, "training"),
        )  # fmt: skip
        times.append(time.perf_counter())

        # Step 6, alternation: how much has changed since the previous round?
        agreement = math.nan if previous is None else nmi(previous, clustering.labels)
        moved = math.nan if previous is None else changed(previous, clustering.labels)
        yield _record(index, reduced, clustering, loss, agreement, moved, step, times, len(images) * epochs)
        settled = settled + 1 if 1 - agreement <= tolerance else 0
        if settled >= patience:
            return
        previous = clustering.labels


def _record(
    index: int, reduced: Tensor, clustering: Clustering, loss: float, agreement: float, moved: float, lr: float,
    times: Sequence[float], views: int,
) -> Round:  # fmt: skip
    features, clusters, training = (later - earlier for earlier, later in pairwise(times))
    return Round(
        index=index,
        reduced=reduced,
        clustering=clustering,
        loss=loss,
        chance_loss=math.log(clustering.occupied),
        nmi_previous=agreement,
        changed=moved,
        lr=lr,
        features_seconds=features,
        clustering_seconds=clusters,
        training_seconds=training,
        images_per_second=views / training,
    )


@dataclass(frozen=True)
class Result:
    """Step 7: the map from features to ``reduced`` ones (N x d), and the final assignments and centroids."""

    reduction: Whitening
    reduced: Tensor
    clustering: Clustering


def conclude(
    network: Network,
    images: Tensor,
    *,
    clusters: int,
    seed: int = 0,
    size: int | None = None,
    batch_size: int = 256,
    dims: int = 256,
    whitening: float = 1.0,
    iterations: int = 20,
    empty: str = "split",
    progress: Progress = unheard,
) -> Result:
    """Cluster the features of the network as it is now, in float32, so that a new image can be placed exactly."""
    size = size or images.shape[-1]
    features = extract(network, images, size=size, batch_size=batch_size, progress=partial(progress, "features"))
    reduction = whiten(features, dims, whitening)
    reduced = reduction(features)
    own = derive(seed, "k-means final")
    clustering = kmeans(reduced, clusters, iterations=iterations, seed=own, precision="fp32", empty=empty)
    return Result(reduction, reduced, clustering)
