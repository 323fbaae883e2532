"""A table whose rows several processes share: who has which, and how rows get to where they are wanted."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from deepcluster.runtime.processes import ALONE, DTYPES, Processes


@dataclass(frozen=True)
class Shares:
    """Each process has some rows, ``sizes`` of them, one behind the other in their order.

    Row numbers are those of the whole table, 0 to ``total`` - 1. A method takes the ``own`` rows of this process, and
    is called by all processes. Tables of any number of dimensions; row numbers are on the CPU, wherever the rows are.
    """

    processes: Processes
    sizes: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(self.sizes)

    @property
    def parts(self) -> list[slice]:
        """The rows of each process."""
        ends = [*accumulate(self.sizes)]
        return [slice(end - size, end) for size, end in zip(self.sizes, ends, strict=True)]

    @property
    def own(self) -> slice:
        """The rows of this process."""
        return self.parts[self.processes.rank]

    def whole(self, own: Tensor) -> Tensor:
        """All rows, for everybody."""
        if self.processes.alone:
            return own
        own = self._alike(own)
        return self.processes.exchange(
            own.repeat(self.processes.count, *(1,) * (own.ndim - 1)), [len(own)] * self.processes.count, [*self.sizes]
        )

    def at_first(self, own: Tensor) -> Tensor:
        """All rows for the first process; none for the others."""
        if self.processes.alone:
            return own
        own = self._alike(own)
        to_first = [len(own)] + [0] * (self.processes.count - 1)
        return self.processes.exchange(
            own, to_first, [*self.sizes] if self.processes.leads else [0] * self.processes.count
        )

    def from_first(self, table: Tensor | None) -> Tensor:
        """The own rows of a ``table`` that the first process has."""
        if self.processes.alone:
            assert table is not None
            return table
        empty = self.processes.first_tensors(lambda: {} if table is None else {"rows": table[:0]})["rows"]
        table = empty if table is None else table
        nobody = [0] * self.processes.count
        receive = [len(range(self.total)[self.own]), *nobody[1:]]
        return self.processes.exchange(table, [*self.sizes] if self.processes.leads else nobody, receive)

    def at(self, own: Tensor, rows: Tensor) -> Tensor:
        """The ``rows`` (numbers, the same for all) of the table, for everybody."""
        if self.processes.alone:
            return own[rows.to(own.device)]
        return self.fetch(own, [rows] * self.processes.count)

    def fetch(self, own: Tensor, wanted: Sequence[Tensor]) -> Tensor:
        """The rows (numbers) that this process wants; all know what each of them ``wanted``."""
        if self.processes.alone:
            return own.index_select(0, wanted[0].to(own.device))
        own, rank = self._alike(own), self.processes.rank
        leaving = [each[self._owner(each) == rank] - self.own.start for each in wanted]
        owners = self._owner(wanted[rank])
        order = torch.argsort(owners, stable=True)
        found = self.processes.exchange(
            own.index_select(0, torch.cat(leaving).to(own.device)),
            [len(each) for each in leaving],
            torch.bincount(owners, minlength=self.processes.count).tolist(),
        )
        return found.index_select(0, torch.argsort(order).to(own.device))

    def deliver(self, values: Tensor, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Values for rows of the table, wherever these are: of each process its ``rows`` (which all know), and the own
        ``values`` for them. Returns the values for rows of this process, and the numbers of these among its own."""
        if self.processes.alone:
            return values, rows[0]
        rank = self.processes.rank
        owners = self._owner(rows[rank])
        order = torch.argsort(owners, stable=True)
        coming = [each[self._owner(each) == rank] - self.own.start for each in rows]
        found = self.processes.exchange(
            values.index_select(0, order.to(values.device)),
            torch.bincount(owners, minlength=self.processes.count).tolist(),
            [len(each) for each in coming],
        )
        return found, torch.cat(coming)

    def _owner(self, rows: Tensor) -> Tensor:
        return torch.bucketize(rows.contiguous(), torch.tensor([*accumulate(self.sizes)]), right=True)

    def _alike(self, own: Tensor) -> Tensor:
        """A process without rows does not know their type and shape."""
        if 0 not in self.sizes:
            return own
        kind: list[Any] = [str(own.dtype), [*own.shape[1:]]] if len(own) else []
        dtype, tail = next((each for each in self.processes.every(kind) if each), (str(own.dtype), own.shape[1:]))
        return own if len(own) else torch.empty(0, *tail, dtype=DTYPES[dtype], device=own.device)


def shares(processes: Processes, rows: int) -> Shares:
    """The table of which this process has ``rows`` rows."""
    return Shares(processes, tuple(processes.every(rows)))


def unshared(rows: int) -> Shares:
    """A table that one process has alone."""
    return Shares(ALONE, (rows,))
