"""A new fit that knows the groups of an old run (``--like``), and takes its place (``promote``)."""

import json
import os
import re
import shutil
import tarfile
import tempfile
from dataclasses import replace
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
from deepcluster.groups.cut import Cut, Placement
from deepcluster.images import find
from deepcluster.images.source import LINK
from deepcluster.learning import training
from deepcluster.runs import page
from deepcluster.runs import run as run_rows
from deepcluster.runs.edits import Edits, apply
from deepcluster.runs.images import images_at_hand, images_of
from deepcluster.runs.promote import promote
from deepcluster.runs.run import Rows, Run
from deepcluster.storage import run_folder
from deepcluster.storage.content import RunRecord
from deepcluster.storage.state import own_files
from tests.commands import killed_at_every_change
from tests.exports import write_image
from tests.helpers.features import normal
from tests.helpers.runs import SAME, change_record, contents, record, rows, small_fit, state_of
from tests.sandbox import with_ctrl_c
from tests.test_generation import state
from tests.tiny import RECORD, tiny_model, writable

NAMES = ("bars", "blobs", "rings")


@pytest.fixture(scope="module")
def named(fitted, tmp_path_factory) -> Path:
    """A run with three named clusters, one of which is junk; a fourth, 2, was merged."""
    run = Path(shutil.copytree(fitted("-k", "4", "--rounds", "0"), tmp_path_factory.mktemp("named") / "run"))
    apply(run, Edits("", dict(zip((0, 1, 3), NAMES, strict=True)), ((1, 2),), (1,)))
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


def rows_of(reduced: torch.Tensor) -> Rows:
    paths = [*map(str, range(len(reduced)))]
    return Rows(paths, None, [], reduced, reduced, torch.zeros(len(reduced)))


def test_each_of_equal_images_takes_a_row_of_its_own():
    """That of its path, else an unused one, else the last."""
    rows = Rows([*"abcde"], None, [], torch.eye(5), torch.eye(5), torch.zeros(5))
    former = Former(Path("old"), Run(RunRecord.from_json(RECORD), tiny_model(("",)), rows), [*"xyxxy"], 16)
    digests = {"new": "x", "c": "x", "e": "y", "d": "z", "a": "y", "b": "x", "more": "x"}
    assert former_rows(former, find("sklearn:digits"), digests, 16).tolist() == [0, 2, 4, -1, 1, 3, 3]


def test_what_a_person_said_is_made_anew_and_no_number_comes_twice():
    """By hand: 0 goes on as 2; 1 and 2 as 0, in which 2 has more; 3 falls into halves, and 4 is not here.

    1, which has a name, and 3, an image of which was answered about, are made anew. Three images were moved: to 0, to 1
    and to 2, one of them from a cluster that is no more.
    """
    before = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 3, 3])
    after = torch.tensor([2, 2, 1, 0, 0, 0, 0, 0, 1, 3, 3, 1])
    kinds = torch.eye(7)[torch.cat([before, torch.tensor([5, 6])])]
    reduced = torch.nn.functional.normalize(kinds + 0.05 * normal(12, 7))
    names, moves = ("a", "b", "c", "", "e"), ((2, 2), (3, 0), (5, 4))
    old = replace(tiny_model(names), junk=(0, 4), moves=moves, answers=(8,))
    cut = Cut(torch.cat([reduced[:10], -reduced[:1]]), torch.tensor([*before, 4]))
    old = replace(old, cut=cut, fine_centroids=reduced)
    former = Former(Path("old"), Run(RunRecord.from_json(RECORD), old, rows_of(reduced[:10])), [], 16)
    model = replace(tiny_model(("",) * 4), cut=Cut(reduced, after), fine_centroids=reduced)
    new = Run(RunRecord.from_json(RECORD), model, rows_of(reduced))
    lengths = torch.zeros(len(after))
    placement = Placement(after, after, lengths, lengths, after)
    made, placement, text = continued(new, placement, former, torch.tensor([*range(10), -1, -1]))
    assert placement.cluster.equal(made.model.placement(reduced).cluster)
    assert [*map(str, placement.cluster[:10].tolist())] == [*"0001122233"]
    assert made.model.names == ("a", "b", "c", "", "", "", "") and made.model.junk == (0,)
    assert made.model.moves == ((2, 2), (3, 0), (5, 2)) and made.model.answers == (8,)
    assert text.startswith("2 of 5 clusters of old continue") and "ended: 4; " in text
    said = "made anew: 1, 3; 3 names kept; dropped, because their clusters did not survive: 'e'; 1 junk mark"
    assert text.endswith(f"{said} dropped; 3 of 3 moves kept; 1 of 1 answer kept")


