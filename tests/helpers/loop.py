"""The loop's settings from flat options, so that a test names only those that it is about."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from deepcluster.algorithm import alternate
from deepcluster.clustering.kmeans import KMeans
from deepcluster.clustering.whitening import Reduction
from deepcluster.learning.training import Learning, PseudoLabels, body_optimizer, train_on_pseudo_labels
from deepcluster.nets.network import Network
from deepcluster.records import Round
from deepcluster.runtime.compute import Compute

PLACE = ("size", "dtype", "progress", "processes")


def loop(network: Network, images: Tensor, **options: Any) -> Iterator[Round]:
    """``alternate`` with the fields of its settings among its options."""
    compute = _compute(network, images, options)
    values = {"reduction": _taken(Reduction, options), "clustering": _taken(KMeans, options)}
    values["learning"] = _taken(Learning, options)
    return alternate(network, images, **{**values, **options}, compute=compute)


def learn(
    network: Network, images: Tensor, labels: Tensor, optimizer: Optimizer | None = None, **options: Any
) -> float:
    """``train_on_pseudo_labels`` with the fields of Learning and PseudoLabels among its options."""
    compute, learning = _compute(network, images, options), _taken(Learning, options)
    clusters = options.pop("clusters", None) or [len(network.head.weight)]
    weight, index = options.pop("cluster_weight", 1.0), options.pop("round", 0)
    targets = PseudoLabels(labels.reshape(len(labels), -1), clusters, weight, index)
    optimizer = optimizer or body_optimizer(network, learning)
    return train_on_pseudo_labels(network, images, targets, optimizer, learning, compute, **options)


def _compute(network: Network, images: Tensor, options: dict[str, Any]) -> Compute:
    chosen = {name: options.pop(name) for name in PLACE if name in options}
    return Compute.of(network, images, batch_size=options.get("batch_size", 256), **chosen)


def _taken(kind: type, options: dict[str, Any]) -> Any:
    return kind(**{field.name: options.pop(field.name) for field in fields(kind) if field.name in options})
