"""fit, recut, predict and report on features that came from elsewhere, without a network."""

import json
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepcluster.commands.cli import run_command
from deepcluster.errors import DataError, DeepClusterWarning, UsageError
from deepcluster.export import folders, onnx, parquet
from deepcluster.fitting.fit import fit
from deepcluster.fitting.plan import Request
from deepcluster.images.own_features import read_features
from deepcluster.runs.images import images_at_hand
from deepcluster.runs.update import update
from deepcluster.runs.views import report
from deepcluster.runtime.processes import Processes
from deepcluster.storage.model_files import load
from deepcluster.storage.run_folder import open_run
from tests.helpers.features import blobs
from tests.helpers.runs import assert_same_result, contents, record, rows, state_of

GROUPS, EACH, WIDTH = 3, 20, 12
COUNT = GROUPS * EACH
TRUTH = np.repeat(np.arange(GROUPS), EACH)
FEATURES = blobs([EACH] * GROUPS, WIDTH).numpy()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """f.npy with f.txt beside it: half of the pictures are there, two of them equal; run: three groups of it."""
    folder = tmp_path_factory.mktemp("features")
    np.save(folder / "f.npy", FEATURES)
    names = [f"{label}/{row}.png" for row, label in enumerate(TRUTH)]
    for row, name in enumerate(names[: COUNT // 2]):
        (folder / name).parent.mkdir(exist_ok=True)
        noise = np.random.default_rng(row % 29).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(noise).save(folder / name)
    (folder / "f.txt").write_text("\n".join(names))
    fit(folder / "f.npy", Request(features=True, out=folder / "run", n_clusters=GROUPS, labels="folders"))
    return folder


def test_groups_labels_and_files(made):
    table = rows(made / "run" / "clusters.csv")
    assert [row["path"] for row in table] == (made / "f.txt").read_text().split("\n")
    assert json.loads((made / "run" / "metrics.json").read_text())["nmi"] == pytest.approx(1)
    assert state_of(made / "run") and record(made / "run")["backbone"] == "features"
    assert (made / "run" / "thumbnails.webp").is_file() and "data:image" in (made / "run" / "report.html").read_text()
    duplicates = [row["path"] for row in rows(made / "run" / "duplicates.csv")]
    assert duplicates == [table[0]["path"], table[29]["path"]]  # and not the rows without a picture
    recipe = tomllib.loads((made / "run" / "recipe.toml").read_text())  # the reduction is that of a pretrained network
    assert (recipe["whitening"], recipe["dims"]) == (0.25, 256) and "backbone" not in recipe


def shared(processes: Processes, features: Path, run: Path) -> None:
    fit(features, Request(features=True, out=run, n_clusters=GROUPS, labels="folders"), processes=processes)


def test_two_processes_write_the_files_of_one(ranks, made, tmp_path):
    ranks[2](shared, made / "f.npy", tmp_path / "run")
    names = ("metrics.json", "tree.json", "map.npy", "residuals.npy", "thumbnails.webp")
    assert_same_result(made / "run", tmp_path / "run", "recipe.toml", *names)
    assert {*contents(tmp_path / "run")} == {*contents(made / "run")}
    assert record(tmp_path / "run")["environment"]["processes"] == 2


def test_the_model_places_the_same_rows_in_the_same_groups(made, tmp_path):
    clusters = [int(row["cluster"]) for row in rows(made / "run" / "clusters.csv")]
    model = load(made / "run")
    assert model.of_features and model.predict(FEATURES).tolist() == clusters
    assert model.predict(FEATURES[7:9]).tolist() == clusters[7:9]  # alone as among others
    with pytest.raises(DataError, match=r"5 .* 12"):
        model.predict(np.zeros((3, 5)))
    np.save(tmp_path / "new.npy", FEATURES[::10])
    out = tmp_path / "new.csv"
    assert run_command(["predict", str(made / "run"), str(tmp_path / "new.npy"), "-o", str(out), "--quiet"]) == 0
    assert [(row["path"], int(row["cluster"])) for row in rows(out)] == [*zip("012345", clusters[::10], strict=True)]
    with pytest.raises(UsageError):
        onnx(made / "run", tmp_path / "out")


@pytest.mark.parametrize(
    ("beside", "text", "message"),
    [
        ("f.txt", "a.jpg\nb.jpg\n", r"f\.npy .*1 .*f\.txt .*2 "),
        ("f.csv", "id,path\n1,a.jpg\n2\n", r"f\.csv .*row 1"),
    ],
)
def test_paths_that_do_not_fit(beside, text, message, tmp_path):
    np.save(tmp_path / "f.npy", np.ones((1, 2)))
    (tmp_path / beside).write_text(text)
    with pytest.raises(DataError, match=message):
        read_features(tmp_path / "f.npy")


def test_paths_in_a_table_beside_as_embed_writes_them(tmp_path):
    np.save(tmp_path / "f.npy", np.ones((2, 2), np.float16))
    (tmp_path / "f.csv").write_text('path\na.jpg\n"b, c.jpg"\n')
    features, source = read_features(tmp_path / "f.npy")
    assert source.paths == ("a.jpg", "b, c.jpg") and features.dtype == torch.float32


# ---- Parquet --------------------------------------------------------------------------------------------------------


def table(file: Path, **columns: object) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)
    return file


def lists(form: str, rows: np.ndarray):
    """A column of lists in a form of Arrow."""
    pa = pytest.importorskip("pyarrow")
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
    if form == "tensors":
        return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float64(), [rows.shape[1]]), fixed)
    kinds = {"lists": pa.list_(pa.float64()), "large lists": pa.large_list(pa.float64())}
    return fixed if form == "fixed lists" else pa.array([*rows], kinds[form])


