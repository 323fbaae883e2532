"""Clustering (step 4): Lloyd's k-means that leaves no cluster empty."""

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from deepcluster.clustering.assignment import exact_enough, label_sums, least_block, nearest_sums, place
from deepcluster.clustering.blocks import Rows, check_not_tiny, extended, in_whole_blocks, matrix, shared_out
from deepcluster.errors import NonFiniteError
from deepcluster.records import Clustering
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import ALONE, Processes
from deepcluster.seeding import derive, generator

EMPTY_POLICIES = ("split", "sample", "faiss")
PRECISIONS = ("auto", "fp32")
SAMPLE = 64  # rows that tell how exact scores must be
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
    processes: Processes = ALONE,
) -> Clustering:
    """Group N rows into ``k`` clusters: y_i = argmin_k ||x_i - c_k||^2 (paper, equation 2).

    Where there are at least k distinct rows no cluster is empty (but for ``empty="faiss"``). Deterministic on one
    machine for given arguments, and the same for any number of workers and processes.

    Args:
        x: N x d, of any floating type, also a mapped file; read once an iteration and not copied. With several
            processes this rank's rows; what comes back is the same on all ranks, but for the labels.
        k: Number of clusters.
        start: k x d centroids; or labels (int64, N), of whose clusters the means are taken; or None for a random sample
            of distinct rows.
        iterations: Updates of the centroids at most; one that changes nothing is the last. One more assignment
            follows, so that the labels belong to the centroids returned.
        precision: "auto" or "fp32": scores are float32, or float64 if that would not tell near centroids apart.
        empty: Where to put a centroid without rows: "split", next to a large cluster's; "sample", on a random row;
            "faiss" splits as faiss does, and so the paper's code, and may leave some empty in the end.
        spherical: Centroids have length 1; for rows of length 1.
        workers: Threads. None: as many as torch uses.
        processes: Those that share the rows. An iteration exchanges one k x (d + 1) sum.

    Raises:
        ValueError: k < 1, k > N, a start of another shape or an unknown policy.
        NonFiniteError: NaN or infinity in the rows, or numbers too large or too small for squares in float32.
    """
    x = matrix(x)
    width = x.shape[1]
    partition = Partition.of(processes, len(x))
    if not 1 <= k <= partition.total:
        raise ValueError(f"k={k} must be at least 1 and at most the number of rows, {partition.total}")
    if empty not in EMPTY_POLICIES:
        raise ValueError(f"empty={empty!r}: choose {' or '.join(EMPTY_POLICIES)}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: choose {' or '.join(PRECISIONS)}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers} must be at least 1")
    start = None if start is None else torch.as_tensor(start).detach().to(x.device)
    _check_start(start, len(x), k, width)
    chosen = torch.randperm(partition.total, generator=generator(seed, "k-means sample"))[:SAMPLE]
    sample = partition.index_select(x, chosen).float()
    finish: Finish = F.normalize if spherical else lambda centroids: centroids
    policies: dict[str, Reseed] = {
        "split": _beside_large, "sample": partial(_random_sample, x, partition), "faiss": _as_faiss,
    }  # fmt: skip
    reseed = policies[empty]

    def update(totals: Tensor, iteration: int) -> tuple[Tensor, int]:
        """The centroids from the sums of an assignment, and how many of them had no rows."""
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
            centroids, reseeded = update(label_sums(blocks, extended(start.long(), blocks, partition), k), -1)
        else:
            centroids = start.float().clone()
        for iteration in range(iterations):
            before = centroids
            if iteration == 0:
                scores = exact_enough(sample, before)
            centroids, vacant = update(nearest_sums(blocks, before, scores), iteration)
            reseeded, done = reseeded + vacant, iteration + 1
            if not vacant and torch.equal(centroids, before):  # all further iterations would give the same
                break
        scores = exact_enough(sample, centroids)
        labels, distances = place(walk, centroids, scores)
        if processes.any(not torch.isfinite(distances).all()):
            raise _not_finite(walk, processes)
        sizes, inertia = _sizes_and_inertia(labels, distances, k, processes)
        check_not_tiny(x, inertia / partition.total, processes)
        clustering = Clustering(labels, centroids, sizes, inertia, done, reseeded)
        return clustering if empty == "faiss" else _repaired(clustering, walk, partition, distances, scores)


