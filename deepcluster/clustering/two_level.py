"""Clustering (step 4) into very many clusters: k-means into coarse ones, then k-means inside each of these."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deepcluster.clustering.blocks import matrix
from deepcluster.clustering.kmeans import kmeans
from deepcluster.records import Clustering
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import ALONE, Processes
from deepcluster.runtime.threads import in_order, torch_workers
from deepcluster.seeding import derive, generator

PART = 1 << 24  # numbers in the rows that a rank gathers at a time: 64 MB of float32
HASHED = 1 << 10  # rows hashed at a time


def two_level_kmeans(
    x: Tensor | npt.NDArray[np.floating],
    k: int,
    *,
    iterations: int = 20,
    seed: int = 0,
    precision: str = "auto",
    empty: str = "split",
    spherical: bool = False,
    processes: Processes = ALONE,
) -> Clustering:
    """Group N rows into ``k`` clusters as :func:`kmeans` does, for k of 10,000 and more.

    k-means puts all rows into :func:`coarse_number` clusters. Each of these gets a number of fine clusters in
    proportion to its rows, which k-means finds among its rows alone: some 3 N sqrt(k) distances in an iteration instead
    of N k (the hierarchy of DeeperCluster, Caron et al., ICCV 2019, section 3.3).

    The label of a row is the nearest centroid *of its coarse cluster*: another coarse cluster may have a nearer one.
    Where it must be the nearest of all, as for a model that places new rows, go on from the centroids, at the price of
    N k distances: ``kmeans(x, k, start=clustering.centroids, iterations=0)``.

    The result is the same, bit for bit, for any number of processes and threads: each coarse cluster is the work of one
    thread of one rank, which has its rows in order. Rows are copied 64 MB at a time; there are never N x k numbers.

    Args:
        x, k, iterations, seed, precision, empty, spherical, processes: As in :func:`kmeans`; "auto" is decided for each
            k-means by its size.

    Returns:
        Fine clusters of one coarse cluster have consecutive numbers. ``iterations`` is the most that a k-means took. No
        cluster is empty where there are at least k distinct rows.

    Raises:
        ValueError: k < 1, k > N or an unknown policy.
        NonFiniteError: NaN or infinity in the rows.
    """
    x = matrix(x)
    total = Partition.of(processes, len(x)).total
    if not 1 <= k <= total:
        raise ValueError(f"k={k} must be at least 1 and at most the number of rows, {total}")
    number = coarse_number(k)
    coarse = kmeans(
        x, number, iterations=iterations, seed=derive(seed, "two-level coarse"), precision=precision, empty=empty,
        spherical=spherical, processes=processes,
    )  # fmt: skip
    groups = torch.argsort(coarse.labels, stable=True).split(torch.bincount(coarse.labels, minlength=number).tolist())
    counts = processes.all_gather_json([len(group) for group in groups])
    sizes = coarse.sizes.cpu().numpy()
    owners = _balanced(sizes, processes.world_size)
    fine = _fine_numbers(k, sizes, _distinct(x, Route(processes, owners, counts, groups), number))
    begins = np.cumsum(fine) - fine

    def inside(cluster: int, rows: Tensor) -> Clustering:
        return kmeans(
            rows, int(fine[cluster]), iterations=iterations, seed=derive(seed, "two-level fine", cluster),
            precision=precision, empty=empty, spherical=spherical, workers=1,
        )  # fmt: skip

    labels = torch.empty_like(coarse.labels)
    centroids = torch.empty(int(fine[owners[processes.rank]].sum()), x.shape[1], device=x.device)
    filled = 0
    done: list[tuple[float, int, int]] = []
    for some in _in_parts(owners, sizes, max(1, PART // x.shape[1])):
        route = Route(processes, some, counts, groups)
        below = []
        for cluster, found in zip(route.own, _each(inside, route, x), strict=True):
            below.append(found.labels + int(begins[cluster]))
            centroids[filled : filled + len(found.centroids)] = found.centroids
            filled += len(found.centroids)
            done.append((found.inertia, found.iterations, found.reseeded))
        labels[route.rows] = route.back(below, labels)
    inertias, taken, reseeded = zip(*chain.from_iterable(processes.all_gather_json(done)), strict=True)
    return Clustering(
        labels,
        _in_order(centroids, owners, fine, processes),
        processes.all_reduce(torch.bincount(labels, minlength=k)),
        math.fsum(inertias),
        max(coarse.iterations, *taken),
        coarse.reseeded + sum(reseeded),
    )


def coarse_number(k: int) -> int:
    """How many coarse clusters for ``k`` fine ones: 2 sqrt(k).

    Clusters of one size would need the fewest distances with sqrt(k). They differ in size, and more of them lose less
    at their borders. Measured (benchmarks/two_level.py): with 200 for 10,000 it takes 10 % longer
    than with 100, and the objective is 2 % lower; with 400 72 % longer, and .4 % lower.
    """
    return min(k, round(2 * math.sqrt(k)))


@dataclass(frozen=True)
class Route:
    """Sends rows to the ranks that own their clusters, and results back.

    Attributes:
        owners: The clusters of each rank.
        counts: How many rows of each cluster each rank has.
        groups: This rank's rows (int64 numbers) in each cluster.
    """

    processes: Processes
    owners: Sequence[Sequence[int]]
    counts: Sequence[Sequence[int]]
    groups: Sequence[Tensor]

    @property
    def own(self) -> Sequence[int]:
        """The clusters of this rank."""
        return self.owners[self.processes.rank]

    @property
    def rows(self) -> Tensor:
        """This rank's rows in the order in which they are sent."""
        sent = [self.groups[cluster] for cluster in chain.from_iterable(self.owners)]
        return torch.cat([self.groups[0][:0], *sent])

    def there(self, values: Tensor) -> Iterator[Tensor]:
        """From the ``values`` of this rank's rows, the values of all rows of each of its clusters, in order."""
        received = self.processes.all_to_all(values[self.rows], self._leaving, self._coming)
        pieces = received.split([counts[cluster] for counts in self.counts for cluster in self.own])
        for index in range(len(self.own)):
            yield torch.cat(pieces[index :: len(self.own)])

    def back(self, values: Sequence[Tensor], like: Tensor) -> Tensor:
        """From the values of all rows of each of its clusters, those of this rank's rows, in the order of ``rows``."""
        pieces = [
            of_cluster.split([counts[cluster] for counts in self.counts])
            for cluster, of_cluster in zip(self.own, values, strict=True)
        ]
        returning = [by_rank[rank] for rank in range(self.processes.world_size) for by_rank in pieces]
        return self.processes.all_to_all(torch.cat([like[:0], *returning]), self._coming, self._leaving)

    @property
    def _leaving(self) -> list[int]:
        mine = self.counts[self.processes.rank]
        return [sum(mine[cluster] for cluster in clusters) for clusters in self.owners]

    @property
    def _coming(self) -> list[int]:
        return [sum(counts[cluster] for cluster in self.own) for counts in self.counts]