@pytest.mark.parametrize("form", ["lists", "large lists", "fixed lists", "tensors"])
@pytest.mark.parametrize(("column", "ids"), [("path", "ab"), ("image_id", (7, 3)), ("id", "ab"), ("other", "ab")])
def test_a_column_of_lists_is_features_and_ids_are_names(form, column, ids, tmp_path):
    rows = np.arange(6.0).reshape(2, 3)
    file = table(tmp_path / "f.parquet", tags=[["x"], []], embedding=lists(form, rows), **{column: [*ids]})
    features, source = read_features(file)
    assert features.tolist() == rows.tolist()
    assert source.paths == (("0", "1") if column == "other" else tuple(map(str, ids)))


def test_a_folder_of_tables_is_read_in_the_order_of_the_paths_as_other_programs_write_it(tmp_path):
    for part, name in enumerate(("centroid=0/b.parquet", "centroid=1/a.PARQUET", "_metadata.parquet")):
        table(tmp_path / "clip" / name, id=[f"id {part}"], embeddings=[[float(part), 1.0]])
    (tmp_path / "clip/_SUCCESS").touch()
    features, source = read_features(tmp_path / "clip")
    assert features.tolist() == [[0, 1], [1, 1]] and source.paths == ("id 0", "id 1")


ROW = [1.0, 2.0]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (np.zeros(5), "shape 5"),
        (np.zeros((0, 4)), "shape 0 x 4"),
        (np.array(["a", "b"]), "<U1"),
        (
            np.array([[1, 2], [np.nan, 1], [np.inf, 1]]),
            "NaN, inf or numbers above 1e+15, in 2 of 3 rows, the first of them row 1",
        ),
        (np.array([[1e300, 2]]), "1 of 1"),  # not finite in float32
        (np.array([[1e25, 2]]), "1 of 1"),  # nor is its square
        (np.array([[1], [1, 2]], object), "objects"),
        ({"embedding": [ROW, [1.0]]}, " row 1"),
        ({"embedding": [ROW, ROW, None]}, " row 2"),
        ({"embedding": [ROW, [1.0, None]]}, " row 1"),
        ({"embedding": [ROW, [1.0, np.nan]]}, " row 1"),
        ({"path": ["a"], "tags": [["x"]]}, "path, tags"),
        ({"clip": [ROW], "dino": [ROW]}, "clip, dino"),
        ({"embedding": [ROW, ROW], "id": ["a", None]}, "row 1"),
        ({"embedding": [ROW, ROW], "id": ["a", "a"]}, " 0 and 1"),
    ],
)
def test_an_array_or_a_table_that_is_no_features_is_refused(data, words, tmp_path):
    if isinstance(data, dict):
        file = table(tmp_path / "f.parquet", **data)
    else:
        np.save(file := tmp_path / "f.npy", data, allow_pickle=True)
    with pytest.raises(DataError) as error:
        read_features(file)
    assert words in str(error.value) and file.name in str(error.value) and error.value.exit_code == 3


def test_only_skipped_rows_without_numbers_are_left_out(tmp_path):
    """Only ``export`` writes them; a stranger's column ``status`` may mean something else."""
    nan = float("nan")
    rows = [[nan, nan], ROW, ROW, [nan, nan]]
    file = table(tmp_path / "f.parquet", embedding=rows, status=["skipped", "skipped", "ok", "skipped"], id=[*"abcd"])
    features, source = read_features(file)
    assert features.tolist() == [ROW, ROW] and source.paths == ("b", "c")
    short = table(tmp_path / "s.parquet", embedding=[[nan, nan], ROW, [1.0]], status=["skipped", "ok", "ok"])
    second = table(tmp_path / "two/1.parquet", embedding=[[nan, nan], ROW, ROW], status=["skipped", "ok", "ok"]).parent
    table(tmp_path / "two/2.parquet", embedding=[[1.0]], status=["ok"])
    for place, row in ((short, 2), (second, 3)):  # rows of the file are counted
        with pytest.raises(DataError, match=f"1 number in row {row}"):
            read_features(place)
    tagged = table(tmp_path / "t.parquet", embedding=[ROW], status=[["skipped"]])
    assert read_features(tagged).features.tolist() == [ROW]


