"""Steps 3 and 4, mathematics on matrices: whitening, k-means, agreement of two assignments."""

from deepcluster.clustering.kmeans import ClusteringStep, KMeans, as_clustering, kmeans
from deepcluster.clustering.whitening import Reduction, Whitening, whiten

__all__ = [
    "ClusteringStep",
    "KMeans",
    "Reduction",
    "Whitening",
    "as_clustering",
    "kmeans",
    "whiten",
]
