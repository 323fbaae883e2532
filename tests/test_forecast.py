"""The memory that a run needs; a time limit: kept with whole rounds, planned again after each round."""

import copy
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deepcluster.errors import OutOfMemoryError, UsageError
from deepcluster.fitting import fit as run
from deepcluster.fitting import train
from deepcluster.fitting.forecast import BASE, PAGE, TABLES, memory
from deepcluster.fitting.plan import Clock, Job, Request
from deepcluster.fitting.train import KEPT_BACK, training_cost, whole_rounds
from deepcluster.fitting.writer import SHARE_OF_TIME
from deepcluster.nets.network import build
from deepcluster.presets import read_request
from deepcluster.recipe import Recipe
from deepcluster.runtime import machine
from deepcluster.runtime.console import Silent
from deepcluster.runtime.machine import available, check_fits
from deepcluster.runtime.processes import ALONE
from tests.helpers.runs import OPTIONS, record

SMALL = Recipe(backbone="compact", sobel=False, image_size=32, margin=1.0, pseudo_labels=100)
NETWORK = build("compact", image_size=32)
MANY_ROUNDS = read_request({**OPTIONS, "rounds": 1000})


def without_training(count: int, **options: Any) -> float:
    return memory(NETWORK, SMALL, count, gpu=True, **options)


def of_a_step(**options: Any) -> float:
    recipe = replace(SMALL, **options)
    return memory(NETWORK, recipe, 10_000) - memory(NETWORK, recipe, 10_000, gpu=True)


def test_the_memory_of_a_run_by_hand():
    """Images of 3 x 32 x 32 bytes; features of 128 numbers, and reduced ones twice; tables and page."""
    before = copy.deepcopy(NETWORK.state_dict())
    images, features = 10_000 * 3 * 32 * 32, 4 * 10_000 * (128 + 2 * 128)
    assert without_training(10_000) == BASE + images + features + (TABLES + PAGE) * 10_000
    # Two million images are in a mapped file, and 20,000 of them in the page.
    assert without_training(2_000_000) < BASE + 200 * features + TABLES * 2_000_000 + PAGE * 20_001
    torch.testing.assert_close(NETWORK.state_dict(), before, rtol=0, atol=0)


def test_the_memory_of_a_step_grows_with_its_batch_views_and_pixels():
    one = of_a_step()
    assert of_a_step(batch_size=512) / one == pytest.approx(2, rel=0.1)
    assert of_a_step(views=2) / one == pytest.approx(2, rel=0.1)
    assert of_a_step(view_size=16) / one == pytest.approx(0.25, rel=0.2)
    assert of_a_step(views=2, view_size=16) > of_a_step(view_size=16)
    frozen = build("compact", image_size=32)
    frozen.frozen_statistics = True  # its images stay apart: 256 of 64 px are 4 parts
    base, large = without_training(10_000), replace(SMALL, view_size=64)
    assert memory(frozen, large, 10_000) - base < 0.4 * of_a_step(view_size=64)


def test_a_limit_of_the_process_counts():
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (5 << 30, resource.RLIM_INFINITY))\n"
    script = limit + "from deepcluster.runtime.machine import available; print(available() / 2**30)"
    taken = "room = bytearray(1 << 30)\n"
    before, after = (
        float(subprocess.check_output([sys.executable, "-c", part + script], text=True)) for part in ("", taken)
    )
    assert 0 < after < before - 0.9 < 5 - 0.9


@pytest.mark.parametrize(
    ("group", "limit", "used", "prefix"),
    [
        ("sys/fs/cgroup", "memory.max", "memory.current", ""),
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ],
)
def test_the_page_cache_of_a_container_is_free(tmp_path, group, limit, used, prefix):
    """8 GB are allowed and 7 in use, of which 6 are files that were read."""
    folder = tmp_path / group
    folder.mkdir(parents=True)
    (folder / limit).write_text("8000000000\n")
    (folder / used).write_text("7000000000\n")
    parts = {"anon": 1, "active_file": 2, "inactive_file": 4}
    (folder / "memory.stat").write_text("".join(f"{prefix}{name} {size}000000000\n" for name, size in parts.items()))
    assert available(tmp_path) == 7e9
    (folder / limit).write_text("max\n")
    assert available(tmp_path) > 7e9


def test_processes_share_all_but_the_tables():
    tables, base = (TABLES + PAGE) * 10_000, without_training(10_000)
    shared = without_training(10_000, processes=4)
    assert (base - BASE - tables) / 4 < shared - BASE - tables < base - BASE - tables
    assert memory(NETWORK, SMALL, 10_000, processes=4) - shared < of_a_step()


def test_a_run_that_cannot_fit_is_refused_with_both_numbers_before_it_writes(tmp_path, photos, monkeypatch, ends):
    monkeypatch.setattr(machine, "available", lambda: 8e9)
    check_fits("it", 10e9, "wait")  # an estimate may be too high
    monkeypatch.setattr(machine, "available", lambda: 6e9)
    with pytest.raises(OutOfMemoryError, match=r"10.0 GB, .* 6.0 GB"):
        check_fits("it", 10e9, "wait")
    monkeypatch.setattr(machine, "available", lambda: 1e8)
    said = ends(["fit", photos, "-k", 3, "-o", tmp_path / "run"], 6)
    assert said.startswith("error: the run takes ") and not (tmp_path / "run").exists()


# ---- a time limit ---------------------------------------------------------------------------------------------------

RECIPE = Recipe(rounds=3, epochs=2, image_size=144, view_size=108, views=1)
PASS, RESULT = 20.0, 5.0  # seconds


class At(Clock):
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


def test_a_network_that_cannot_take_the_centre_crops_is_refused_at_once(photos, tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 24), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    recipe = read_request({"image_size": 32, "within_image": 1, "features": "pass"})
    with pytest.raises(UsageError, match=r"23 x 23 .*within_image=0"):
        run.fit(photos, Request(out=tmp_path / "run", recipe=recipe, module=module))
    assert not (tmp_path / "run").exists()


def test_a_limit_shorter_than_a_pass_gives_the_groups_of_the_network_as_it_was_given(photos, tmp_path):
    request = Request(out=tmp_path / "run", n_clusters=3, recipe=MANY_ROUNDS, time_limit=0.01)
    folder = run.fit(photos, replace(request, labels="folders")).path
    ended = record(folder)
    assert (ended["status"], ended["result"], ended["rounds"]) == ("done", "final", 0)
    assert "time" in ended["stopped_because"] and ended["images_count"] == 48
    assert run.fit(photos, replace(request, resume=True)).path == folder  # finished
    assert set(ended["seconds_by_phase"]) == {"reading", "rounds", "result"}


def test_a_run_makes_whole_rounds_and_ends_by_its_limit(photos, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(train, "whole_rounds", lambda job, recipe, done, *_: 3 if done else 2)
    request = Request(out=tmp_path / "run", n_clusters=3, recipe=MANY_ROUNDS, time_limit=1e6)
    ended = record(run.fit(photos, request).path)
    assert (ended["rounds"], ended["images_count"]) == (3, 48) and "time" in ended["stopped_because"]


def test_the_clock_of_a_run_counts_from_the_beginning_of_the_command():
    clock = Clock(time.perf_counter() - 1000)
    assert clock.elapsed() >= 1000 > Clock().elapsed()
    assert clock.lap() < 1000  # the phases count from where the run begins
