"""A new fit that knows the groups of an old run (``--like``), and takes its place (``promote``)."""

import json
import os
import re
import shutil
import tarfile
import tempfile
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepcluster import DeepCluster, load
from deepcluster.errors import DataError, DeepClusterWarning, DiskError, UsageError
from deepcluster.fitting.like import Former, continued, former_rows
from deepcluster.groups.cut import Cut
from deepcluster.images import find
from deepcluster.images.source import BESIDE, LINK, skipped_in_words
from deepcluster.learning import training
from deepcluster.model import Said
from deepcluster.runs.apply import apply
from deepcluster.runs.images import images_of
from deepcluster.runs.recut import recut
from deepcluster.runs.views import report
from deepcluster.storage import run_folder
from deepcluster.storage.content import FILES
from deepcluster.storage.edits_file import Edits
from deepcluster.storage.lock import own_files
from tests.helpers.drawings import write_image
from tests.helpers.features import normal
from tests.helpers.runs import SAME, change_record, contents, record, rows, small_fit, state_of
from tests.helpers.sandbox import with_ctrl_c
from tests.helpers.tiny import RECORD, run_of, tiny_model, writable

NAMES = ("bars", "blobs", "rings")


@pytest.fixture(scope="module")
def named(fit_once, tmp_path_factory) -> Path:
    """A run with three named clusters, one of which is junk; a fourth, 2, was merged."""
    run = Path(shutil.copytree(fit_once("-k", "4", "--rounds", "0"), tmp_path_factory.mktemp("named") / "run"))
    apply(run, Edits(names=dict(zip((0, 1, 3), NAMES, strict=True)), merge=((1, 2),), junk=(1,)))
    return run


@pytest.fixture
def run(named, tmp_path: Path) -> Path:
    return Path(shutil.copytree(named, tmp_path / "run"))


def clusters(run: Path) -> dict[str, str]:
    """The cluster of every image by its file, which `update` may name by another path."""
    return {"/".join(Path(row["path"]).parts[-2:]): row["cluster"] for row in rows(run / "clusters.csv")}


def summary(run: Path) -> dict[str, tuple[str, str]]:
    return {row["cluster"]: (row["name"], row["junk"]) for row in rows(run / "cluster_summary.csv")}


COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 220), "pink": (240, 150, 150)}


