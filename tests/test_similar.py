"""The images of a run most like one: in a table, as a page, from the estimator."""

import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster import DeepCluster
from deepcluster.errors import UsageError
from deepcluster.fitting.fit import fit
from deepcluster.fitting.plan import Request
from deepcluster.runs.predict import SIMILAR, row_of, similar
from deepcluster.runs.recut import Edits, apply
from deepcluster.storage.run_folder import open_run
from tests.helpers.runs import rows


def expected(run: Path, row: int) -> np.ndarray:
    """The other rows by their cosine to ``row``, descending."""
    features = np.load(run / "features.npy")
    order = np.argsort(-(features @ features[row]), kind="stable")
    return order[order != row]


def paths_of(run: Path) -> list[str]:
    return [row["path"] for row in rows(run / "clusters.csv")]


def test_the_same_images_by_path_by_file_and_as_another_file(finished, photos, tmp_path, prints, monkeypatch):
    paths = paths_of(finished)
    copy = shutil.copy(photos / paths[5], tmp_path / "copy.png")
    wanted = [paths[row] for row in expected(finished, 5)]
    clusters = {row["path"]: row["cluster"] for row in rows(finished / "clusters.csv")}
    for image, nearest in ((paths[5], wanted), (photos / paths[5], wanted), (copy, [paths[5], *wanted])):
        table = list(csv.DictReader(io.StringIO(prints("similar", finished, image, "-n", "6"))))
        assert list(table[0]) == list(SIMILAR)
        assert [row["path"] for row in table] == nearest[:6]
        similarities = [float(row["similarity"]) for row in table]
        assert similarities == sorted(similarities, reverse=True)
        assert all(row["cluster"] == clusters[row["path"]] for row in table)
    monkeypatch.chdir(tmp_path)
    here = str(tmp_path / "copy.png")  # a file that is here comes before a path of the run
    assert row_of(open_run(finished), ["copy.png", here], "copy.png") == 1


def test_all_of_them_at_most_and_into_a_file_that_is_not_there(finished, photos, tmp_path, prints, ends):
    out, path = tmp_path / "near.csv", paths_of(finished)[0]
    assert prints("similar", finished, path, "-n", "1000", "-o", out) == ""
    assert len(rows(out)) == len(paths_of(finished)) - 1
    ends(["similar", finished, path, "-o", out], 5)
    before = (photos / path).read_bytes()
    said = ends(["similar", finished, path, "-o", photos / path, "--overwrite"], 2)
    assert path in said and (photos / path).read_bytes() == before


def test_a_mistake_is_named_with_its_exit_code(finished, photos, tmp_path, ends):
    (tmp_path / "bad.png").write_text("no image")
    for image, code, message in (
        ("none.png", 3, "none.png"),
        (photos / "bars", 2, "16 images"),
        (tmp_path / "bad.png", 3, "bad.png"),
    ):
        assert message in ends(["similar", finished, image], code)
    assert "-n" in ends(["similar", finished, photos / "bars/00.png", "-n", "0"], 2)


def test_nearest_of_the_estimator(finished, photos, tmp_path):
    model = DeepCluster.load(finished)
    similarities, numbers = model.nearest(None, 4)
    assert similarities.shape == numbers.shape == (48, 4)
    assert numbers[5].tolist() == expected(finished, 5)[:4].tolist()
    of_file, with_itself = model.nearest([photos / model.paths_[5]], 4)
    assert with_itself[0].tolist() == [5, *expected(finished, 5)[:3]]
    assert of_file[0, 0] == pytest.approx(1, abs=1e-5) and (np.diff(of_file) <= 0).all()
    assert model.nearest(None, 99)[1].shape == (48, 47)
    for n in (0, 2.5, True, "3"):
        with pytest.raises(UsageError, match=f"n={n!r}"):
            model.nearest(None, n)
    with pytest.raises(UsageError, match="nearest"):
        DeepCluster.load(model.save(tmp_path / "model")).nearest([photos / model.paths_[5]])


def test_an_equal_image_is_found_and_the_image_itself_is_not(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    x[7] = x[2]
    np.save(tmp_path / "x.npy", x)
    run = fit(tmp_path / "x.npy", Request(features=True, out=tmp_path / "run", n_clusters=3)).path
    for row, other in (("2", "7"), ("7", "2")):
        found = [each.path for each in similar(run, row, 39)]
        assert found[0] == other and {*found} == {str(i) for i in range(40)} - {row}
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UsageError):
        similar(run, str(tmp_path / "a.png"))
    apply(run, Edits("", {0: "zero", 1: "one", 2: "two"}, (), None))
    assert {(row.cluster, row.name) for row in similar(run, "2", 39)} == {(0, "zero"), (1, "one"), (2, "two")}
