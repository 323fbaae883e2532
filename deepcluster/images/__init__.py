"""From files to one uint8 tensor, and from that to batches: images are found, decoded and resized once."""

from deepcluster.images.augment import Augmentation
from deepcluster.images.find import Images, find, find_in_parts
from deepcluster.images.sampling import uniform_over_clusters
from deepcluster.images.source import Source
from deepcluster.images.store import Store, read_once

__all__ = ["Augmentation", "Images", "Source", "Store", "find", "find_in_parts", "read_once", "uniform_over_clusters"]
