"""Exports of runs as the command makes them: digits, which are no files, and a folder of pictures."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from deepcluster.cli import run_command
from deepcluster.runs.fit import fit
from deepcluster.runs.plan import Request
from deepcluster.runs.recut import apply
from deepcluster.storage.edits_file import Edits
from deepcluster.storage.run_folder import RunFolder
from tests.exports import pixels, state, tree


def export(run, out, *options):
    return run_command(["export", str(run), "-o", str(out), *options, "--quiet"])


COUNT = 300


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """A run of scikit-learn's digits, of which there are only so many."""
    all = load_digits()
    monkeypatch.setattr(
        "sklearn.datasets.load_digits", lambda: type(all)(images=all.images[:COUNT], target=all.target[:COUNT])
    )
    out = tmp_path / "run"
    return fit("sklearn:digits", Request(out=out, n_clusters=10, options={"rounds": 0}, device="cpu")).path


@pytest.fixture(scope="module")
def pictures(photos, tmp_path_factory):
    """A run of which a person named one cluster, merged two and marked one as junk."""
    out = tmp_path_factory.mktemp("pictures") / "run"
    fit(photos, Request(out=out, n_clusters=5, options={"rounds": 0}, device="cpu"))
    apply(out, Edits("", {1: "round things"}, ((1, 2),), (3,)))
    return out


def test_digits(digits, tmp_path):
    assert export(digits, tmp_path / "out", "--to", "folders") == 0
    rows = RunFolder(digits).read_rows("clusters.csv")
    assert len(rows) == COUNT
    expected = [f"{int(row['cluster']):03}/{row['path']}.png" for row in rows]
    assert tree(tmp_path / "out") == sorted([*expected, "inventory.csv"])
    grey = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    for i in range(0, COUNT, 20):
        found = pixels(tmp_path / "out" / expected[i])
        assert np.array_equal(found, np.repeat(grey[i][..., None], 3, 2))


def test_pictures(pictures, photos, tmp_path):
    before = state(photos)
    assert export(pictures, tmp_path / "out", "--to", "folders", "--mode", "copy") == 0
    assert state(photos) == before
    rows = RunFolder(tmp_path / "out").read_rows("inventory.csv")
    folders = {"0": "000", "1": "001-round things", "3": "_junk/003", "4": "004"}
    table = RunFolder(pictures).read_rows("clusters.csv")
    assert Counter(row["cluster"] for row in table).keys() == folders.keys()
    assert [(row["path"], row["cluster"]) for row in rows] == [(row["path"], row["cluster"]) for row in table]
    for row in rows:
        assert str(Path(row["exported_path"]).parent) == folders[row["cluster"]]
        assert (tmp_path / "out" / row["exported_path"]).read_bytes() == (photos / row["path"]).read_bytes()
    # Every kind has its 00.png, so many would meet in one folder.
    assert len(tree(tmp_path / "out")) == len({row["exported_path"].lower() for row in rows}) + 1 == len(table) + 1


def test_a_table_of_a_run(pictures, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    assert export(pictures, tmp_path / "x.parquet", "--to", "parquet") == 0
    table = pq.read_table(tmp_path / "x.parquet")
    assert np.array_equal(np.stack(table["features"].to_numpy()), np.load(pictures / "features.npy"))
    assert set(table["name"].to_pylist()) == {"", "round things"}
