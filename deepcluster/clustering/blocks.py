"""A matrix that is walked through in blocks by worker threads: in memory or a mapped file, read once, never copied."""

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deepcluster.errors import NonFiniteError
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import ALONE, Processes
from deepcluster.runtime.threads import in_order, one_thread, torch_workers

Result = TypeVar("Result")

LEAST_BLOCK, MOST_BLOCK = 1 << 11, 1 << 14
BLOCK_ON_GPU = 1 << 16
TINY = 1e-15  # squares of smaller numbers, and the smaller eigenvalues of their products, leave the range of float32


@dataclass(frozen=True)
class Rows:
    """The N x d matrix ``x``, of any floating type on any device, and the threads that work on it (None: this one).

    The blocks depend on the shape of ``x`` and its device alone, and their results come in order: what is made of them
    is the same, bit for bit, for any number of workers. ``block``, ``skip`` and ``extra``: see :func:`in_whole_blocks`.
    """

    x: Tensor
    pool: ThreadPoolExecutor | None = None
    workers: int = 1
    block: int | None = None
    skip: int = 0
    extra: Tensor | None = None

    def blocks(self, work: Callable[[int, Tensor], Result], least: int = 0) -> Iterator[Result]:
        """Yield work(begin, rows) for each block in order; ``rows`` are float32, beginning with row ``begin`` of x.

        least: rows in a block, as a power of two up to ``MOST_BLOCK``: for work whose result is large however few they
        are.
        """
        size = self.block or block_size(self.x, len(self.x), least)

        def of(begin: int) -> Result:
            rows = self.x[begin : begin + size]
            if self.extra is not None and begin + size > len(self.x):
                rows = torch.cat([rows, self.extra])
            return work(begin, rows.float())

        begins = range(self.skip, len(self.x), size)
        return map(of, begins) if self.pool is None else in_order(self.pool, of, begins, ahead=2 * self.workers)

    def not_finite(self) -> int:
        """The number of rows with a NaN or an infinity."""

        def count(begin: int, rows: Tensor) -> int:
            own = self.x[begin : begin + len(rows)]  # not as float32, in which a large number of float64 is infinite
            return int((~torch.isfinite(own)).any(1).sum())

        return sum(self.blocks(count))


def block_size(x: Tensor, total: int, least: int = 0) -> int:
    """Rows in a block: enough that a call costs little, and few enough that every worker gets several blocks."""
    if x.device.type != "cpu":
        return BLOCK_ON_GPU
    wanted = max(LEAST_BLOCK, least, total // 64)
    return min(MOST_BLOCK, 1 << (wanted - 1).bit_length())


def in_whole_blocks(rows: Rows, partition: Partition, least: int = 0) -> Rows:
    """The blocks of all rows of a ``partition`` that begin in this rank's ``rows``.

    They are the same for any number of processes, and so are float32 sums over each: k-means and whitening do not
    depend on which rank has which row. (Otherwise rounding decides between the nearest two of many clusters in noise;
    after 20 iterations up to 7 % of the labels differed.) ``skip`` of this rank's rows belong to a block that begins
    before, and ``extra`` rows of the next ranks to its last one.
    """
    size = block_size(rows.x, partition.total, least)
    if partition.processes.alone:
        return replace(rows, block=size)
    own = partition.local
    extra = partition.get_rows(rows.x, [_beyond(part, size, partition.total) for part in partition.slices])
    return replace(rows, block=size, skip=min(-own.start % size, len(rows.x)), extra=extra)


def extended(values: Tensor, rows: Rows, partition: Partition) -> Tensor:
    """A value for each of this rank's rows, extended to the rows that :func:`in_whole_blocks` added."""
    if partition.processes.alone or rows.block is None:
        return values
    return torch.cat(
        [values, partition.get_rows(values, [_beyond(part, rows.block, partition.total) for part in partition.slices])]
    )


def _beyond(part: slice, size: int, total: int) -> Tensor:
    """The rows after a rank's part that belong to a block which begins in it."""
    begins_one = -(-part.start // size) * size < part.stop
    return torch.arange(part.stop, min(-(-part.stop // size) * size, total) if begins_one else part.stop)


@contextmanager
def shared_out(x: Tensor, workers: int | None = None) -> Iterator[Rows]:
    """``x`` as Rows with ``workers`` threads (None: as many as torch uses); none on a GPU, which needs no help."""
    workers = workers or torch.get_num_threads()
    if x.device.type != "cpu":
        yield Rows(x)
    elif workers == 1:
        with one_thread():
            yield Rows(x)
    else:
        with torch_workers(workers) as pool:
            yield Rows(x, pool, workers)


def check_not_tiny(x: Tensor, spread: float, processes: Processes = ALONE) -> None:
    """Raise NonFiniteError if all numbers are below ``TINY``, but not all are 0. A collective.

    ``spread``: mean square of all rows or of their distances. The rows are read only if it is suspiciously small.
    """
    if spread > 1e-20:
        return
    largest = max(processes.all_gather_json(float(torch.stack(x.aminmax()).abs().max()) if x.numel() else 0.0))
    if 0 < largest < TINY:
        raise NonFiniteError(
            f"the rows are too small: no number in them exceeds {largest:.0e}; multiply them by a factor"
        )


def matrix(x: Tensor | npt.NDArray[np.floating]) -> Tensor:
    """``x`` as a tensor on the same memory: a mapped file stays one. ValueError where it has not two dimensions."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nobody writes to it here
        x = torch.as_tensor(x).detach()
    if x.ndim != 2:
        raise ValueError(f"a matrix of rows is needed; got shape {tuple(x.shape)}")
    return x
