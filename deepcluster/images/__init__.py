"""From files to one uint8 tensor, and from that to batches: images are decoded and resized once."""

from typing import TYPE_CHECKING, Any

from deepcluster.images.files import Images, find
from deepcluster.images.source import Source

if TYPE_CHECKING:
    from deepcluster.images.store import Store, read_once
    from deepcluster.images.views import Augmentation, uniform_over_clusters

__all__ = ["Augmentation", "Images", "Source", "Store", "find", "read_once", "uniform_over_clusters"]


def __getattr__(name: str) -> Any:
    """Import names that need torch at first use, because finding images does not need it."""
    if name not in __all__:
        raise AttributeError(f"module 'deepcluster.images' has no attribute {name!r}")
    from deepcluster.images import store, views

    home = views if name in ("Augmentation", "uniform_over_clusters") else store
    return getattr(home, name)
