"""Mathematics on matrices: whitening, k-means, the cut into groups, agreement of two assignments."""

from deepcluster.clustering.kmeans import kmeans
from deepcluster.clustering.two_level import two_level_kmeans
from deepcluster.clustering.whitening import Whitening, whiten

__all__ = ["Whitening", "kmeans", "two_level_kmeans", "whiten"]
