"""Rows in blocks, with the same results for any number of threads; row-stable products; nearest rows."""

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from deepcluster.errors import NonFiniteError
from deepcluster.runtime.threads import in_order, one_thread, pool_of

T = TypeVar("T")
AllReduce = Callable[[Tensor], Tensor]  # a sum over some rows to that over the rows of all ranks

MIN_BLOCK = 1 << 11
MAX_BLOCK = 1 << 14
BLOCK_ON_GPU = 1 << 16
SHARED = 1 << 17  # numbers from which threads share: k-means of 3,000 x 5 takes half the time in a single one
# Squares of smaller or larger numbers, and the eigenvalues of their products, leave the range of float32.
TINY, HUGE = 1e-15, 1e15
RESCALE = "if a network in training made them, lower its learning rate (--lr); else scale them by a factor"


def of_all(x: Tensor) -> Tensor:
    """Return ``x``: the rows that it sums are all rows."""
    return x


@dataclass(frozen=True)
class Blocks:
    """The N x d matrix ``x``, of any floating type on any device, and the threads that work on it (None: this one).

    The blocks depend on the shape of ``x`` and its device alone, and their results come in order: sums over them are
    the same, bit for bit, for any number of workers. A block has at least ``least`` rows.
    """

    x: Tensor
    pool: ThreadPoolExecutor | None = None
    workers: int = 1

    def map(self, work: Callable[[int, Tensor], T], least: int = 0) -> Iterator[T]:
        """Yield work(begin, rows) for the blocks in order; ``rows`` are float32, beginning with row ``begin`` of x."""
        size = block_size(self.x, least)

        def of(begin: int) -> T:
            return work(begin, self.x[begin : begin + size].float())

        begins = range(0, len(self.x), size)
        return map(of, begins) if self.pool is None else in_order(self.pool, of, begins, ahead=2 * self.workers)

    def not_finite(self, advice: str = "", all_reduce: AllReduce = of_all) -> NonFiniteError:
        """Return the error for rows that have a NaN or an infinity, or are too large for float32."""

        def bad_rows(begin: int, rows: Tensor) -> int:
            block = self.x[begin : begin + len(rows)]  # not as float32, in which a large number of float64 is infinite
            return int((~torch.isfinite(block)).any(1).sum())

        bad, rows = all_reduce(torch.tensor([sum(self.map(bad_rows)), len(self.x)])).tolist()
        if not bad:
            return NonFiniteError(f"the rows are too large: sums or squares of them exceed float32; {RESCALE}")
        return NonFiniteError(f"{bad} of {rows} rows are not finite{advice}")