def save_colours(folder: Path, *colours: str, seed: int) -> Path:
    """Ten noisy images of each colour: every network tells them apart."""
    random = np.random.default_rng(seed)
    for colour in colours:
        (folder / colour).mkdir(parents=True)
        for i in range(10):
            pixels = COLOURS[colour] + random.normal(0, 15, (16, 16, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / colour / f"{seed}-{i}.png")
    return folder


def test_a_fit_like_a_run_keeps_numbers_names_marks_and_moves(tmp_path, prints):
    """Of the images of the run and its updates; also in another size, in which all have other digests."""
    run, images = tmp_path / "run", save_colours(tmp_path / "images", "red", "green", "blue", seed=0)
    prints("fit", images, "-o", run, *small_fit("-k", "3", "--rounds", "0"))
    number = {path.partition("/")[0]: int(cluster) for path, cluster in clusters(run).items()}
    first = next(i for i, row in enumerate(rows(run / "clusters.csv")) if row["path"] == "red/0-0.png")
    apply(run, Edits(names={number["red"]: "bars"}, junk=(number["blue"],), move=((first, number["green"]),)))
    more = save_colours(tmp_path / "more", "red", "pink", seed=1)
    prints("update", run, more)
    before = {row["path"] for row in rows(run / "clusters.csv")}
    for size in ("16", "24"):
        new, options = tmp_path / size, small_fit("-k", "4", "--rounds", "0", "--image-size", size, "--seed", "1")
        prints("fit", "-o", new, *options, "--like", run)
        assert {row["path"] for row in rows(new / "clusters.csv")} == before
        expected = {path: str(number.get(path.partition("/")[0], 3)) for path in clusters(new)}
        assert clusters(new) == expected | {"red/0-0.png": str(number["green"])}
        assert summary(new) == {**summary(run), "3": ("", "0")}
        assert record(new)["like"] == str(run) and state_of(new) is not None
        (line,) = (line for line in (new / "log.txt").read_text().splitlines() if " INFO Names: " in line)
        assert re.findall(r"(\d+) ", line.partition(" INFO ")[2]) == [*"33111"] and str(run) in line
        assert "of 29 named images kept their name" in (new / "log.txt").read_text()
        assert load(new).predict([more / "pink/1-0.png"]) == 3
        assert json.loads(prints("update", new, more, "--json"))["known"] == 20  # by their files


def test_each_of_equal_images_takes_a_row_of_its_own():
    """That of its path, else an unused one, else the last."""
    former = Former(Path("old"), run_of(tiny_model(("",)), torch.eye(5), "abcde"), [*"xyxxy"], 16)
    digests = {"new": "x", "c": "x", "e": "y", "d": "z", "a": "y", "b": "x", "more": "x"}
    assert former_rows(former, find("sklearn:digits"), digests, 16).tolist() == [0, 2, 4, -1, 1, 3, 3]


def test_what_a_person_said_is_made_anew_and_no_number_comes_twice():
    """By hand: 0 goes on as 2; 1 and 2 as 0, in which 2 has more; 3 falls into halves, and 4 is not here.

    1, which has a name, and 3, an image of which was answered about, are made anew. Three more images are in their
    right clusters: in 0, 1 and 2. The word about the last one judged the earlier clusters, and teaches these.
    """
    before = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 3, 3])
    after = torch.tensor([2, 2, 1, 0, 0, 0, 0, 0, 1, 3, 3, 1])
    kinds = torch.eye(7)[torch.cat([before, torch.tensor([5, 6])])]
    reduced = torch.nn.functional.normalize(kinds + 0.05 * normal(12, 7))
    said = (Said(2, "answer"), Said(3, "checked"), Said(8, "answer"), Said(5, "drawn", 1))
    cut = Cut(torch.cat([reduced[:10], -reduced[:1]]), torch.tensor([*before, 4]))
    old = tiny_model(("a", "b", "c", "", "e"), junk=(0, 4), said=said, cut=cut, fine_centroids=reduced)
    former = Former(Path("old"), run_of(old, reduced[:10]), [], 16)
    new = run_of(tiny_model(("",) * 4, cut=Cut(reduced, after), fine_centroids=reduced), reduced)
    made, text = continued(new, former, torch.tensor([*range(10), -1, -1]))
    assert [*map(str, made.placement.cluster[:10].tolist())] == [*"0001122233"]
    assert made.model.names == ("a", "b", "c", "", "", "", "") and made.model.junk == (0,)
    assert made.model.placed == {2: "answer", 3: "checked", 8: "answer", 5: "answer"} and not made.model.drawn
    assert text.startswith("2 of 5 clusters of old continue") and "ended: 4; " in text
    outcome = "made anew: 1, 3; 3 names kept; dropped, because their clusters did not survive: 'e'; 1 junk mark"
    assert text.endswith(f"{outcome} dropped; 4 of 4 answers kept")


def test_a_resumed_fit_knows_the_run_that_it_is_like(run, fit_once, photos, tmp_path, monkeypatch, ends):
    fit = ["fit", photos, "-o", tmp_path / "new", "--labels", "folders", *small_fit()]
    with monkeypatch.context() as patch:
        # The metrics before the rounds are of no cluster that a person corrected.
        patch.setattr("deepcluster.fitting.fit.continued", None)
        patch.setattr(training, "Outputs", with_ctrl_c(training.Outputs))
        ends([*fit, "--like", run], 75)
    moved = run.rename(tmp_path / "moved")
    assert "--like RUN" in ends([*fit, "--resume"], 2)
    other = Path(shutil.copytree(fit_once("-k", "3", "--rounds", "0", "--seed", "9"), run))  # at its place
    for typed in ([], ["--like", other]):
        assert record(moved)["run"] in ends([*fit, "--resume", *typed], 2)
    ends([word for word in fit if word != photos] + ["--resume", "--like", moved], 0)  # whose images it knows
    assert {name for name, _ in summary(tmp_path / "new").values()} & {*NAMES}


