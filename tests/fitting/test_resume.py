"""A run that was killed ends with the rounds that it has, and goes on with its own options and images alone.

That it ends with the same bits is in whole/test_kills.py.
"""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file

from deepcluster import algorithm
from deepcluster.commands.cli import run_command
from deepcluster.errors import Stopped
from deepcluster.learning import training
from deepcluster.nets.network import build
from tests.helpers.commands import before_call
from tests.helpers.runs import assert_same_result, change_record, contents, record, rows, small_fit
from tests.helpers.sandbox import with_ctrl_c

ROUNDS = ("--rounds", "3")


@pytest.fixture(scope="module")
def fit_of(photos, tmp_path_factory):
    """The arguments of a fit of three rounds in a folder, which adapt a network."""
    weights = tmp_path_factory.mktemp("weights") / "compact.safetensors"
    save_file(build("compact", image_size=16, seed=3).body.state_dict(), weights)
    options = ["--labels", "folders", "--backbone", "compact", "--weights", weights, "--set", "view_size=0"]
    return lambda out, rounds=3: ["fit", photos, "-o", out, *small_fit("--rounds", rounds, *options)]


@pytest.fixture(scope="module")
def killed(fit_of, tmp_path_factory):
    """A run as a kill before the training of its second round leaves it."""
    out = tmp_path_factory.mktemp("killed") / "run"

    def leave() -> None:
        shutil.copytree(out, out.with_name("left"))
        raise Stopped("a kill in the place of this")

    with pytest.MonkeyPatch.context() as patch:
        train = before_call(2, leave)(algorithm.train_on_pseudo_labels)
        patch.setattr(algorithm, "train_on_pseudo_labels", train)
        words = [*map(str, fit_of(out))]
        patch.setattr("sys.argv", ["deepcluster", *words])  # run.json has them
        assert run_command(words) == 75
    left = out.with_name("left")
    assert record(left)["status"] == "running" and not (left / "report.html").exists()
    return left


def test_with_at_most_the_rounds_done_it_ends_with_these(killed, fit_of, tmp_path, ends):
    run = Path(shutil.copytree(killed, tmp_path / "run"))
    recipe = run / "recipe.toml"
    recipe.write_text("".join(line for line in recipe.open() if "class_prob" not in line))  # as before it was an option
    before = contents(run)
    assert "the run began as: deepcluster fit" in ends([*fit_of(run, 2), "--resume"], 2) and contents(run) == before
    first, second = (load_file(run / f"checkpoints/{name}.safetensors") for name in ("000000", "000001"))
    ends([*fit_of(run, 1), "--resume", "--keep-checkpoints"], 0)
    run_json = record(run)
    assert (run_json["status"], run_json["rounds"], run_json["stopped_because"]) == ("done", 1, "ended on request")
    assert "rounds = 3\n" in (run / "recipe.toml").read_text() and "baseline_nmi" in (run / "metrics.json").read_text()
    model = load_file(run / "model/model.safetensors")
    learnt = [name for name in model if name.startswith("body.") and name.endswith(("weight", "bias"))]
    for name in learnt:
        assert torch.equal(model[name], torch.lerp(first[f"network.{name}"], second[f"network.{name}"], 0.4)), name
    assert learnt and ends([*fit_of(run), "--resume"], 0) == ""  # it is finished
    assert record(run) == run_json


def test_without_a_round_done_it_ends_with_the_network_as_it_was_given(killed, fit_of, tmp_path, ends):
    run = Path(shutil.copytree(killed, tmp_path / "run"))
    for path in (run / "checkpoints").glob("000001.*"):
        path.unlink()
    ends([*fit_of(run, 0), "--resume"], 0)
    ends(fit_of(tmp_path / "plain", 0), 0)
    assert record(run)["rounds"] == 0
    assert_same_result(run, tmp_path / "plain")


@pytest.mark.parametrize("verb", ["recut", "export", "predict"])
def test_before_the_result_a_run_is_called_unfinished_and_not_damaged(verb, finished, photos, tmp_path, ends):
    stopped = tmp_path / "run"
    stopped.mkdir()
    run_json = record(finished)
    begun = {key: run_json[key] for key in run_json if key != "rounds"} | {"status": "stopped"}
    (stopped / "run.json").write_text(json.dumps(begun), encoding="utf-8")
    rest = {"recut": ["-k", "3"], "export": ["--to", "folders", "-o", tmp_path / "sorted"], "predict": [photos]}
    said = ends([verb, stopped, *rest[verb]], 4, 5)
    assert "deepcluster fit --resume" in said and "damaged" not in said


# ---- other options and other images ----------------------------------------------------------------------------------


@pytest.fixture
def copy_of(killed, fit_of, fit_once, tmp_path):
    """A copy of a run in a state, and the words of its fit without the images and the folder."""

    def copied(state: str) -> tuple[Path, list[object]]:
        is_done = state in ("done", "without checkpoints")
        run = Path(shutil.copytree(fit_once(*ROUNDS) if is_done else killed, tmp_path / "run"))
        if state == "without checkpoints":
            shutil.rmtree(run / "checkpoints", ignore_errors=True)
        if state == "with the checkpoints of another run":
            (run / "run.json").write_text(json.dumps(record(run) | {"run": "another"}))
        return run, small_fit(*ROUNDS) if is_done else fit_of(run)[4:]

    return copied