def block_size(x: Tensor, least: int = 0) -> int:
    """Rows in a block: enough that a call costs little, and few enough that every worker gets several blocks."""
    if x.device.type != "cpu":
        return BLOCK_ON_GPU
    wanted = max(MIN_BLOCK, least, len(x) // 64)
    return min(MAX_BLOCK, 1 << (wanted - 1).bit_length())


@contextmanager
def shared_out(x: Tensor) -> Iterator[Blocks]:
    """Yield ``x`` as Blocks with as many threads as torch uses; none on a GPU, which needs no help.

    A thread streams its own part of the data. torch's own threads would meet at a barrier after every operation: on two
    cores with other programs on them that is four times slower (faiss and scikit-learn do the same).
    """
    workers = torch.get_num_threads() if x.numel() >= SHARED else 1
    if x.device.type != "cpu":
        yield Blocks(x)
        return
    with one_thread(), pool_of(workers, single=True) if workers > 1 else nullcontext() as pool:
        yield Blocks(x, pool, workers)


def mapped(x: Tensor, function: Callable[[Tensor], Tensor], *shape: int, device: torch.device | None = None) -> Tensor:
    """Return ``function`` of the rows of x, block by block (float32, N x ``shape``), on ``device`` (None: x's)."""
    device = device or x.device
    results = torch.empty(len(x), *shape, device=device)

    def work(begin: int, rows: Tensor) -> None:
        results[begin : begin + len(rows)] = function(rows.to(device))

    with shared_out(x) as walk:
        for _ in walk.map(work):
            pass
    return results


def check_scale(x: Tensor, spread: float) -> None:
    """Raise NonFiniteError if the largest number is below ``TINY`` but not 0, or above ``HUGE``.

    ``spread``: mean square of all rows or of their distances. The rows are read only if it is suspicious.
    """
    if 1e-20 < spread < 1e20:
        return
    largest = float(torch.stack(x.aminmax()).abs().max())
    if 0 < largest < TINY or largest > HUGE:
        size = "small" if largest < TINY else "large"
        raise NonFiniteError(f"the rows are too {size}: their largest number is {largest:.0e}; {RESCALE}")


def matrix(x: Tensor | npt.NDArray[np.floating]) -> Tensor:
    """Return ``x`` as a tensor on the same memory: a mapped file stays one. ValueError unless it has two dimensions."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nobody writes to it here
        x = torch.as_tensor(x).detach()
    if x.ndim != 2:
        raise ValueError(f"a matrix of rows is needed; got shape {tuple(x.shape)}")
    return x


Product = Callable[[Tensor], Tensor]  # rows (M x d) to rows @ weight.T + offset (M x K)

# With one to three rows MKL, oneDNN and OpenBLAS use other kernels, which round differently (measured, d of 8 to 2048).
MIN_PRODUCT_ROWS = 16


def product(weight: Tensor, offset: Tensor) -> Product:
    """Return the map x -> x @ weight.T + offset for a weight (K x d) and an offset (K) of one type on one device."""
    onednn = weight.device.type == "cpu" and weight.dtype == torch.float32 and _onednn_pays()
    if onednn:
        weight, offset = weight.to_mkldnn(), offset.to_mkldnn()

    def multiply(rows: Tensor) -> Tensor:
        filled = F.pad(rows, (0, 0, 0, MIN_PRODUCT_ROWS - len(rows))) if len(rows) < MIN_PRODUCT_ROWS else rows
        if onednn:
            return F.linear(filled.to_mkldnn(), weight, offset).to_dense()[: len(rows)]
        return F.linear(filled, weight, offset)[: len(rows)]

    return multiply


@cache
def _onednn_pays() -> bool:
    """Tell whether float32 products go to oneDNN: on processors with AVX-512.

    torch gives them to MKL, which takes its AVX2 path on those by AMD, at half the speed. A rule decides, and not a
    trial of their speed, because the two round differently.
    """
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


MAX_PRODUCTS = 1 << 23  # products computed at a time: 34 MB, or more if there are many rows to search
MIN_SEARCHING_ROWS = 64


def nearest(
    rows: Tensor, k: int, among: Tensor | None = None, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[Tensor, Tensor]:
    """Return the ``k`` rows with the largest product with each of N x d rows: for rows of length 1 the nearest.

    ``among``, M x d, are searched (None: ``rows``, without the row itself). The results are the products (N x k,
    descending; fewer if there are fewer) and the numbers of the rows (int64, N x k), on the CPU. ``progress`` is
    called with (rows done, all rows).
    """
    others = rows if among is None else among
    count = min(k, len(others) - (among is None))
    products = torch.empty(len(rows), count)
    numbers = torch.empty(len(rows), count, dtype=torch.int64)
    size = max(MIN_SEARCHING_ROWS, MAX_PRODUCTS // max(1, len(others)))
    for begin in range(0, len(rows) if count else 0, size):
        progress(begin, len(rows))
        scores = rows[begin : begin + size] @ others.T
        if among is None:  # a row is not its own neighbour
            scores.diagonal(begin).fill_(-torch.inf)
        products[begin : begin + size], numbers[begin : begin + size] = scores.topk(count, 1)
    return products, numbers
