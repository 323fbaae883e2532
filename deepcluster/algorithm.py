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

import torch
from torch import Tensor
from torch.optim import SGD

from deepcluster.clustering.agreement import changed, nmi, repeated
from deepcluster.clustering.kmeans import kmeans, means
from deepcluster.clustering.two_level import two_level_kmeans
from deepcluster.clustering.whitening import Whitening, unreduced, whiten
from deepcluster.images.augment import Augmentation
from deepcluster.images.sampling import uniform_over_clusters
from deepcluster.learning.features import extract
from deepcluster.learning.pseudo_labels import (
    Sampler,
    Step,
    body_optimizer,
    momenta,
    restore_momentum,
    train_on_pseudo_labels,
)
from deepcluster.nets.backbone import Network
from deepcluster.records import Clustering, Round, State, Trained, Work
from deepcluster.runtime.devices import CPU, holds_rows
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import ALONE, Processes
from deepcluster.seeding import derive, generator

Progress = Callable[[str, int, int], None]  # phase, images done, images in all
PAPER_VIEWS = (Augmentation(),)
FEATURES = ("pass", "memory")
SLACK = 1e-9  # the NMI of two equal assignments may be 4e-16 below 1
Keep = Callable[[State], None]
Group = Callable[[Tensor], Clustering]  # reduced features, N x d; how many clusters there are is its own matter


def forgotten(state: State) -> None:
    """A state that nobody asked for."""


def unheard(phase: str, done: int, total: int) -> None:
    """Progress that nobody asked for."""