def test_a_resumed_fit_knows_the_run_that_it_is_like(run, fitted, photos, tmp_path, monkeypatch, ends):
    fit = ["fit", photos, "-o", tmp_path / "new", "--labels", "folders", *small_fit("--rounds", "2")]
    with monkeypatch.context() as patch:
        # The metrics before the rounds are of no cluster that a person corrected.
        patch.setattr("deepcluster.fitting.fit.continued", None)
        patch.setattr(training, "Outputs", with_ctrl_c(training.Outputs))
        ends([*fit, "--like", run], 75)
    moved = run.rename(tmp_path / "moved")
    assert "--like RUN" in ends([*fit, "--resume"], 2)
    other = Path(shutil.copytree(fitted("-k", "3", "--rounds", "0", "--seed", "9"), run))  # at its place
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
    (run / "checkpoints" / "images.csv").unlink()
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
    folder: Path, location: Path | str, fitted: list[str], added: dict[str, Path], skipped: dict[str, str] | None = None
) -> Path:
    """A run that says of its images no more than this; an added path with # is of an array or a shard."""
    (folder / "checkpoints").mkdir(parents=True)
    run = writable(folder)
    run.write_json("run.json", RECORD | {"location": str(location)})
    run.write_rows("checkpoints/images.csv", [{"path": path} for path in fitted])
    members = {path: path.partition("#")[2] for path in added}
    origins = [{"path": path, "source": str(added[path]), "member": member} for path, member in members.items()]
    run.write_rows("added.csv", origins)
    run.write_rows("skipped.csv", [{"path": path, "reason": why} for path, why in (skipped or {}).items()])
    return folder


def test_the_images_of_a_run_keep_their_names_wherever_updates_found_them(tmp_path, monkeypatch):
    """By hand, with their places; those of updates are named from the folder at which the paths of the fit start."""
    home, inbox = tmp_path / "home", tmp_path / "inbox"
    for file in (home / "a/1.png", home / "2.png", home / "new.png", inbox / "3.png"):
        write_image(file, 0)
    (home / "list.txt").write_text("2.png\na/1.png\n")
    monkeypatch.chdir(home)
    near, far = {"new.png": home / "new.png"}, {"../inbox/3.png": inbox / "3.png"}
    away = {str(inbox / "3.png"): inbox / "3.png"}
    again = {"2.png (0123abcd)": home / "2.png"}  # which has changed since the fit
    for number, (location, added, names) in enumerate([
        (home, {}, "2.png a/1.png"),
        (home, near, "2.png a/1.png new.png"),
        (home, far | near, "../inbox/3.png 2.png a/1.png new.png"),
        (home, again, "2.png a/1.png"),
        (f"{home}/.", far, "../inbox/3.png 2.png a/1.png"),
        (home / "list.txt", {}, "2.png a/1.png"),
        (home / "list.txt", away, f"{inbox}/3.png 2.png a/1.png"),
        ("python:paths", away, f"{inbox}/3.png 2.png a/1.png"),
    ]):  # fmt: skip
        run = of_images(tmp_path / str(number), location, ["2.png", "a/1.png"], added)
        source = images_of(run)
        assert (source.location, " ".join(source.paths)) == (f"{home}/." if added else str(location), names)
        assert {os.path.realpath(file) for file in source.files()} >= {*map(str, [home / "2.png", home / "a/1.png"])}
    (home / "2.png").unlink()
    with pytest.warns(DeepClusterWarning):
        assert images_of(tmp_path / "0").paths == ("a/1.png",)
    for location in ("python:array", home / "no"):
        with pytest.raises(DataError, match="IMAGES"):
            images_of(of_images(tmp_path / f"{location}".rpartition("/")[2], location, ["1"], {}))


