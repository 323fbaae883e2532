"""k-means (step 4): no cluster is left empty, and threads do not change a bit.

A block of rows is finished while it is in the cache: product with the centroids, best centroid of its rows, sums per
cluster.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from deepcluster.clustering.blocks import Blocks, check_scale, matrix, product, shared_out
from deepcluster.clustering.starts import as_faiss, beside_large, farthest_distinct, random_rows, spread_rows
from deepcluster.errors import UsageError
from deepcluster.records import Clustering
from deepcluster.seeding import derive, generator

Assign = Callable[[Tensor], Tensor]  # rows (M x d, float32) to the index (int64, M) of the nearest centroid

# Scores (rows x K) computed at a time. In float32 on a CPU 1 MB: they stay in the cache until the best of a row is
# taken, and malloc reuses their memory. With 4 MB an assignment to 1,000 centroids took twice as long.
SCORES_ON_CPU = {torch.float64: 1 << 19, torch.float32: 1 << 18}
SCORES_ON_GPU = 1 << 24
MIN_CHUNK = 256
CHUNK_STEP = 128  # whole tiles of the product's kernel: with 256 rows instead of 262 it takes .93 of the time
DISTANCES = 1 << 10  # rows
MIN_BLOCK_ROWS = 4  # of a block for a cluster: its sums may have K rows, however few it has itself
# The largest |c|^2, in mean squared distances of rows from their centroid, at which float32 scores are exact enough:
# at 1,000,000 a quarter of the labels were not the nearest.
REACH = 16_000.0


def cluster_sums(walk: Blocks, k: int, labels: Tensor | Assign) -> Tensor:
    """Return the sum and the number of the rows of ``k`` clusters: float64, k x (d + 1).

    ``labels``: Clusters of all rows (int64, N), or a function of a block. Sums are float32 inside a block.
    """
    totals = torch.zeros(k, walk.x.shape[1] + 1, dtype=torch.float64, device=walk.x.device)

    def work(begin: int, block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Rows are added in their order, one after the other: no atomic additions, so the sums are always the same.
        block_labels = labels[begin : begin + len(block)] if isinstance(labels, Tensor) else labels(block)
        if block_labels.device.type == "cpu" and k <= 1 << 16:
            # numpy sorts 16-bit integers by counting: 7 times faster than a comparison sort of 64-bit ones.
            order = torch.from_numpy(np.argsort(block_labels.numpy().astype(np.uint16), kind="stable"))
        else:
            order = torch.argsort(block_labels, stable=True)
        clusters, sizes = torch.unique_consecutive(block_labels[order], return_counts=True)
        return clusters, F.embedding_bag(order, block, sizes.cumsum(0) - sizes, mode="sum"), sizes

    for clusters, sums, sizes in walk.map(work, MIN_BLOCK_ROWS * k):
        totals.index_add_(0, clusters, torch.cat([sums.double(), sizes.double().unsqueeze(1)], 1))
    return totals


def assigner(centroids: Tensor, dtype: torch.dtype = torch.float32) -> Assign:
    """Return a function from rows to the nearest of K x d ``centroids``: argmax of x.c - c.c/2, chunk by chunk.

    The scores are differences of large numbers if the rows are far from zero, so they are taken around the mean of the
    centroids if that is farther away than the centroids are from it.
    """
    on_cpu = centroids.device.type == "cpu"
    rows_at_a_time = (SCORES_ON_CPU[dtype] if on_cpu else SCORES_ON_GPU) // len(centroids)
    chunk = max(MIN_CHUNK, rows_at_a_time // CHUNK_STEP * CHUNK_STEP)
    middle = centroids.mean(0, dtype=torch.float64)
    far = middle.square().sum() > _squared_lengths(centroids).mean() / 2  # the rest is the spread around the middle
    shift = middle.float().to(dtype) if far else None
    towards = centroids if shift is None else centroids.to(dtype) - shift
    scores = product(towards.to(dtype), (-_squared_lengths(towards) / 2).to(dtype))

    def assign(rows: Tensor) -> Tensor:
        parts = rows.split(chunk)
        if shift is not None:
            parts = tuple(part.to(dtype) - shift for part in parts)
        tables = (scores(part.to(dtype)) for part in parts)
        # On a CPU by numpy, in 4 % of the product's time; torch takes 30 %.
        return torch.cat([torch.from_numpy(x.numpy().argmax(1)) if on_cpu else x.argmax(1) for x in tables])

    return assign


def score_precision(rows: Tensor, centroids: Tensor) -> torch.dtype:
    """Return float32, or float64 if float32 cannot tell the centroids apart, by a sample of the ``rows``.

    All scores have the error of the longest centroid's. It must be small beside the distances of rows to centroids.
    """
    rows, centroids = rows.double(), centroids.double()
    middle = centroids.mean(0)
    around = centroids - middle
    lengths = around.square().sum(1)
    likeness = (rows - middle) @ around.T - lengths / 2
    spread = ((rows - middle).square().sum(1) - 2 * likeness.max(1).values).clamp(min=0).mean()
    return torch.float32 if lengths.max() <= REACH * spread else torch.float64


def _squared_lengths(x: Tensor) -> Tensor:
    """Return the squared lengths of rows in float64, without a float64 copy of x."""
    lengths: Tensor = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
    return lengths.square()


EMPTY_POLICIES = ("split", "sample", "faiss")
PRECISION_ROWS = 64  # rows that tell how exact scores must be


def kmeans(
    x: Tensor | npt.NDArray[np.floating],
    k: int,
    *,
    start: Tensor | None = None,
    iterations: int = 20,
    seed: int = 0,
    empty: str = "split",
    spherical: bool = False,
) -> Clustering:
    """Group N rows into ``k`` clusters: y_i = argmin_k ||x_i - c_k||^2 (paper, equation 2).

    If there are at least k distinct rows, no cluster is empty (but for ``empty="faiss"``). Deterministic on one
    machine for given arguments, and the same for any number of threads.

    Args:
        x: N x d, of any floating type, also a mapped file; read once an iteration and not copied.
        start: k x d centroids; or labels (int64, N): the means of their clusters; or None: a random sample of distinct
            rows.
        iterations: Updates of the centroids at most; one that changes nothing is the last. One more assignment
            follows, so that the labels belong to the centroids returned.
        empty: The place for a centroid without rows: "split", next to a large cluster's; "sample", on a random row;
            "faiss" splits as faiss does, and so the paper's code, and may leave some empty in the end.
        spherical: Centroids have length 1; for rows of length 1.

    Raises:
        ValueError: k < 1, k > N, a start of another shape or an unknown policy.
        NonFiniteError: NaN or infinity in the rows, or numbers too large or too small for squares in float32.

    Examples:
        >>> kmeans(torch.tensor([[0.0], [1.0], [8.0], [9.0]]), 2).centroids.flatten().sort().values.tolist()
        [0.5, 8.5]
    """
    x = matrix(x)
    start = None if start is None else torch.as_tensor(start).detach().to(x.device)
    _check(x, k, start, empty)
    chosen = torch.randperm(len(x), generator=generator(seed, "k-means sample"))[:PRECISION_ROWS]
    precision_rows = x[chosen.to(x.device)].float()
    if start is None:
        start = random_rows(x, k, generator(seed, "k-means start"))
    with shared_out(x) as walk:
        update = partial(_updated, walk=walk, seed=seed, empty=empty, spherical=spherical)
        done, reseeded, centroids = 0, 0, start.float().clone()
        if start.ndim == 1:
            centroids, reseeded = update(cluster_sums(walk, k, start.long()), -1)
        scores = score_precision(precision_rows, centroids)
        for done in range(1, iterations + 1):
            before = centroids
            centroids, vacant = update(cluster_sums(walk, k, assigner(before, scores)), done - 1)
            reseeded += vacant
            if not vacant and torch.equal(centroids, before):  # all further iterations would give the same
                break
        scores = score_precision(precision_rows, centroids)
        clustering, distances = _assigned(walk, centroids, scores, done, reseeded)
        return clustering if empty == "faiss" else _repaired(clustering, walk, distances, scores)


def _check(x: Tensor, k: int, start: Tensor | None, empty: str) -> None:
    """Raise ValueError for arguments of :func:`kmeans` that do not fit the rows or each other."""
    if not 1 <= k <= len(x):
        raise ValueError(f"k={k} must be at least 1 and at most the number of rows, {len(x)}")
    if empty not in EMPTY_POLICIES:
        raise ValueError(f"empty={empty!r}: choose {' or '.join(EMPTY_POLICIES)}")
    if start is None:
        return
    rows, width = x.shape
    if start.ndim == 1 and not start.dtype.is_floating_point:
        if len(start) != rows:
            raise ValueError(f"start has {len(start)} labels, but there are {rows} rows")
        if len(start) and not (start.min() >= 0 and start.max() < k):
            raise ValueError(f"start has labels {start.min()} to {start.max()}: with k={k} they must be 0 to {k - 1}")
    elif tuple(start.shape) != (k, width):
        raise ValueError(f"start has shape {tuple(start.shape)}, but k x d is {(k, width)}")


def _updated(
    totals: Tensor, iteration: int, *, walk: Blocks, seed: int, empty: str, spherical: bool
) -> tuple[Tensor, int]:
    """Return the centroids from the sums of an assignment, and the number of clusters without rows."""
    if not torch.isfinite(totals).all():
        raise walk.not_finite()
    sums, sizes = totals[:, :-1], totals[:, -1]
    finish: Callable[[Tensor], Tensor] = F.normalize if spherical else lambda centroids: centroids
    centroids = finish((sums / sizes.clamp(min=1).unsqueeze(1)).float())
    vacant = torch.nonzero(sizes == 0).flatten()
    if len(vacant):
        random = generator(seed, "k-means empty", iteration)
        if empty == "split":
            replacements = beside_large(centroids, sizes, len(vacant), random)
        elif empty == "faiss":
            replacements = as_faiss(centroids, sizes, len(vacant), random)
        else:
            rows = torch.randperm(len(walk.x), generator=random)[: len(vacant)]
            replacements = walk.x[rows.to(walk.x.device)].float()
        centroids[vacant] = finish(replacements)
    return centroids, len(vacant)


def best_of(starts: int, rows: Tensor, k: int, seed: int) -> Clustering:
    """Return the k-means of least inertia from spread starts (k-means++), worth their time for few centroids."""

    def once(start: int) -> Clustering:
        start_seed = derive(seed, "start", start)
        spread = rows[spread_rows(rows, k, np.random.RandomState(start_seed % 2**32))]
        return kmeans(rows, k, start=spread, seed=start_seed, iterations=50)

    return min(map(once, range(starts)), key=lambda clustering: clustering.inertia)


def means(x: Tensor, labels: Tensor, k: int) -> Tensor:
    """Return the means (float32, k x d) of the rows of ``k`` clusters; zeros for an empty one."""
    with shared_out(matrix(x)) as walk:
        totals = cluster_sums(walk, k, labels.to(walk.x.device))
    return (totals[:, :-1] / totals[:, -1:].clamp(min=1)).float()


def as_clustering(labels: Tensor | npt.NDArray[np.integer], rows: Tensor) -> Clustering:
    """Return the clustering, on the CPU, of given labels: its centroids are the means of the clusters.

    Args:
        labels: Clusters (N integers from 0) of the rows.
        rows: N x d.

    Raises:
        ValueError: The number of labels is not N, or one is negative.

    Examples:
        >>> as_clustering([0, 0, 1], torch.tensor([[0.0], [2.0], [9.0]])).centroids.tolist()
        [[1.0], [9.0]]
    """
    labels = torch.as_tensor(labels).long().cpu()
    rows = matrix(rows)
    if len(labels) != len(rows) or (labels < 0).any():
        negative = int((labels < 0).sum())
        why = "every row needs one of at least 0, noise too"
        raise ValueError(f"{len(labels)} labels for {len(rows)} rows, {negative} of them negative: {why}")
    k = int(labels.max()) + 1
    centroids = means(rows, labels, k)
    parts = zip(rows.split(1 << 16), labels.to(rows.device).split(1 << 16), strict=True)
    squares = [(part.float() - centroids[nearest]).double().square().sum() for part, nearest in parts]
    inertia = torch.stack(squares).sum().item()
    return Clustering(labels, centroids.cpu(), torch.bincount(labels, minlength=k), inertia, iterations=0, reseeded=0)


def labels_of(clusterings: Sequence[Clustering], clusters: Sequence[int], count: int) -> Tensor:
    """Return the labels (int64, N x the number of clusterings) of a step, which may be the user's; else UsageError."""
    with suppress(AttributeError, RuntimeError, TypeError):
        labels = torch.stack([clustering.labels for clustering in clusterings], 1)
        limits = torch.tensor([len(clustering.centroids) for clustering in clusterings])
        is_valid = labels.dtype == torch.int64 and labels.shape == (count, len(clusters))
        if is_valid and ((labels >= 0) & (labels < limits)).all():
            return labels
    expected = f"the labels of all {count} rows (int64, on the CPU), which are numbers of its centroids"
    raise UsageError(f"the clustering must return a tuple of {len(clusters)} Clustering, each with {expected}")