def alternate(
    network: Network,
    images: Tensor,
    *,
    clusters: int | Sequence[int],
    rounds: int,
    seed: int = 0,
    size: int | None = None,
    epochs: int = 1,
    batch_size: int = 256,
    lr: Step = 0.05,
    head_lr: float | None = None,
    momentum: float = 0.9,
    weight_decay: float = 1e-5,
    dims: int | None = 256,
    whitening: float = 1.0,
    iterations: int = 20,
    empty: str = "split",
    spherical: bool = False,
    levels: int = 1,
    kmeans_start: str = "random",
    group: Group | None = None,
    renumber: bool = False,
    temperature: float | None = None,
    features: str = "pass",
    views: Sequence[Augmentation] = PAPER_VIEWS,
    instance_temperature: float | None = None,
    sample: Sampler = uniform_over_clusters,
    tolerance: float = 0.0,
    patience: int = 3,
    dtype: torch.dtype = torch.float32,
    state: State | None = None,
    keep: Keep = forgotten,
    progress: Progress = unheard,
    processes: Processes = ALONE,
) -> Iterator[Round]:
    """Yield a Round after each clustering and the training on it; ``network`` is trained in place.

    A generator does nothing until it is iterated. images: uint8, N x 3 x S x S; the network sees ``size`` x ``size`` of
    them (S where it is None). clusters: the number K of pseudo-labels, or one for each of several clusterings, which
    are learnt together. epochs: passes over N images in a round. lr: a number, or a function of the time in rounds.
    dims: None leaves out PCA and whitening. temperature: None puts a new linear classifier on top in each round (the
    paper); a number puts the means of the clusters there, frozen, and divides their cosines (DeepCluster-v2).
    features: ``pass`` computes them anew in each round, by one pass over the images (the paper); ``memory`` does so in
    the first only and then takes those that training saw, each image's last (DeepCluster-v2): less to compute, but of
    random views by a network that was still learning. kmeans_start: ``random`` starts the k-means of each round from a
    random sample (the paper), ``previous`` from the clusters of the round before. views: how each of the views of an
    image is made that a step trains on. instance_temperature: where it is a number, clusters count as far as they are
    those of the round before, and for the rest every image is a cluster of its own, to be told from the others of its
    batch. Ends after
    ``rounds``, or when the assignments have settled: 1 - NMI to the previous round at most ``tolerance`` for
    ``patience`` rounds in a row. A k-means from a random start finds other clusters in features that have not changed
    at all, so the comparison is with a second k-means that starts at the previous clusters. Everything is a function of
    ``seed``. levels: 2 takes :func:`two_level_kmeans`, for very many clusters.

    processes: those that share the images, of which ``images`` are the own ones of each; so are the rows of ``reduced``
    and of a memory, while labels are those of all images. A step trains on ``batch_size`` images of all together.

    group: what clusters in the rounds in place of k-means into ``clusters``: ``pic``, the paper's second choice.
    renumber: a new linear classifier learns the places of the clusters among those that are not empty, and not their
    numbers (the released code).

    keep: called with the State at the start of a round, when it has clustered, after each step of training, and at the
    end; whoever writes it down, with the network, can go on from there by giving it as ``state``, to the same result.
    """
    _check_choices(features, kmeans_start, one_level=not (group or levels == 2))
    cluster: Callable[..., Clustering] = kmeans if levels == 1 else two_level_kmeans
    size = size or images.shape[-1]
    numbers = (clusters,) if isinstance(clusters, int) else tuple(clusters)
    optimizer = body_optimizer(network, momentum=momentum, weight_decay=weight_decay)
    state = state or State()
    restore_momentum(optimizer, state.momentum)
    partition = Partition.of(processes, len(images))
    kept = clustering_device(network, len(images), network.embedding_dim + (dims or 0), processes)
    clustered = clustering_device(network, len(images), 2 * (dims or network.embedding_dim), processes)
    if state.memory is not None:
        state = replace(state, memory=state.memory.to(kept))
    while state.round < rounds and state.settled < patience:
        index, memory, work = state.round, state.memory, state.work
        keep(state)
        if work is None:
            times = [time.perf_counter()]

            # Step 2, features.
            found = memory
            if found is None:
                found = extract(
                    network, images, size=size, batch_size=batch_size, embedded=True, dtype=dtype, where=kept,
                    progress=partial(progress, "features"),
                )  # fmt: skip
            times.append(time.perf_counter())

            # Step 3, reduction, and step 4, clustering: the cluster numbers are the pseudo-labels.
            map_ = whiten(found, dims, whitening, processes, device=clustered) if dims else unreduced(found)
            reduced = map_(found, clustered)
            memory = found if features == "memory" else None
            how: dict[str, Any] = {"empty": empty, "spherical": spherical, "processes": processes}
            before = () if state.previous is None else state.previous[partition.local].unbind(1)
            starts = [{"start": each} for each in before if kmeans_start == "previous"] or [{}] * len(numbers)
            clusterings = [_by_first(partition, group, reduced)] if group else [
                _of_all(partition, cluster(
                    reduced, k, iterations=iterations, seed=derive(seed, "k-means", index, i), **start, **how
                ))
                for i, (k, start) in enumerate(zip(numbers, starts, strict=True))
            ]  # fmt: skip
            again = clusterings[0]
            if before and kmeans_start == "random" and not group:
                # In two levels one assignment: more would cost what the second level saves.
                again = _of_all(partition, kmeans(
                    reduced, numbers[0], start=before[0], iterations=iterations if levels == 1 else 0, **how
                ))  # fmt: skip
            times.append(time.perf_counter())
            work = _compared(state, again, reduced.cpu(), clusterings, instance_temperature, seed, times)

            # Step 5, learning, with a new linear classifier, or the centroids as one.
            if temperature is None:
                network.new_head(sum(len(each.centroids) for each in clusterings), generator(seed, "head", index))
            else:
                along = unreduced(found)(found, clustered) if dims else reduced
                network.centroid_head(torch.cat(
                    [means(along, each.labels[partition.local], len(each.centroids), processes) for each in clusterings]
                ), temperature)  # fmt: skip
            del found, reduced  # without a memory nothing but the reduced features stays
        state = replace(state, memory=memory, work=work)
        keep(state)
        begin = time.perf_counter()
        targets = torch.stack([renumbered(each.labels) if renumber else each.labels for each in work.clusterings], 1)
        loss = train_on_pseudo_labels(
            network, images, targets, optimizer, size=size, lr=lr, head_lr=head_lr, epochs=epochs,
            batch_size=batch_size, views=views, clusters=[len(each.centroids) for each in work.clusterings],
            trust=work.cluster_weight, instance_temperature=instance_temperature or 1.0, sample=sample, seed=seed,
            round=index, memory=memory, partition=partition, dtype=dtype, begun=work.trained,
            keep=partial(_kept, keep, state, work, optimizer),
            progress=partial(progress, "training"),
        )  # fmt: skip

        # Step 6, alternation.
        step = lr(float(index)) if callable(lr) else lr
        yield _record(index, work, loss, step, time.perf_counter() - begin, partition.total * epochs)
        settled = state.settled + 1 if 1 - work.agreement <= tolerance + SLACK else 0
        previous = torch.stack([each.labels for each in work.clusterings], 1)
        state = State(index + 1, previous, settled, memory, momenta(optimizer))
    keep(state)


def _check_choices(features: str, kmeans_start: str, *, one_level: bool) -> None:
    if features not in FEATURES:
        raise ValueError(f"features={features!r}: choose {' or '.join(FEATURES)}")
    if kmeans_start not in ("random", "previous") or (kmeans_start == "previous" and not one_level):
        raise ValueError(f"kmeans_start={kmeans_start!r}: choose random, or previous for k-means in one level")


def clustering_device(network: Network, rows: int, width: int, processes: Processes = ALONE) -> torch.device:
    """Where ``rows`` of ``width`` numbers are kept and clustered: with the network where all processes have room."""
    device = next(network.parameters()).device
    return CPU if processes.any(not holds_rows(device, rows, width)) else device


def _of_all(partition: Partition, own: Clustering) -> Clustering:
    """A clustering with the labels of all images, not only the own ones, on the CPU."""
    own = _on_cpu(own)
    return replace(own, labels=partition.all_gather(own.labels.int()).long())


