"""DeepCluster (Caron et al., ECCV 2018): cluster the features, train on the cluster numbers, repeat.

Step 1, the backbone, is the ``network`` that is passed in; steps 2 to 6 are the body of :func:`alternate`; step 7, the
result, is :func:`conclude` on the network that it leaves behind.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from statistics import mean
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from deepcluster.clustering import ClusteringStep, KMeans, Reduction, Whitening
from deepcluster.clustering.agreement import is_settled, label_change
from deepcluster.clustering.kmeans import assigner, labels_of
from deepcluster.clustering.outliers import MAX_ROWS, Outliers, fit_outliers
from deepcluster.clustering.whitening import Preparation
from deepcluster.images.arrays import as_images
from deepcluster.learning.features import device_of, features_of, fitted, reduced_by
from deepcluster.learning.heads import Loss
from deepcluster.learning.training import Learning, PseudoLabels, body_optimizer, train_on_pseudo_labels
from deepcluster.nets.network import as_network
from deepcluster.records import Clustering, Round, State
from deepcluster.runtime.compute import CLUSTERING_PHASE, MAX_PASS_BATCH, Compute
from deepcluster.runtime.partition import Partition
from deepcluster.seeding import derive, generator

MAX_CLUSTERED = 5_000_000  # rows; of more, every n-th is clustered, and all get the nearest centroids
Clustered = tuple[Sequence[Clustering], tuple[float, ...]]  # clusterings, and figures about them


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

        # Step 3, reduction.
        compute.progress(CLUSTERING_PHASE, 0, 0)
        reduced = reduced_by(reduction, features)

        # Step 4, clustering, by the main rank: the cluster numbers are the pseudo-labels. Step 6 looks back.
        make = partial(_clustered, clustering, numbers, learning.loss, seed, index)
        clusterings, (nmi, changed, weight) = _by_main(make, reduced, state.previous, compute.partition)
        labels = torch.stack([one.labels for one in clusterings], 1)

        # Step 5, learning, with a new classifier on top.
        learning.head(network, features, clusterings, generator(seed, "head", index))
        state = replace(state, features=features.rows if learning.reuse_features else None)
        reduced = reduced.cpu()
        del features  # training needs the room
        targets = PseudoLabels(labels, [len(x.centroids) for x in clusterings], weight, index)
        loss = train_on_pseudo_labels(
            network, images, targets, optimizer, learning, compute, seed=seed, memory=state.features
        )

        # Step 6, alternation.
        settled = state.settled + 1 if is_settled(nmi, tolerance) else 0
        state = State(index + 1, labels, settled, state.features, optimizer.state_dict())
        chance = mean(math.log(part.occupied) for part in clusterings)
        lr = learning.lr_at(index + 0.5)
        yield Round(index, reduced, clusterings[0], loss, chance, nmi, changed, weight, lr, state)


def _clustered(
    step: ClusteringStep,
    numbers: Sequence[int],
    loss: Loss,
    seed: int,
    index: int,
    rows: Tensor,
    previous: Tensor | None,
) -> Clustered:
    """Cluster the rows, and return the NMI to the previous labels, the share of changed images, and their weight."""
    clusterings = step(rows, numbers, previous, seed=seed, round=index)
    labels_of(clusterings, numbers, len(rows))
    # How far do they repeat the previous ones? The loss may weigh them by it.
    change = label_change(previous, rows, clusterings, step)
    return clusterings, (change.nmi, change.changed, loss.cluster_weight(change, seed, index))


def _by_main(
    make: Callable[[Tensor, Tensor | None], Clustered], reduced: Tensor, previous: Tensor | None, partition: Partition
) -> Clustered:
    """Return the clusterings that the main rank makes of all rows and their previous labels. A collective.

    ``reduced``: This rank's rows. The labels are those of all rows.
    """
    processes = partition.processes
    stride = -(-partition.total // MAX_CLUSTERED)
    rows = partition.gather(reduced, stride)
    sent: dict[str, Tensor] = {}
    if processes.is_main:
        made, numbers = make(rows, None if previous is None else previous[::stride])
        for i, one in enumerate(made):
            counts = one.inertia, one.iterations, one.reseeded
            sent |= {f"labels{i}": one.labels, f"centroids{i}": one.centroids}
            sent[f"counts{i}"] = torch.tensor(counts, dtype=torch.float64)
        sent["figures"] = torch.tensor(numbers, dtype=torch.float64)
    tensors = processes.broadcast_tensors(lambda: sent)
    figures = tuple(tensors.pop("figures").tolist())
    clusterings = []
    for i in range(len(tensors) // 3):
        labels, centroids = tensors[f"labels{i}"], tensors[f"centroids{i}"]
        if stride > 1:  # each rank labels its own rows
            labels = partition.all_gather(assigner(centroids.to(reduced.device))(reduced).cpu())
        inertia, iterations, reseeded = tensors[f"counts{i}"].tolist()
        sizes = torch.bincount(labels, minlength=len(centroids))
        clusterings.append(Clustering(labels, centroids, sizes, inertia, int(iterations), int(reseeded)))
    return clusterings, figures


@dataclass(frozen=True)
class Conclusion:
    """Step 7."""

    reduction: Whitening  #: the map from features to reduced ones
    reduced: Tensor  #: the reduced features, N x d, on the main rank
    outliers: Outliers  #: the measure of outliers
    residuals: Tensor  #: distances of the features (N) from the principal directions of ``outliers``, on the main rank
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
    mapping = fitted(reduction, of_pass)
    # On the CPU, because a model reduces new images there too: so the same image has the same bits.
    reduced = mapping(of_pass.rows.cpu())
    partition = compute.partition
    euclidean = replace(clustering, spherical=False)

    def clustered(rows: Tensor, previous: Tensor | None) -> Clustered:
        return (euclidean.once(rows, clusters, seed=derive(seed, "k-means final")),), ()

    (final,), _ = _by_main(clustered, reduced.to(device_of(reduction, of_pass)), None, partition)
    evenly = torch.arange(0, partition.total, -(-partition.total // MAX_ROWS))
    outliers = fit_outliers(partition.index_select(of_pass.rows, evenly).cpu().float(), Preparation(reduction.root))
    residuals = partition.gather(outliers.residuals(of_pass.rows))
    return Conclusion(mapping, partition.gather(reduced), outliers, residuals, final)
