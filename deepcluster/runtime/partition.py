"""A matrix whose rows are partitioned over the ranks: which rank owns which rows, and how rows move between ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deepcluster.runtime.processes import Processes


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

    @cached_property
    def total(self) -> int:
        return sum(self.sizes)

    @cached_property
    def local(self) -> slice:
        """Return the slice of this rank."""
        end = sum(self.sizes[: self.processes.rank + 1])
        return slice(end - self.sizes[self.processes.rank], end)

    def all_gather(self, local: Tensor) -> Tensor:
        """Return all rows, on every rank."""
        return local if self.processes.alone else self.index_select(local, torch.arange(self.total))

    def gather(self, local: Tensor, stride: int = 1) -> Tensor:
        """Return all rows, or every ``stride``-th, on the main rank; none on the others."""
        rows = torch.arange(0, self.total, stride)
        owners = self._owners(rows)
        sent = local if stride == 1 else local[rows[owners == self.processes.rank] - self.local.start]
        none = [0] * self.processes.world_size
        counts = torch.bincount(owners, minlength=len(none)).tolist() if self.processes.is_main else none
        return self.processes.all_to_all(sent, [len(sent), *none[1:]], counts)

    def index_select(self, local: Tensor, rows: Tensor) -> Tensor:
        """Return the ``rows`` (numbers, the same on every rank), on every rank."""
        return self.get_rows(local, [rows] * self.processes.world_size)

    def get_rows(self, local: Tensor, wanted: Sequence[Tensor]) -> Tensor:
        """Return the rows that this rank wants. ``wanted``: The row numbers of all ranks, known to all."""
        if self.processes.alone:
            return local.index_select(0, wanted[0].to(local.device))
        rank = self.processes.rank
        owners = [*map(self._owners, wanted)]
        order = torch.argsort(owners[rank], stable=True)
        counts = torch.bincount(owners[rank], minlength=self.processes.world_size).tolist()
        local_rows = [numbers[by == rank] - self.local.start for numbers, by in zip(wanted, owners, strict=True)]
        leaving = local.index_select(0, torch.cat(local_rows).to(local.device))
        received = self.processes.all_to_all(leaving, [len(numbers) for numbers in local_rows], counts)
        return received.index_select(0, torch.argsort(order).to(local.device))

    def _owners(self, rows: Tensor) -> Tensor:
        """Return the ranks that own these rows."""
        return torch.bucketize(rows.contiguous(), torch.tensor(self.sizes).cumsum(0), right=True)