def _each(inside: Callable[[int, Tensor], Clustering], route: Route, x: Tensor) -> Iterator[Clustering]:
    """k-means inside each of this rank's clusters, in order, by as many threads as torch uses."""
    threads = torch.get_num_threads() if x.device.type == "cpu" else 1
    tasks = zip(route.own, route.there(x), strict=True)
    if threads == 1:
        yield from (inside(*task) for task in tasks)
        return
    with torch_workers(threads) as pool:
        yield from in_order(pool, lambda task: inside(*task), tasks, ahead=2 * threads)


def _balanced(sizes: npt.NDArray[np.int64], processes: int) -> list[list[int]]:
    """The clusters with rows of each rank: largest first, each to the rank with the least work (rows squared)."""
    owners: list[list[int]] = [[] for _ in range(processes)]
    work = [0] * processes
    for cluster in np.argsort(-sizes, kind="stable").tolist():
        if sizes[cluster]:
            least = work.index(min(work))
            owners[least].append(cluster)
            work[least] += int(sizes[cluster]) ** 2
    return owners


def _in_parts(
    owners: Sequence[Sequence[int]], sizes: npt.NDArray[np.int64], most: int
) -> Iterator[tuple[Sequence[int], ...]]:
    """The clusters of each rank in parts of at most ``most`` rows; a larger cluster is a part of its own."""

    def parts(clusters: Sequence[int]) -> Iterator[Sequence[int]]:
        begin = rows = 0
        for index, cluster in enumerate(clusters):
            if index > begin and rows + sizes[cluster] > most:
                yield clusters[begin:index]
                begin, rows = index, 0
            rows += sizes[cluster]
        yield clusters[begin:]

    return zip_longest(*map(parts, owners), fillvalue=())


