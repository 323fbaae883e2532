"""Agreement of two assignments of the same images. True labels are used after the fact only; they choose nothing.

scikit-learn is imported inside the functions: that takes as long as torch, and `predict` does not need it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # the parts at first use: `predict` waits for none
import torch
from torch import Tensor

from deepcluster.clustering.kmeans import ClusteringStep, KMeans
from deepcluster.records import Clustering

NMI_AVERAGE = "geometric"  # I(A;B) / sqrt(H(A) H(B)), as in the paper (equation 5)

SLACK = 1e-9  # the NMI of two equal assignments may be 4e-16 below 1

Assignment = Tensor | np.ndarray | Sequence[int] | Sequence[str]


@dataclass(frozen=True)
class LabelChange:
    """Change of the pseudo-labels from the previous round to this one (step 6)."""

    previous: Tensor | None  #: labels (int64, N) of the first clustering of the previous round; None in the first round
    labels: Tensor  #: labels of the same clusters in the features of this round
    nmi: float = math.nan  #: :func:`nmi` of the two; NaN in the first round
    changed: float = math.nan  #: share of images that left their previous cluster's majority; NaN in the first round


def is_settled(nmi: float, tolerance: float) -> bool:
    """Return True if 1 - NMI is at most ``tolerance``."""
    return 1 - nmi <= tolerance + SLACK


def label_change(
    previous: Tensor | None, rows: Tensor, clusterings: Sequence[Clustering], step: ClusteringStep
) -> LabelChange:
    """Compare the clusterings that ``step`` made of ``rows`` (N x d) with the previous ones.

    ``previous`` are the labels of the previous round (N x the number of clusterings); None in the first. A random start
    gives other clusters even if the features are the same. So a second k-means then continues the previous clusters.
    """
    if previous is None:
        return LabelChange(None, clusterings[0].labels)
    before = previous[:, 0]
    now = clusterings[0]
    if isinstance(step, KMeans):
        now = step.once(rows, len(now.centroids), start=before)
    return LabelChange(before, now.labels, *compared(before, now.labels))


def nmi(a: Assignment, b: Assignment) -> float:
    """Normalised mutual information, geometric mean. High by chance when clusters are many: see :func:`ami`."""
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(np.asarray(a), np.asarray(b), average_method=NMI_AVERAGE))


def compared(previous: Tensor, current: Tensor) -> tuple[float, float]:
    """Return :func:`nmi` of two assignments (int64), and the share of images that changed cluster.

    The numbers of two clusterings have nothing in common, so a previous cluster is followed to the cluster that most
    of its images went to. Linear in the number of images; a one-to-one matching of 10,000 clusters would take hours.
    """
    images = np.ones(len(previous), dtype=np.int64)
    table = scipy.sparse.coo_array((images, (previous.numpy(), current.numpy()))).tocsr()
    return nmi(previous, current), float(1.0 - table.max(axis=1).sum() / table.sum())


def repeated(previous: Tensor, current: Tensor, random: torch.Generator) -> float:
    """Return the share (0 to 1) by which an assignment repeats the previous one: their NMI above chance.

    Chance is the NMI with the images in another order. (AMI computes its expectation, which takes minutes for
    thousands of clusters.)
    """
    chance = nmi(previous, current[torch.randperm(len(current), generator=random)])
    return max(0.0, (nmi(previous, current) - chance) / max(1e-9, 1 - chance))


def ari(a: Assignment, b: Assignment) -> float:
    """Adjusted Rand index (Hubert and Arabie 1985): the share of pairs that both assignments join, beyond chance."""
    first, second = (torch.from_numpy(np.unique(np.asarray(labels), return_inverse=True)[1]) for labels in (a, b))
    counts = torch.unique(first * len(second) + second, return_counts=True)[1]
    both, in_one, in_other, everything = (
        float((sizes * (sizes - 1) // 2).sum())
        for sizes in (counts, torch.bincount(first), torch.bincount(second), torch.tensor([len(first)]))
    )
    chance = in_one * in_other / max(1.0, everything)
    most = (in_one + in_other) / 2
    return (both - chance) / (most - chance) if most > chance else 1.0


def scores(labels: Assignment, clusters: Assignment) -> dict[str, float]:
    """Return accuracy, NMI, AMI (arithmetic mean) and ARI of clusters against labels; NaN if there are none.

    Accuracy is the share of images in the class that their cluster stands for, by the best one-to-one matching.
    """
    from sklearn.metrics import adjusted_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    if len(labels) == 0:
        return dict.fromkeys(("acc", "nmi", "ami", "ari"), math.nan)
    a, b = np.asarray(labels), np.asarray(clusters)
    table = contingency_matrix(a, b)
    matched = table[scipy.optimize.linear_sum_assignment(table, maximize=True)].sum()
    mutual = float(adjusted_mutual_info_score(a, b))
    return {"acc": float(matched / len(a)), "nmi": nmi(a, b), "ami": mutual, "ari": ari(a, b)}