def best_of(starts: int, rows: Tensor, k: int, seed: int) -> Clustering:
    """The k-means of least inertia, from spread starts (k-means++): with few centroids they are worth their time."""

    from sklearn.cluster import kmeans_plusplus

    def once(start: int) -> Clustering:
        start_seed = derive(seed, "start", start)
        spread, _ = kmeans_plusplus(rows.numpy(), k, random_state=start_seed % 2**32)
        return kmeans(rows, k, start=torch.from_numpy(spread), seed=start_seed, precision="fp32", iterations=50)

    return min(map(once, range(starts)), key=lambda clustering: clustering.inertia)


def means(x: Tensor, labels: Tensor, k: int, partition: Partition | None = None) -> Tensor:
    """The mean (float32, k x d) of the rows of each of ``k`` clusters; zeros where one has none.

    With a ``partition``, ``x`` and ``labels`` are this rank's; the means are the same for any number of ranks.
    """
    partition = partition or Partition.single(len(x))
    with shared_out(matrix(x), None) as walk:
        blocks = in_whole_blocks(walk, partition, least_block(k))
        labels = extended(labels.to(walk.x.device), blocks, partition)
        totals = partition.processes.all_reduce(label_sums(blocks, labels, k))
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
    found: Clustering, walk: Rows, partition: Partition, distances: Tensor, scores: torch.dtype
) -> Clustering:
    """Move empty clusters onto rows that have a distance. The inertia falls each time, so it ends."""
    centroids, k = found.centroids, len(found.centroids)
    while len(vacant := torch.nonzero(found.sizes == 0).flatten()):
        far = _farthest_distinct(walk.x, partition, distances, len(vacant))
        if not len(far):
            break  # every row is on its centroid: there are fewer than k distinct rows
        centroids[vacant[: len(far)]] = far
        before = found.inertia
        labels, distances = place(walk, centroids, scores)
        sizes, inertia = _sizes_and_inertia(labels, distances, k, partition.processes)
        found = Clustering(labels, centroids, sizes, inertia, found.iterations, found.reseeded + len(far))
        if inertia >= before:
            break  # only rounding is left to gain
    return found


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
    """``split``: next to centroids drawn by size, 1/1024 away in a random direction, to share that cluster."""
    donors = torch.multinomial((sizes - 1).clamp(min=0).float().cpu(), count, replacement=True, generator=random)
    signs = 2.0 * torch.randint(2, (count, centroids.shape[1]), generator=random) - 1
    return centroids[donors.to(centroids.device)] * (1 + signs / 1024).to(centroids)


def _as_faiss(centroids: Tensor, sizes: Tensor, count: int, random: torch.Generator) -> Tensor:
    """``faiss``: in turn, next to a donor drawn by size - 1, which gives half of its size and moves too.

    Coordinates are multiplied by 1 + 1/1024 and 1 - 1/1024 alternately, the donor's the other way round.
    """
    sizes = sizes.clone().cpu()
    away = torch.full((centroids.shape[1],), 1 / 1024, device=centroids.device)
    away[1::2] *= -1
    vacant = torch.nonzero(sizes == 0).flatten()
    for cluster in vacant.tolist():
        donor = int(torch.multinomial((sizes - 1).clamp(min=0).float(), 1, generator=random))
        centroids[cluster] = centroids[donor] * (1 + away)
        centroids[donor] *= 1 - away
        sizes[cluster] = sizes[donor] // 2
        sizes[donor] -= sizes[cluster]
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
    # The farthest of all are among the farthest of each rank.
    candidates = Partition.of(partition.processes, len(order))
    far, rows = candidates.all_gather(distances[order]), candidates.all_gather(x[order].float())
    rows = rows[torch.argsort(far, descending=True, stable=True)[: 8 * count]]
    return rows[first_occurrences(rows).to(x.device)][:count] if len(rows) else rows
