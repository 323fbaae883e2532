"""Heads: classifiers of the cluster numbers, on top of the features while a round trains.

Cluster numbers of two rounds have nothing in common, so each round starts with a new head. Several clusterings of the
same images share one head: their logits lie side by side.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Layer = TypeVar("Layer", bound=nn.Module)


def reset_linear(features: int, clusters: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with weights from N(0, 0.01) and bias 0 (paper section 3; DeepCluster code, main.py)."""
    head = with_memory(nn.Linear(features, clusters, device="meta"))
    with torch.no_grad():
        head.weight.normal_(0.0, 0.01, generator=generator)
        head.bias.zero_()
    return head


def linear_of(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer with a copy of these weights, on the CPU."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta").to_empty(device="cpu")
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def with_memory(layer: Layer) -> Layer:
    """A layer of the meta device moved to the CPU, values not set; it stays inside ``with torch.device("meta")``."""
    return layer if torch.get_default_device().type == "meta" else layer.to_empty(device="cpu")


class Centroids(nn.Module):
    """Logits cos(x, c_k) / temperature by K x D ``centroids`` that do not learn (DeepCluster-v2)."""

    def __init__(self, centroids: Tensor, temperature: float):
        super().__init__()
        self.temperature = temperature
        self.directions: Tensor
        self.register_buffer("directions", F.normalize(centroids.float(), dim=1))

    def forward(self, embeddings: Tensor) -> Tensor:
        # Always in float32: at a temperature of 0.1 the three digits of bfloat16 mean an error of 0.04 in a logit.
        with torch.autocast(embeddings.device.type, enabled=False):
            return F.normalize(embeddings.float(), dim=1) @ self.directions.T / self.temperature


def projection_mlp(features: int, hidden: int, outputs: int, generator: torch.Generator) -> nn.Sequential:
    """Two layers from the features to what is clustered during training (DeepCluster-v2, after SimCLR)."""
    layers = nn.Sequential(
        nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs)
    )
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear", generator=generator)
            nn.init.zeros_(layer.bias)
    return layers