def test_a_run_that_no_fit_can_be_like(run, photos, tmp_path, ends, monkeypatch):
    before = contents(run)
    fit = ["fit", photos, *small_fit("--rounds", "0")]
    (tmp_path / "empty").mkdir()
    for like in ("nowhere", "empty"):
        assert like in ends([*fit, "-o", tmp_path / "new", "--like", tmp_path / like], 5)
    with pytest.raises(DiskError, match="nowhere"):
        DeepCluster(rounds=0).fit(photos, run=run, resume=True, like=tmp_path / "nowhere")
    with pytest.raises(UsageError):
        DeepCluster(rounds=0).fit(photos, like=5)
    (tmp_path / "link").symlink_to(run)
    assert "promote" in ends([*fit, "-o", tmp_path / "link", "--overwrite", "--like", run], 2)
    np.save(tmp_path / "f.npy", np.random.default_rng(0).normal(size=(30, 8)))
    assert str(run) in ends(["fit", tmp_path / "f.npy", "--features", "-o", tmp_path / "new", "--like", run], 3)
    assert contents(run) == before and not (tmp_path / "new" / "clusters.csv").exists()
    (run / "images.csv").unlink()
    assert "images.csv" in ends([*fit, "-o", tmp_path / "new", "--like", run], 5)


def test_a_fit_resumed_without_images_keeps_the_skipped_files(photos, tmp_path, monkeypatch, ends):
    """One that is tried again, and one that is never opened."""
    images = tmp_path / "images"
    images.mkdir()
    for i, file in enumerate(sorted(photos.rglob("0[0-3].png"))):
        shutil.copy(file, images / f"{i}.png")
    (images / "broken.jpg").write_text("no image")
    (images / "link.png").symlink_to("0.png")
    options = small_fit()
    with monkeypatch.context() as patch:
        patch.setattr(training, "Outputs", with_ctrl_c(training.Outputs))
        ends(["fit", images, "-o", tmp_path / "with", *options], 75)
    shutil.copytree(tmp_path / "with", tmp_path / "without")
    ends(["fit", images, "-o", tmp_path / "with", *options, "--resume"], 0)
    ends(["fit", "-o", tmp_path / "without", *options, "--resume"], 0)
    results = [tmp_path / name for name in ("with", "without")]
    for name in (*SAME, "skipped.csv"):
        first, second = ((run / name).read_bytes() for run in results)
        assert first == second, name
    assert [row["path"] for row in rows(results[1] / "skipped.csv")] == ["broken.jpg", "link.png"]
    assert [record(run)["skipped_count"] for run in results] == [2, 2]
    html = [(run / "report.html").read_text().count("broken.jpg") for run in results]
    assert html[0] == html[1] > 0


def of_images(
    folder: Path,
    base: Path,
    fitted: list[str],
    added: dict[str, str],
    skipped: dict[str, str] | None = None,
    *,
    of_folder: bool = False,
) -> Path:
    """A run that says of its images no more. ``added``: Places by paths; one with # is in an array or a shard."""
    folder.mkdir()
    run = writable(folder)
    run.write_json("run.json", RECORD | {"base": str(base), "of_folder": of_folder})
    table = [{"path": path, "status": "ok"} for path in fitted]
    for path, place in added.items():
        source, _, member = place.partition("#")
        table.append({"path": path, "status": "ok", "source": source, "member": member, "added": "later"})
    table += [{"path": path, "status": "skipped", "reason": why} for path, why in (skipped or {}).items()]
    run.write_rows("images.csv", [dict.fromkeys(FILES["images.csv"].columns, "") | row for row in table])
    return folder


