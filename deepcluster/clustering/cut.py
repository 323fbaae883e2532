"""From final features to the groups that the user sees, and the place of any image among them."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import eigh
from scipy.sparse import csr_array, diags_array
from scipy.sparse.linalg import LinearOperator, eigsh
from sklearn.cluster import kmeans_plusplus
from sklearn.metrics import silhouette_score
from torch import Tensor
from torch.nn import functional as F

from deepcluster.clustering.assignment import assigner
from deepcluster.clustering.kmeans import first_occurrences, kmeans
from deepcluster.records import Clustering
from deepcluster.seeding import derive, generator

STARTS = 10
Directions = npt.NDArray[np.float64]
SAMPLE = 50_000  # rows in the neighbour graph
CENTROIDS = 2500  # at most, and one for ROWS_EACH rows: they are what a new image is compared with
ROWS_EACH = 10
MORE = (0.2, 0.5)  # eigenvectors beyond one for each group, as a share of the groups, at least and at most
DENSE = 2000  # rows up to which all eigenvectors are as fast as a few, and never fail to converge
TIES = 1e-3  # share of all ties that is spread over all pairs, so that a few rows apart from all others are no group


@dataclass(frozen=True)
class Cut:
    """Groups made of centroids: ``centroids`` (float32, M x d) and the group (int64, M) that each belongs to.

    Group numbers are 0..K-1 by descending size when first made, and fixed from then on.
    """

    centroids: Tensor
    groups: Tensor

    @property
    def count(self) -> int:
        """The number of groups, K."""
        return int(self.groups.max()) + 1


@dataclass(frozen=True)
class Placement:
    """Where N images belong: ``cluster`` and ``fine_cluster`` (int64), ``distance`` (to the nearest centroid) and
    ``margin`` (1 - distance / distance to the nearest other group: 0 on the border, 1 on the centroid)."""

    cluster: Tensor
    fine_cluster: Tensor
    distance: Tensor
    margin: Tensor


def cut(reduced: Tensor, k: int, *, seed: int = 0) -> Cut:
    """Cut N x d features (rows of length 1) into ``k`` groups where their neighbour graph is thin.

    Every row is tied to its ln N nearest ones; the normalised cut of the ties (Shi and Malik, 2000; Ng, Jordan and
    Weiss, 2002) makes the groups, of any shape. k-means inside each makes the centroids that stand for it, so a new
    image needs nothing but the nearest one. With fewer than ``ROWS_EACH`` distinct rows a group it is the best of
    several k-means.
    """
    own = derive(seed, "cut")
    rows = reduced[first_occurrences(reduced)]  # equal rows would be each other's neighbours, and nobody else's
    if k < 2 or len(rows) < ROWS_EACH * k:
        return as_groups(_best_of(STARTS, reduced, k, own))
    if len(rows) > SAMPLE:
        rows = rows[torch.randperm(len(rows), generator=generator(own, "sample"))[:SAMPLE].sort().values]
    found = _normalised_cut(_ties(rows), k, own)
    sizes = torch.bincount(found, minlength=k)
    parts = [
        _inside(rows[found == group], min(CENTROIDS / len(rows), 1 / ROWS_EACH), derive(own, "inside", group))
        for group in torch.argsort(sizes, descending=True, stable=True).tolist()
        if sizes[group] > 0
    ]
    groups = torch.repeat_interleave(torch.tensor([len(part) for part in parts]))
    return _numbered(Cut(torch.cat(parts), groups), reduced)


def _inside(rows: Tensor, share: float, seed: int) -> Tensor:
    """The centroids of one group, a ``share`` of its number of rows, none of them without a row."""
    clustering = kmeans(rows, max(1, round(share * len(rows))), seed=seed, precision="fp32")
    return clustering.centroids[clustering.sizes > 0]


def _numbered(groups: Cut, reduced: Tensor) -> Cut:
    """The same groups numbered by the rows that are placed in them."""
    sizes = torch.bincount(groups.groups[assigner(groups.centroids)(reduced)], minlength=groups.count)
    order = torch.argsort(sizes, descending=True, stable=True)
    return Cut(groups.centroids, torch.argsort(order)[groups.groups])


def _ties(rows: Tensor) -> csr_array:
    """N x N: 1 for a row and one of its nearest neighbours, 2 where that is mutual."""
    size = len(rows)
    count = min(size - 1, max(3, round(math.log(size))))  # about as many as keep a random graph in one piece
    nearest = torch.empty(size, count, dtype=torch.int64)
    for begin in range(0, size, 500):
        part = rows[begin : begin + 500]
        likeness = part @ rows.T
        likeness[torch.arange(len(part)), torch.arange(begin, begin + len(part))] = -torch.inf  # not itself
        nearest[begin : begin + 500] = likeness.topk(count, 1).indices
    ones = np.ones(size * count)
    ties = csr_array((ones, nearest.flatten().numpy(), np.arange(0, size * count + 1, count)), shape=(size, size))
    return csr_array(ties + ties.T)


def _normalised_cut(ties: csr_array, k: int, seed: int) -> Tensor:
    """The group (int64, N) of each row, by k-means on the leading eigenvectors of the normalised ties."""
    size = ties.shape[0]
    count = min(size - 1, k + _more(k)[1] + 1)
    degrees = np.asarray(ties.sum(1)).ravel()
    spread = TIES * degrees.mean()
    scale = 1 / np.sqrt((1 - TIES) * degrees + spread)
    weighted = diags_array(scale * (1 - TIES)) @ ties @ diags_array(scale)

    def multiply(vector: Directions) -> Directions:
        vector = vector.ravel()
        found: Directions = weighted @ vector + (spread / size * (scale @ vector)) * scale
        return found

    if size <= DENSE:
        whole = weighted.toarray() + spread / size * np.outer(scale, scale)
        values, vectors = eigh(whole, subset_by_index=[size - count, size - 1], overwrite_a=True)
    else:
        start = torch.randn(size, generator=generator(seed, "eigenvectors"), dtype=torch.float64).numpy()
        operator = LinearOperator((size, size), matvec=multiply, dtype=np.float64)
        # Separate groups have nearly equal eigenvalues, apart by about TIES: the tolerance is far below it.
        values, vectors = eigsh(operator, k=count, ncv=max(3 * count, 40), which="LA", v0=start, tol=TIES * 1e-3)
    order = np.argsort(-values)
    pieces = _pieces(values[order], k)
    leading = np.ascontiguousarray(vectors[:, order[:pieces]])
    found = F.normalize(torch.from_numpy(leading).float(), dim=1)
    return _best_of(STARTS, found, k, seed).labels


def _more(k: int) -> tuple[int, int]:
    """How many eigenvectors beyond ``k`` to take, at least and at most. With fewer than 3 groups there is none more: a
    third one splits a ring that is one group."""
    least, most = (max(1, round(share * k)) for share in MORE)
    return (least, most) if k > 2 else (0, 0)


def _pieces(values: Directions, k: int) -> int:
    """How many pieces the graph of ``k`` groups has, by the largest gap in its descending eigenvalues.

    A class may come in several (two ways to write a digit), and with an eigenvector too few two classes share one.
    """
    least, most = _more(k)
    gaps = values[k + least - 1 : k + most] - values[k + least : k + most + 1]
    return k + least + int(np.argmax(gaps))


def _best_of(starts: int, rows: Tensor, k: int, seed: int) -> Clustering:
    """The k-means of least inertia. With few centroids spread starts (k-means++) are worth their time."""

    def once(start: int) -> Clustering:
        own = derive(seed, "start", start)
        spread, _ = kmeans_plusplus(rows.numpy(), k, random_state=own % 2**32)
        return kmeans(rows, k, start=torch.from_numpy(spread), seed=own, precision="fp32", iterations=50)

    return min(map(once, range(starts)), key=lambda clustering: clustering.inertia)


def as_groups(clustering: Clustering) -> Cut:
    """Every cluster that is not empty is a group, numbered by size."""
    order = torch.argsort(clustering.sizes, descending=True, stable=True)
    order = order[clustering.sizes[order] > 0]
    return Cut(clustering.centroids[order], torch.arange(len(order)))


def place(reduced: Tensor, groups: Cut, fine_centroids: Tensor) -> Placement:
    """Put N x d reduced features to their nearest centroids.

    Distances are summed row by row and not by a matrix product, so that an image gets the same numbers alone and among
    others.
    """
    parts = [_place(rows, groups, fine_centroids) for rows in reduced.split(4096)]
    return Placement(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _place(rows: Tensor, groups: Cut, fine_centroids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    distances = torch.cdist(rows, groups.centroids, compute_mode="donot_use_mm_for_euclid_dist")
    by_group = torch.full((len(rows), groups.count), torch.inf)
    by_group.scatter_reduce_(1, groups.groups.expand(len(rows), -1), distances, "amin")
    distance, cluster = by_group.min(1)
    others = by_group.scatter(1, cluster.unsqueeze(1), torch.inf).min(1).values
    margin = 1 - distance / others.clamp(min=torch.finfo(torch.float32).tiny)
    return cluster, assigner(fine_centroids)(rows), distance, margin


def outlier_distances(placement: Placement, count: int) -> Tensor:
    """The distance (float32, K) from which an image is an outlier of its group: Tukey's fence, Q3 + 1.5 (Q3 - Q1)."""
    fences = torch.full((count,), torch.inf)
    for group in range(count):
        inside = placement.distance[placement.cluster == group]
        if len(inside):
            lower, upper = np.quantile(inside.numpy(), [0.25, 0.75])  # torch's refuses more than 16 million numbers
            fences[group] = upper + 1.5 * (upper - lower)
    return fences


def suggest_k(reduced: Tensor, *, seed: int = 0, most: int = 30, sample: int = 2000) -> dict[int, float]:
    """Silhouette (-1 to 1) of k-means into 2..``most`` groups on a sample of the features: a guess at how many."""
    rows = reduced[torch.randperm(len(reduced), generator=generator(seed, "suggest"))[:sample]]
    values: dict[int, float] = {}
    for k in range(2, min(most, len(rows) - 1) + 1):
        labels = _best_of(3, rows, k, derive(seed, "suggest", k)).labels
        if len(labels.unique()) > 1:
            values[k] = float(silhouette_score(rows.numpy(), labels.numpy()))
    return values
