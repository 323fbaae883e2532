"""Tables of very many rows: the cells that were put in, in less memory than dictionaries take."""

import tracemalloc

import numpy as np

from deepcluster.storage.content import Table

CELLS = ["", "a", "ü\ud83d\ude00", "\udcff.png", "a\nb", "-1.5", "a"]


def test_cells_come_back():
    rows = [{"path": cell, "number": str(i), "same": "x"} for i, cell in enumerate(CELLS)]
    table = Table.of(rows)
    assert list(table) == rows and len(table) == 7 and table[3] == rows[3] and table[-1] == rows[-1]
    assert table[2:5] == rows[2:5] and list(table.column("path")) == CELLS
    assert list(table.where("path", "a")) == [rows[1], rows[6]] and list(table.where("path", "b")) == []
    part = table.at([6, 0, 1])
    assert list(part) == [rows[6], rows[0], rows[1]] and list(part.where("number", "0")) == [rows[0]]
    words, codes = part.words("path")
    assert [words[code] for code in codes] == ["a", "", "a"]
    assert Table.of(table) is table and list(table.column("gone")) == [""] * 7
    none = Table.of([])
    assert list(none) == [] == list(none.where("status", "ok")) and none.words("a")[1].tolist() == []


def test_a_row_takes_some_bytes():
    def rows(count):
        for i in range(count):
            yield {"path": f"folder/{i:08}.png", "status": "ok", "cluster": f"1{i % 10}", "distance": f"{i / 7:.6f}"}

    tracemalloc.start()
    table = Table.of(rows(20_000))
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(table) == 20_000 and np.bincount(table.words("cluster")[1]).tolist() == [2000] * 10
    assert taken < 200 * 20_000  # dictionaries take 450 bytes a row
