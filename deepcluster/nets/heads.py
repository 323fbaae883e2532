"""The linear classifier on top: new each round, because the cluster numbers of two rounds have nothing in common."""

import torch
from torch import nn


def reset_linear(features: int, clusters: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with weights from N(0, 0.01) and bias 0 (paper section 3; DeepCluster code, main.py)."""
    head = nn.Linear(features, clusters, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        head.weight.normal_(0.0, 0.01, generator=generator)
        head.bias.zero_()
    return head
