"""A matrix that is walked through in blocks by worker threads: in memory or a mapped file, read once, never copied."""

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deepcluster.workers import in_order, one_thread, torch_workers

Result = TypeVar("Result")

LEAST_BLOCK, MOST_BLOCK = 1 << 11, 1 << 14
BLOCK_ON_GPU = 1 << 16


@dataclass(frozen=True)
class Rows:
    """The N x d matrix ``x``, of any floating type on any device, and the threads that work on it (None: this one).

    The blocks depend on the shape of ``x`` and its device alone, and their results come in order: what is made of them
    is the same, bit for bit, for any number of workers.
    """

    x: Tensor
    pool: ThreadPoolExecutor | None = None
    workers: int = 1

    def blocks(self, work: Callable[[int, Tensor], Result], least: int = 0) -> Iterator[Result]:
        """Yield work(begin, rows) for each block in order; ``rows`` are float32, beginning with row ``begin`` of x.

        least: rows in a block, as a power of two up to ``MOST_BLOCK``: for work whose result is large however few they
        are.
        """
        size = self._block(least)

        def of(begin: int) -> Result:
            return work(begin, self.x[begin : begin + size].float())

        begins = range(0, len(self.x), size)
        return map(of, begins) if self.pool is None else in_order(self.pool, of, begins, ahead=2 * self.workers)

    def _block(self, least: int) -> int:
        """Rows large enough that a call costs little, and few enough that every worker has several blocks."""
        if self.x.device.type != "cpu":
            return BLOCK_ON_GPU
        wanted = max(LEAST_BLOCK, least, len(self.x) // 64)
        return min(MOST_BLOCK, 1 << (wanted - 1).bit_length())

    def not_finite(self) -> int:
        """The number of rows with a NaN or an infinity."""
        return sum(self.blocks(lambda begin, rows: int((~torch.isfinite(rows)).any(1).sum())))


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


def matrix(x: Tensor | npt.NDArray[np.floating]) -> Tensor:
    """``x`` as a tensor on the same memory: a mapped file stays one. ValueError where it has not two dimensions."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nobody writes to it here
        x = torch.as_tensor(x).detach()
    if x.ndim != 2:
        raise ValueError(f"a matrix of rows is needed; got shape {tuple(x.shape)}")
    return x
