"""Backbones, heads, and weights from files."""

from typing import TYPE_CHECKING

from deepcluster import at_first_use

if TYPE_CHECKING:
    from deepcluster.nets.network import Network, build

__all__ = ["Network", "build"]
# Recipes ask for image sizes (``nets.names``) and shall not wait for torch.
__getattr__ = at_first_use(dict.fromkeys(__all__, "deepcluster.nets.network"))
