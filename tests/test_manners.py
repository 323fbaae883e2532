"""The manners of the command: JSON for machines, a live bar on terminals, plain lines in pipes, rows as they come."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster.cli import run_command
from deepcluster.storage import model_files as models
from tests.helpers.runs import small_fit
from tests.tiny import tiny_model, tiny_run

COMMAND = [sys.executable, "-m", "deepcluster"]


def test_fit_in_json(photos, tmp_path, capfd):
    out = tmp_path / "run"
    assert run_command(["fit", str(photos), "-o", str(out), "--json", *small_fit("--labels", "folders")[:-1]]) == 0
    said = capfd.readouterr()
    told = json.loads(said.out)
    assert told["run"] == str(out) and told["clusters"] == 3 and told["images_count"] == 48 and told["rounds"] == 1
    assert told["metrics"] == json.loads((out / "metrics.json").read_text())
    assert re.search(r"^Round +1 of 1: ", said.err, re.MULTILINE)  # what a person reads goes on, elsewhere


def test_recut_and_apply_in_json(run, tmp_path, capsys):
    assert run_command(["recut", str(run), "-k", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clusters"] == 4
    (tmp_path / "edits.json").write_text('{"schema_version": 1, "merge": [[0, 1]]}')
    assert run_command(["apply", str(run), str(tmp_path / "edits.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clusters"] == 3


def test_predict_in_json_says_what_the_csv_says(finished, photos, capsys):
    assert run_command(["predict", str(finished), str(photos)]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert run_command(["predict", str(finished), str(photos), "--json"]) == 0
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [",".join(map(str, row.values())) for row in objects] == lines
    assert list(objects[0]) == header.split(",")


def test_doctor_in_json(capsys):
    assert run_command(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["deepcluster"]


@pytest.mark.parametrize("shell", ["bash", *(pytest.param(name, marks=pytest.mark.slow) for name in ("zsh", "fish"))])
def test_completion_is_installed(shell, tmp_path):
    environment = os.environ | {"HOME": str(tmp_path), "SHELL": f"/bin/{shell}"}
    done = subprocess.run([*COMMAND, "--install-completion"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scripts = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert any("predict" in text and "pseudo-labels" in text for text in scripts)


def on_a_terminal(arguments: list[str], **environment: str) -> str:
    """All that a command writes on a terminal of its own."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "CI")}
    inherited |= {"TERM": "xterm-256color", "COLUMNS": "120"}
    leader, follower = pty.openpty()
    with subprocess.Popen(
        arguments, stdin=follower, stdout=follower, stderr=follower, env=inherited | environment
    ) as process:
        os.close(follower)
        written = b""
        while True:
            try:
                part = os.read(leader, 1 << 16)
            except OSError:  # Linux: the other end is closed
                break
            if not part:
                break
            written += part
        assert process.wait() == 0, written
    os.close(leader)
    return written.decode()


@pytest.mark.parametrize("environment", [{}, pytest.param({"NO_COLOR": "1"}, marks=pytest.mark.slow)])
def test_a_terminal_sees_a_live_bar_and_no_colours_where_they_are_not_wanted(photos, tmp_path, environment):
    arguments = [*COMMAND, "fit", str(photos), *small_fit()[:-1], "-o"]
    shown = on_a_terminal([*arguments, str(tmp_path / "run")], **environment)
    assert "training" in shown
    assert bool(re.search(r"\x1b\[[\d;]*3[0-8][\d;]*m", shown)) == (not environment)


def peaks_of_predict(run: Path, folders: Sequence[Path]) -> list[float]:
    """MB, after each in turn."""
    script = (
        "import resource, sys; from deepcluster.cli import run_command\n"
        "run, out, *folders = sys.argv[1:]\n"
        "for folder in folders:\n"
        "    assert run_command(['predict', run, folder, '-o', out, '--overwrite', '--quiet']) == 0\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)"
    )
    command = [sys.executable, "-c", script, *map(str, (run, run / "found.csv", *folders))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [float(line) for line in done.stdout.split()]


@pytest.mark.parametrize(
    ("few", "most", "size"), [(200, 1000, 128), pytest.param(500, 10_000, 64, marks=pytest.mark.slow)]
)
def test_memory_does_not_grow_with_the_number_of_images(few, most, size, tmp_path):
    """All pixels of 1,000 images of 128 px would take 49 MB in the model's store."""
    run = tiny_run(tmp_path / "run")
    models.save(replace(tiny_model(), store_size=size), run / "model")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "one.png")
    for count in (few, most):
        (tmp_path / str(count)).mkdir()
        for i in range(count):
            os.link(tmp_path / "one.png", tmp_path / str(count) / f"{i:05}.png")
    before, after = peaks_of_predict(run, [tmp_path / str(few), tmp_path / str(most)])
    assert after - before < 15, (before, after)
    assert len((run / "found.csv").read_text().splitlines()) == most + 1
