"""Plain frozen values that pass between the steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# A result of a run: its rounds go on and replace it, or have ended.
PRELIMINARY, FINAL = "preliminary", "final"


@dataclass(frozen=True)
class Clustering:
    """The result of k-means, or of ``pic`` (see there), on N rows of d numbers.

    ``labels`` (int64, N) are the nearest of ``centroids`` (float32, K x d): they belong to these centroids, not to the
    ones before the last update. ``sizes`` (int64, K) count the labels. ``inertia`` is the sum over rows of the squared
    distance to their centroid. ``reseeded`` counts the empty clusters that were given a new centroid on the way.
    """

    labels: Tensor
    centroids: Tensor
    sizes: Tensor
    inertia: float
    iterations: int
    reseeded: int

    @property
    def largest_share(self) -> float:
        """Share of the rows in the largest cluster: near 1 means collapse."""
        return self.sizes.max().item() / max(1, self.labels.numel())

    @property
    def occupied(self) -> int:
        """Number of clusters that are not empty."""
        return int(self.sizes.count_nonzero())


@dataclass(frozen=True)
class Round:
    """One round of the alternation: a clustering, and the training on it.

    ``reduced`` (float32, N x d) are the whitened, L2-normalised features that were clustered; ``clustering.labels`` are
    the pseudo-labels that were trained on (those of the first, where several clusterings are learnt). ``loss`` is their
    mean cross-entropy over the round, ``chance_loss`` that of guessing. ``nmi_previous`` and
    ``changed`` compare the assignment of the round before with what its clusters became in the new features (NaN in the
    first round). ``cluster_weight`` is the share of the pseudo-labels' loss in what was minimised; the rest, if any, is
    that of the loss of single images.
    """

    index: int
    reduced: Tensor
    clustering: Clustering
    loss: float
    chance_loss: float
    nmi_previous: float
    changed: float
    cluster_weight: float
    lr: float
    features_seconds: float
    clustering_seconds: float
    training_seconds: float
    images_per_second: float

    @property
    def change(self) -> float:
        """1 - NMI to the previous assignment (NaN in the first round)."""
        return 1.0 - self.nmi_previous


@dataclass(frozen=True)
class Trained:
    """How far the training of a round is.

    Attributes:
        steps: Optimizer steps done.
        epoch_loss: Sum of the losses of the epoch under way (float32).
        loss: Sum of the losses of the epochs before it (float64).
    """

    steps: int
    epoch_loss: Tensor
    loss: Tensor


@dataclass(frozen=True)
class Work:
    """What a round has before it trains (steps 2 to 4), and how far it has trained since.

    Attributes:
        reduced: The reduced features (N x d) that were clustered into ``clusterings``.
        agreement, moved: NMI and share of images that moved, from the first clustering of the previous round to what
            it has become in this one (NaN in the first).
        cluster_weight: The weight of the pseudo-labels in the loss.
        seconds: For the features, and for reduction and clustering.
        trained: None before the first optimizer step.
        features: Those of the pass that this round began with (n x D, this rank's), for whoever is told of the state
            before the training; in no other state, and in no checkpoint.
    """

    reduced: Tensor
    clusterings: tuple[Clustering, ...]
    agreement: float
    moved: float
    cluster_weight: float
    seconds: tuple[float, float]
    trained: Trained | None = None
    features: Tensor | None = None


@dataclass(frozen=True)
class State:
    """Where an alternation is: with the network, the images and the options, all that what follows depends on.

    The tensors are those that the alternation goes on to change: write or copy a state before the next optimizer step.

    Attributes:
        round: Index of the round under way.
        previous: Pseudo-labels of the previous round (int64, N x the number of clusterings).
        settled: For how many rounds they have not changed.
        memory: The features that training saw (N x D).
        momentum: The body optimizer's, a tensor for each parameter.
        work: None before the round has clustered. From then on the head of the network belongs to the state too.
    """

    round: int = 0
    previous: Tensor | None = None
    settled: int = 0
    memory: Tensor | None = None
    momentum: tuple[Tensor, ...] = ()
    work: Work | None = None
