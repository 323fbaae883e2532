"""Backbones, heads, and weights from files."""

from typing import TYPE_CHECKING

from deepcluster import at_first_use

if TYPE_CHECKING:
    from deepcluster.nets.network import Network, build, from_official
    from deepcluster.nets.published_2018 import OfficialWeights, read_official

__all__ = ["Network", "OfficialWeights", "build", "from_official", "read_official"]
# Recipes ask for image sizes (``nets.names``) and shall not wait for torch.
__getattr__ = at_first_use(
    dict.fromkeys(__all__, "deepcluster.nets.network")
    | dict.fromkeys(["OfficialWeights", "read_official"], "deepcluster.nets.published_2018")
)
