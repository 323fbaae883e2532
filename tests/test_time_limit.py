"""A time limit is kept with whole rounds: planned from measured seconds, and planned again after each round."""

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deepcluster.errors import DeepClusterWarning
from deepcluster.recipe import Recipe
from deepcluster.runs import fit as run
from deepcluster.runs import train
from deepcluster.runs.forecast import SHARE_OF_TIME, training_cost
from deepcluster.runs.plan import Clock, Job, Request
from deepcluster.runs.train import KEPT_BACK, whole_rounds
from deepcluster.runtime.console import Silent
from deepcluster.runtime.processes import ALONE
from tests.helpers.runs import OPTIONS, Said, record, rows

RECIPE = Recipe(rounds=3, epochs=2, image_size=144, view_size=108, views=1)
PASS, RESULT = 20.0, 5.0  # seconds


class At(Clock):
    """A clock that stands at ``now``."""

    now = 100.0

    def elapsed(self) -> float:
        return self.now


def job(limit: float | None, clock: Clock) -> Job:
    return Job(Request(time_limit=limit), None, None, torch.device("cpu"), Silent(), ALONE, clock)


@pytest.mark.parametrize(
    ("left", "done", "wanted"),
    [(1e9, 1, 3), (8 + 3 * 42, 0, 3), (8 + 2 * 42, 0, 2), (8 + 2 * 42 - 1, 0, 1), (8 + 41, 0, 0), (8 + 42, 1, 2),
     (7, 1, 1), (-100, 2, 2), (None, 1, 3)],
)  # fmt: skip
def test_as_many_whole_rounds_as_fit_before_the_result(left, done, wanted):
    limit = None if left is None else (100 + left) / (1 - KEPT_BACK) + 1e-6
    assert whole_rounds(job(limit, At()), RECIPE, done, 42 / (1 + SHARE_OF_TIME), 8) == wanted


@pytest.mark.parametrize("seconds", [60, 100, 180, 480, 2000])
@pytest.mark.parametrize("slower", [0.3, 1.0, 4.0])
def test_a_run_on_a_clock_of_its_own(seconds, slower):
    """A round takes ``slower`` times as long as its pass lets expect: only the first round can go beyond the limit."""
    clock = At()
    clock.now, done = 10.0 + PASS, 0
    one, fit = PASS + slower * training_cost(RECIPE, PASS), job(seconds, clock)
    planned = whole_rounds(fit, RECIPE, 0, PASS + training_cost(RECIPE, PASS), PASS + 2 * RESULT)
    clock.now += RESULT
    while done < planned:
        clock.now, done = clock.now + one, done + 1
        planned = whole_rounds(fit, RECIPE, done, one, PASS + RESULT)
    end = clock.now + PASS + RESULT
    assert end <= seconds or done <= 1
    another = end + (1 + SHARE_OF_TIME) * one
    assert done == 3 or another > (1 - KEPT_BACK) * seconds or slower < 1, "another round would have fitted"
    if seconds == 2000 and slower <= 1:
        assert done == 3


def test_a_limit_shorter_than_a_pass_says_so_and_gives_the_groups_of_the_network_as_it_was_given(photos, tmp_path):
    request = Request(out=tmp_path / "run", n_clusters=3, options={**OPTIONS, "rounds": 1000}, time_limit=0.01)
    with pytest.warns(DeepClusterWarning, match=r"too short for one pass over 48 images: .* take about \d"):
        folder = run.fit(photos, replace(request, labels="folders")).path
    ended = record(folder)
    assert (ended["status"], ended["result"], ended["rounds"]) == ("done", "final", 0)
    assert (ended["stopped_because"], ended["images_count"]) == ("time limit", 48)
    assert {row["status"] for row in rows(folder / "clusters.csv")} == {"ok"}
    assert run.fit(photos, replace(request, resume=True)).path == folder  # finished
    assert "Preliminary" not in (folder / "report.html").read_text()
    assert set(ended["seconds_by_phase"]) == {"reading", "rounds", "result"}


def test_a_run_makes_whole_rounds_and_ends_by_its_limit(photos, tmp_path: Path, monkeypatch):
    """Of 1000 rounds only those that are planned; each is over all images."""
    monkeypatch.setattr("deepcluster.runs.forecast.RESULT", 0.0)
    monkeypatch.setattr(train, "whole_rounds", lambda job, recipe, done, *_: 3 if done else 2)
    display = Said()
    request = Request(out=tmp_path / "run", n_clusters=3, options={**OPTIONS, "rounds": 1000}, time_limit=1e6)
    ended = record(run.fit(photos, request, display).path)
    assert (ended["rounds"], ended["stopped_because"], ended["images_count"]) == (3, "time limit", 48)
    assert any(re.fullmatch(r"Time: about .+ in all, training in 2 rounds", line) for line in display.lines)


def test_the_clock_of_a_run_counts_from_the_beginning_of_the_command():
    now = time.perf_counter()
    assert Clock(now - 1000).elapsed() >= 1000 > Clock().elapsed()
    clock = Clock(now - 1000)
    assert clock.lap() < 1000  # the phases count from where the run begins
