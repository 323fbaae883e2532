"""One pass over the rows of k-means: the nearest centroid of each, and what the next centroids are made of.

A block of rows is finished while it is in the cache: product with the centroids, best of each row, sums per cluster.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from deepcluster.clustering.blocks import Rows
from deepcluster.clustering.matmul import product

Assign = Callable[[Tensor], Tensor]  # rows (M x d, float32) to the index (int64, M) of the nearest centroid

# Scores (rows x K) computed at a time. On a CPU 4 MB, which stay in the cache until the best of each row is taken.
SCORES = {torch.float64: 1 << 19, torch.float32: 1 << 20}
SCORES_ON_GPU = 1 << 24
LEAST_CHUNK = 256
DISTANCES = 1 << 10  # rows
# The largest |c|^2, in mean squared distances of rows from their centroid, at which float32 scores are exact enough:
# at 1,000,000 a quarter of the labels were not the nearest.
REACH = 16_000.0


def nearest_sums(rows: Rows, centroids: Tensor, dtype: torch.dtype) -> Tensor:
    """K x (d + 1), float64: the sum of the rows that are nearest to each centroid, and in the last column their number.

    Scores are computed in ``dtype``, the sums in float32 over a block and in float64 over the blocks.
    """
    assign = assigner(centroids, dtype)
    return _add_up(rows, len(centroids), lambda begin, block: assign(block))


def label_sums(rows: Rows, labels: Tensor, k: int) -> Tensor:
    """The same for given labels (int64, N)."""
    return _add_up(rows, k, lambda begin, block: labels[begin : begin + len(block)])


def place(rows: Rows, centroids: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """The nearest centroid (int64, N) of each row, by scores in ``dtype``, and the squared distance (float32, N) to it.

    The distance is a sum of squares and not a difference of products: exactly 0 where row and centroid are equal.
    """
    assign = assigner(centroids, dtype)
    labels = torch.empty(len(rows.x), dtype=torch.int64, device=rows.x.device)
    distances = torch.empty(len(rows.x), device=rows.x.device)

    def work(begin: int, block: Tensor) -> None:
        labels[begin : begin + len(block)] = assign(block)
        for start in range(begin, begin + len(block), DISTANCES):  # two copies of a whole block would be 16 MB
            part = block[start - begin : start - begin + DISTANCES]
            own = labels[start : start + len(part)]
            distances[start : start + len(part)] = (part - centroids[own]).square_().sum(1)

    for _ in rows.blocks(work):
        pass
    return labels, distances


def assigner(centroids: Tensor, dtype: torch.dtype = torch.float32) -> Assign:
    """A function from rows to the nearest of K x d ``centroids``: argmax of x.c - c.c/2, as many as the cache holds.

    The scores are differences of large numbers where the rows are far from zero, so they are taken around the mean of
    the centroids where that is farther away than the centroids are from it.
    """
    on_cpu = centroids.device.type == "cpu"
    chunk = max(LEAST_CHUNK, (SCORES[dtype] if on_cpu else SCORES_ON_GPU) // len(centroids))
    middle = centroids.mean(0, dtype=torch.float64)
    far = middle.square().sum() > _squared_lengths(centroids).mean() / 2  # the rest is the spread around the middle
    shift = middle.float().to(dtype) if far else None
    towards = centroids if shift is None else centroids.to(dtype) - shift
    scores = product(towards.to(dtype), (-_squared_lengths(towards) / 2).to(dtype))

    def assign(rows: Tensor) -> Tensor:
        parts = rows.split(chunk)
        if shift is not None:
            parts = tuple(part.to(dtype) - shift for part in parts)
        return torch.cat([_argmax(scores(part.to(dtype))) for part in parts])

    return assign


def exact_enough(rows: Tensor, centroids: Tensor) -> torch.dtype:
    """float32, or float64 if float32 cannot tell the centroids apart; by a sample of the ``rows``.

    The error of all scores is that of the longest centroid's: it must be small beside what rows are from theirs.
    """
    rows, centroids = rows.double(), centroids.double()
    middle = centroids.mean(0)
    around = centroids - middle
    lengths = around.square().sum(1)
    likeness = (rows - middle) @ around.T - lengths / 2
    spread = ((rows - middle).square().sum(1) - 2 * likeness.max(1).values).clamp(min=0).mean()
    return torch.float32 if lengths.max() <= REACH * spread else torch.float64


def _squared_lengths(x: Tensor) -> Tensor:
    """By float64, without a copy of x in it."""
    lengths: Tensor = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
    return lengths.square()


def _argmax(scores: Tensor) -> Tensor:
    """The first of the largest in each row. On a CPU by numpy: 4 % of the product's time, where torch takes 30 %."""
    return scores.argmax(1) if scores.device.type != "cpu" else torch.from_numpy(scores.numpy().argmax(1))


def least_block(k: int) -> int:
    """Rows in a block at least: its sums are of k rows however few it has itself."""
    return 4 * k


def _add_up(rows: Rows, k: int, assign: Callable[[int, Tensor], Tensor]) -> Tensor:
    sums = torch.zeros(k, rows.x.shape[1], dtype=torch.float64, device=rows.x.device)
    sizes = torch.zeros(k, dtype=torch.int64, device=rows.x.device)
    blocks: Iterable[tuple[Tensor | None, Tensor, Tensor]] = rows.blocks(
        lambda begin, block: segment_sums(block, assign(begin, block), k), least=least_block(k)
    )
    for clusters, block_sums, block_sizes in blocks:
        if clusters is None:
            sums += block_sums
            sizes += block_sizes
        else:
            sums.index_add_(0, clusters, block_sums.double())
            sizes.index_add_(0, clusters, block_sizes)
    totals = torch.empty(k, rows.x.shape[1] + 1, dtype=torch.float64, device=rows.x.device)
    totals[:, :-1], totals[:, -1] = sums, sizes
    return totals


def segment_sums(x: Tensor, labels: Tensor, k: int) -> tuple[Tensor | None, Tensor, Tensor]:
    """Clusters (int64, C), the sum of the rows of each (C x d) and their number (int64, C).

    All K clusters, said by None, where x has as many rows, else those that occur. Rows are added in their order, one
    after the other: no atomic additions, so the sums are always the same.
    """
    order = _sorted_order(labels, k)
    if k <= len(x):
        clusters, sizes = None, torch.bincount(labels, minlength=k)
    else:
        clusters, sizes = torch.unique_consecutive(labels[order], return_counts=True)
    return clusters, F.embedding_bag(order, x, sizes.cumsum(0) - sizes, mode="sum"), sizes


def _sorted_order(labels: Tensor, k: int) -> Tensor:
    if labels.device.type == "cpu" and k <= 1 << 16:
        # numpy sorts 16-bit integers by counting: 7 times faster than a comparison sort of 64-bit ones.
        return torch.from_numpy(np.argsort(labels.numpy().astype(np.uint16), kind="stable"))
    return torch.argsort(labels, stable=True)
