"""The command line as a user meets it: exit codes, messages, output."""

import csv
import io
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from deepcluster import cli
from deepcluster.cli import run_command
from deepcluster.storage.run_folder import RunFolder
from tests.tiny import RECORD, change_tensors, tiny_run

QUICK = ["--rounds", "1", "--epochs", "1", "--pseudo-labels", "6", "--image-size", "16", "--batch-size", "16"]


@pytest.fixture(scope="module")
def finished(fitted) -> Path:
    return fitted("--labels", "folders")


def test_fit_prints_a_short_plan_and_the_run_last(photos, tmp_path, capsys):
    out = tmp_path / "run"
    assert run_command(["fit", str(photos), "-k", "3", "-o", str(out), "--labels", "folders", *QUICK]) == 0
    printed = capsys.readouterr().out
    lines = printed.strip().splitlines()
    assert lines[0].split() == ["Images", "48", "in", str(photos)]
    assert ["Run", str(out)] in [line.split() for line in lines[:6]]
    assert lines[-1].split() == ["Run", str(out)]
    assert any(line.startswith("1/1 ") and "loss" in line and "changed -" in line for line in lines)
    assert any(line.startswith("Metrics") and "NMI" in line for line in lines)
    assert "\x1b" not in printed  # piped output has no control characters
    assert all(len(line) <= 100 or str(out) in line or str(photos) in line for line in lines)


