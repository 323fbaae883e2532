"""DeepCluster: from a folder of unlabelled images to clusters, features and a model that places new images."""

__version__ = "0.1.0"
