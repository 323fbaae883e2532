"""The contract that every backbone meets, and the names that build one."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from deepcluster.nets.compact import Compact
from deepcluster.nets.heads import reset_linear
from deepcluster.seeding import generator

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Network(nn.Module):
    """A backbone without its last layer (step 1), and the head that is on top of it for one round.

    ``features`` maps B x 3 x S x S images in [0, 1] to B x ``feature_dim`` features, the ones that are clustered.
    ``forward`` maps the same images to B x K logits through ``activation`` and the head. Normalisation by ``mean`` and
    ``std`` is part of the network, so nobody can forget it or do it twice.
    """

    head: nn.Linear | None

    def __init__(
        self,
        body: nn.Module,
        feature_dim: int,
        *,
        activation: nn.Module | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ):
        super().__init__()
        self.body = body
        self.feature_dim = feature_dim
        self.activation = activation or nn.Identity()
        self.head = None
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def features(self, images: Tensor) -> Tensor:
        features: Tensor = self.body((images - self.mean) / self.std)
        return features

    def forward(self, images: Tensor) -> Tensor:
        if self.head is None:
            raise RuntimeError("the network has no head yet: call new_head(clusters, generator) first")
        logits: Tensor = self.head(self.activation(self.features(images)))
        return logits

    def new_head(self, clusters: int, generator: torch.Generator) -> None:
        """Put a fresh linear classifier with ``clusters`` outputs on top."""
        self.head = reset_linear(self.feature_dim, clusters, generator).to(self.mean.device)

    def body_parameters(self) -> Iterator[nn.Parameter]:
        """The trained parameters below the head."""
        return (parameter for parameter in self.body.parameters() if parameter.requires_grad)


def build(name: str, *, image_size: int, sobel: bool = False, weights: str | None = None, seed: int = 0) -> Network:
    """The network called ``name`` (``compact``)."""
    body = Compact(16, generator(seed, "network"))
    return Network(body, body.feature_dim)
