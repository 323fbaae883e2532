"""Plain frozen values that pass between the steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Clustering:
    """The result of k-means or of a step of your own, on N rows of d numbers."""

    labels: Tensor  #: int64, N; after k-means the nearest of ``centroids``, and not of those before the last update
    centroids: Tensor  #: float32, K x d
    sizes: Tensor  #: int64, K, counts of the labels
    inertia: float  #: sum over rows of the squared distance to their centroid
    iterations: int  #: updates of the centroids
    reseeded: int  #: number of empty clusters that got a new centroid on the way

    @property
    def largest_share(self) -> float:
        """Share of the rows in the largest cluster; near 1 means collapse."""
        return self.sizes.max().item() / max(1, self.labels.numel())

    @property
    def occupied(self) -> int:
        """Number of clusters that are not empty."""
        return int(self.sizes.count_nonzero())


@dataclass(frozen=True)
class State:
    """A resumable point of the loop. Network, images, options and this determine everything that follows.

    The loop changes these tensors in place: write or copy them before the next round.
    """

    round: int = 0  #: index of the next round
    #: Pseudo-labels of the previous round (int64, N x the number of clusterings); None before the first.
    previous: Tensor | None = None
    settled: int = 0  #: number of rounds in a row in which they have hardly changed
    #: Features for the next round (n x D, of this rank's images), from training or an earlier pass.
    #: If None, the round makes a pass.
    features: Tensor | None = None
    #: The ``state_dict`` of the body's optimizer; empty before the first round.
    optimizer: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """One round of the alternation: a clustering, and the training on it."""

    index: int  #: from 0
    reduced: Tensor  #: the whitened, L2-normalised features that were clustered (float32, n x d, of this rank's images)
    #: Its labels are the pseudo-labels that were trained on (of the first clustering, if several are learnt).
    clustering: Clustering
    loss: float  #: mean cross-entropy of the pseudo-labels over the round
    chance_loss: float  #: loss of guessing
    #: NMI of the previous assignment and its continuation by k-means in the new features; NaN in the first round.
    nmi_previous: float
    changed: float  #: share of the images that left the majority of their previous cluster; NaN in the first round
    #: Weight of the pseudo-labels' loss in the objective; the rest, if any, is the weight of single images' loss.
    cluster_weight: float
    lr: float  #: learning rate in the middle of the round
    state: State  #: after the round; save it to go on from here

    @property
    def change(self) -> float:
        """1 - NMI to the previous assignment (NaN in the first round)."""
        return 1.0 - self.nmi_previous


@dataclass(frozen=True)
class Candidate:
    """A number of clusters."""

    k: int
    silhouette: float  #: of so many clusters in a layout of the neighbour graph, -1 to 1 (are they apart?)
    modularity: float  #: share of ties inside the clusters, less the share of random ties (do they hold together?)


@dataclass(frozen=True)
class Identity:
    """Identity of a model, for files and messages; None or empty until the model is written."""

    run: str | None = None  # identifier of its run
    cut: str | None = None  # identifier of its clusters: their numbers mean the same in every model with the same cut
    clusters: int = 0  # their number
    n_clusters: int | None = None  # the requested -k; None: the number is a guess
    date: str | None = None  # time at which it was written, UTC
    version: str | None = None  # of this package
    digest: str = ""  # SHA-256 of all but the identity: equal models have the same

    def __str__(self) -> str:
        guess = " (a guess)" if self.n_clusters is None else ""
        return f"{self.digest[:12]}, {self.clusters:,} clusters{guess}, run {self.run}, {self.date}"
