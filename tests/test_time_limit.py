"""A time limit is kept: what fits is planned from measured seconds, and planned anew whenever more is known."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deepcluster.errors import DeepClusterWarning
from deepcluster.images import find
from deepcluster.runs import fit as run
from deepcluster.runs import time_limit
from deepcluster.runs.job import Clock, Request
from deepcluster.runs.time_limit import LEFT_OUT, Pace, fitting, only, sample
from tests.helpers.runs import OPTIONS, record, rows


def test_the_images_that_fit():
    pace = Pace(reading=0.02, features=0.01)
    assert fitting(1e6, 10, pace, 5000) == 5000
    part = fitting(180, 10, pace, 17_000)
    assert 200 < part < 17_000
    assert 10 + part * (0.03 + time_limit.RESULT_EACH) + time_limit.RESULT == pytest.approx(0.95 * 180, abs=0.1)
    assert fitting(0.01, 10, pace, 17_000) == time_limit.FEWEST
    assert fitting(0.01, 10, pace, 50) == 50


def test_a_sample_is_drawn_at_random_and_says_what_it_leaves_out():
    kept = sample(1000, 100, seed=1)
    assert kept == sorted(set(kept)) and len(kept) == 100
    assert 350 < sum(kept) / 100 < 650
    assert kept != sample(1000, 100, seed=2)
    source = find(torch.zeros(5, 4, 4, 3).byte().numpy())
    part = only(source, [1, 4])
    assert part.paths == (source.paths[1], source.paths[4])
    assert part.skipped == tuple((source.paths[i], LEFT_OUT) for i in (0, 2, 3))


def test_a_limit_that_nothing_fits_into_gives_the_groups_of_the_network_as_it_was_given(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(time_limit, "FEWEST", 30)
    request = Request(out=tmp_path / "run", n_clusters=3, options={**OPTIONS, "rounds": 1000}, time_limit=0.01)
    part = pytest.warns(DeepClusterWarning, match=r"all 48 images do not fit into 0 s: 30 of them are.*skipped\.csv")
    late = pytest.warns(DeepClusterWarning, match=r"limit of 0 s is too short for 30 images.* after about \d+ s")
    with part, late:
        folder = run.fit(photos, replace(request, labels="folders")).path
    told = record(folder)
    assert (told["status"], told["result"], told["rounds"]) == ("done", "final", 0)
    assert told["stopped_because"] == "time limit"
    table = rows(folder / "clusters.csv")
    assert len(table) == 48 and sum(row["status"] == "ok" for row in table) == 30
    assert all(row["label"] == Path(row["path"]).parts[0] for row in table if row["status"] == "ok")
    skipped = {row["path"] for row in rows(folder / "skipped.csv") if row["reason"] == LEFT_OUT}
    assert len(skipped) == 18
    assert run.fit(photos, replace(request, resume=True)).path == folder  # finished, with the same sample
    assert told["images_count"] == 30
    assert "Preliminary" not in (folder / "report.html").read_text()
    assert set(told["seconds_by_phase"]) == {"reading", "rounds", "result"}


def test_the_clock_of_a_run_counts_from_the_beginning_of_the_command():
    now = time.perf_counter()
    assert Clock(now - 1000).elapsed() >= 1000 > Clock().elapsed()
    clock = Clock(now - 1000)
    assert clock.lap() < 1000  # the phases count from where the run begins
