"""More images for a finished run: placed where `predict` puts them, and nothing else changes."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepcluster import DeepCluster, load
from deepcluster.commands.cli import run_command
from deepcluster.errors import DataError, DeepClusterWarning, UsageError
from deepcluster.export import folders
from deepcluster.export.read_back import read_back
from deepcluster.fitting.fit import fit
from deepcluster.fitting.plan import Request, check_paths
from deepcluster.groups.cut import Cut
from deepcluster.groups.graph import extended_layout
from deepcluster.images import Source, find
from deepcluster.recipes.presets import read_request
from deepcluster.report import pictures
from deepcluster.report.pictures import extended_sheet, on_sheet, pictures_on, slot_of, sprite_sheet, tiny_pictures
from deepcluster.report.sections import IMAGES_OF_CLUSTER
from deepcluster.runs.apply import apply
from deepcluster.runs.change import undo
from deepcluster.runs.condition import condition
from deepcluster.runs.images import images_at_hand, name_in_run
from deepcluster.runs.page import _parts
from deepcluster.runs.predict import similar
from deepcluster.runs.recut import recut
from deepcluster.runs.run import Rows, place_rows, read_run
from deepcluster.runs.teach import ask
from deepcluster.runs.update import Update, update
from deepcluster.runs.views import report
from deepcluster.storage.content import Row
from deepcluster.storage.edits_file import Edits
from deepcluster.storage.run_folder import open_run
from tests.helpers.drawings import drawings, pack, save_drawings
from tests.helpers.pages import ROOT, blocks
from tests.helpers.runs import (
    FIVE_CLUSTERS,
    change_record,
    contents,
    predicted,
    record,
    result,
    rows,
    small_fit,
    state_of,
    without_page,
)
from tests.helpers.tiny import change_tensors
from tests.helpers.tiny import images_of as table_of


@pytest.fixture
def run(five_clusters: Path) -> Path:
    """The run without a page, which would be drawn anew after each change."""
    return without_page(five_clusters)


@pytest.fixture
def images(run, photos, tmp_path: Path) -> Path:
    """A copy of the photographs; the run finds its images there."""
    change_record(run, base=str(tmp_path / "photos"))
    return Path(shutil.copytree(photos, tmp_path / "photos"))


@pytest.fixture
def more(tmp_path: Path) -> Path:
    return save_drawings(tmp_path / "more", 4, seed=11)


def used(run: Path) -> list[dict[str, str]]:
    return [row for row in rows(run / "clusters.csv") if row["status"] == "ok"]


def added(run: Path) -> list[Row]:
    """The rows of images that updates brought."""
    return [row for row in open_run(run).read_images().used if row["added"]]


def at_hand(run: Path) -> Source | None:
    folder = open_run(run)
    return images_at_hand(folder.read_images(), Path(folder.read_record().base))


def features(run: Path) -> np.ndarray:
    return np.load(run / "features.npy")


def test_new_images_are_where_predict_puts_them_and_the_others_stay(run, more):
    report(run)
    before, old, model, places = used(run), features(run), contents(run / "model"), np.load(run / "map.npy")
    predictions = predicted(run, str(more))
    placed = predictions.model.placement(predictions.reduced)
    assert update(run, str(more)) == Update(added=12, known=0, skipped=[])
    after, new = used(run), used(run)[48:]
    assert after[:48] == before and contents(run / "model") == model and state_of(run) is not None
    assert [int(row["cluster"]) for row in new] == placed.cluster.tolist()
    assert [row["distance"] for row in new] == [f"{distance:.6f}" for distance in placed.distance.tolist()]
    assert [Path(row["path"]).name for row in new] == [Path(path).name for path in predictions.paths]
    assert np.array_equal(features(run), np.concatenate([old, predictions.reduced.numpy()]))
    assert len(np.load(run / "residuals.npy")) == result(run)["images_count"] == len(after) == 60
    shown, of_new = np.load(run / "map.npy"), features(run)[48:]
    assert np.array_equal(shown[:48], places)
    every = torch.from_numpy(np.concatenate([old, of_new]))
    assert np.allclose(shown, extended_layout(places, range(48), range(60), every), atol=1e-5)
    assert [row["path"] for row in added(run)] == [row["path"] for row in new]
    page = (run / "report.html").read_text()
    report(run)
    assert "/more/0/" in page and (run / "report.html").read_text() == page
    assert new[-1]["path"] not in [row["path"] for row in similar(run, str(more / "2" / "11.png"), 3)]


def test_images_that_the_run_has_are_counted_and_not_read(run, photos, more, monkeypatch):
    for i, file in enumerate(sorted(photos.rglob("*.png"))[:3]):
        shutil.copy(file, more / f"copy{i}.png")  # the same content under another name
    (more / "twice.png").write_bytes((more / "0" / "00.png").read_bytes())
    assert update(run, str(more)) == Update(added=12, known=4, skipped=[])
    assert "twice.png" not in {Path(row["path"]).name for row in added(run)}  # the first is added
    before = contents(run)
    assert update(run, str(more)) == Update(added=0, known=16, skipped=[])
    assert contents(run) == before
    monkeypatch.setattr("deepcluster.images.source.decode", lambda *_: pytest.fail("it was read"))
    assert update(run, str(photos)).known == 48


def test_a_second_update_and_a_grown_folder(run, images, more, tmp_path):
    fit = ["fit", str(images), "-o", str(run), *small_fit(*FIVE_CLUSTERS)]
    baseline = record(run)["baseline"]
    shutil.copytree(more / "1", images / "new")
    assert update(run, str(images)) == Update(added=4, known=48, skipped=[])
    assert {row["path"] for row in added(run)} == {f"new/{i:02}.png" for i in range(4, 8)}
    assert update(run, str(more)).added == 8
    assert added(run)[-1]["path"] == "../more/2/11.png"
    assert state_of(run) is not None
    assert open_run(run).read_json("metrics.json").items() >= {f"baseline_{x}": y for x, y in baseline.items()}.items()
    # The fit is still the one that it was.
    before = contents(run)
    assert run_command([*fit, "--resume"]) == 0
    assert contents(run) == before
    # The images of the second update are still there if those of the fit have moved.
    images.rename(tmp_path / "moved")
    out = ["-o", str(tmp_path / "out"), "--images", str(tmp_path / "moved")]
    assert run_command(["export", str(run), "--to", "folders", *out]) == 0
    assert len(list((tmp_path / "out").rglob("*.png"))) == 60


def test_skipped_files_are_listed_and_may_be_added_later(run, photos, more):
    (more / "1" / "broken.png").write_bytes(b"broken")
    os.mkfifo(more / "pipe.png")
    change_record(run, status="stopped")
    before = contents(run)
    with pytest.raises(UsageError, match="stopped"):
        update(run, str(more))
    assert contents(run) == before
    change_record(run, status="done")
    # Alone beside images that the run has, they change the list.
    done = update(run, [str(more / "1" / "broken.png"), str(photos / "bars" / "00.png")])
    assert (done.added, done.known, len(done.skipped)) == (0, 1, 1)
    assert not added(run) and state_of(run) is not None
    done = update(run, str(more))
    assert (done.added, done.known, len(done.skipped)) == (12, 0, 2)
    skipped, folder = rows(run / "skipped.csv"), open_run(run)
    assert [row["path"] for row in skipped] == [f"../{more.parent.name}/more/{x}" for x in ("1/broken.png", "pipe.png")]
    assert [row["status"] for row in rows(run / "clusters.csv")[-3:]] == ["ok", "skipped", "skipped"]
    # A fit that goes on does not miss them.
    check_paths(folder, find(str(photos)))
    Image.fromarray(drawings(1, seed=5)[0][0].permute(1, 2, 0).numpy()).save(more / "1" / "broken.png")
    (more / "pipe.png").unlink()
    assert update(run, str(more)) == Update(added=1, known=12, skipped=[])
    assert len(rows(run / "skipped.csv")) == 1 and len(used(run)) == 48 + 13
    with pytest.raises(DataError):
        update(run, [str(more / "nowhere.png")])


def test_outliers_that_an_update_rejects_are_in_no_cluster_until_a_person_places_them(
    run, images, more, tmp_path, prints
):
    """One fact in images.csv: tables, sizes, page, exports, recut, undo and a later fit follow from it."""
    report(run)
    limit = predicted(run, str(more)).residuals.sort().values[7]
    change_tensors(run / "model", outliers__limit=limit)
    assert "4 of 12 fit into no cluster and stay without one" in prints("update", run, more, "--reject")
    rejected = [row["path"] for row in added(run) if row["reason"] == "outlier"]

    def placed(path: str) -> tuple[str, ...]:
        row = next(row for row in used(run) if row["path"] == path)
        return row["cluster"], row["name"], row["by"]

    assert len(rejected) == 4 and {*map(placed, rejected)} == {("-1", "", "")}
    assert (
        sum(int(row["size"]) for row in rows(run / "cluster_summary.csv")) == 56
        and (run / "report.html").read_text().count("<span>no cluster</span>") == 4
    )
    for options, place in (({}, ["_outliers"]), ({"outliers": "leave"}, [""]), ({"is_dataset": True}, [""])):
        made = folders(run, tmp_path / "-".join(["out", *options]), **options)
        assert {row["exported_path"].rpartition("/")[0] for row in made if row["path"] in rejected} == {*place}
    assert not {*rejected} & {one.path for one in ask(run, 60, drawn=True)}
    first, second = rejected[:2]
    out = tmp_path / "sorted"
    (link,) = (out / row["exported_path"] for row in folders(run, out) if row["path"] == first)
    (out / "_outliers").rename(out / "strange")
    back = read_back(out, read_run(open_run(run)))
    assert {one.name for one in back.answers} == {"strange"} and len(back.answers) == 4 and not back.names
    (out / "strange").rename(out / "_outliers")
    link.rename(out / "001/x.png")
    assert "1 image changed their cluster: 1 from none to 1" in prints("teach", run, out)
    apply(run, Edits(names={1: "one"}, move=((second, 3),)))
    assert placed(first) == ("1", "one", "answer") and placed(second) == ("3", "", "answer")
    recut(run, 6)
    assert placed(first)[1:] == ("one", "answer") and [placed(path)[0] for path in rejected[2:]] == ["-1", "-1"]
    undo(run, changes=None)
    assert [placed(path)[0] for path in rejected] == ["-1"] * 4
    assert DeepCluster.load(run).labels_.tolist().count(-1) == 4


def test_edits_stay_and_can_be_made_before_and_after(run, more):
    table = used(run)
    apply(run, Edits(names={1: "one"}, merge=((0, 2),), junk=(3,), move=((table[5]["path"], 4),)))
    cut, states = result(run)["cut"], {"model": contents(run / "model"), "former": contents(run / "former")}
    update(run, str(more))
    assert result(run)["cut"] == cut and states == {name: contents(run / name) for name in states}
    assert used(run)[5]["cluster"] == "4" and not any(row["cluster"] == "2" for row in used(run))
    assert all(row["name"] == "one" for row in used(run) if row["cluster"] == "1")
    # Edits of the page before are edits of this one, and an added image can be moved.
    apply(run, Edits(cut, names={4: "four"}, move=((len(used(run)) - 1, 1),)))
    assert used(run)[-1]["cluster"] == "1"
    undo(run)
    assert all(row["name"] != "four" for row in used(run)) and len(used(run)) == 60
    assert state_of(run) is not None


def test_the_page_keeps_pictures_of_images_that_are_elsewhere(run, images, more, tmp_path):
    report(run)
    images.rename(tmp_path / "moved")
    said = re.escape(str(images)) + ".*" + re.escape(f"deepcluster report {run}")
    for change in (lambda: report(run), lambda: recut(run, 4), lambda: update(run, str(more))):
        with pytest.warns(DeepClusterWarning, match=said):
            change()
        sizes = (int(row["size"]) for row in rows(run / "cluster_summary.csv"))
        shown = (run / "report.html").read_text().count("<img src=")
        assert shown >= sum(min(IMAGES_OF_CLUSTER, size) for size in sizes) > 40
    (run / "thumbnails.webp").unlink()
    with pytest.warns(DeepClusterWarning):
        report(run)


def test_a_recut_is_that_of_the_fitted_images(run, more, tmp_path):
    alone = Path(shutil.copytree(run, tmp_path / "alone"))
    recut(alone, 3)
    update(run, str(more))
    recut(run, 3)
    assert used(run)[:48] == used(alone)
    model, other = load(run), load(alone)
    assert [int(row["cluster"]) for row in used(run)[48:]] == model.predict(more).tolist()
    assert model.outliers.limit == other.outliers.limit


def test_groups_of_a_sample_are_numbered_by_the_images_of_the_fit(monkeypatch):
    monkeypatch.setattr("deepcluster.runs.run.MAX_GRAPH_ROWS", 2)
    reduced = torch.tensor([[0.0], [0.1], [9.0], [9.1], [9.2]])
    images = Rows(table_of("abcde", added=2), reduced, reduced, torch.zeros(5))
    cut, placed = place_rows(Cut(torch.tensor([[9.0], [0.0]]), torch.arange(2)), images, reduced[:1])
    assert cut.cluster_of.tolist() == [1, 0] and placed.cluster.tolist() == [0, 0, 1, 1, 1]


def test_the_images_of_a_fit_on_files_and_those_of_shards_and_arrays(run, more, tmp_path):
    pack(tmp_path / "0.tar", {f"=/{path.name}": path for path in sorted((more / "0").iterdir())})
    np.save(tmp_path / "1.npy", np.stack([np.array(Image.open(path)) for path in sorted((more / "1").iterdir())]))
    change_tensors(run / "model", outliers__limit=torch.tensor(0.0))
    for place, name in ((tmp_path / "0.tar", "=/00.png"), (tmp_path / "1.npy", "3"), (more / "2", "08.png")):
        done = update(run, str(place))
        assert done.added == 4 and f"{place}/{name}" in done.strangers  # whatever the folder of the fit
    assert [(row["member"], row["label"]) for row in added(run)][::4] == [
        ("=/00.png", "="), ("0", ""), ("", ""),
    ]  # fmt: skip
    assert run_command(["export", str(run), "--to", "folders", "-o", str(tmp_path / "out"), "--mode", "symlink"]) == 0
    made = {row["path"]: row for row in rows(tmp_path / "out" / "inventory.csv")}
    assert Counter(row["how"] for row in made.values()) == {"symlink": 52, "png": 8}
    for row, file in zip(used(run)[48:], sorted(more.rglob("*.png")), strict=True):
        exported = tmp_path / "out" / made[row["path"]]["exported_path"]
        assert exported.suffix == ".png" and np.array_equal(np.array(Image.open(exported)), np.array(Image.open(file)))


def test_a_run_of_several_folders_finds_its_images_from_everywhere(photos, tmp_path, monkeypatch, prints, ends):
    """By their paths in the folder that they share, so other files there are no images of the run."""
    run = tmp_path / "run"
    several = [*small_fit(*FIVE_CLUSTERS), "-o", str(run)]
    images = Path(shutil.copytree(photos, tmp_path / "photos"))
    monkeypatch.chdir(images)
    prints("fit", "bars", "blob", *several)
    monkeypatch.chdir(tmp_path)
    names = [f"{kind}/{i:02}.png" for kind in ("bars", "blob") for i in range(16)]
    assert [row["path"] for row in rows(run / "clusters.csv")] == names
    prints("fit", images / "blob", images / "bars", *several, "--resume")
    ends(["fit", images / "bars", *several, "--resume"], 3)
    assert update(run, find([images / "bars", images / "checks"])) == Update(16, 16, [], 0)
    assert [row["path"] for row in added(run)] == [f"checks/{i:02}.png" for i in range(16)]
    assert len(at_hand(run).paths) == 48 and '"originals":"../photos/"' in (run / "report.html").read_text()
    assert prints("predict", run, images / "bars", images / "blob").count("\n") == 33
    prints("export", run, "--to", "folders", "-o", "sorted")
    (images / "bars").rename(images / "lines")
    assert len(at_hand(run).paths) == 32


def test_a_file_that_has_changed_is_known_whatever_it_is_called(run, images, tmp_path):
    """The fit was one of a list."""
    paths = [row["path"] for row in used(run)]
    (images / "l.lst").write_text("\n".join(paths))
    change_record(run, of_folder=False)
    Image.new("RGB", (16, 16), (1, 200, 30)).save(images / paths[0])
    (tmp_path / "link").symlink_to(images)
    (tmp_path / "copy.txt").write_text("\n".join(str(images / path) for path in paths))
    (tmp_path / "links.txt").write_text("\n".join(str(tmp_path / "link" / path) for path in paths))
    for place in ("copy.txt", "photos", "link", "links.txt"):
        assert update(run, str(tmp_path / place)).added == 0 and len(used(run)) == 48, place


def test_an_added_image_has_the_label_of_a_folder_below_the_update_alone(run, more, tmp_path):
    update(run, str(more / "0"))
    (tmp_path / "list.txt").write_text("\n".join(map(str, sorted((more / "1").iterdir()))))
    for images in (tmp_path / "list.txt", more):
        update(run, str(images))
    source = at_hand(run)
    assert source and source.labels and source.labels[48:] == (*[""] * 8, *["2"] * 4)


def test_nearly_equal_images_among_the_new_ones_make_groups(run, more):
    image = Image.open(more / "0" / "00.png")
    for quality in (95, 80):
        image.save(more / f"{quality}.jpg", quality=quality)
    before = rows(run / "duplicates.csv")
    update(run, str(more))
    table = rows(run / "duplicates.csv")
    assert table[: len(before)] == before
    (number,) = {row["set"] for row in table[len(before) :]} - {row["set"] for row in before}
    assert {Path(row["path"]).name for row in table if row["set"] == number} == {"00.png", "95.jpg", "80.jpg"}
    # A copy of an image of the run joins it, and a later copy joins both.
    (first, *_) = rows(run / "clusters.csv")
    original = Image.open(Path(record(run)["base"]) / first["path"])
    for name, quality in (("one", 95), ("two", 90)):
        (more / name).mkdir()
        original.save(more / name / f"{name}.jpg", quality=quality)
        update(run, str(more / name))
    table = rows(run / "duplicates.csv")
    (number,) = {row["set"] for row in table if row["path"] == first["path"]}
    names = {Path(row["path"]).name for row in table if row["set"] == number}
    assert names == {Path(first["path"]).name, "one.jpg", "two.jpg"} and number not in {row["set"] for row in before}


@pytest.fixture(scope="module")
def near_a_plane(tmp_path_factory) -> tuple[Path, np.ndarray, np.ndarray, np.ndarray]:
    chance, folder = np.random.default_rng(0), tmp_path_factory.mktemp("plane")
    plane = chance.normal(size=(3, 40)) * 4
    given = (chance.normal(size=(280, 3)) @ plane + chance.normal(size=(280, 40))).astype(np.float32)
    np.save(folder / "near.npy", given[:200])
    fit(folder / "near.npy", Request(features=True, out=folder / "near", n_clusters=3))
    strange = given[200:] + np.float32(10) * chance.normal(size=40).astype(np.float32)
    return folder, given[:200], given[200:], strange


@pytest.fixture
def many_features(near_a_plane, tmp_path) -> tuple[Path, np.ndarray, np.ndarray, np.ndarray]:
    """A run, its features near a plane, more of the same kind, and the same away from the plane."""
    folder, *features = near_a_plane
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return tmp_path / "near", *features


def test_rows_of_features_get_the_next_numbers_and_count_once(many_features, tmp_path):
    run, given, *_ = many_features
    assert update(run, str(tmp_path / "near.npy")) == Update(added=0, known=200, skipped=[])
    for added, rows_then in ((5, given[:5]), (5, given[:10]), (7, given[:7] + 1)):
        assert update(run, np.concatenate([given, rows_then + np.float32(0.01)])).added == added
    table = used(run)
    assert [int(row["path"]) for row in table] == list(range(217)) and state_of(run) is not None
    assert [row["cluster"] for row in table[200:210]] == [row["cluster"] for row in table[:10]]
    page = (run / "report.html").read_bytes()
    report(run)
    assert (run / "report.html").read_bytes() == page


def test_a_name_of_another_place_is_another_image(tmp_path):
    given = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    for name, these in (("a", given[:40]), ("b", given[40:])):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "f.npy", these)
        (tmp_path / name / "f.txt").write_text("\n".join(f"{i}.jpg" for i in range(len(these))))
        for i in range(len(these)):
            (tmp_path / name / f"{i}.jpg").touch()  # without files the paths are ids
    run = fit(tmp_path / "a/f.npy", Request(features=True, out=tmp_path / "run", n_clusters=3)).path
    assert update(run, str(tmp_path / "b/f.npy")).added == 20
    paths = [row["path"] for row in used(run)]
    assert len(set(paths)) == 60 and paths[40] == "../b/0.jpg"
    for name in ("a", "b"):  # other features of a file that the run has
        np.save(tmp_path / name / "f.npy", np.load(tmp_path / name / "f.npy") + 1)
        assert update(run, str(tmp_path / name / "f.npy")).added == 0


def test_a_shard_of_another_folder_may_have_the_names_of_one_in_the_run(photos, tmp_path):
    for folder, seed in (("a", 1), ("b", 2)):
        images = sorted(save_drawings(tmp_path / "png" / folder, 8, seed=seed).rglob("*.png"))
        pack(tmp_path / folder / "0.tar", {f"{path.parent.name}{path.name}": path for path in images})
    options = {"rounds": 0, "image_size": 16, "pseudo_labels": 6, "backbone": "compact"}
    run = fit(str(tmp_path / "a"), Request(out=tmp_path / "run", n_clusters=3, recipe=read_request(options))).path
    before = used(run)
    assert update(run, str(tmp_path / "b")) == Update(added=24, known=0, skipped=[])
    assert used(run)[24]["path"] == f"../b/{before[0]['path']}"
    assert update(run, str(tmp_path / "b")) == Update(added=0, known=24, skipped=[])
    pack(tmp_path / "b/0.tar", {"000.png": photos / "bars/00.png"})
    with pytest.warns(DeepClusterWarning):  # the 24 are gone
        assert update(run, str(tmp_path / "b")).added == 1
    assert re.fullmatch(r"\.\./b/0\.tar/000\.png \([0-9a-f]{8}\)", used(run)[-1]["path"])


def test_a_split_has_the_parts_that_the_page_before_showed(many_features, tmp_path):
    """However many images one of the parts has got since."""
    run, given, *_ = many_features
    edits = Edits(result(run)["cut"], {}, (), None, ((0, 2),))
    alone = Path(shutil.copytree(run, tmp_path / "alone"))
    apply(alone, edits)
    smaller = [int(row["path"]) for row in used(alone) if row["cluster"] == "3"]
    update(run, np.concatenate([given[smaller] + np.float32(i / 1000) for i in range(1, 30)]))
    parts = _parts(read_run(open_run(run)), [])["parts"]
    sizes = {int(row["cluster"]): int(row["size"]) for row in rows(run / "cluster_summary.csv")}
    assert parts and all(sum(one.images) == sizes[number] >= sum(one.sizes) for number, one in parts.items())
    apply(run, edits)
    assert [row["cluster"] for row in used(run)[:200]] == [row["cluster"] for row in used(alone)]


def test_strangers_make_a_new_fit_due_and_their_likes_do_not(many_features, tmp_path, prints):
    run, _, alike, strange = many_features
    for images, due in ((alike[:40], False), (strange[:20], True)):
        np.save(tmp_path / "more.npy", images)
        said = json.loads(prints("update", run, tmp_path / "more.npy", "--json"))
        assert said["added"] == len(images) and said["due"] is due
        assert said["outliers"] == 20 if due else said["outliers"] <= 2
        strangers = [row for row in used(run)[200:] if row["is_outlier"] == "1"]
        assert sorted(said["strangers"]) == sorted(row["path"] for row in strangers)
        assert said["strangers"][: 20 * due] == [path for path in said["strangers"] if int(path) >= 240][: 20 * due]
        assert 0 <= said["residual_rank"] <= 1 and 0 <= said["shift"] <= 1
        assert (said["reason"] or "").startswith("35%") == due == (said["reason"] is not None)
    assert run_command(["update", str(run), str(tmp_path / "more.npy")]) == 0  # known by now, and still due
    np.save(tmp_path / "more.npy", strange[20:])
    text = " ".join(prints("update", run, tmp_path / "more.npy").split())
    assert re.search(r"60 of 60 .*68%", text)
    assert f"deepcluster fit FILE --features --like {run}" in text
    assert sum(int(row["is_outlier"]) for row in used(run)[-60:]) == 60
    state = condition(run)
    assert (state["images_count"], state["added_count"], state["due"]) == (320, 120, True)
    assert 80 / 320 <= state["outlier_share"] < 85 / 320


(SCRIPT,) = (block.text for block in blocks(ROOT / "docs/production.md") if block.language == "bash")


@pytest.mark.slow
def test_nights_of_the_script_of_the_page(many_features, tmp_path):
    run, _, alike, strange = many_features
    inbox, script, killed = tmp_path / "inbox.npy", tmp_path / "nightly.sh", tmp_path / "killed/deepcluster"
    killed.parent.mkdir()
    for file, text in ((script, SCRIPT), (killed, "#!/bin/bash\nkill -9 $$")):
        file.write_text(text)
        file.chmod(0o755)

    def night(folder=Path(sys.executable).parent):
        """The exit code, the text for the mail, and update.json."""
        environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        done = subprocess.run([script, run, inbox], env=environment, capture_output=True, text=True)
        update_json = Path(f"{run}.update.json").read_text()
        return done.returncode, done.stdout, json.loads(update_json) if update_json else {}

    code, said, update_json = night()  # no inbox
    assert code == update_json["code"] == 3 and said.startswith("The update ended with 3")
    np.save(inbox, alike[:40])
    assert night()[:2] == (0, "")
    np.save(inbox, strange[:30])
    code, said, update_json = night()
    assert code == 0 and len(update_json["strangers"]) >= 30
    reason, command, *paths = said.splitlines()
    assert reason.endswith(update_json["reason"]) and command == f"deepcluster fit --like {run}"
    assert paths == update_json["strangers"][:20]
    code, said, _ = night(killed.parent)
    assert code == 137 and said.startswith("The update ended with 137")


def test_the_picture_of_a_row_on_a_sheet(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PICTURES", 10)
    images = drawings(6, size=32)[0]  # 18, every second one is on the sheet
    images[4] = pictures.GREY_LEVEL
    picture = pictures_on(sprite_sheet(tiny_pictures(images, 0, 18), 18), 18)
    shown = np.asarray(picture(16)).astype(float)
    assert np.argmin([np.abs(shown - image.permute(1, 2, 0).numpy()).mean() for image in images]) == 16
    assert picture(4) is None and picture(15) is None


@pytest.mark.parametrize(
    ("most", "before", "after", "again"), [(20_000, 15, 21, []), (10, 21, 33, [4, 8, 16, 20]), (4, 10, 11, [])]
)
def test_a_longer_sheet_has_the_pictures_of_both(monkeypatch, most, before, after, again):
    """Rows that a sheet of every third row lacks, and one of every fourth has, are read again."""
    monkeypatch.setattr(pictures, "MAX_PICTURES", most)
    images = drawings(11, size=32)[0][:after]
    sheet, whole = (sprite_sheet(tiny_pictures(images[:count], 0, count), count) for count in (before, after))
    assert [row for row in on_sheet(after) if row < before and slot_of(row, before) < 0] == again
    new = [row for row in on_sheet(after) if row >= before]
    longer = [extended_sheet(sheet, after, {row: images[row] for row in rows}) for rows in ([*again, *new], new)]
    sheets = (Image.open(BytesIO(data)).convert("RGB") for data in (*longer, whole))
    with_all, without, wanted = (np.asarray(sheet).astype(float) for sheet in sheets)
    assert with_all.shape == wanted.shape and np.abs(with_all - wanted).mean() < 8
    assert not again or np.abs(without - wanted).mean() > 20


def test_the_name_of_an_image_beside_a_linked_folder_is_absolute(tmp_path):
    """Because ../more of a link is elsewhere."""
    (tmp_path / "link").symlink_to(tmp_path)
    assert name_in_run(tmp_path / "more/a.png", tmp_path / "link") == f"{tmp_path}/more/a.png"
