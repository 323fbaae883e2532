"""A table of text with very many rows, kept by columns: some 250 bytes a row, while dictionaries take 600."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

Row = Mapping[str, str]
Cells = npt.NDArray[Any]  # of texts

VARIED = ("path", "distance", "margin")  # columns with a text of its own in almost every row


class Table(Sequence[Row]):
    """Rows of text cells, made when they are asked for.

    Args:
        columns: By name, of one length.
    """

    def __init__(self, columns: Mapping[str, Cells]):
        self.columns = columns

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Table":
        """Return the table of ``rows`` that all have the cells of the first one."""
        if isinstance(rows, Table):
            return rows
        columns: dict[str, list[str]] = {}
        words: dict[str, str] = {}  # equal cells become one object
        for row in rows:
            columns = columns or {name: [] for name in row}
            for name, column in columns.items():
                column.append(row[name] if name in VARIED else words.setdefault(row[name], row[name]))
        return cls({name: np.array(column, object) for name, column in columns.items()})

    def where(self, name: str, cell: str) -> "Table":
        """Return the rows that have this cell in a column."""
        return self.at(np.flatnonzero(self.column(name) == cell))

    def at(self, rows: npt.ArrayLike) -> "Table":
        """Return the ``rows`` with these numbers, in this order."""
        return Table({name: column[np.asarray(rows, np.int64)] for name, column in self.columns.items()})

    def only(self, *names: str) -> "Table":
        """Return the rows with these columns alone."""
        return Table({name: self.columns[name] for name in names if name in self.columns})

    def words(self, name: str) -> tuple[list[str], npt.NDArray[np.int64]]:
        """Return the different cells of a column, and the number of every row's."""
        index: dict[str, int] = {}
        numbers = (index.setdefault(cell, len(index)) for cell in self.column(name))
        codes = np.fromiter(numbers, np.int64, len(self))
        return list(index), codes

    def column(self, name: str) -> Cells:
        """Return the cells of a column; empty texts if the table has none of this name."""
        return self.columns[name] if name in self.columns else np.full(len(self), "", object)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    @overload
    def __getitem__(self, row: int) -> Row: ...
    @overload
    def __getitem__(self, row: slice) -> list[Row]: ...
    def __getitem__(self, row: int | slice) -> Row | list[Row]:
        if isinstance(row, slice):
            return list(self.at(range(*row.indices(len(self)))))
        return {name: column[row] for name, column in self.columns.items()}

    def __iter__(self) -> Iterator[Row]:
        return (dict(zip(self.columns, cells, strict=True)) for cells in zip(*self.columns.values(), strict=True))
