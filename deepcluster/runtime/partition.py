"""A matrix whose rows are partitioned over the ranks: which rank owns which rows, and how rows move between ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from deepcluster.runtime.processes import ALONE, Processes


@dataclass(frozen=True)
class Partition:
    """The owners of the rows: consecutive blocks of ``sizes`` rows, in the order of the ranks.

    Row numbers are global, 0 to ``total`` - 1, and on the CPU, wherever the rows are. Tensors may have any number of
    dimensions. Every method that moves rows is a collective.
    """

    processes: Processes
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, processes: Processes, rows: int) -> "Partition":
        """Return the partition of which this rank owns ``rows`` rows. A collective."""
        return cls(processes, tuple(processes.all_gather_json(rows)))

    @classmethod
    def single(cls, rows: int) -> "Partition":
        """Return the partition of all rows in one process."""
        return cls(ALONE, (rows,))

    @cached_property
    def total(self) -> int:
        return sum(self.sizes)

    @cached_property
    def slices(self) -> list[slice]:
        """Return the slices of all ranks."""
        ends = [*accumulate(self.sizes)]
        return [slice(end - size, end) for size, end in zip(self.sizes, ends, strict=True)]

    @cached_property
    def local(self) -> slice:
        """Return the slice of this rank."""
        return self.slices[self.processes.rank]

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum of ``x`` over all ranks; the same bits on all."""
        return self.processes.all_reduce(x)

    def all_gather(self, local: Tensor) -> Tensor:
        """Return all rows, on every rank."""
        return self._gathered(local, range(self.processes.world_size))

    def gather(self, local: Tensor, stride: int = 1) -> Tensor:
        """Return all rows, or every ``stride``-th, on the main rank; none on the others."""
        if stride > 1:
            return self.to_main(local, torch.arange(0, self.total, stride))
        return self._gathered(local, range(1))

    def _gathered(self, local: Tensor, receivers: range) -> Tensor:
        if self.processes.alone:
            return local
        return self.processes.gather_rows(self._of_one_kind(local), self.sizes, receivers)

    def index_select(self, local: Tensor, rows: Tensor) -> Tensor:
        """Return the ``rows`` (numbers, the same on every rank), on every rank."""
        return self.get_rows(local, [rows] * self.processes.world_size)

    def get_rows(self, local: Tensor, wanted: Sequence[Tensor]) -> Tensor:
        """Return the rows that this rank wants. ``wanted``: The row numbers of all ranks, known to all."""
        if self.processes.alone:
            return local.index_select(0, wanted[0].to(local.device))
        local = self._of_one_kind(local)
        ends = torch.tensor([*accumulate(self.sizes)])
        owners = [torch.bucketize(numbers.contiguous(), ends, right=True) for numbers in wanted]
        rank = self.processes.rank
        order = torch.argsort(owners[rank], stable=True)
        counts = torch.bincount(owners[rank], minlength=self.processes.world_size).tolist()
        local_rows = [numbers[by == rank] - self.local.start for numbers, by in zip(wanted, owners, strict=True)]
        leaving = local.index_select(0, torch.cat(local_rows).to(local.device))
        received = self.processes.all_to_all(leaving, [len(numbers) for numbers in local_rows], counts)
        return received.index_select(0, torch.argsort(order).to(local.device))

    def to_main(self, local: Tensor, rows: Tensor) -> Tensor:
        """Return the ``rows`` (numbers, the same on every rank), on the main rank; none on the others."""
        return self.get_rows(local, [rows, *[rows[:0]] * (self.processes.world_size - 1)])

    def put_rows(self, values: Tensor, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Send this rank's ``values`` to the owners of their ``rows`` (the numbers of all ranks' values).

        Returns the values for rows of this rank, and the positions of these rows in its part.
        """
        if self.processes.alone:
            return values, rows[0]
        everyone = range(self.processes.world_size)
        received = self.processes.gather_rows(values, [len(numbers) for numbers in rows], everyone)
        numbers = torch.cat(list(rows))
        is_local = (numbers >= self.local.start) & (numbers < self.local.stop)
        return received[is_local.to(values.device)], numbers[is_local] - self.local.start

    def _of_one_kind(self, local: Tensor) -> Tensor:
        """Return ``local`` with the dtype and shape of the other ranks' rows, unknown to a rank without rows."""
        if 0 not in self.sizes:
            return local
        kinds: list[Any] = self.processes.all_gather_json([str(local.dtype), [*local.shape[1:]]] if len(local) else [])
        if len(local):
            return local
        dtype, tail = next(filter(None, kinds), (str(local.dtype), local.shape[1:]))
        return torch.empty(0, *tail, dtype=getattr(torch, dtype.removeprefix("torch.")), device=local.device)
