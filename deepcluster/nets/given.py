"""What stands for a network that is not here: the features came from elsewhere, or it is a module of the user's."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deepcluster.errors import ModelError
from deepcluster.nets.backbone import Network, architecture_of_module
from deepcluster.nets.sizes import FEATURES


def no_network(feature_dim: int) -> Network:
    """A network without weights, which no image goes through."""
    return Network(nn.Identity(), feature_dim, architecture={"name": FEATURES, "image_size": 1, "sobel": False})


class Absent(nn.Module):
    """The weights of a module that was not given again. They can be saved, as after a recut; images need the module."""

    def __init__(self, weights: Mapping[str, Tensor]):
        super().__init__()
        self.weights = dict(weights)
        self.nothing = nn.Parameter(torch.empty(0))  # every network is asked for the device of its parameters

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination |= {prefix + name: value for name, value in self.weights.items()}

    def forward(self, *images: Tensor) -> Tensor:
        """ModelError: say what is missing."""
        raise ModelError(
            "the network of this model is a module of your own, of which it has the weights alone: give the module in"
            " Python, DeepCluster.load(path, backbone=module)"
        )


def absent_module(weights: Mapping[str, Tensor], feature_dim: int, image_size: int) -> Network:
    """A network that was a module of the user's, without the module."""
    return Network(Absent(weights), feature_dim, architecture=architecture_of_module(image_size))
