"""The nearest rows of each row, by products in blocks."""

import torch
from torch import Tensor

SCORES = 1 << 22  # products computed at a time: 17 MB
CHUNK = 1 << 14  # of the rows that are searched


def nearest(
    rows: Tensor, k: int, among: Tensor | None = None, *, offsets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The ``k`` rows with the largest product with each row: for rows of length 1 the nearest.

    Args:
        rows: N x d.
        k: Number of neighbours; fewer are returned where there are fewer.
        among: M x d, the rows that are searched. None: ``rows``, without the row itself.
        offsets: M, subtracted from the products. Half the squared lengths give the nearest rows of any length.

    Returns:
        The products (N x k, descending) and the numbers of the rows (int64, N x k), on the CPU.
    """
    others = rows if among is None else among
    count = min(k, len(others) - (among is None))
    products = torch.empty(len(rows), count)
    numbers = torch.empty(len(rows), count, dtype=torch.int64)
    size = SCORES // max(1, min(len(others), CHUNK))
    for begin in range(0, len(rows) if count else 0, size):
        part = rows[begin : begin + size]
        best = [
            _best(part, begin if among is None else None, others, first, count, offsets)
            for first in range(0, len(others), CHUNK)
        ]
        values, columns = best[0]
        if len(best) > 1:
            values, order = torch.cat([each[0] for each in best], 1).topk(count, 1)
            columns = torch.cat([each[1] for each in best], 1).gather(1, order)
        products[begin : begin + size], numbers[begin : begin + size] = values, columns
    return products, numbers


def _best(
    part: Tensor, begin: int | None, others: Tensor, first: int, count: int, offsets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The best of the chunk of ``others`` that begins at ``first``.

    begin: The number among ``others`` of the first row of ``part``, where they are to be told from themselves.
    """
    chunk = others[first : first + CHUNK]
    products = part @ chunk.T
    if offsets is not None:
        products -= offsets[first : first + CHUNK]
    if begin is not None:
        own = torch.arange(begin, begin + len(part)) - first
        inside = torch.nonzero((own >= 0) & (own < len(chunk))).flatten()
        products[inside, own[inside]] = -torch.inf
    values, columns = products.topk(min(count, len(chunk)), 1)
    return values, columns + first