def test_parquet_that_cannot_be_read(tmp_path, ends, monkeypatch):
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "empty").mkdir()
    for name, column in (("a", "embedding"), ("b", "other")):
        table(tmp_path / "mixed" / f"{name}.parquet", **{column: [ROW]})
    for name in ("damaged.parquet", "none.parquet", "empty", "mixed/b.parquet"):
        assert name in ends(["fit", tmp_path / name.partition("/")[0], "--features"], 3)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "pip install pyarrow" in ends(["fit", tmp_path / "none.parquet", "--features"], 2)


def test_an_exported_run_is_read_with_its_pictures_and_its_own_command_places_the_rows(made, tmp_path, prints):
    """The paths of the table start at its own folder, or the folder above if it is a folder of tables."""
    pytest.importorskip("pyarrow")
    parquet(made / "run", made / "out.parquet")
    before = rows(made / "run" / "clusters.csv")
    again = tmp_path / "again"
    prints("fit", made / "out.parquet", "--features", "-k", GROUPS, "-o", again)
    assert "data:image" in (again / "report.html").read_text()
    after = rows(again / "clusters.csv")
    assert [row["path"] for row in after] == [row["path"] for row in before]
    assert len({(one["cluster"], other["cluster"]) for one, other in zip(before, after, strict=True)}) == GROUPS
    source = images_at_hand(open_run(again).read_images(), made)
    assert source and source.file(0) == made / before[0]["path"] and source.read(0).size == (8, 8)
    placed = prints("predict", again, made / "out.parquet").splitlines()
    assert [line.split(",")[1] for line in placed[1:]] == [row["cluster"] for row in after]


@pytest.mark.parametrize("column", ["id", "path"])
def test_an_update_keeps_ids_and_exports_the_pictures_of_its_paths(column, tmp_path):
    names = [f"{row}.png" for row in range(COUNT)]
    old = table(tmp_path / "old/f.parquet", embedding=[*FEATURES[:50]], **{column: names[:50]})
    new = table(tmp_path / "new/f.parquet", embedding=[*FEATURES[40:]], **{column: names[40:]})
    if column == "path":
        for file in (old.with_name("0.png"), new.with_name("58.png"), new.with_name("59.png")):
            Image.new("RGB", (8, 8), "red").save(file)
    run = fit(old, Request(features=True, out=tmp_path / "run", n_clusters=GROUPS)).path
    assert update(run, str(new)).added == 10
    near = "../new/" if column == "path" else ""
    assert [row["path"] for row in rows(run / "clusters.csv")] == names[:50] + [near + name for name in names[50:]]
    if column == "path":
        with pytest.warns(DeepClusterWarning, match="^57 "):
            folders(run, tmp_path / "sorted")
        assert {path.name for path in (tmp_path / "sorted").rglob("*.png")} == {"0.png", "58.png", "59.png"}
        alike = [row["path"] for row in rows(run / "duplicates.csv")]
        assert alike == [f"{near}58.png", f"{near}59.png"]


def test_without_paths_the_rows_are_numbered_and_the_report_has_no_pictures(tmp_path):
    np.save(tmp_path / "f.npy", FEATURES)
    fit(tmp_path / "f.npy", Request(features=True, out=tmp_path / "run", n_clusters=GROUPS, report=False))
    assert [row["path"] for row in rows(tmp_path / "run" / "clusters.csv")][::59] == ["0", "59"]
    assert report(tmp_path / "run").is_file() and not (tmp_path / "run" / "thumbnails.webp").exists()
    again = tmp_path / "run" / "features.npy"
    with pytest.raises(UsageError, match="--overwrite"):
        fit(again, Request(features=True, out=tmp_path / "run", n_clusters=2, overwrite=True))


@pytest.mark.parametrize(("words", "code"), [("--rounds 2", 2), ("--recipe v1", 2), ("--dry-run", 2), ("-k 99", 3)])
def test_options_of_images_are_refused(words, code, made, tmp_path):
    command = ["fit", str(made / "f.npy"), "--features", "-o", str(tmp_path / "run"), *words.split()]
    assert run_command(command) == code and not (tmp_path / "run").exists()


def test_a_run_of_features_has_no_rounds_to_resume(made, ends):
    assert "no rounds to resume" in ends(["fit", made / "0", "-o", made / "run", "--resume"], 2)
