"""Tables of very many rows: the cells that were put in, in less memory than dictionaries take."""

import tracemalloc

import numpy as np
import pytest

from deepcluster.storage import table as tables
from deepcluster.storage.table import Table

CELLS = ["", "a", "ü\ud83d\ude00", "\udcff.png", "a\nb", "-1.5", "a"]


@pytest.mark.parametrize("most", [2, 1 << 16])  # with few words, and with columns that are spelled out
def test_cells_come_back(monkeypatch, most):
    monkeypatch.setattr(tables, "MOST_WORDS", most)
    rows = [{"path": cell, "number": str(i), "same": "x"} for i, cell in enumerate(CELLS)]
    found = Table.of(rows)
    assert list(found) == rows and len(found) == 7 and found[3] == rows[3] and found[-1] == rows[-1]
    assert found[2:5] == rows[2:5] and list(found.column("path")) == CELLS
    assert list(found.where("path", "a")) == [rows[1], rows[6]] and list(found.where("path", "b")) == []
    part = found.at([6, 0, 1])
    assert list(part) == [rows[6], rows[0], rows[1]] and list(part.where("number", "0")) == [rows[0]]
    words, codes = part.words("path")
    assert [words[code] for code in codes] == ["a", "", "a"]
    assert next(iter(found.only("number", "gone"))) == {"number": "0"}
    assert Table.of(found) is found and list(found.column("gone")) == [""] * 7


def test_no_rows():
    none = Table.of([])
    assert list(none) == [] == list(none.where("status", "ok")) and none.words("a")[1].tolist() == []


def test_a_row_takes_some_bytes(monkeypatch):
    monkeypatch.setattr(tables, "MOST_WORDS", 1000)

    def rows(count):
        for i in range(count):
            yield {"path": f"folder/{i:08}.png", "status": "ok", "cluster": str(i % 10), "distance": f"{i / 7:.6f}"}

    tracemalloc.start()
    found = Table.of(rows(20_000))
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 20_000 and np.bincount(found.words("cluster")[1]).tolist() == [2000] * 10
    assert taken < 100 * 20_000  # dictionaries take 450 bytes a row
