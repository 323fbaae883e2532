"""A run that was stopped or killed goes on to the same bits, or ends with the rounds that it has."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepcluster.commands.cli import run_command
from deepcluster.nets.network import build
from tests.helpers.commands import command
from tests.helpers.runs import assert_same_result, contents, record, small_fit

TRAINING = "deepcluster.algorithm:train_on_pseudo_labels"
RESULT = ("residuals.npy", "map.npy", "tree.json", "recipe.toml", "metrics.json")


@pytest.fixture(scope="module")
def fit_of(photos, tmp_path_factory):
    """The arguments of a fit of three rounds in a folder, which adapt a network (one from scratch: test_kills)."""
    weights = tmp_path_factory.mktemp("weights") / "compact.safetensors"
    save_file(build("compact", image_size=16, seed=3).body.state_dict(), weights)
    options = ["--labels", "folders", "--backbone", "compact", "--weights", weights, "--set", "view_size=0"]
    return lambda out, rounds=3: ["fit", photos, "-o", out, *small_fit("--rounds", rounds, *options)]


@pytest.fixture(scope="module")
def killed(fit_of, tmp_path_factory):
    """A run that was killed before the training of its second round."""
    out = tmp_path_factory.mktemp("killed") / "run"
    assert command(*fit_of(out), trap=("SIGKILL", TRAINING, 2))[0] == -9
    assert record(out)["status"] == "running" and not (out / "report.html").exists()
    return out


def test_it_goes_on_to_the_same_bits(killed, fit_of, photos, tmp_path):
    going_on = Path(shutil.copytree(killed, tmp_path / "going on"))
    last = ("SIGKILL", "deepcluster.fitting.journal:Journal.end", 1)
    code, said = command(*fit_of(going_on), "--resume", trap=last)
    assert code == -9 and "after 3 rounds the network learns little (loss " in said, said
    code, said = command("fit", "-o", going_on, "--resume", "-q")
    assert code == 0, said
    assert run_command([str(argument) for argument in fit_of(tmp_path / "plain")]) == 0
    assert_same_result(going_on, tmp_path / "plain", *RESULT)
    assert "average = 0.4\n" in (going_on / "recipe.toml").read_text()  # with the weights before, which go on too
    told, plain = record(going_on), record(tmp_path / "plain")
    assert told["status"] == "done" and str(photos) in told["command"]
    assert all(told[name] == plain[name] for name in ("seed", "n_clusters", "labels", "requested"))


def test_with_at_most_the_rounds_done_it_ends_with_these(killed, fit_of, tmp_path, ends):
    run = Path(shutil.copytree(killed, tmp_path / "run"))
    recipe = run / "recipe.toml"
    recipe.write_text("".join(line for line in recipe.open() if "class_prob" not in line))  # as before it was an option
    before = contents(run)
    assert "the run began as: deepcluster fit" in ends([*fit_of(run, 2), "--resume"], 2) and contents(run) == before
    first, second = (load_file(run / f"checkpoints/{name}.safetensors") for name in ("000000", "000001"))
    ends([*fit_of(run, 1), "--resume", "--keep-checkpoints"], 0)
    told = record(run)
    assert (told["status"], told["rounds"], told["stopped_because"]) == ("done", 1, "ended on request")
    assert "rounds = 3\n" in (run / "recipe.toml").read_text() and "baseline_nmi" in (run / "metrics.json").read_text()
    model = load_file(run / "model/model.safetensors")
    learnt = [name for name in model if name.startswith("body.") and name.endswith(("weight", "bias"))]
    for name in learnt:
        assert torch.equal(model[name], torch.lerp(first[f"network.{name}"], second[f"network.{name}"], 0.4)), name
    assert learnt and ends([*fit_of(run), "--resume"], 0) == ""  # it is finished
    assert record(run) == told


def test_without_a_round_done_it_ends_with_the_network_as_it_was_given(killed, fit_of, tmp_path, ends):
    run = Path(shutil.copytree(killed, tmp_path / "run"))
    for path in (run / "checkpoints").glob("000001.*"):
        path.unlink()
    ends([*fit_of(run, 0), "--resume"], 0)
    ends(fit_of(tmp_path / "plain", 0), 0)
    assert record(run)["rounds"] == 0
    assert_same_result(run, tmp_path / "plain")


def test_a_stop_says_how_to_go_on_and_how_to_end_the_run(killed, fit_of, tmp_path):
    again = Path(shutil.copytree(killed, tmp_path / "run"))
    code, said = command(*fit_of(again), "--resume", trap=("SIGTERM", TRAINING, 1))
    assert code == 75 and record(again)["status"] == "stopped"
    assert said.endswith(f" -o {again} --resume; to end it with 1 round: --resume --rounds 1\n")


@pytest.mark.parametrize("verb", ["recut", "export", "predict"])
def test_before_the_result_a_run_is_called_unfinished_and_not_damaged(verb, finished, photos, tmp_path, ends):
    stopped = tmp_path / "run"
    stopped.mkdir()
    told = record(finished)
    begun = {key: told[key] for key in told if key != "rounds"} | {"status": "stopped"}
    (stopped / "run.json").write_text(json.dumps(begun), encoding="utf-8")
    rest = {"recut": ["-k", "3"], "export": ["--to", "folders", "-o", tmp_path / "sorted"], "predict": [photos]}
    said = ends([verb, stopped, *rest[verb]], 4, 5)
    assert "deepcluster fit --resume" in said and "damaged" not in said
