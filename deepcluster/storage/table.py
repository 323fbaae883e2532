"""A table of text with very many rows, kept by columns: some bytes a cell, where dictionaries take .6 kB a row."""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

Row = Mapping[str, str]
Numbers = npt.NDArray[np.int64]

MOST_WORDS = 1 << 16  # different cells up to which a column is kept as numbers of words
ENCODING = ("utf-8", "surrogatepass")  # names of files may hold bytes that are no UTF-8


class Column(Sequence[str]):
    """The cells of a column: numbers of the few words that occur, or one text with all of them."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}
        self._words: list[str] | None = []  # None: one text
        self._codes = array("i")
        self._text, self._ends = bytearray(), array("q", [0])

    def append(self, cell: str) -> None:
        if self._words is None:
            self._text += cell.encode(*ENCODING)
            self._ends.append(len(self._text))
            return
        code = self._index.setdefault(cell, len(self._index))
        if code == len(self._words):
            self._words.append(cell)
            if code == MOST_WORDS:
                self._spell_out(cell)
                return
        self._codes.append(code)

    def _spell_out(self, last: str) -> None:
        words, codes = self._words or [], self._codes
        self._words, self._index, self._codes = None, {}, array("i")
        for code in codes:
            self.append(words[code])
        self.append(last)

    def __len__(self) -> int:
        return len(self._codes) if self._words is not None else len(self._ends) - 1

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if self._words is not None:
            return self._words[self._codes[row]]
        return self._text[self._ends[row] : self._ends[row + 1]].decode(*ENCODING)

    def words(self, rows: range | Numbers) -> tuple[list[str], Numbers]:
        """Different cells, and which of them each of the ``rows`` has."""
        if self._words is not None:
            return self._words, np.frombuffer(self._codes, np.intc)[np.asarray(rows, np.int64)].astype(np.int64)
        index: dict[str, int] = {}
        numbers = (index.setdefault(self[row], len(index)) for row in rows)
        codes = np.fromiter(numbers, np.int64, len(rows))
        return list(index), codes


class Table(Sequence[Row]):
    """Rows of text cells, each made when it is asked for.

    Args:
        columns: By name, of one length.
        rows: Which of their rows the table has, in this order.
    """

    def __init__(self, columns: Mapping[str, Column], rows: range | Numbers):
        self.columns, self.rows = columns, rows

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Table":
        """The table of ``rows`` that all have the cells of the first one."""
        if isinstance(rows, Table):
            return rows
        columns: dict[str, Column] = {}
        count = 0
        for row in rows:
            columns = columns or {name: Column() for name in row}
            for name, column in columns.items():
                column.append(row[name])
            count += 1
        return cls(columns, range(count))

    def where(self, name: str, cell: str) -> "Table":
        """The rows that have this cell in a column."""
        if not len(self):
            return self
        words, codes = self.words(name)
        number = words.index(cell) if cell in words else -1
        return self.at(np.flatnonzero(codes == number))

    def at(self, rows: npt.ArrayLike) -> "Table":
        """The ``rows`` with these numbers, in this order."""
        return Table(self.columns, np.asarray(self.rows)[np.asarray(rows, np.int64)])

    def only(self, *names: str) -> "Table":
        """The rows with these columns alone."""
        return Table({name: self.columns[name] for name in names if name in self.columns}, self.rows)

    def words(self, name: str) -> tuple[list[str], Numbers]:
        """The different cells of a column, which may not all be in these rows, and the number of each row's."""
        if name not in self.columns:
            return [""], np.zeros(len(self), np.int64)
        return self.columns[name].words(self.rows)

    def column(self, name: str) -> Iterator[str]:
        column = self.columns.get(name)
        return ("" for _ in self.rows) if column is None else (column[row] for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, row: int) -> Row: ...
    @overload
    def __getitem__(self, row: slice) -> list[Row]: ...
    def __getitem__(self, row: int | slice) -> Row | list[Row]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        place = self.rows[row]
        return {name: column[place] for name, column in self.columns.items()}

    def __iter__(self) -> Iterator[Row]:
        names = list(self.columns)
        return (dict(zip(names, cells, strict=True)) for cells in zip(*map(self.column, names), strict=True))
