import sys

import numpy as np
import pytest

from deepcluster.errors import DiskError
from deepcluster.export import parquet
from deepcluster.report import pictures
from deepcluster.runs.run import read_run
from deepcluster.runs.views import refresh
from deepcluster.runtime.console import Silent
from tests.helpers.tiny import hand_run, writable

PATHS = ["a.png", "=1+1.png", "\udcff\n.png", "ü.png"]


@pytest.fixture
def run(tmp_path):
    clusters = {path: i % 2 for i, path in enumerate(PATHS)}
    run = hand_run(
        tmp_path / "run",
        "-",
        clusters,
        names={1: "b"},
        skipped=["x.doc"],
        labels={"a.png": "-1", "ü.png": "two"},
        by={"ü.png": "answer"},
    )
    features = (np.eye(4)[[0, 1, 0, 1]] + np.random.default_rng(0).normal(0, 0.1, (4, 4))).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    folder = writable(run)
    folder.write_blocks("features.npy", features.shape, [features])
    refresh(folder, read_run(folder), page=False)
    return run


def test_a_parquet_file_has_the_rows_of_the_run_and_the_places_and_neighbours_that_viewers_need(run, tmp_path):
    """In embedding-atlas' form: zero-based rows of the table, the nearest first, and not the image itself."""
    pq = pytest.importorskip("pyarrow.parquet")
    folder, out = writable(run), tmp_path / "new" / "x.parquet"
    *rows, _ = folder.read_rows("clusters.csv")
    places = np.arange(8, dtype=np.float32).reshape(4, 2)
    folder.write_blocks("map.npy", places.shape, [places])
    display, steps = Silent(), []
    display.progress = lambda *step: steps.append(step)
    parquet(run, out, display=display)
    assert steps == [("neighbours", 0, 4)]
    table = pq.read_table(out)
    assert {name: str(table.schema.field(name).type) for name in table.column_names} == {
        "path": "string", "status": "string", "cluster": "int32", "name": "string", "by": "string",
        "fine_cluster": "int32", "distance": "double", "margin": "double", "is_outlier": "bool", "label": "string",
        "map_x": "float", "map_y": "float",
        "neighbors": "struct<ids: list<element: int64>, distances: list<element: float>>",
        "features": "fixed_size_list<element: float>[4]",
    }  # fmt: skip
    *exported, skipped = table.to_pylist()
    assert np.isnan(skipped.pop("features")).all()
    assert {name: value for name, value in skipped.items() if value is not None} == {
        "path": "x.doc", "status": "skipped"
    }  # fmt: skip
    assert [row["path"] for row in exported] == ["a.png", "=1+1.png", "\\xff\n.png", "ü.png"]
    assert [row["name"] for row in exported] == ["", "b", "", "b"]
    assert [row["by"] for row in exported] == [None, None, None, "answer"]
    assert [row["label"] for row in exported] == ["-1", None, None, "two"]
    for column, kind in (("cluster", int), ("fine_cluster", int), ("distance", float), ("margin", float)):
        assert [row[column] for row in exported] == [kind(row[column]) for row in rows]
    assert [row["is_outlier"] for row in exported] == [False, True, False, True]
    assert [[row["map_x"], row["map_y"]] for row in exported] == places.tolist()
    features = np.load(run / "features.npy")
    assert np.array_equal(np.array([row["features"] for row in exported], np.float32), features)
    between = np.linalg.norm(features[:, None] - features[None], axis=2)
    for i, row in enumerate(exported):
        nearest = [j for j in np.argsort(between[i]) if j != i]
        assert row["neighbors"]["ids"] == nearest
        assert np.allclose(row["neighbors"]["distances"], between[i][nearest], atol=1e-3)


def test_without_the_package(run, tmp_path, monkeypatch, ends):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    said = ends(["export", run, "--to", "parquet", "-o", tmp_path / "x.parquet"], 2)
    assert "pip install pyarrow" in said and not (tmp_path / "x.parquet").exists()


def test_a_taken_name_and_features_of_other_images(run, tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "x").write_text("mine")
    for out in ("x", "run", "x/y"):
        with pytest.raises(DiskError, match=out):
            parquet(run, tmp_path / out)
    assert (tmp_path / "x").read_text() == "mine"
    writable(run).write_blocks("features.npy", (3, 4), [np.zeros((3, 4), np.float32)])
    with pytest.raises(DiskError, match=r"features\.npy .*\(3, 4\)"):
        parquet(run, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_of_very_many_images_some_are_on_the_map_and_none_has_neighbours(run, tmp_path, monkeypatch):
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(pictures, "MAX_PICTURES", 2)
    monkeypatch.setattr(sys.modules["deepcluster.export.parquet"], "MAX_WITH_NEIGHBOURS", 3)
    np.save(run / "map.npy", np.arange(4, dtype=np.float32).reshape(2, 2))
    parquet(run, tmp_path / "x.parquet")
    exported = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert [[row["map_x"], row["map_y"]] for row in exported] == [[0, 1], [None] * 2, [2, 3], [None] * 2, [None] * 2]
    assert all(row["neighbors"] is None for row in exported)
