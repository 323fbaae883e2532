"""Backbones, heads, and weights from files."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepcluster.nets.network import Network, build, from_official
    from deepcluster.nets.published_2018 import OfficialWeights, read_official

__all__ = ["Network", "OfficialWeights", "build", "from_official", "read_official"]


def __getattr__(name: str) -> Any:
    """Import at first use: recipes ask for image sizes (``nets.names``) and shall not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module 'deepcluster.nets' has no attribute {name!r}")
    from deepcluster.nets import network, published_2018

    home = published_2018 if name in ("OfficialWeights", "read_official") else network
    return getattr(home, name)
