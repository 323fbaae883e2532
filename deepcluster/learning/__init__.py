"""Steps 2 and 5: features out of the network, and its training on pseudo-labels."""

from deepcluster.learning.features import extract
from deepcluster.learning.heads import (
    CentroidHead,
    CrossEntropy,
    Loss,
    Outputs,
    WithInstances,
    fitted_linear_head,
    new_linear_head,
)
from deepcluster.learning.training import Learning, train_on_pseudo_labels

__all__ = [
    "CentroidHead",
    "CrossEntropy",
    "Learning",
    "Loss",
    "Outputs",
    "WithInstances",
    "extract",
    "fitted_linear_head",
    "new_linear_head",
    "train_on_pseudo_labels",
]