def _fine_numbers(k: int, sizes: npt.NDArray[np.int64], distinct: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many of ``k`` fine clusters each coarse one gets: at most its ``distinct`` rows where these are k in all."""
    if (missing := k - int(distinct.sum())) > 0:
        return distinct + _apportioned(missing, sizes - distinct, np.zeros_like(sizes), sizes - distinct)
    return _apportioned(k, sizes, np.minimum(distinct, 1), distinct)


def _apportioned(
    seats: int, weights: npt.NDArray[np.int64], least: npt.NDArray[np.int64], most: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """``seats`` in proportion to the weights between least and most (of which the sums lie around it): those that one
    factor gives within the bounds, rounded down, and one more for the largest remainders."""
    low, high = 0.0, 1.0 + seats
    for _ in range(100):
        factor = (low + high) / 2
        if np.clip(factor * weights, least, most).sum() > seats:
            high = factor
        else:
            low = factor
    shares = np.clip(low * weights, least, most)
    found: npt.NDArray[np.int64] = np.floor(shares).astype(np.int64)
    remainders = np.where(found < most, shares - found, -1.0)
    found[np.argsort(-remainders, kind="stable")[: seats - int(found.sum())]] += 1
    return found


def _distinct(x: Tensor, route: Route, number: int) -> npt.NDArray[np.int64]:
    """How many distinct rows each of ``number`` clusters has. By 64-bit hashes, so that no rows are sent for it."""
    counts = torch.zeros(number, dtype=torch.int64)
    for cluster, hashes in zip(route.own, route.there(_hashes(x)), strict=True):
        counts[cluster] = len(hashes.unique())
    found: npt.NDArray[np.int64] = route.processes.all_reduce(counts).numpy()
    return found


def _hashes(x: Tensor) -> Tensor:
    """A number (int64) for each row, equal for equal rows: of their bits in float32, each mixed, a random sum."""
    weights = torch.randint(1 << 62, (x.shape[1],), generator=generator(0, "row hashes")).mul(2).add(1).to(x.device)

    def mixed(rows: Tensor) -> Tensor:
        # Low bits of a product depend on low bits alone, which in short numbers are all zero: hence the shifts.
        bits = (rows.float() + 0.0).contiguous().view(torch.int32).long() * 0x1E3779B97F4A7C15  # -0 + 0 is 0
        total = ((bits ^ (bits >> 32)) * weights).sum(1)
        return total ^ (total >> 32)

    return torch.cat([weights[:0], *(mixed(rows) for rows in x.split(HASHED))])


def _in_order(
    centroids: Tensor, owners: Sequence[Sequence[int]], fine: npt.NDArray[np.int64], processes: Processes
) -> Tensor:
    """All centroids in order of their numbers, from those of each rank's clusters."""
    begins = np.cumsum(fine) - fine
    partition = Partition(processes, tuple(int(sum(fine[cluster] for cluster in clusters)) for clusters in owners))
    numbers = [np.arange(begins[cluster], begins[cluster] + fine[cluster]) for cluster in chain.from_iterable(owners)]
    found = torch.empty(int(fine.sum()), centroids.shape[1], device=centroids.device)
    found[torch.from_numpy(np.concatenate(numbers)).to(found.device)] = partition.all_gather(centroids)
    return found