def test_the_default_run_folder_and_nothing_on_the_screen(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_command(["fit", str(photos), "-k", "2", "--quiet", *QUICK]) == 0
    assert capsys.readouterr() == ("", "")
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith(f"{photos.name}-2")
    assert (run / "clusters.csv").exists()


def test_predict_writes_csv(finished, photos, tmp_path, capsys):
    out = tmp_path / "new.csv"
    assert run_command(["predict", str(finished), str(photos), "-o", str(out)]) == 0
    with out.open(newline="") as file:
        predicted = list(csv.DictReader(file))
    with (finished / "clusters.csv").open(newline="") as file:
        fitted = list(csv.DictReader(file))
    columns = ["path", "cluster", "name", "distance", "margin", "is_outlier"]
    assert list(predicted[0]) == columns
    assert predicted == [{name: row[name] for name in columns} for row in fitted]


def test_predict_to_standard_output_by_default_or_by_name(finished, photos, capsys):
    written = []
    for where in ([], ["-o", "-"], ["--out", "-"]):
        assert run_command(["predict", str(finished), str(photos / "bars"), *where]) == 0
        written.append(capsys.readouterr().out)
    assert written[0] == written[1] == written[2]
    assert written[0].startswith("path,cluster,name,distance,margin,is_outlier\n")


def test_predict_to_standard_output_and_bad_files_to_standard_error(finished, photos, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    (tmp_path / "good.png").write_bytes((photos / "bars" / "00.png").read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "deepcluster", "predict", str(finished), str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0
    (row,) = csv.DictReader(io.StringIO(done.stdout))
    assert row["path"] == "good.png"
    assert "bad.png: not an image" in done.stderr


def test_predict_reads_paths_from_standard_input(finished, photos):
    done = subprocess.run(
        [sys.executable, "-m", "deepcluster", "predict", str(finished), "-"],
        input=f"{photos}/bars/03.png\n{photos}/blob/03.png\n",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 3


@pytest.mark.parametrize(("limit", "rejected"), [(0.0, True), (torch.inf, False)])
def test_reject(finished, photos, tmp_path, capsys, limit, rejected):
    """A limit below all residuals rejects all images, one above them none."""
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    change_tensors(run / "model", outliers__limit=torch.tensor(limit))
    assert run_command(["predict", str(run), str(photos), "--reject"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 48
    assert {row["is_outlier"] for row in rows} == {"1" if rejected else "0"}
    assert all((row["cluster"] == "-1") == rejected for row in rows)


def test_embed(finished, photos, tmp_path):
    out = tmp_path / "features.npy"
    assert run_command(["embed", str(finished), str(photos), "-o", str(out)]) == 0
    assert np.array_equal(np.load(out), np.load(finished / "features.npy"))
    assert len(out.with_suffix(".csv").read_text().splitlines()) == 49


def test_dry_run_writes_nothing(photos, tmp_path, capsys):
    dry = ["fit", str(photos), "-k", "3", "-o", str(tmp_path / "run"), "--dry-run"]
    assert run_command(dry) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines() if line[0] != " "] == ["Images", "Network", "Plan", "Time"]
    assert printed.count("\n") <= 6
    assert run_command([*dry, "--verbose"]) == 0
    assert "backbone = " in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_report_again(finished, capsys):
    page = finished / "report.html"
    before = page.read_bytes()
    page.unlink()
    assert run_command(["report", str(finished)]) == 0
    assert page.read_bytes() == before
    assert capsys.readouterr().out.strip() == str(page)


def test_report_of_a_run_from_standard_input_does_not_wait_for_it(photos, tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{path}\n" for path in sorted(photos.rglob("*.png")))))
    assert run_command(["fit", "-", "-k", "3", "-o", str(run), "-q", *QUICK]) == 0
    before = (run / "report.html").read_bytes()
    assert before.count(b"data:image") > 10
    monkeypatch.setattr(sys, "stdin", None)  # to read it is an error now
    assert run_command(["report", str(run)]) == 0
    assert (run / "report.html").read_bytes() == before


def test_recipes_and_doctor(capsys):
    assert run_command(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert "``" not in listed
    assert "v1" in listed
    assert "auto" in listed
    for name in ("v1", "v1-official", "v2"):
        assert name in listed
        assert run_command(["recipes", name]) == 0
        printed = capsys.readouterr().out
        assert "published" in printed
        assert tomllib.loads(printed)["pseudo_labels"] == (10000 if name.startswith("v1") else 3000)
    assert run_command(["doctor"]) == 0
    assert "torch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["fti", "x"], 2, "fit"),
        (["fit", "{photos}", "-k", "3", "--round", "2"], 2, "--rounds"),
        (["fit", "{photos}", "-k", "0"], 2, "at least 2"),
        (["fit", "{photos}", "-k", "1"], 2, "at least 2"),
        (["fit", "{photos}", "--set", "dims"], 2, "OPTION=VALUE"),
        (["fit", "{photos}", "--backbone", "alexnet", "--image-size", "96"], 2, "224"),
        (["fit", "{photos}", "-k", "49"], 3, "give at most 48"),
        (["fit", "{photos}", "-k", "3", "--pseudo-labels", "60"], 3, "48 images"),
        (["fit", "{tmp}/nowhere", "-k", "3"], 3, "nowhere"),
        (["fit", "{tmp}/empty", "-k", "3"], 3, "empty"),
        (["fit", "{tmp}/texts", "-k", "3"], 3, "not an image"),
        (["fit", "{photos}/bars", "-k", "3", "--labels", "folders"], 3, "without labels"),
        (["fit", "{photos}", "--backbone", "timm:resnet10t", "--weights", "{tmp}/none.pt"], 4, "none.pt"),
        (["fit", "{photos}", "-k", "3", "-o", "{tmp}/texts"], 5, "another -o"),
        (["fit", "{photos}", "-k", "3", "-o", "{tmp}/texts/a.txt/run"], 5, "a.txt"),
        (["predict", "{tmp}/nowhere", "{photos}"], 5, "nowhere"),
        (["predict", "{photos}", "{photos}"], 5, "run.json"),
        (["predict", "{run}", "{tmp}/nowhere"], 3, "nowhere"),
        (["predict", "{run}", "{tmp}/empty"], 3, "empty"),
        (["recut", "{run}", "-k", "49"], 3, "give at most 48"),
        (["recut", "{tmp}/nowhere", "-k", "3"], 5, "nowhere"),
        (["recipes", "v9"], 2, "v1"),
    ],
)
def test_exit_codes_and_messages(finished, photos, tmp_path, monkeypatch, capsys, arguments, code, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    for name in "abc":
        (tmp_path / "texts" / f"{name}.txt").write_text("hello")
    monkeypatch.chdir(tmp_path)
    filled = [argument.format(photos=photos, tmp=tmp_path, run=finished) for argument in arguments]
    assert run_command(filled) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").rglob("clusters.csv"))


def test_a_model_file_that_is_damaged(finished, photos, tmp_path, capsys):
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    (copy / "model" / "config.json").write_text("[]")
    assert run_command(["predict", str(copy), str(photos)]) == 4
    assert str(copy) in capsys.readouterr().err


def test_an_interrupt_is_not_a_traceback(photos, tmp_path, monkeypatch, capsys):
    from deepcluster.runs import build as assembly

    def interrupted(*_, **__):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(assembly, "alternate", interrupted)
    out = tmp_path / "run"
    assert run_command(["fit", str(photos), "-k", "3", "-o", str(out), *QUICK]) == 75
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: stopped by SIGINT; .*; to go on: run it again with -o \S+ --resume\n", said)
    assert json.loads((out / "run.json").read_text())["status"] == "stopped"


def test_the_module_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "deepcluster", "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.strip() == "0.1.0"


def test_the_next_command_can_be_copied(tmp_path, capsys):
    """Whatever the name of the folder has: the shell must see one word."""
    folder = tmp_path / "a $(touch PWNED) it's"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(RECORD | {"verdict": "x"}))
    (folder / "metrics.json").write_text(
        json.dumps({"acc": 1, "nmi": 1, "ami": 1, "ari": 1, "nmi_average": "\x1b[31mred", "labelled": 3})
    )
    cli._print_result(RunFolder(folder), quiet=False, as_json=False)
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("Next"))
    assert lines[first].split() == ["Next", "open", (folder / "report.html").as_uri()]
    commands = [shlex.split(line) for line in lines[first + 1 : first + 3]]
    assert commands[0] == ["deepcluster", "predict", str(folder), "NEW_IMAGES"]
    assert commands[1] == ["deepcluster", "recut", str(folder), "-k", "N"]
    assert cli._next_commands({"edits": "0123"}, "RUN") == ["deepcluster predict RUN NEW_IMAGES"]  # recut loses edits
    assert "\x1b" not in shown and "\\x1b[31mred" in shown


@pytest.mark.parametrize("terminal", [True, False])
def test_control_characters_of_names_reach_a_file_and_no_terminal(terminal, tmp_path, photos, monkeypatch, capsys):
    run_ = tiny_run(tmp_path / "run")
    name = "\x1b[31mr\u00e9d.png"
    shutil.copy(next(photos.rglob("*.png")), tmp_path / name)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert run_command(["predict", str(run_), str(tmp_path / name), "-q"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header == "path,cluster,name,distance,margin,is_outlier"
    assert row.startswith(name.replace("\x1b", "\\x1b") + "," if terminal else name + ",")


def test_dry_run_with_the_run_that_is_there(finished, photos):
    assert run_command(["fit", str(photos), "-k", "3", "-o", str(finished), "--dry-run"]) == 0