@pytest.mark.parametrize("of_folder", [False, True])
def test_the_images_of_a_run_keep_their_names_wherever_updates_found_them(tmp_path, of_folder):
    """By hand, with their places."""
    home, inbox = tmp_path / "home", tmp_path / "inbox"
    for file in (home / "a/1.png", home / "2.png", home / "new.png", inbox / "3.png"):
        write_image(file, 0)
    near, far = {"new.png": ""}, {"../inbox/3.png": str(inbox / "3.png")}
    away = {str(inbox / "3.png"): str(inbox / "3.png")}
    again = {"2.png (0123abcd)": "2.png"}  # which has changed since the fit
    for number, (added, names) in enumerate([
        ({}, "2.png a/1.png"),
        (near, "2.png a/1.png new.png"),
        (far | near, "2.png a/1.png ../inbox/3.png new.png"),
        (again, "2.png a/1.png"),
        (away, f"2.png a/1.png {inbox}/3.png"),
    ]):  # fmt: skip
        run = of_images(tmp_path / str(number), home, ["2.png", "a/1.png"], added, of_folder=of_folder)
        source = images_of(run)
        assert (source.base, source.of_folder, " ".join(source.paths)) == (home, of_folder, names)
        assert {os.path.realpath(file) for file in source.files()} >= {*map(str, [home / "2.png", home / "a/1.png"])}
    (home / "2.png").unlink()
    with pytest.warns(DeepClusterWarning):
        assert images_of(tmp_path / "0").paths == ("a/1.png",)
    for name, base, member in (("gone", home / "no", ""), ("memory", home, "#0")):
        with pytest.raises(DataError, match="IMAGES"):
            images_of(of_images(tmp_path / name, base, [], {"1": member}))


@pytest.mark.parametrize("updates", ["array", "files array", "array files", "files shard", "shard"])
def test_images_that_are_no_files_are_found_again(updates, tmp_path):
    for name in ("home/1.png", "more/2.png", "2.png"):
        write_image(tmp_path / name, 0)
    np.save(tmp_path / "a.npy", np.full((2, 8, 8), 7, np.uint8))
    with tarfile.open(tmp_path / "home/s.tar", "w") as shard:
        shard.add(tmp_path / "2.png", "2.png")
    places = {"files": "more/2.png", "array": "a.npy#1", "shard": "home/s.tar#2.png"}
    added = {f"../{places[kind]}": f"{tmp_path}/{places[kind]}" for kind in updates.split()}
    source = images_of(of_images(tmp_path / "run", tmp_path / "home", ["1.png"], added))
    assert {*source.paths} == {"1.png", *added}
    for i, path in enumerate(source.paths):
        assert ".npy" not in path or np.asarray(source.read(i)).tolist() == np.full((8, 8, 3), 7).tolist()
        place = added.get(path, f"{tmp_path}/home/1.png")
        assert source.origin(i) == (place.partition("#")[0], place.partition("#")[2])


@pytest.mark.parametrize("is_updated", [False, True])
def test_skipped_files_are_tried_again_while_they_exist(is_updated, tmp_path):
    """But none that was never opened, as a link or a folder: nobody named the files behind it."""
    home, inbox = tmp_path / "home", tmp_path / "inbox"
    for file in (home / "b.png", home / "a.jpg", home / "dir/x.png", home / "s.json", inbox / "c.jpg", inbox / "d.png"):
        write_image(file, 0)
    (home / "link.png").symlink_to("b.png")
    (home / "s.tar").touch()
    skipped = {"a.jpg": "damaged", "dir": "permission denied", "gone.jpg": "damaged", "link.png": LINK}
    skipped |= {"s.json": BESIDE, "s.tar/x.png": "damaged"}
    skipped |= {"../inbox/c.jpg": "damaged"} if is_updated else {}
    added = {"../inbox/d.png": str(inbox / "d.png")} if is_updated else {}
    source = images_of(of_images(tmp_path / "run", home, ["b.png"], added, skipped))
    assert source.paths == ("b.png", *added, "a.jpg", *(["../inbox/c.jpg"] if is_updated else []))
    assert {*source.skipped} == {*skipped.items()} - {(path, "damaged") for path in (*source.paths, "gone.jpg")}
    assert skipped_in_words(source.skipped) == "1 permission denied, 1 linked, 1 beside the shards, 1 damaged"


# ---- promote --------------------------------------------------------------------------------------------------------


@pytest.fixture
def new(fit_once, tmp_path: Path) -> Path:
    """A copy of a newer run, in another folder, with the names of ``run``."""
    copy = Path(shutil.copytree(fit_once("-k", "3", "--rounds", "0", "--seed", "9"), tmp_path / "others" / "new"))
    apply(copy, Edits(names={0: "bars", 1: "blobs", 2: "rings"}))
    return copy


