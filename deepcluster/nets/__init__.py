"""Backbones, heads, and weights from files."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepcluster.nets.backbone import Network, build, from_official
    from deepcluster.nets.official import OfficialWeights, read_official

__all__ = ["Network", "OfficialWeights", "build", "from_official", "read_official"]


def __getattr__(name: str) -> Any:
    """Import at first use: recipes ask for image sizes (``nets.sizes``) and shall not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module 'deepcluster.nets' has no attribute {name!r}")
    from deepcluster.nets import backbone, official

    home = official if name in ("OfficialWeights", "read_official") else backbone
    return getattr(home, name)
