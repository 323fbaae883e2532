"""What others wrote, run against ours: DuckDB on our tables, and our decoder on Pillow's images."""

import os

import numpy as np
import pytest

from deepcluster.export import parquet
from tests.helpers.commands import command
from tests.helpers.runs import rows, small_fit
from tests.helpers.tiny import hand_run


def test_duckdb_reads_the_tables_strictly(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    pytest.importorskip("pyarrow")
    paths = ('a, "b".png', "two\nlines.png", "'.png", "ü.png", "=1+1.png")
    clusters = {path: i % 2 for i, path in enumerate(paths)}
    run = hand_run(tmp_path / "run", "-", clusters, names={0: 'q"', 1: "x"}, skipped=["x;y.doc"])
    parquet(run, out := tmp_path / "x.parquet")
    columns, skipped = "path, cluster, name, is_outlier", ("x;y.doc", None, None, None)
    used = [(path, i % 2, ('q"', "x")[i % 2], i % 2) for i, path in enumerate(paths)]
    assert duckdb.sql(f"select {columns} from '{out}'").fetchall() == [*used, skipped]
    nearest, features = zip(*duckdb.sql(f"select neighbors.ids[1], features from '{out}'").fetchall(), strict=True)
    assert nearest == (2, 3, 0, 1, 0, None)
    assert np.array_equal(features[:-1], np.load(run / "features.npy")) and np.isnan(features[-1]).all()

    used[-1] = ("./=1+1.png", *used[-1][1:])  # a spreadsheet would compute the path
    strict = "strict_mode = true, header = true"
    found = duckdb.sql(f"select {columns} from read_csv('{run / 'clusters.csv'}', {strict})").fetchall()
    assert found == [*used, skipped]
    for file in run.glob("*.csv"):
        table = duckdb.sql(f"from read_csv('{file}', {strict}, all_varchar = true)")
        names = file.read_text("utf-8-sig").partition("\n")[0].split(",")
        assert (table.columns, len(table)) == (names, len(rows(file)))


@pytest.mark.slow
def test_pillows_images_are_used_or_refused_with_a_reason(tmp_path):
    """CONTRIBUTING tells where they come from. A decoder that crashes would end the process."""
    if not (folder := os.environ.get("DEEPCLUSTER_PILLOW_IMAGES")):
        pytest.skip("DEEPCLUSTER_PILLOW_IMAGES names no folder")
    assert command("fit", folder, "-o", tmp_path / "run", *small_fit("--rounds", "0"))[0] == 0
    reasons = {row["path"]: row["reason"] for row in rows(tmp_path / "run/skipped.csv")}
    used = [row["path"] for row in rows(tmp_path / "run/clusters.csv") if row["status"] == "ok"]
    assert len(used) > 100 and len(reasons) > 100 and all(reasons.values()) and reasons.keys().isdisjoint(used)
