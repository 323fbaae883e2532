"""The first result is on disk after the first pass over the images, and whatever ends the run then leaves it usable."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from deepcluster import algorithm
from deepcluster.cli import run_command
from deepcluster.nets.network import build
from deepcluster.runs import fit as run
from deepcluster.runs import writer
from deepcluster.runs.plan import Request
from deepcluster.runs.rows import read_run
from deepcluster.runs.writer import ResultWriter
from deepcluster.runtime.console import WIDTH, Terminal
from deepcluster.storage.content import RunRecord
from deepcluster.storage.run_folder import open_run
from tests.commands import SMALL_FIT
from tests.helpers.runs import OPTIONS, model_digest, record, rows

TRAINING = "deepcluster.algorithm:train_on_pseudo_labels"
RESULT = ("clusters.csv", "cluster_summary.csv", "features.npy", "residuals.npy", "map.npy", "tree.json", "recipe.toml")
MODEL = ("model/model.safetensors", "model/groups.safetensors")


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
    return lambda out: ["fit", photos, "-o", out, *options, *SMALL_FIT]


@pytest.fixture(scope="module")
def killed(fit_of, command, tmp_path_factory):
    """A run that was killed before the training of its second round."""
    out = tmp_path_factory.mktemp("killed") / "run"
    code, said = command(*fit_of(out), trap=("SIGKILL", TRAINING, 2))
    assert code == -9, said
    return out


def same_result(one: Path, other: Path) -> None:
    for name in (*RESULT, *MODEL):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert model_digest(one) == model_digest(other)


def test_a_run_that_was_killed_has_a_result_that_everything_works_on(killed, photos, tmp_path, capsys):
    assert (record(killed)["status"], record(killed)["result"]) == ("running", "preliminary")
    assert "Preliminary: the groups as they were" in (killed / "report.html").read_text()
    copy = Path(shutil.copytree(killed, tmp_path / "run"))
    commands = [
        ["predict", copy, photos, "-o", tmp_path / "out.csv", "--quiet"],
        ["embed", copy, photos, "-o", tmp_path / "features.npy", "--quiet"],
        ["export", copy, "--to", "folders", "-o", tmp_path / "sorted", "--quiet"],
        ["report", copy],
        ["recut", copy, "-k", "4", "--quiet"],
    ]
    for arguments in commands:
        assert run_command([str(argument) for argument in arguments]) == 0, arguments
        assert len(re.findall("is preliminary, after (?:0 rounds|1 round): ", capsys.readouterr().err)) == 1, arguments
    assert run_command(["update", str(copy), str(photos)]) == 2
    assert "preliminary" not in (said := capsys.readouterr().err) and "is not finished" in said
    placed = {row["path"]: row["cluster"] for row in rows(tmp_path / "out.csv")}
    assert placed == {row["path"]: row["cluster"] for row in rows(killed / "clusters.csv")}
    assert np.array_equal(np.load(tmp_path / "features.npy"), np.load(killed / "features.npy"))
    assert len(rows(tmp_path / "features.csv")) == 48 and len(rows(copy / "cluster_summary.csv")) == 4
    assert record(copy)["result"] == "preliminary"


def test_it_goes_on_to_the_same_bits_as_without_preliminary_results(killed, fit_of, command, tmp_path, monkeypatch):
    going_on = Path(shutil.copytree(killed, tmp_path / "going on"))
    code, said = command(
        *fit_of(going_on), "--resume", trap=("SIGKILL", "deepcluster.runs.writer:ResultWriter.final", 1)
    )
    assert code == -9, said
    assert (record(going_on)["status"], record(going_on)["result"]) == ("running", "preliminary")
    code, said = command(*fit_of(going_on), "--resume")
    assert code == 0, said
    monkeypatch.setattr(ResultWriter, "is_due", False)
    assert run_command([str(argument) for argument in fit_of(tmp_path / "plain")]) == 0
    same_result(going_on, tmp_path / "plain")
    average = 0.4 if "--weights" in fit_of("") else 1.0  # of the weights before and after, so both go on
    assert f"average = {average}\n" in (going_on / "recipe.toml").read_text()
    assert (record(going_on)["status"], record(going_on)["result"]) == ("done", "final")
    assert "Preliminary" not in (going_on / "report.html").read_text()
    metrics = "metrics.json"
    assert (going_on / metrics).read_bytes() == (tmp_path / "plain" / metrics).read_bytes()


def test_a_resumed_run_that_is_stopped_again_still_tells_of_its_result(killed, fit_of, command, tmp_path):
    again = Path(shutil.copytree(killed, tmp_path / "run"))
    code, said = command(*fit_of(again), "--resume", trap=("SIGTERM", TRAINING, 1))
    assert code == 75
    assert f"; the groups so far are in {again}; to go on: " in said
    told = record(again)
    assert told["status"] == "stopped"
    assert (told["result"], told["rounds"]) in (("preliminary", 0), ("preliminary", 1))
    assert {"cut", "rows", "verdict"} <= told.keys()
    assert read_run(open_run(again))[1].groups.count == told["clusters"]


@pytest.mark.parametrize("average", [1.0, 0.5])
def test_every_round_replaces_the_result_and_the_first_round_takes_the_pass_of_the_first_result(
    photos, weights, tmp_path, monkeypatch, average
):
    passes, results = [], []
    original, write = algorithm.extract, ResultWriter._write

    def extract(network, images, *arguments, **options):
        passes.append(len(images))
        return original(network, images, *arguments, **options)

    def written(self, record, features):
        done = write(self, record, features)
        results.append((record.result, record.rounds, len(passes)))
        return done

    for module in (algorithm, writer):
        monkeypatch.setattr(module, "extract", extract)
    monkeypatch.setattr(ResultWriter, "_write", written)
    monkeypatch.setattr(writer, "SHARE_OF_TIME", float("inf"))
    options = {**OPTIONS, "rounds": 2, "backbone": "compact", "weights": str(weights), "view_size": 0}
    run.fit(photos, Request(out=tmp_path / "run", n_clusters=3, options=options | {"average": average}))
    assert results == [("preliminary", 0, 1), ("preliminary", 1, 2), ("final", 2, 4)]
    assert passes == [48] * 4


@pytest.mark.parametrize("verb", ["recut", "apply", "update", "report", "similar", "export", "predict"])
def test_before_the_first_result_a_run_is_called_unfinished_and_not_damaged(verb, finished, photos, tmp_path, capsys):
    stopped = tmp_path / "run"
    stopped.mkdir()
    told = record(finished)
    begun = {key: told[key] for key in told if key not in ("rounds", "result", "cut", "rows")} | {"status": "stopped"}
    (stopped / "run.json").write_text(json.dumps(begun), encoding="utf-8")
    (tmp_path / "edits.json").write_text('{"schema_version": 1, "cut": "0f3a9c1e5b7d2846", "junk": [1]}')
    rest = {
        "recut": ["-k", "3"], "apply": [tmp_path / "edits.json"], "update": [photos], "similar": ["a.png"],
        "export": ["--to", "folders", "-o", tmp_path / "sorted"], "predict": [photos],
    }  # fmt: skip
    assert run_command([verb, str(stopped), *map(str, rest.get(verb, []))]) in (4, 5)
    said = capsys.readouterr().err
    assert "yet (its status is stopped): go on with `deepcluster fit --resume`" in said and "damaged" not in said


def test_the_line_of_a_round_fits(capsys):
    row = {
        "round": 99, "loss": 1.234, "chance_loss": 3.219, "changed": 0.9876, "cluster_weight": 0.999,
        "largest_share": 0.999, "features_seconds": 99.0, "clustering_seconds": 1.0, "training_seconds": 1.0,
    }  # fmt: skip
    Terminal(False, verbose=True).round(row, 100)
    (line,) = capsys.readouterr().out.splitlines()
    assert len(line) <= WIDTH and "loss 1.23 (chance 3.22)  changed 98.8%" in line
    Terminal(False).round(row, 100)
    assert capsys.readouterr().out == "Round     100 of 100: 101.0 s\n"


def test_what_is_on_disk_outlasts_the_record_of_a_run_that_goes_on():
    record = RunRecord(images="a", location="/a", seed=0, status="running")
    on_disk = RunRecord(
        images="b", location="/b", seed=1, result="preliminary", rounds=1, cut="c", rows="r", clusters=3, stability=0.5,
        verdict="v", edits="e",
    )  # fmt: skip
    both = record.with_result_of(on_disk)
    assert (both.images, both.seed, both.status) == ("a", 0, "running")
    assert (both.result, both.rounds, both.cut, both.verdict, both.edits) == ("preliminary", 1, "c", "v", "e")