def run_files(run: Path) -> dict[str, bytes]:
    """The files of a run without the page, which is written again."""
    return {name: (run / name).read_bytes() for name in own_files(run) if name not in ("report.html", "log.txt")}


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_promoted_run_is_in_the_place_of_the_old_one(run, new, elsewhere, prints, request):
    """Also from another file system. Other files move along with their folders."""
    if elsewhere:
        if not Path("/dev/shm").is_dir():
            pytest.skip("this machine has no second file system")
        place = Path(tempfile.mkdtemp(dir="/dev/shm"))
        request.addfinalizer(partial(shutil.rmtree, place))
        new = Path(shutil.copytree(new, place / "new"))
    (new / "mine.txt").write_text("mine")
    (run / "notes.txt").write_text("mine")
    (new / "report.html").write_text("with links from the new run's place")
    of_new, of_old = run_files(new), contents(run)
    prints("promote", new, run)
    (former,) = run.parent.glob("run-until-*")
    assert run_files(run) == of_new and contents(former) == of_old
    assert state_of(run) is not None and state_of(former) is not None
    assert contents(run)["mine.txt"] == contents(former)["notes.txt"] == b"mine" and not (run / "notes.txt").exists()
    html = (run / "report.html").read_bytes()
    assert html == report(run).read_bytes()
    assert "Promoted" in (run / "log.txt").read_text()
    assert not new.exists()


@pytest.mark.parametrize("like", ["nothing", "old", "recut", "itself", "back"])
def test_promote_warns_unless_the_numbers_of_clusters_continue(run, new, ends, like):
    identifiers = {"old": record(run)["run"], "recut": record(run)["run"], "nothing": "0123"}
    change_record(new, like_run=identifiers.get(like))
    if like == "itself":
        new = Path(shutil.copytree(run, new.with_name("copy")))
        apply(new, Edits(junk=(0,)))
    if like == "back":
        change_record(run, like_run=record(new)["run"])
    if like == "recut":
        recut(new, 4)
    assert ("--like" in ends(["promote", new, run], 0)) == (like in ("nothing", "recut"))


def test_promote_loses_no_name_without_force(run, new, ends):
    apply(run, Edits(names={0: "roses", 1: "tulips"}))
    apply(new, Edits(names={0: "tulips", 1: ""}))
    before, of_new = contents(run), contents(new)
    said = ends(["promote", new, run], 2)
    assert "'roses'" in said and "tulips" not in said and "--force" in said
    assert contents(run) == before and contents(new) == of_new
    ends(["promote", new, run, "--force"], 0)
    assert record(run)["run"] == json.loads(of_new["run.json"])["run"]


def test_nothing_is_promoted_if_it_may_not(run, new, ends, tmp_path):
    before, of_new = contents(run), contents(new)
    (tmp_path / "link").symlink_to(run)
    for one, other, code in ((run, run, 2), (run, tmp_path / "link", 2), (tmp_path / "no", run, 5), (new, tmp_path, 5)):
        ends(["promote", one, other], code)
    for held in (run, new):
        with run_folder.locked(held):
            assert str(os.getpid()) in ends(["promote", new, run], 5)
    change_record(new, status="stopped")
    assert str(new) in ends(["promote", new, run], 2)
    assert contents(run) == before and contents(new).keys() == of_new.keys()


READ = ("run.json", "images.csv", "features.npy", "residuals.npy", "model/config.json", "model/model.safetensors")
READ += ("model/clusters.safetensors",)


def test_a_run_is_read_before_it_is_promoted_and_no_link_is_followed(run, new, ends, tmp_path):
    before = contents(run)
    for name, harm in [*product(own_files(new), ["link"]), *product(READ, ["missing", "half"])]:
        whole = (new / name).rename(tmp_path / "whole")
        if harm == "link":
            (new / name).symlink_to(whole)
        elif harm == "half":
            (new / name).write_bytes(whole.read_bytes()[:-9])
        assert Path(name).name in ends(["promote", new, run], 4, 5), (name, harm)
        whole.replace(new / name)
    assert contents(run) == before and not [*tmp_path.glob("run-until-*"), *tmp_path.glob(".*")]
    ends(["promote", new, run], 0)