@pytest.mark.parametrize("updates", ["array", "files array", "array files", "files shard", "shard"])
def test_a_run_with_images_that_are_no_files_needs_them_named(updates, tmp_path):
    for name in ("home/1.png", "more/2.png", "2.png"):
        write_image(tmp_path / name, 0)
    np.save(tmp_path / "a.npy", np.zeros((1, 8, 8), np.uint8))
    with tarfile.open(tmp_path / "s.tar", "w") as shard:
        shard.add(tmp_path / "2.png", "2.png")
    paths = {"files": "more/2.png", "array": "a.npy#0", "shard": "s.tar#2.png"}
    added = {f"../{paths[kind]}": tmp_path / paths[kind].partition("#")[0] for kind in updates.split()}
    run = of_images(tmp_path / "run", tmp_path / "home", ["1.png"], added)
    assert len(images_at_hand(run_folder.open_run(run), None, ["1.png", *added]).paths) == 1 + len(added)
    with pytest.raises(DataError, match=r"run cannot be found again .*: name all of them as IMAGES"):
        images_of(run)


@pytest.mark.parametrize("place", ["folder", "collection", "list"])
@pytest.mark.parametrize("is_updated", [False, True])
def test_skipped_files_are_tried_again_while_they_exist(place, is_updated, tmp_path):
    """But no link, and no folder: nobody named the files behind it."""
    home, inbox = tmp_path / "home", tmp_path / "inbox"
    for file in (home / "b.png", home / "a.jpg", home / "dir/x.png", inbox / "c.jpg", inbox / "d.png"):
        write_image(file, 0)
    (home / "link.png").symlink_to("b.png")
    (home / "list.txt").write_text("a.jpg\nb.png\n")
    skipped = {"a.jpg": "damaged", "dir": "permission denied", "gone.jpg": "damaged", "link.png": LINK}
    skipped |= {"../inbox/c.jpg": "damaged"} if is_updated else {}
    location = {"folder": home, "collection": f"{home}/.", "list": home / "list.txt"}[place]
    added = {"../inbox/d.png": inbox / "d.png"} if is_updated else {}
    source = images_of(of_images(tmp_path / "run", location, ["b.png"], added, skipped))
    assert source.paths == (*(["../inbox/c.jpg", *added] if is_updated else []), "a.jpg", "b.png")
    assert dict(source.skipped) == {"dir": "permission denied", "link.png": LINK}


# ---- promote --------------------------------------------------------------------------------------------------------


@pytest.fixture
def new(fitted, tmp_path: Path) -> Path:
    """A copy of a newer run, in another folder, with the names of ``run``."""
    copy = Path(shutil.copytree(fitted("-k", "3", "--rounds", "0", "--seed", "9"), tmp_path / "others" / "new"))
    apply(copy, Edits(names={0: "bars", 1: "blobs", 2: "rings"}))
    return copy