def _by_first(partition: Partition, group: Group, reduced: Tensor) -> Clustering:
    """A clustering of all rows by the first process."""
    rows = partition.gather(reduced)
    processes = partition.processes
    found = [_on_cpu(group(rows))] if processes.is_main else []
    if processes.alone:
        return found[0]
    names = ("labels", "centroids", "sizes")
    tensors = processes.broadcast_tensors(lambda: {name: getattr(found[0], name) for name in names})
    inertia = processes.broadcast_json(lambda: found[0].inertia)
    iterations, reseeded = processes.broadcast_json(lambda: [found[0].iterations, found[0].reseeded])
    return Clustering(**tensors, inertia=inertia, iterations=iterations, reseeded=reseeded)


def _on_cpu(found: Clustering) -> Clustering:
    return replace(found, labels=found.labels.cpu(), centroids=found.centroids.cpu(), sizes=found.sizes.cpu())


def _kept(keep: Keep, state: State, work: Work, optimizer: SGD, trained: Trained) -> None:
    """Hand on where the alternation is, in the middle of a training."""
    keep(replace(state, momentum=momenta(optimizer), work=replace(work, trained=trained)))


def _compared(
    state: State, again: Clustering, reduced: Tensor, clusterings: Sequence[Clustering],
    instance_temperature: float | None, seed: int, times: Sequence[float],
) -> Work:  # fmt: skip
    """How much has changed since the previous round? (Of step 6; learning may depend on it.)

    again: what the first clustering of the previous round has become in the features of this one.
    """
    previous = None if state.previous is None else state.previous[:, 0]
    return Work(
        reduced=reduced,
        clusterings=tuple(clusterings),
        agreement=math.nan if previous is None else nmi(previous, again.labels),
        moved=math.nan if previous is None else changed(previous, again.labels),
        cluster_weight=1.0 if instance_temperature is None else trusted(previous, again.labels, seed, state.round),
        seconds=(times[1] - times[0], times[2] - times[1]),
    )


def renumbered(labels: Tensor) -> Tensor:
    """Each label's place among the labels that occur, ascending."""
    places: Tensor = torch.unique(labels, return_inverse=True)[1]
    return places


def trusted(previous: Tensor | None, labels: Tensor, seed: int, index: int) -> float:
    """The weight (0 to 1) of pseudo-labels that repeat the previous ones by a share a: a^2 / (a^2 + (1 - a)^2)."""
    if previous is None:
        return 0.0
    share = repeated(previous, labels, generator(seed, "chance", index))
    return share**2 / (share**2 + (1 - share) ** 2)


def _record(index: int, work: Work, loss: float, lr: float, seconds: float, views: int) -> Round:
    return Round(
        index=index,
        reduced=work.reduced,
        clustering=work.clusterings[0],
        loss=loss,
        chance_loss=mean(math.log(clustering.occupied) for clustering in work.clusterings),
        nmi_previous=work.agreement,
        changed=work.moved,
        cluster_weight=work.cluster_weight,
        lr=lr,
        features_seconds=work.seconds[0],
        clustering_seconds=work.seconds[1],
        training_seconds=seconds,
        images_per_second=views / seconds,
    )


@dataclass(frozen=True)
class Result:
    """Step 7: the map from features to ``reduced`` ones (N x d), their ``lengths`` (N) before they had length 1, and
    the final assignments and centroids."""

    reduction: Whitening
    reduced: Tensor
    lengths: Tensor
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
    levels: int = 1,
    progress: Progress = unheard,
    processes: Processes = ALONE,
) -> Result:
    """Cluster the features of the network as it is now, in float32, so that a new image can be placed exactly.

    levels: with 2 the centroids are those of :func:`two_level_kmeans`, and a label is the nearest of all of them.
    processes: those that share the images, of which ``images`` and the rows of ``reduced`` are the own ones of each.
    """
    size = size or images.shape[-1]
    kept = clustering_device(network, len(images), network.feature_dim + dims, processes)
    clustered = clustering_device(network, len(images), 2 * dims, processes)
    features = extract(
        network, images, size=size, batch_size=batch_size, where=kept, progress=partial(progress, "features")
    )
    reduction = whiten(features, dims, whitening, processes, device=clustered)
    # On the CPU, where a model reduces new images too: so the same image has the same bits.
    features = features.cpu()
    reduced = reduction(features)
    rows = reduced.to(clustered)
    own = derive(seed, "k-means final")
    start = None
    if levels == 2:
        found = two_level_kmeans(
            rows, clusters, iterations=iterations, seed=own, precision="fp32", empty=empty, processes=processes
        )
        start, iterations = found.centroids, 0
    clustering = kmeans(
        rows, clusters, start=start, iterations=iterations, seed=own, precision="fp32", empty=empty,
        processes=processes,
    )  # fmt: skip
    return Result(
        reduction, reduced, reduction.lengths(features), _of_all(Partition.of(processes, len(images)), clustering)
    )