def edit_keeping_the_time(path: Path) -> None:
    status = path.stat()
    ImageOps.invert(Image.open(path)).save(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def swap(one: Path, other: Path) -> None:
    second = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(second)


TAMPERINGS = {
    "": lambda folder: None,
    "added": lambda folder: shutil.copy(folder / "bars/00.png", folder / "bars/zz.png"),
    "removed": lambda folder: (folder / "bars/00.png").unlink(),
    "renamed": lambda folder: (folder / "bars/00.png").rename(folder / "bars/000.png"),
    "edited": lambda folder: edit_keeping_the_time(folder / "bars/00.png"),
    "swapped": lambda folder: swap(folder / "bars/00.png", folder / "blob/01.png"),
    "broken": lambda folder: (folder / "bars/00.png").write_bytes(b"no image"),
}
# The run goes on by its own recipe, whatever the recipe of a command that names few options would choose.
FEW = ["-k", "3", "--seed", "5", "-q"]
REFUSED = [  # state of the run, change of its images, options (None: as before), exit code, words
    ("killed", "", ["-k", "5", *FEW[2:], "--labels", "folders"], 2, "began as"),
    ("killed", "", [*FEW, "--labels", "other.csv"], 2, "--labels folders"),
    ("done", "", [*FEW, "--labels", "folders"], 2, "began as"),
    ("killed", "added", None, 3, "bars/zz.png"),
    ("killed", "renamed", None, 3, "bars/000.png bars/00.png"),
    ("killed", "edited", None, 3, "bars/00.png"),
    ("killed", "swapped", None, 3, "bars/00.png blob/01.png"),
    ("killed", "broken", None, 3, "bars/00.png"),
    ("without checkpoints", "removed", None, 3, "bars/00.png"),
    ("killed", "added", FEW, 3, "bars/zz.png"),
    ("killed", "added", [*FEW, "--lr", "0.3"], 2, "began as"),
    ("with the checkpoints of another run", "", None, 4, "another"),
]  # fmt: skip


@pytest.mark.parametrize(("state", "change", "options", "code", "words"), REFUSED)
def test_another_fit_is_refused_and_changes_nothing(
    photos, copy_of, tmp_path, monkeypatch, state, change, options, code, words, ends
):
    (run, given), folder = copy_of(state), Path(shutil.copytree(photos, tmp_path / photos.name))
    monkeypatch.chdir(tmp_path)
    Path("other.csv").write_text("path,label\nbars/00.png,a\n")
    TAMPERINGS[change](folder)
    if change in ("added", "renamed", "removed"):  # the names tell, so no image is read
        monkeypatch.setattr("deepcluster.fitting.read.read_once", None)
    before = contents(run)
    said = ends(["fit", folder, "-o", run, *(given if options is None else options), "--resume"], code)
    assert all(word in said for word in words.split()) and ("--overwrite" in said or code != 3)
    assert contents(run) == before  # run.json and recipe.toml, too


@pytest.mark.parametrize("moved", [False, True])
def test_a_finished_run_stays(photos, copy_of, tmp_path, moved, ends):
    run, options = copy_of("done")
    folder = shutil.copytree(photos, tmp_path / photos.name) if moved else photos
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    ends(["fit", folder, "-o", run, *options, "--resume"], 0)
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


# The run "done" began with TYPED.
TYPED = {"base": "auto", "file_options": {"pseudo_labels": 500}, "options": {"image_size": 17, "lr": 0.5, "rounds": 9}}
SAME = ["--recipe", "mine.toml", "--image-size", "17", "--lr", "0.5"]
REQUESTED = [  # options, exit code
    ([], 0),
    (SAME, 0),  # although the recipe has other sizes now
    ([*SAME, "--rounds", "3"], 0),  # as the recipe has them
    (["--rounds", "1"], 0),  # which are done
    ([*SAME, "--rounds", "9"], 2),
    (["--image-size", "16"], 2),
    ([*SAME, "--epochs", "2"], 2),
    (["--recipe", "classic"], 2),
    (["--seed", "1"], 2),
]


@pytest.mark.parametrize(("options", "code"), REQUESTED)
def test_a_resumed_run_takes_nothing_or_the_same(photos, copy_of, options, code, ends, monkeypatch):
    run, _ = copy_of("done")
    monkeypatch.chdir(run)
    recipe = (run / "recipe.toml").read_text()
    (run / "recipe.toml").write_text(re.sub("grouping = .*\n", "", recipe))  # of a version without this option
    (run / "mine.toml").write_text("pseudo_labels = 500\n")
    change_record(run, requested=TYPED, command="deepcluster fit photos -k 4")
    said = ends(["fit", photos, "-o", run, *options, "--resume"], code)
    wanted = f"the run began as: deepcluster fit photos -k 4; give that, or only -o {run} --resume [--rounds N]"
    assert (wanted in said) == (code == 2)


def test_labels_belong_to_the_run(photos, tmp_path, monkeypatch, ends):
    """A resumed run scores by the labels that it began with, from any folder."""
    run, labels = tmp_path / "run", tmp_path / "labels.csv"
    names = [path.relative_to(photos).as_posix() for path in sorted(photos.rglob("*.png"))]
    labels.write_text("path,label\n" + "".join(f"{name},{name[0]}\n" for name in names))
    fit = ["fit", photos, "-o", run, *small_fit()]
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(training, "Outputs", with_ctrl_c(training.Outputs))
        ends([*fit, "--labels", "labels.csv"], 75)
    ends([*fit, "--resume"], 0)
    assert json.loads((run / "metrics.json").read_text())["labelled"] == len(names)
    assert record(run)["labels"] == str(labels)
    assert all(row["nmi_labels"] for row in rows(run / "history.csv"))