def own(run: Path) -> dict[str, bytes]:
    """The files of a run without the page, which is written again."""
    return {name: (run / name).read_bytes() for name in own_files(run) if name not in ("report.html", "log.txt")}


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_promoted_run_is_in_the_place_of_the_old_one(run, new, elsewhere, prints, request):
    """Also from another file system, with files of the user's in both folders."""
    if elsewhere:
        if not Path("/dev/shm").is_dir():
            pytest.skip("this machine has no second file system")
        place = Path(tempfile.mkdtemp(dir="/dev/shm"))
        request.addfinalizer(partial(shutil.rmtree, place))
        new = Path(shutil.copytree(new, place / "new"))
        (new / "mine.txt").write_text("mine")
    (run / "notes.txt").write_text("mine")
    (run / "metrics.json").write_text("{}")  # the new run has none
    (new / "report.html").write_text("with links from the new run's place")
    of_new, of_old = own(new), contents(run)
    prints("promote", new, run)
    (kept,) = run.parent.glob("run-until-*")
    assert own(run) == of_new and state_of(run) is not None and state_of(kept) is not None
    assert contents(run)["notes.txt"] == b"mine" and contents(kept) | {"notes.txt": b"mine"} == of_old
    html = (run / "report.html").read_bytes()
    assert html == page.report(run).read_bytes()
    assert "Promoted" in (run / "log.txt").read_text()
    assert [*new.rglob("*")] == [new / "mine.txt"] if elsewhere else not new.exists()


@pytest.mark.parametrize("like", ["nothing", "old", "recut", "itself", "back"])
def test_promote_warns_unless_the_numbers_of_clusters_continue(run, new, ends, like):
    identifiers = {"old": record(run)["run"], "recut": None, "nothing": "0123"}
    change_record(new, like_run=identifiers.get(like))
    if like == "itself":
        new = Path(shutil.copytree(run, new.with_name("copy")))
        apply(new, Edits(junk=(0,)))
    if like == "back":
        change_record(run, like_run=record(new)["run"])
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


READ = ("model/model.safetensors", "model/groups.safetensors", "features.npy", "residuals.npy", "clusters.csv")
READ += ("cluster_summary.csv", "skipped.csv")


def test_a_run_is_read_before_it_is_promoted_and_no_link_is_followed(run, new, ends, tmp_path):
    (new / "report.html").unlink()  # whose writer reads most tables
    before = contents(run)
    for name, harm in [*product(own_files(new), ["link"]), *product(READ, ["missing", "half"])]:
        whole = (new / name).rename(tmp_path / "whole")
        if harm == "link":
            (new / name).symlink_to(whole)
        elif harm == "half":
            (new / name).write_bytes(whole.read_bytes()[:-9])
        assert Path(name).name in ends(["promote", new, run], 4, 5), (name, harm)
        whole.replace(new / name)
    assert contents(run) == before and not [*tmp_path.glob("run-until-*"), *tmp_path.glob(".deep*")]
    ends(["promote", new, run], 0)


def test_a_kill_at_any_change_of_the_disk_loses_neither_run_and_the_same_command_goes_on(tmp_path, monkeypatch):
    def two_runs(folder):
        for run in ("new", "old"):
            (folder / run / "model").mkdir(parents=True)
            (folder / run / "run.json").write_text(json.dumps(RECORD | {"images": run, "status": "done", "run": "1"}))
            (folder / run / ("tree.json" if run == "old" else "model/config.json")).write_text(run)
        return folder

    monkeypatch.setattr(run_rows, "read_run", lambda run: None)  # they have no models
    monkeypatch.setattr(page, "write_report", lambda staged: None)
    seen = []
    for folder in killed_at_every_change(tmp_path, two_runs, lambda at: promote(at / "new", at / "old")):
        seen.append(only(folder / "old"))
        if seen[-1] == "new":
            assert [only(path) for path in folder.glob("old-until-*")] == ["old"]
        else:
            assert only(folder / "new") == "new"
        if (folder / "new" / "run.json").exists():
            promote(folder / "new", folder / "old")
        assert only(folder / "old") == "new" and [only(path) for path in folder.glob("old-until-*")] == ["old"]
        assert not [path for path in (folder / "new").rglob("*") if path.is_file() and path.name != "lock"]
    assert seen == sorted(seen, reverse=True) and {*seen} == {"old", "new"} and len(seen) > 19
    assert not (folder / "new").exists()


def only(run: Path) -> str:
    """The run that all files in a folder are of."""
    (text,) = {*state(run).values()}
    return text