def _assigned(
    walk: Blocks, centroids: Tensor, scores: torch.dtype, iterations: int, reseeded: int
) -> tuple[Clustering, Tensor]:
    """Return the clustering of the rows by these centroids, and their squared distances (float32).

    A distance is a sum of squares and not a difference of products: exactly 0 if row and centroid are equal.
    """
    assign = assigner(centroids, scores)
    x = walk.x
    labels = torch.empty(len(x), dtype=torch.int64, device=x.device)
    distances = torch.empty(len(x), device=x.device)

    def work(begin: int, block: Tensor) -> None:
        labels[begin : begin + len(block)] = assign(block)
        for start in range(begin, begin + len(block), DISTANCES):  # two copies of a whole block would be 16 MB
            part = block[start - begin : start - begin + DISTANCES]
            block_labels = labels[start : start + len(part)]
            distances[start : start + len(part)] = (part - centroids[block_labels]).square_().sum(1)

    for _ in walk.map(work):
        pass
    if not torch.isfinite(distances).all():
        raise walk.not_finite()
    sizes = torch.bincount(labels, minlength=len(centroids))
    inertia = distances.sum(dtype=torch.float64).item()
    check_scale(x, inertia / len(x))
    return Clustering(labels, centroids, sizes, inertia, iterations, reseeded), distances


