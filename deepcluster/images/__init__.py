"""From files to one uint8 tensor, and from that to batches: images are decoded and resized once."""

from typing import TYPE_CHECKING

from deepcluster import at_first_use
from deepcluster.images.decode import decoders
from deepcluster.images.files import Images, find
from deepcluster.images.source import Source

if TYPE_CHECKING:
    from deepcluster.images.store import Store, read_once
    from deepcluster.images.views import Augmentation

__all__ = ["Augmentation", "Images", "Source", "Store", "decoders", "find", "read_once"]
# Finding images does not need torch.
__getattr__ = at_first_use(
    dict.fromkeys(["Store", "read_once"], "deepcluster.images.store") | {"Augmentation": "deepcluster.images.views"}
)
