"""Displays of a run: one's own, beside those of the package."""

import io
import logging
import os
import re
import sys

import numpy as np
import pytest

from deepcluster import DeepCluster
from deepcluster.commands.cli import run_command
from deepcluster.errors import DeepClusterWarning
from deepcluster.runtime import Display, console
from deepcluster.runtime.console import Terminal
from deepcluster.runtime.log import warn
from tests.helpers.commands import command
from tests.helpers.runs import Said

PIXELS = np.random.default_rng(0).integers(0, 256, (36, 16, 16, 3), np.uint8)


class Recorder(Said):
    def __init__(self):
        super().__init__()
        self.phases, self.rows = set(), []

    def progress(self, phase, done, total):
        assert 0 <= done <= total
        self.phases.add(phase)

    def round(self, row, rounds):
        self.rows.append((row, rounds))


def test_a_display_of_ones_own_is_told_of_each_round(tmp_path, capsys):
    display: Display = Recorder()
    dc = DeepCluster(n_clusters=3, rounds=2, epochs=1, image_size=16, verbose=1)
    dc.fit(PIXELS, run=tmp_path / "run", display=display)
    assert [(row["round"], row["loss"], 2) for row in dc.history_] == [
        (row["round"], row["loss"], rounds) for row, rounds in display.rows
    ]
    assert {"Run", "Done"} <= {line.split(":")[0] for line in display.lines}
    rounds = {"features", "clustering", "training"}
    assert {"reading", "duplicates", *rounds, "cut", "map", "report"} == display.phases
    assert "Done" in capsys.readouterr().out  # verbose shows it, too


@pytest.mark.parametrize("verbose", [None, 0, 1])
def test_a_notebook_shows_a_bar_alone_unless_lines_are_asked_for(verbose, capsys, monkeypatch):
    """A parameter search fits many estimators: their lines would fill the notebook."""
    phases: list[str] = []
    monkeypatch.setattr("deepcluster.opened_run.has_widgets", lambda: True)
    monkeypatch.setattr(Terminal, "progress", lambda _, phase, *rest: phases.append(phase))
    DeepCluster(n_clusters=3, rounds=0, image_size=16, verbose=verbose).fit(PIXELS)
    assert ("reading" in phases) == (verbose != 0)
    assert ("Done" in capsys.readouterr().out) == (verbose == 1)


def logged(run):
    lines = (run / "log.txt").read_text().splitlines()
    assert all(re.match(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00 ", line) and line.isprintable() for line in lines)
    return [line[26:] for line in lines]


def test_a_line_goes_to_the_display_the_logger_and_the_log(tmp_path, caplog, monkeypatch):
    display, run = Recorder(), tmp_path / "run"
    caplog.set_level(logging.INFO, "deepcluster")
    dc = DeepCluster(n_clusters=3, rounds=0, image_size=16)
    with pytest.warns(DeepClusterWarning, match="2 of 3") as warned:
        dc.fit(PIXELS[:2].repeat(18, 0), run=run, display=display)
    lines = [f"{line.levelname} {line.message}" for line in caplog.records]
    shown = [f"INFO {line}" for line in display.lines] + [f"WARNING {warning.message}" for warning in warned]
    assert sorted(lines) == sorted(shown)
    assert logged(run) == lines[lines.index(f"INFO Run: {run}") :]
    (tmp_path / "in\x1b[2J\n").mkdir()
    assert run_command(["update", str(run), str(tmp_path / "in\x1b[2J\n"), "--quiet"]) in (0, 3)
    assert run_command(["recut", str(run), "-k", "2", "--quiet"]) == 0
    update, _, recut, *_, done = logged(run)[len(lines) - lines.index(f"INFO Run: {run}") :]
    assert update.startswith("INFO deepcluster update ") and r"in\x1b[2J\n" in update
    assert recut == f"INFO deepcluster recut {run} -k 2 --quiet" and done.startswith("INFO Done: 2 clusters of")

    np.save(tmp_path / "x.npy", PIXELS)
    anew = f"fit {tmp_path}/x.npy -o {run} -k 3 --rounds 1 --epochs 1 --image-size 16 --quiet --overwrite"
    assert run_command(anew.split()) == 0
    first, *_, round, done = logged(run)
    assert first == f"INFO deepcluster {anew}" and "INFO 1/1: loss" in round and done.startswith("INFO Done: 3")
    monkeypatch.setenv("RANK", "1")
    with pytest.warns(DeepClusterWarning, match="of another rank"):
        warn("of another rank")
    assert "of another rank" not in caplog.text


def test_unwritten_text_is_kept_under_pythonunbuffered(monkeypatch, capfd):
    """So that the last flush meets the error of a full disk."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), write_through=True))
    console.set_up_streams()
    sys.stdout.write("kept")
    assert capfd.readouterr().out == "" and console.flush_streams() is None
    assert capfd.readouterr().out == "kept"


def test_a_log_that_cannot_be_written_costs_its_lines(run):
    (run / "log.txt").write_bytes(b"")
    os.truncate(run / "log.txt", 1 << 26)
    assert command("recut", run, "-k", "2", "--quiet", trap=("FSIZE", "", 1 << 26)) == (0, "")
    assert (run / "log.txt").stat().st_size == 1 << 26