def _repaired(clustering: Clustering, walk: Blocks, distances: Tensor, scores: torch.dtype) -> Clustering:
    """Move empty clusters to rows that are on no centroid. Every move lowers the inertia, so this ends."""
    centroids = clustering.centroids
    while len(vacant := torch.nonzero(clustering.sizes == 0).flatten()):
        far = farthest_distinct(walk.x, distances, len(vacant))
        if not len(far):
            break  # every row is on its centroid: there are fewer than k distinct rows
        centroids[vacant[: len(far)]] = far
        before = clustering.inertia
        reseeded = clustering.reseeded + len(far)
        clustering, distances = _assigned(walk, centroids, scores, clustering.iterations, reseeded)
        if clustering.inertia >= before:
            break  # only rounding is left to gain
    return clustering


class ClusteringStep(Protocol):
    """Step 4: a function or a callable object. :func:`as_clustering` makes its results from labels.

    Examples:
        >>> def in_turn(rows, clusters, previous, *, seed, round):
        ...     return tuple(as_clustering(torch.arange(len(rows)) % k, rows) for k in clusters)
        >>> DeepCluster(clustering=in_turn).clustering is in_turn
        True
    """

    def __call__(
        self, rows: Tensor, clusters: Sequence[int], previous: Tensor | None, *, seed: int, round: int
    ) -> tuple[Clustering, ...]:
        """Cluster the rows (N x d), once for each number in ``clusters``.

        ``previous`` are the labels (N x the number of clusterings) of the previous round; None in the first. The labels
        of a returned clustering are int64, on the CPU.
        """


@dataclass(frozen=True)
class KMeans:
    """Step 4 by :func:`kmeans` from a random sample in every round. The defaults are the paper's.

    Examples:
        >>> DeepCluster(clustering=KMeans(iterations=50, empty="sample")).clustering
        KMeans(iterations=50, empty='sample', spherical=False)
    """

    iterations: int = 20
    empty: str = "split"
    spherical: bool = False

    def __call__(
        self, rows: Tensor, clusters: Sequence[int], previous: Tensor | None, *, seed: int, round: int
    ) -> tuple[Clustering, ...]:
        return tuple(self.once(rows, k, seed=derive(seed, "k-means", round, i)) for i, k in enumerate(clusters))

    def once(self, rows: Tensor, k: int, *, start: Tensor | None = None, seed: int = 0) -> Clustering:
        """Return one :func:`kmeans` of the rows, on the CPU."""
        clustering = kmeans(rows, k, start=start, seed=seed, **vars(self))
        names = ("labels", "centroids", "sizes")
        return replace(clustering, **{name: getattr(clustering, name).cpu() for name in names})
