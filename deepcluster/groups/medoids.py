"""The image in the middle of each group."""

import torch
from torch import Tensor

from deepcluster.runtime.partition import Partition

ROWS_AT_ONCE = 1 << 14


def distances_to(middles: Tensor, rows: Tensor, own: Tensor) -> Tensor:
    """The distance (float32, n) of each of n x d ``rows`` to that of the ``middles`` whose number is its ``own``."""
    parts = zip(rows.split(ROWS_AT_ONCE), own.split(ROWS_AT_ONCE), strict=True)
    return torch.cat([(part - middles[numbers]).norm(dim=1) for part, numbers in parts])


def least_of_each(distances: Tensor, own: Tensor, count: int, partition: Partition) -> Tensor:
    """The row (int64, ``count``) of the least distance in each group, the first of equal ones; -1 in an empty one.

    Args:
        distances: Of this rank's rows (float32, n).
        own: Their groups (int64, n).
        count: The number of groups.
        partition: Which rank has which rows; row numbers are those of all.
    """
    least = torch.full((count,), torch.inf).scatter_reduce(0, own, distances, "amin")
    where = torch.nonzero(distances == least[own]).flatten()
    none = torch.full((count,), partition.total)
    rows = none.scatter_reduce(0, own[where], where + partition.local.start, "amin")
    return first_of_ranks(least, rows, partition)


def first_of_ranks(least: Tensor, rows: Tensor, partition: Partition) -> Tensor:
    """The row (int64) of the least of all ranks' values, the first of equal ones; -1 where it is ``partition.total``.

    Args:
        least: This rank's least values (float32, K).
        rows: The first row that has each (int64, K); ``partition.total`` where there is none.
        partition: Which rank has which rows.
    """
    all_least = torch.stack(partition.processes.all_gather(least))
    all_rows = torch.stack(partition.processes.all_gather(rows))
    all_rows = torch.where(all_least > all_least.min(0).values, partition.total, all_rows)
    first = all_rows.min(0).values
    return torch.where(first < partition.total, first, -1)
