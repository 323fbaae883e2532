"""The first result is on disk after the first pass over the images, and whatever ends the run then leaves it usable."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from deepcluster.cli import run_command
from deepcluster.fitting import fit as run
from deepcluster.fitting import writer
from deepcluster.fitting.plan import Request
from deepcluster.fitting.writer import ResultWriter
from deepcluster.nets.network import build
from deepcluster.presets import read_request
from deepcluster.runs.rows import read_run
from deepcluster.runtime.console import Silent
from deepcluster.storage.run_folder import open_run
from tests.commands import command
from tests.helpers.runs import OPTIONS, assert_same_result, record, rows, small_fit

PRELIMINARY = '<p class="preliminary"'  # in the page
TRAINING = "deepcluster.algorithm:train_on_pseudo_labels"
RESULT = ("residuals.npy", "map.npy", "tree.json", "recipe.toml", "metrics.json")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "compact.safetensors"
    save_file(build("compact", image_size=16, seed=3).body.state_dict(), file)
    return file


@pytest.fixture(scope="module", params=["from scratch", "adapting"])
def fit_of(request, photos, weights):
    """The arguments of a fit of three rounds in a folder."""
    adapting = ["--backbone", "compact", "--weights", weights, "--set", "view_size=0"]
    options = ["--rounds", "3", "--labels", "folders", *(adapting if request.param == "adapting" else [])]
    return lambda out: ["fit", photos, "-o", out, *small_fit(*options)]


@pytest.fixture(scope="module")
def killed(fit_of, tmp_path_factory):
    """A run that was killed before the training of its second round."""
    out = tmp_path_factory.mktemp("killed") / "run"
    assert command(*fit_of(out), trap=("SIGKILL", TRAINING, 2))[0] == -9
    return out


@pytest.mark.parametrize("fit_of", ["adapting"], indirect=True)
def test_a_run_that_was_killed_has_a_result_that_everything_works_on(killed, photos, tmp_path, ends):
    assert (record(killed)["status"], record(killed)["result"]) == ("running", "preliminary")
    assert PRELIMINARY in (killed / "report.html").read_text()
    copy = Path(shutil.copytree(killed, tmp_path / "run"))
    for verb, *options in (
        ["predict", photos, "-o", tmp_path / "out.csv", "--quiet"],
        ["embed", photos, "-o", tmp_path / "features.npy", "--quiet"],
        ["export", "--to", "folders", "-o", tmp_path / "sorted", "--quiet"],
        ["report"],
        ["recut", "-k", "4", "--quiet"],
    ):
        said = ends([verb, copy, *options], 0)
        assert said.count("is preliminary") == 1, verb
    said = ends(["update", copy, photos], 2)
    assert "preliminary" not in said and str(copy) in said
    placed = {row["path"]: row["cluster"] for row in rows(tmp_path / "out.csv")}
    assert placed == {row["path"]: row["cluster"] for row in rows(killed / "clusters.csv")}
    assert np.array_equal(np.load(tmp_path / "features.npy"), np.load(killed / "features.npy"))
    assert len(rows(tmp_path / "features.csv")) == 48 and len(rows(copy / "cluster_summary.csv")) == 4
    assert record(copy)["result"] == "preliminary"


def test_it_goes_on_to_the_same_bits_as_without_preliminary_results(killed, fit_of, tmp_path, monkeypatch):
    going_on = Path(shutil.copytree(killed, tmp_path / "going on"))
    last = ("SIGKILL", "deepcluster.fitting.writer:ResultWriter.final", 1)
    code, said = command(*fit_of(going_on), "--resume", trap=last)
    assert code == -9, said
    assert (record(going_on)["status"], record(going_on)["result"]) == ("running", "preliminary")
    code, said = command(*fit_of(going_on), "--resume")
    assert code == 0, said
    monkeypatch.setattr(ResultWriter, "is_due", False)
    assert run_command([str(argument) for argument in fit_of(tmp_path / "plain")]) == 0
    assert_same_result(going_on, tmp_path / "plain", *RESULT)
    average = 0.4 if "--weights" in fit_of("") else 1.0  # of the weights before and after, so both go on
    assert f"average = {average}\n" in (going_on / "recipe.toml").read_text()
    assert (record(going_on)["status"], record(going_on)["result"]) == ("done", "final")
    assert PRELIMINARY not in (going_on / "report.html").read_text()


@pytest.mark.parametrize("fit_of", ["adapting"], indirect=True)
def test_a_resumed_run_that_is_stopped_again_still_tells_of_its_result(killed, fit_of, tmp_path):
    again = Path(shutil.copytree(killed, tmp_path / "run"))
    code, said = command(*fit_of(again), "--resume", trap=("SIGTERM", TRAINING, 1))
    assert code == 75
    assert said.count(str(again)) >= 2  # the groups so far, and the command that goes on
    told = record(again)
    assert (told["status"], told["result"]) == ("stopped", "preliminary") and told["rounds"] in (0, 1)
    assert {"cut", "rows_sha256", "verdict"} <= told.keys()
    assert read_run(open_run(again))[1].cut.count == told["clusters"]


def test_every_round_replaces_the_result_and_the_first_round_takes_the_pass_of_the_first_result(
    photos, weights, tmp_path, monkeypatch
):
    before_passes = []

    class Watching(Silent):
        def progress(self, phase: str, done: int, total: int) -> None:
            if phase == "features" and done == total:
                told = record(tmp_path / "run")
                before_passes.append((told.get("result"), told.get("rounds")))

    monkeypatch.setattr(writer, "SHARE_OF_TIME", float("inf"))
    options = {**OPTIONS, "rounds": 2, "backbone": "compact", "weights": str(weights), "view_size": 0}
    request = Request(out=tmp_path / "run", n_clusters=3, recipe=read_request(options | {"average": 0.5}))
    run.fit(photos, request, Watching())
    assert before_passes == [(None, None), ("preliminary", 0), ("preliminary", 1), ("preliminary", 1)]


@pytest.mark.parametrize("verb", ["recut", "export", "predict"])
def test_before_the_first_result_a_run_is_called_unfinished_and_not_damaged(verb, finished, photos, tmp_path, ends):
    stopped = tmp_path / "run"
    stopped.mkdir()
    told = record(finished)
    begun = {key: told[key] for key in told if key not in ("rounds", "result", "cut", "rows_sha256")} | {
        "status": "stopped"
    }
    (stopped / "run.json").write_text(json.dumps(begun), encoding="utf-8")
    rest = {"recut": ["-k", "3"], "export": ["--to", "folders", "-o", tmp_path / "sorted"], "predict": [photos]}
    said = ends([verb, stopped, *rest[verb]], 4, 5)
    assert "deepcluster fit --resume" in said and "damaged" not in said
