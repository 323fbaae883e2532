"""DeepCluster (Caron et al., ECCV 2018): cluster the features, train on the cluster numbers, repeat.

Step 1, the backbone, is the ``network`` that is passed in; steps 2 to 6 are the body of :func:`alternate`; step 7, the
result, is :func:`conclude` on the network that it leaves behind.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from statistics import mean
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from deepcluster.clustering import ClusteringStep, KMeans, Reduction, Whitening
from deepcluster.clustering.agreement import label_change
from deepcluster.clustering.kmeans import labels_of
from deepcluster.clustering.outliers import Outliers, fit_outliers
from deepcluster.images.arrays import as_images
from deepcluster.learning.features import features_of
from deepcluster.learning.training import Learning, PseudoLabels, body_optimizer, train_on_pseudo_labels
from deepcluster.nets.network import as_network
from deepcluster.records import Clustering, Round, State
from deepcluster.runtime.compute import CLUSTERING_PHASE, MAX_PASS_BATCH, Compute
from deepcluster.seeding import derive, generator


def alternate(  # noqa: PLR0913 the steps and settings of the paper
    network: nn.Module,
    images: Tensor | npt.NDArray[Any],
    *,
    clusters: int | Sequence[int],
    rounds: int,
    seed: int = 0,
    reduction: Reduction = Reduction(),
    clustering: ClusteringStep = KMeans(),
    learning: Learning = Learning(),
    tolerance: float = 0.0,
    patience: int = 3,
    state: State = State(),
    compute: Compute | None = None,
) -> Iterator[Round]:
    """Yield a Round after every clustering and the training on it; ``network``, from images to features, is trained.

    A generator does nothing until it is iterated. All randomness is derived from ``seed``.

    Args:
        images: N x 3 x S x S, uint8, or floats in [0, 1]; with several processes, this rank's.
        clusters: Number of pseudo-labels, or several, for clusterings that are learnt together.
        tolerance, patience: Stop after ``patience`` rounds in a row with 1 - NMI(previous round) <= ``tolerance``.
        state: The ``state`` of a round to continue from, with the network as it was then; the result is the same.
        compute: Device, processes and the size of the images. None: one process has all, and the network sees S px.
    """
    numbers, images = (int(clusters),) if isinstance(clusters, int | Integral) else tuple(clusters), as_images(images)
    network = as_network(network, compute.size if compute else images.shape[-1])
    compute = compute or Compute.of(network, images, batch_size=min(learning.batch_size, MAX_PASS_BATCH))
    optimizer = body_optimizer(network, learning, state.optimizer)
    while (index := state.round) < rounds and state.settled < patience:
        # Step 2, features.
        features = features_of(network, images, compute, state.features, embedded=True, pairs=reduction.takes_pairs)

        # Step 3, reduction, and step 4, clustering: the cluster numbers are the pseudo-labels.
        compute.progress(CLUSTERING_PHASE, 0, 0)
        reduced = reduction(features)
        clusterings = clustering(reduced, numbers, state.previous, seed=seed, round=index, partition=compute.partition)
        labels = labels_of(clusterings, numbers, compute.partition.total)

        # Step 6 looks back: how far do they repeat the previous ones? (The loss may weigh them by it.)
        change = label_change(state.previous, reduced, clusterings, clustering, compute.partition)
        weight = learning.loss.cluster_weight(change, seed, index)

        # Step 5, learning, with a new classifier on top.
        learning.head(network, features.rows, clusterings, compute.partition, generator(seed, "head", index))
        state = replace(state, features=features.rows if learning.reuse_features else None)
        reduced = reduced.cpu()
        del features  # training needs the room
        targets = PseudoLabels(labels, [len(x.centroids) for x in clusterings], weight, index)
        loss = train_on_pseudo_labels(
            network, images, targets, optimizer, learning, compute, seed=seed, memory=state.features
        )

        # Step 6, alternation.
        settled = state.settled + 1 if change.settled(tolerance) else 0
        state = State(index + 1, labels, settled, state.features, optimizer.state_dict())
        chance = mean(math.log(clustering.occupied) for clustering in clusterings)
        lr = learning.lr_at(index + 0.5)
        yield Round(index, reduced, clusterings[0], loss, chance, change.nmi, change.changed, weight, lr, state)


@dataclass(frozen=True)
class Conclusion:
    """Step 7."""

    reduction: Whitening  #: the map from features to reduced ones
    reduced: Tensor  #: the reduced features, N x d; with several processes, this rank's
    outliers: Outliers  #: the measure of outliers
    residuals: Tensor  #: distances of the features (n) from the principal directions of ``outliers``
    clustering: Clustering  #: the final assignments and centroids


def conclude(
    network: nn.Module,
    images: Tensor | npt.NDArray[Any],
    *,
    clusters: int,
    seed: int = 0,
    reduction: Reduction = Reduction(),
    clustering: KMeans = KMeans(),
    compute: Compute | None = None,
    features: Tensor | None = None,
) -> Conclusion:
    """Cluster the features of the network as it is now, in float32, so that a new image can be placed exactly.

    ``features``: The network's (n x D, this rank's), if they are known. Every label is the nearest of all centroids.
    """
    images = as_images(images)
    network = as_network(network, compute.size if compute else images.shape[-1])
    compute = replace(compute or Compute.of(network, images), dtype=torch.float32)
    of_pass = features_of(network, images, compute, features, pairs=reduction.takes_pairs)
    mapping = reduction.fit(of_pass)
    # On the CPU, because a model reduces new images there too: so the same image has the same bits.
    reduced = mapping(of_pass.rows.cpu())
    rows = reduced.to(reduction.device(of_pass))
    euclidean = replace(clustering, spherical=False)
    final = euclidean.once(rows, clusters, seed=derive(seed, "k-means final"), partition=compute.partition)
    outliers = fit_outliers(of_pass.rows, compute.partition, root=reduction.root)
    return Conclusion(mapping, reduced, outliers, outliers.residuals(of_pass.rows), final)
