"""Clustering (step 4): Lloyd's k-means that leaves no cluster empty."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from deepcluster.devices import choose_precision
from deepcluster.errors import NonFiniteError
from deepcluster.records import Clustering
from deepcluster.seeding import generator

EMPTY_POLICIES = ("split", "sample")
TILE = 1 << 20  # scores in a chunk, rows x K: 4 MB stay in the cache
LARGE = 1 << 30  # multiplications in an assignment: below, it takes some 10 ms in float32, and exact is worth more


def kmeans(
    x: Tensor,
    k: int,
    *,
    start: Tensor | None = None,
    iterations: int = 20,
    seed: int = 0,
    precision: str = "auto",
    empty: str = "split",
    spherical: bool = False,
) -> Clustering:
    """Group N rows into ``k`` clusters: y_i = argmin_k ||x_i - c_k||^2 (paper, equation 2).

    x: N x d. start: k x d centroids to begin with, or None for a random sample of distinct rows. iterations: updates of
    the centroids, the last of them followed by one more assignment, so that the labels belong to the centroids
    returned. precision: ``fp32``, ``bf16`` (all assignments but the last in bfloat16), ``auto`` (bf16 where that is
    native and the matrix product is large).
    empty: what becomes of a centroid without rows: ``split`` puts it beside that of a large cluster (faiss,
    the paper's code), ``sample`` on a random row. spherical: centroids have length 1; for rows of length 1.

    Where there are at least k distinct rows no cluster is empty: what the policy leaves empty after the last update is
    put on rows that lie farthest from their centroid. Deterministic on one device for given arguments.

    Raises ValueError on k < 1, k > N, a start of another shape or an unknown policy; NonFiniteError on NaN or infinity.
    """
    x = torch.as_tensor(x)
    if x.ndim != 2:
        raise ValueError(f"k-means needs a matrix of rows; got shape {tuple(x.shape)}")
    rows, width = x.shape
    if not 1 <= k <= rows:
        raise ValueError(f"k={k} must be at least 1 and at most the number of rows, {rows}")
    if empty not in EMPTY_POLICIES:
        raise ValueError(f"empty={empty!r}: choose {' or '.join(EMPTY_POLICIES)}")
    if start is not None and tuple(start.shape) != (k, width):
        raise ValueError(f"start has shape {tuple(start.shape)}, but k x d is {(k, width)}")
    x = x.float()
    if not math.isfinite(x.double().sum().item()):
        raise NonFiniteError(f"{int((~torch.isfinite(x)).any(1).sum())} of {rows} rows are not finite")
    if precision == "auto" and rows * width * k < LARGE:
        precision = "fp32"
    dtype = choose_precision(precision, x.device)
    centroids = _random_rows(x, k, generator(seed, "k-means start")) if start is None else torch.as_tensor(start)
    return _lloyd(x, centroids.to(x, copy=True), iterations, seed, dtype, empty, spherical)


def _lloyd(
    x: Tensor, centroids: Tensor, iterations: int, seed: int, dtype: torch.dtype, empty: str, spherical: bool
) -> Clustering:
    k = len(centroids)
    finish: Callable[[Tensor], Tensor] = F.normalize if spherical else (lambda sums: sums)
    # Scores are differences of large numbers where the rows are far from zero, so they are taken around the mean.
    middle = x.mean(0, dtype=torch.float64).float()
    fast = x if dtype == torch.float32 else (x - middle).to(dtype)
    reseeded = 0
    for iteration in range(iterations):
        labels = nearest(x, centroids, middle) if fast is x else nearest(fast, centroids - middle)
        sums, sizes = segment_sums(x, labels, k)
        centroids = finish(sums / sizes.clamp(min=1).unsqueeze(1))
        vacant = torch.nonzero(sizes == 0).flatten()
        if len(vacant):
            reseed = _split if empty == "split" else _sample
            reseed(x, centroids, sizes, vacant, generator(seed, "k-means empty", iteration))
            centroids[vacant] = finish(centroids[vacant])
            reseeded += len(vacant)
    labels = nearest(x, centroids, middle)
    distances = squared_distances(x, centroids, labels)
    # Each pass moves unused centroids onto rows that had a distance, so the inertia falls: it ends.
    while len(vacant := torch.nonzero(torch.bincount(labels, minlength=k) == 0).flatten()):
        far = _farthest_distinct(x, distances, len(vacant))
        if not len(far):
            break  # every row is on its centroid: there are fewer than k distinct rows
        centroids[vacant[: len(far)]] = x[far]
        reseeded += len(far)
        before = distances.sum()
        labels = nearest(x, centroids, middle)
        distances = squared_distances(x, centroids, labels)
        if distances.sum() >= before:
            break  # only rounding is left to gain
    sizes = torch.bincount(labels, minlength=k)
    return Clustering(labels, centroids, sizes, distances.sum(dtype=torch.float64).item(), iterations, reseeded)


def nearest(x: Tensor, centroids: Tensor, middle: Tensor | None = None) -> Tensor:
    """Index (int64, N) of the nearest of K centroids for each row, computed in the type of ``x``.

    middle: a point (d) near the rows, around which the scores are taken; the origin where it is None.
    """
    if middle is not None:
        centroids = centroids - middle
    offset = (-0.5 * centroids.double().square().sum(1)).to(x.dtype)
    towards = centroids.to(x.dtype)
    parts = (part if middle is None else part - middle for part in x.split(_chunk(len(centroids))))
    return torch.cat([_argmax(F.linear(part, towards, offset)) for part in parts])


def _argmax(scores: Tensor) -> Tensor:
    if scores.device.type == "cpu" and scores.dtype == torch.float32:
        # numpy's argmax costs 4 % of the product, torch's 30 %.
        return torch.from_numpy(scores.numpy().argmax(1))
    return scores.argmax(1)


def _chunk(k: int) -> int:
    return max(64, TILE // k)


def squared_distances(x: Tensor, centroids: Tensor, labels: Tensor) -> Tensor:
    """Squared distance (N) of each row to the centroid of its label: exactly 0 where the two are equal."""
    size = _chunk(x.shape[1])
    parts = zip(x.split(size), labels.split(size), strict=True)
    return torch.cat([(part - centroids[own]).square().sum(1) for part, own in parts])


def segment_sums(x: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Sum of the rows (K x d) and their number (int64, K) for each label; no atomic additions, so deterministic."""
    sizes = torch.bincount(labels, minlength=k)
    order = torch.argsort(labels, stable=True)
    return F.embedding_bag(order, x, sizes.cumsum(0) - sizes, mode="sum"), sizes


def _random_rows(x: Tensor, k: int, random: torch.Generator) -> Tensor:
    """k rows drawn without replacement, and distinct as far as there are distinct ones."""
    order = torch.randperm(len(x), generator=random)
    count = k
    while True:
        candidates = x[order[:count].to(x.device)]
        first = _first_occurrences(candidates)
        if len(first) >= k or count == len(x):
            break
        count = min(len(x), 2 * count)
    repeated = torch.ones(count, dtype=torch.bool)
    repeated[first] = False
    chosen = torch.cat([first, torch.nonzero(repeated).flatten()])[:k]
    return candidates[chosen.to(x.device)]


def _first_occurrences(x: Tensor) -> Tensor:
    """Ascending indices of the rows that equal no earlier row."""
    _, group = torch.unique(x, dim=0, return_inverse=True)
    order = torch.argsort(group.cpu(), stable=True)
    group = group.cpu()[order]
    leading = torch.ones(len(x), dtype=torch.bool)
    leading[1:] = group[1:] != group[:-1]
    return order[leading].sort().values


def _split(x: Tensor, centroids: Tensor, sizes: Tensor, vacant: Tensor, random: torch.Generator) -> None:
    """Empty clusters take half of a cluster drawn by size: both centroids move by 1/1024, in opposite directions."""
    sizes = sizes.double().cpu()
    sign = torch.ones(x.shape[1], device=x.device)
    sign[1::2] = -1
    for cluster in vacant.tolist():
        weights = (sizes - 1).clamp(min=0)
        donor = int(torch.multinomial(weights, 1, generator=random)) if weights.sum() > 0 else int(sizes.argmax())
        centroids[cluster] = centroids[donor] * (1 + sign / 1024)
        centroids[donor] = centroids[donor] * (1 - sign / 1024)
        sizes[cluster] = sizes[donor] = sizes[donor] / 2


def _sample(x: Tensor, centroids: Tensor, sizes: Tensor, vacant: Tensor, random: torch.Generator) -> None:
    """Empty clusters move to the features of random samples."""
    drawn = torch.randperm(len(x), generator=random)[: len(vacant)]
    centroids[vacant] = x[drawn.to(x.device)]


def _farthest_distinct(x: Tensor, distances: Tensor, count: int) -> Tensor:
    """Up to ``count`` rows with a positive distance, farthest first, no two of them equal."""
    order = torch.argsort(distances, descending=True, stable=True)[: 8 * count]
    order = order[distances[order] > 0]
    return order[_first_occurrences(x[order]).to(x.device)][:count] if len(order) else order
