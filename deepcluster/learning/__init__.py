"""Steps 2 and 5: features out of the network, and its training on pseudo-labels."""

from deepcluster.learning.draws import uniform_over_clusters
from deepcluster.learning.features import extract
from deepcluster.learning.heads import (
    CentroidHead,
    CrossEntropy,
    Loss,
    Outputs,
    WithInstances,
    new_linear_head,
)
from deepcluster.learning.training import Learning, PseudoLabels, train_on_pseudo_labels

__all__ = [
    "CentroidHead",
    "CrossEntropy",
    "Learning",
    "Loss",
    "Outputs",
    "PseudoLabels",
    "WithInstances",
    "extract",
    "new_linear_head",
    "train_on_pseudo_labels",
    "uniform_over_clusters",
]
