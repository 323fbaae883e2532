"""Clustering (step 4): Lloyd's k-means that leaves no cluster empty."""

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from sklearn.cluster import kmeans_plusplus
from torch import Tensor
from torch.nn import functional as F

from deepcluster.clustering.assignment import exact_enough, label_sums, least_block, nearest_sums, place
from deepcluster.clustering.blocks import Rows, extended, in_whole_blocks, matrix, shared_out
from deepcluster.errors import NonFiniteError
from deepcluster.records import Clustering
from deepcluster.runtime.devices import choose_precision
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import ALONE, Processes
from deepcluster.seeding import derive, generator

EMPTY_POLICIES = ("split", "sample", "faiss")
LARGE = 1 << 30  # multiplications in an assignment: below, it takes some 10 ms in float32, and exact is worth more
SAMPLE = 64  # rows by which it is judged how exact scores must be
Finish = Callable[[Tensor], Tensor]
Reseed = Callable[[Tensor, Tensor, int, torch.Generator], Tensor]  # centroids, sizes, how many, random: new centroids


def kmeans(
    x: Tensor | npt.NDArray[np.floating],
    k: int,
    *,
    start: Tensor | None = None,
    iterations: int = 20,
    seed: int = 0,
    precision: str = "auto",
    empty: str = "split",
    spherical: bool = False,
    workers: int | None = None,
    chunk: int | None = None,
    processes: Processes = ALONE,
) -> Clustering:
    """Group N rows into ``k`` clusters: y_i = argmin_k ||x_i - c_k||^2 (paper, equation 2).

    x: N x d, of any floating type, a mapped file included; it is read once in an iteration and not copied. start: k x d
    centroids to begin with; or labels (integers, N), of which the mean of each cluster is taken, which needs few
    iterations where they are nearly right; or None for a random sample of distinct rows. iterations: updates of the
    centroids at most (one that changes nothing is the last), followed by one more assignment, so that the labels belong
    to the centroids returned. precision: ``fp32``, ``bf16`` (all assignments but the last in bfloat16), ``auto`` (bf16
    where that is native and the matrix product is large); where centroids are so far apart that this would not tell
    near ones from each other, it is float32 in place of bfloat16, and float64 in place of float32. empty: what becomes
    of a centroid without rows: ``split`` puts it beside that of a large cluster, ``sample`` on a random row, ``faiss``
    splits as faiss does, and so the paper's code did, and no more (some may be empty in the end). spherical: centroids
    have length 1; for rows of length 1. workers: threads (as many as torch uses). chunk: rows scored at a time (as many
    as fit the cache).

    Where there are at least k distinct rows no cluster is empty (but for ``faiss``): what the policy leaves empty after
    the last update is put on rows that lie farthest from their centroid. Deterministic on one machine for given
    arguments, and the same for any ``workers`` and ``chunk``.

    processes: those that share the rows. ``x``, ``start`` where it is labels, and the labels returned are the own ones
    of each; N and everything else are of all, and the same for all. In an iteration one k x (d + 1) sum goes round.

    Raises ValueError on k < 1, k > N, a start of another shape or an unknown policy; NonFiniteError on NaN or infinity.
    """
    x = matrix(x)
    width = x.shape[1]
    partition = Partition.of(processes, len(x))
    if not 1 <= k <= partition.total:
        raise ValueError(f"k={k} must be at least 1 and at most the number of rows, {partition.total}")
    if empty not in EMPTY_POLICIES:
        raise ValueError(f"empty={empty!r}: choose {' or '.join(EMPTY_POLICIES)}")
    for name, value in (("workers", workers), ("chunk", chunk)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    start = None if start is None else torch.as_tensor(start).detach().to(x.device)
    _check_start(start, len(x), k, width)
    if precision == "auto" and partition.total * width * k < LARGE:
        precision = "fp32"
    dtype = choose_precision(precision, x.device)
    chosen = torch.randperm(partition.total, generator=generator(seed, "k-means sample"))[:SAMPLE]
    sample = partition.index_select(x, chosen).float()
    finish: Finish = F.normalize if spherical else lambda centroids: centroids
    policies: dict[str, Reseed] = {
        "split": _beside_large, "sample": partial(_random_sample, x, partition), "faiss": _as_faiss,
    }  # fmt: skip
    reseed = policies[empty]

    def renew(totals: Tensor, iteration: int) -> tuple[Tensor, int]:
        """Centroids from the sums of an assignment, and how many of them had no rows."""
        totals = processes.all_reduce(totals)
        if not torch.isfinite(totals).all():
            raise _not_finite(walk, processes)
        sums, sizes = totals[:, :-1], totals[:, -1]
        centroids = finish((sums / sizes.clamp(min=1).unsqueeze(1)).float())
        vacant = torch.nonzero(sizes == 0).flatten()
        if len(vacant):
            random = generator(seed, "k-means empty", iteration)
            centroids[vacant] = finish(reseed(centroids, sizes, len(vacant), random))
        return centroids, len(vacant)

    with shared_out(x, workers) as walk:
        blocks = in_whole_blocks(walk, partition, least_block(k))
        reseeded = done = 0
        if start is None:
            centroids = _random_rows(x, partition, k, generator(seed, "k-means start"))
        elif start.ndim == 1:
            centroids, reseeded = renew(label_sums(blocks, extended(start.long(), blocks, partition), k), -1)
        else:
            centroids = start.float().clone()
        for iteration in range(iterations):
            before = centroids
            if dtype == torch.bfloat16 or iteration == 0:
                scores = exact_enough(sample, before, dtype)
            centroids, vacant = renew(nearest_sums(blocks, before, scores, chunk), iteration)
            reseeded, done = reseeded + vacant, iteration + 1
            if not vacant and torch.equal(centroids, before):  # all further iterations would give the same
                break
        scores = exact_enough(sample, centroids, torch.float32)
        labels, distances = place(walk, centroids, chunk, scores)
        if processes.any(not torch.isfinite(distances).all()):
            raise _not_finite(walk, processes)
        return _repaired(
            walk, partition, labels, centroids, distances, done, reseeded, chunk, scores, repair=empty != "faiss"
        )


def best_of(starts: int, rows: Tensor, k: int, seed: int) -> Clustering:
    """The k-means of least inertia. With few centroids spread starts (k-means++) are worth their time."""

    def once(start: int) -> Clustering:
        own = derive(seed, "start", start)
        spread, _ = kmeans_plusplus(rows.numpy(), k, random_state=own % 2**32)
        return kmeans(rows, k, start=torch.from_numpy(spread), seed=own, precision="fp32", iterations=50)

    return min(map(once, range(starts)), key=lambda clustering: clustering.inertia)


def means(x: Tensor, labels: Tensor, k: int, processes: Processes = ALONE) -> Tensor:
    """The mean (float32, k x d) of the rows of each of ``k`` clusters; zeros where one has none."""
    with shared_out(matrix(x), None) as walk:
        totals = processes.all_reduce(label_sums(walk, labels.to(walk.x.device), k))
    return (totals[:, :-1] / totals[:, -1:].clamp(min=1)).float()


def _check_start(start: Tensor | None, rows: int, k: int, width: int) -> None:
    if start is None:
        return
    if start.ndim == 1 and not start.dtype.is_floating_point:
        if len(start) != rows:
            raise ValueError(f"start has {len(start)} labels, but there are {rows} rows")
        if len(start) and not (start.min() >= 0 and start.max() < k):
            raise ValueError(f"start has labels {start.min()} to {start.max()}: with k={k} they must be 0 to {k - 1}")
    elif tuple(start.shape) != (k, width):
        raise ValueError(f"start has shape {tuple(start.shape)}, but k x d is {(k, width)}")


def _not_finite(walk: Rows, processes: Processes) -> NonFiniteError:
    bad, rows = processes.all_reduce(torch.tensor([walk.not_finite(), len(walk.x)])).tolist()
    if not bad:
        return NonFiniteError("the rows are too large: sums or squares of them are beyond the range of float32")
    return NonFiniteError(f"{bad} of {rows} rows are not finite")


def _repaired(
    walk: Rows, partition: Partition, labels: Tensor, centroids: Tensor, distances: Tensor, iterations: int,
    reseeded: int, chunk: int | None, scores: torch.dtype, *, repair: bool,
) -> Clustering:  # fmt: skip
    """The result, with empty clusters moved onto rows that had a distance: the inertia falls each time, so it ends."""
    k = len(centroids)
    sizes, inertia = _sizes_and_inertia(labels, distances, k, partition.processes)
    while repair and len(vacant := torch.nonzero(sizes == 0).flatten()):
        far = _farthest_distinct(walk.x, partition, distances, len(vacant))
        if not len(far):
            break  # every row is on its centroid: there are fewer than k distinct rows
        centroids[vacant[: len(far)]] = far
        reseeded += len(far)
        before = inertia
        labels, distances = place(walk, centroids, chunk, scores)
        sizes, inertia = _sizes_and_inertia(labels, distances, k, partition.processes)
        if inertia >= before:
            break  # only rounding is left to gain
    return Clustering(labels, centroids, sizes, inertia, iterations, reseeded)


def _sizes_and_inertia(labels: Tensor, distances: Tensor, k: int, processes: Processes) -> tuple[Tensor, float]:
    sizes = processes.all_reduce(torch.bincount(labels, minlength=k))
    return sizes, processes.all_reduce(distances.sum(dtype=torch.float64)).item()


def _random_rows(x: Tensor, partition: Partition, k: int, random: torch.Generator) -> Tensor:
    """k rows drawn without replacement, and distinct as far as there are distinct ones."""
    order = torch.randperm(partition.total, generator=random)
    count = k
    while True:
        candidates = partition.index_select(x, order[:count]).float()
        first = first_occurrences(candidates)
        if len(first) >= k or count == partition.total:
            break
        count = min(partition.total, 2 * count)
    repeated = torch.ones(count, dtype=torch.bool)
    repeated[first] = False
    chosen = torch.cat([first, torch.nonzero(repeated).flatten()])[:k]
    return candidates[chosen.to(x.device)]


def first_occurrences(x: Tensor) -> Tensor:
    """Ascending indices of the rows that equal no earlier row."""
    # Compared as bytes, which is 5 times faster than torch.unique(dim=0). Adding 0 makes -0 and 0 the same.
    whole = (x + 0.0).cpu().contiguous().numpy()
    whole = whole.view(np.dtype((np.void, whole.shape[1] * whole.itemsize))).ravel()
    return torch.from_numpy(np.sort(np.unique(whole, return_index=True)[1]))


def _beside_large(centroids: Tensor, sizes: Tensor, count: int, random: torch.Generator) -> Tensor:
    """``split``: beside centroids drawn by size, 1/1024 away in a direction of its own, to share that cluster."""
    donors = torch.multinomial((sizes - 1).clamp(min=0).float().cpu(), count, replacement=True, generator=random)
    signs = 2.0 * torch.randint(2, (count, centroids.shape[1]), generator=random) - 1
    return centroids[donors.to(centroids.device)] * (1 + signs / 1024).to(centroids)


def _as_faiss(centroids: Tensor, sizes: Tensor, count: int, random: torch.Generator) -> Tensor:
    """``faiss``: one after the other beside a donor drawn by size - 1, which gives half of its size and moves too.

    Coordinates are multiplied by 1 + 1/1024 and 1 - 1/1024 in turn, the donor's the other way round.
    """
    sizes = sizes.clone().cpu()
    away = torch.full((centroids.shape[1],), 1 / 1024, device=centroids.device)
    away[1::2] *= -1
    vacant = torch.nonzero(sizes == 0).flatten()
    for each in vacant.tolist():
        donor = int(torch.multinomial((sizes - 1).clamp(min=0).float(), 1, generator=random))
        centroids[each] = centroids[donor] * (1 + away)
        centroids[donor] *= 1 - away
        sizes[each] = sizes[donor] // 2
        sizes[donor] -= sizes[each]
    return centroids[vacant]


def _random_sample(
    x: Tensor, partition: Partition, centroids: Tensor, sizes: Tensor, count: int, random: torch.Generator
) -> Tensor:
    """``sample``: the features of random images."""
    return partition.index_select(x, torch.randperm(partition.total, generator=random)[:count]).float()


def _farthest_distinct(x: Tensor, partition: Partition, distances: Tensor, count: int) -> Tensor:
    """Up to ``count`` rows with a positive distance, farthest first, no two of them equal."""
    order = torch.argsort(distances, descending=True, stable=True)[: 8 * count]
    order = order[distances[order] > 0]
    # The farthest of all are among the farthest of each process.
    candidates = Partition.of(partition.processes, len(order))
    far, rows = candidates.all_gather(distances[order]), candidates.all_gather(x[order].float())
    rows = rows[torch.argsort(far, descending=True, stable=True)[: 8 * count]]
    return rows[first_occurrences(rows).to(x.device)][:count] if len(rows) else rows
