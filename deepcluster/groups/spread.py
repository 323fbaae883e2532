"""Answers about a few images: relabel the others by them, and choose the next questions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import scipy  # the parts at first use: `predict` waits for none
import torch
from torch import Tensor

from deepcluster.clustering.kmeans import assigner, best_of
from deepcluster.groups.graph import Numbers
from deepcluster.groups.tree import medoids_of

if TYPE_CHECKING:
    from scipy.sparse import csr_array

ALPHA = 0.8  # share of its neighbours in the score of an image
PRESENT = 0.05  # weight of the present cluster of an image; an answer has 1
FOLLOWER = 0.4  # weight of an image without an answer in the discriminant
SHRINKAGE = 0.6  # of its covariance towards a sphere
FINE = 2  # fine clusters of a cluster, whose typical images are asked about
STARTS = 3  # of the k-means that makes them
MAX_ROWS = 5000  # for it
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Taught:
    """The images in a neighbour graph, their present clusters, and the answers of a person about some of them."""

    rows: Tensor  #: N x d features, all distinct
    ties: "csr_array"  #: their graph
    labels: Labels  #: their clusters (N)
    kinds: Labels  #: of all clusters (K): clusters of one name have one number
    answers: Mapping[int, int]  #: clusters of some rows


def label_spreading(ties: "csr_array", scores: Numbers) -> Numbers:
    """Return (I - ALPHA S)^-1 scores (N x K), with S the ties over the roots of both degrees (Zhou et al. 2004)."""
    scale = scipy.sparse.diags_array(1 / np.sqrt(np.maximum(ties.sum(1), 1e-12)))
    normalised = ALPHA * (scale @ ties @ scale)

    def multiply(flat: Numbers) -> Numbers:
        values = flat.reshape(scores.shape)
        product: Numbers = (values - normalised @ values).ravel()
        return product

    operator = scipy.sparse.linalg.LinearOperator((scores.size, scores.size), matvec=multiply, dtype=np.float64)
    solution: Numbers = scipy.sparse.linalg.cg(operator, scores.ravel(), rtol=1e-8)[0]  # all columns at once
    return solution.reshape(scores.shape)


def discriminant(rows: Numbers, shares: Numbers, weights: Numbers) -> Numbers:
    """Return the probabilities (N x K) of K equally frequent clusters, by linear discriminant analysis.

    ``shares``: N x K, how far each row belongs to each cluster, of which none is empty. ``weights``: N.
    """
    weighted = shares * weights[:, None]
    sizes = weighted.sum(0)
    means = weighted.T @ rows / sizes[:, None]
    within = ((rows * weights[:, None]).T @ rows - (means.T * sizes) @ means) / sizes.sum()
    sphere = max(float(np.trace(within)) / len(within), 1e-9) * np.eye(len(within))
    directions = np.linalg.solve((1 - SHRINKAGE) * within + SHRINKAGE * sphere, means.T)
    probabilities: Numbers = scipy.special.softmax(rows @ directions - (means.T * directions).sum(0) / 2, axis=1)
    return probabilities


def beliefs(taught: Taught) -> Numbers:
    """Return how far each row belongs to each cluster (N x K), after the answers.

    Half of it comes from the neighbours, which follow clusters of any shape, and half from a linear classifier, which
    learns from the neighbours and reaches images without an answer nearby. A row that no label reaches by the
    neighbours has the second half alone, so its sum is .5; all others have sum 1.
    """
    asked, answers = np.array([*taught.answers.items()], np.int64).reshape(-1, 2).T
    certain = np.eye(len(taught.kinds))[answers]
    scores = PRESENT * np.eye(len(taught.kinds))[taught.labels]
    scores[asked] = certain
    spread = label_spreading(taught.ties, scores).clip(0)
    shares: Numbers = spread / np.maximum(spread.sum(1, keepdims=True), np.finfo(float).tiny)
    shares[asked] = certain
    weights = np.full(len(shares), FOLLOWER)
    weights[asked] = 1
    used = scores.any(0)
    shares[:, used] += discriminant(taught.rows.double().numpy(), shares[:, used], weights)
    shares /= 2
    shares[asked] = certain
    return shares


def of_kinds(believed: Numbers, kinds: Labels) -> Numbers:
    """Return the :func:`beliefs` of all clusters of a kind together."""
    return believed @ np.eye(len(kinds))[kinds]


def followed(taught: Taught) -> Labels:
    """Return the clusters of all rows: as answered, and for other rows the likeliest of the likeliest kind.

    Without answers nothing follows: the present clusters alone would only be smoothed.
    """
    if not taught.answers:
        return taught.labels
    kinds = taught.kinds
    believed = beliefs(taught)
    best = of_kinds(believed, kinds).argmax(1)
    likeliest = np.where(kinds == best[:, None], believed, -1).argmax(1)
    labels: Labels = np.where(kinds[taught.labels] == best, taught.labels, likeliest)
    for row, cluster in taught.answers.items():
        labels[row] = cluster
    return labels


def questions(taught: Taught, count: int, seed: int = 0, unnamed: Sequence[int] = ()) -> list[int]:
    """Return up to ``count`` rows whose answers would teach most.

    First comes a typical row of each ``unnamed`` cluster. Half of the others are typical rows of fine clusters without
    an answer. There are half as many of these as questions so far, but some for each cluster. The rest are uncertain.
    """
    first = [row for cluster in unnamed[:count] for row in typical_row(taught, cluster)]
    taught = replace(taught, answers={row: int(taught.labels[row]) for row in first} | dict(taught.answers))
    count -= len(first)
    if not count:
        return first
    part = taught.rows[:: -(-len(taught.rows) // MAX_ROWS)]
    number = max((len(taught.answers) + count) // 2, FINE * len({*taught.labels.tolist()}))
    fine = best_of(STARTS, part, min(len(part), number), seed)
    labels = assigner(fine.centroids)(taught.rows)
    known = {*labels[[*taught.answers]].tolist()}
    sizes = torch.bincount(labels)
    largest_first = sizes.argsort(descending=True, stable=True).tolist()
    clusters = [cluster for cluster in largest_first if sizes[cluster] and cluster not in known][: (count + 1) // 2]
    typical = medoids_of(fine.centroids, taught.rows, labels)[clusters].tolist()
    assumed = replace(taught, answers={row: int(taught.labels[row]) for row in typical} | dict(taught.answers))
    believed = of_kinds(beliefs(assumed), taught.kinds)
    return first + typical + uncertain(taught.ties, believed, [*assumed.answers], count - len(typical))


def typical_row(taught: Taught, cluster: int) -> list[int]:
    """Return the row of a cluster without an answer that is nearest to the cluster's mean, if there is one."""
    members = torch.from_numpy(np.flatnonzero(taught.labels == cluster))
    distances = (taught.rows[members] - taught.rows[members].mean(0)).square().sum(1)
    nearest_first = members[distances.argsort(stable=True)].tolist()
    return [row for row in nearest_first if row not in taught.answers][:1]


def uncertain(ties: "csr_array", believed: Numbers, known: Sequence[int], count: int) -> list[int]:
    """Return ``count`` rows, none of the ``known``, with the least lead of the best kind, first without neighbours."""
    two = np.sort(believed, 1)[:, -2:]
    order = np.argsort(two[:, -1] - two[:, 0], kind="stable").tolist()
    taken = np.zeros(len(believed), bool)
    taken[known] = True
    chosen: list[int] = []
    while len(chosen) < count and not taken.all():
        near = taken.copy()
        for row in order:
            if len(chosen) < count and not near[row]:
                chosen.append(row)
                taken[row] = near[row] = True
                near[ties.indices[ties.indptr[row] : ties.indptr[row + 1]]] = True
    return chosen


def nodes_of(reduced: Tensor, rows: Tensor) -> Labels:
    """Return the index of the one of the distinct ``rows`` that equals a feature (int64, N); -1: none."""
    number = {row.tobytes(): node for node, row in enumerate((rows + 0.0).numpy())}
    return np.array([number.get(row.tobytes(), -1) for row in (reduced + 0.0).numpy()], np.int64)
