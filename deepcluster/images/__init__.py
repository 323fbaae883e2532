"""From files to one uint8 tensor, and from that to batches: images are found, decoded and resized once."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from deepcluster.images.find import Images, find, find_in_parts
from deepcluster.images.source import Source

if TYPE_CHECKING:
    from deepcluster.images.augment import Augmentation
    from deepcluster.images.sampling import uniform_over_clusters
    from deepcluster.images.store import Store, read_once

__all__ = ["Augmentation", "Images", "Source", "Store", "find", "find_in_parts", "read_once", "uniform_over_clusters"]
_HOMES = {"Augmentation": "augment", "Store": "store", "read_once": "store", "uniform_over_clusters": "sampling"}


def __getattr__(name: str) -> Any:
    """Import at first use what needs torch: to find images, or not to find them, takes none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'deepcluster.images' has no attribute {name!r}")
    return getattr(import_module(f"deepcluster.images.{_HOMES[name]}"), name)
