"""A time limit is kept: what fits is planned from measured seconds, and planned anew whenever more is known."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deepcluster.errors import DeepClusterWarning
from deepcluster.images import find
from deepcluster.learning.pseudo_labels import Learning, body_optimizer
from deepcluster.nets.backbone import build
from deepcluster.recipe import Recipe
from deepcluster.records import Clustering, Trained, Work
from deepcluster.runs import fit as run
from deepcluster.runs import time_limit
from deepcluster.runs.job import Clock, Request
from deepcluster.runs.time_limit import LEFT_OUT, Costs, Pace, Schedule, TimeLimit, fitting, only, sample, scheduled
from tests.drawings import drawings
from tests.helpers.runs import OPTIONS, record, rows
from tests.loop import learn, loop

COSTS = Costs(features=10, clustering=2, training=30, result=8)  # a whole round: 42


@pytest.mark.parametrize(
    ("left", "done", "most", "wanted"),
    [
        (8 + 3 * 42, 0, 3, Schedule(3, 1.0)),
        (1e9, 1, 3, Schedule(3, 1.0)),
        (8 + 2 * 42, 0, 3, Schedule(2, 1.0)),
        (8 + 2 * (12 + 15), 0, 3, Schedule(2, 0.5)),  # two halves rather than one and idle time
        (8 + 2 * (12 + 14), 0, 3, Schedule(1, 1.0)),
        (8 + 12 + 12, 0, 3, Schedule(1, 0.4)),
        (8 + 12 + 2, 0, 3, Schedule(0, 1.0)),  # less than a tenth of a round is none
        (8 + 12 + 12, 1, 3, Schedule(2, 0.4)),
        (-100, 2, 3, Schedule(2, 1.0)),
    ],
)
def test_as_many_rounds_as_fit_and_a_part_where_not_one_does(left, done, most, wanted):
    found = scheduled(left, COSTS, done, most)
    assert (found.rounds, found.share) == (wanted.rounds, pytest.approx(wanted.share))


@pytest.mark.parametrize("left", range(-20, 300, 7))
@pytest.mark.parametrize("most", [1, 3, 90])
def test_what_is_planned_fits(left, most):
    found = scheduled(left, COSTS, 0, most)
    assert found.rounds <= most and 0 < found.share <= 1
    planned = found.rounds * (found.share * 30 + 12) + 8
    assert planned <= left + 1e-6 or not found.rounds


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


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


RECIPE = Recipe(rounds=3, epochs=2, image_size=144, view_size=108, views=1)


def work(features: float, trained: Trained | None = None) -> Work:
    none = torch.empty(0)
    return Work(none, (Clustering(none, none, none, 0, 0, 0),), 0, 0, 1, (features, 1.0), trained)


@pytest.mark.parametrize("limit", [60, 100, 180, 480, 2000])
@pytest.mark.parametrize("slower", [0.3, 1.0, 4.0])
def test_a_run_keeps_its_limit_however_wrong_the_first_estimate_was(limit, slower):
    """A whole run on a clock of our own: passes of 20 s, and steps ``slower`` than the passes let expect."""
    clock = Time()
    seconds = TimeLimit(limit, clock, RECIPE, 1000)
    total, each = 40, slower * time_limit.training_cost(RECIPE, 20) / 40
    clock.now, done, shares = 10.0, 0, []
    while done < RECIPE.rounds:
        clock.now += 20 + 1 + 5  # the pass, the clustering and a preliminary result
        seconds.begin_round(done, work(20), 5)
        if seconds.schedule.rounds <= done:
            clock.now -= 20  # of this pass, which the result takes
            break
        steps = 0
        while True:
            clock.now, steps = clock.now + each, steps + 1
            seconds.measure(steps, total)
            if steps == total or seconds.is_enough(steps, total):
                break
        shares.append(steps / total)
        done += 1
        seconds.end_round(done)
        if seconds.schedule.rounds <= done < RECIPE.rounds:
            break
    clock.now += 20 + 5
    assert clock.now <= 1.02 * limit
    assert limit < 100 or shares, "there was time to train"
    if limit == 2000 and slower <= 1:
        assert shares == [1.0] * 3


def test_the_learning_rate_takes_a_part_of_a_training_for_the_whole():
    seconds = TimeLimit(100, Time(), RECIPE, 1000)
    assert seconds.time(1.25) == (1.25, 3)
    seconds.schedule = Schedule(2, 0.5)
    assert seconds.time(1.25) == (1.5, 2)
    assert seconds.time(1.75) == (2.0, 2)
    seconds.schedule = Schedule(0, 1.0)
    assert seconds.time(0.5) == (0.5, 1)


def test_a_part_of_a_training_is_enough_after_its_share_of_the_steps():
    seconds = TimeLimit(100, Time(), RECIPE, 1000)
    assert not seconds.is_enough(39, 40)
    seconds.schedule = Schedule(1, 0.5)
    assert [seconds.is_enough(steps, 40) for steps in (19, 20)] == [False, True]


def test_a_training_ends_where_it_is_told_to():
    images, labels = drawings(8, 16)
    steps: list[Trained] = []

    def three(trained: Trained) -> bool:
        steps.append(trained)
        return len(steps) == 5

    def trained(**options):
        network = build("compact", image_size=16, seed=1)
        network.new_head(3, torch.Generator().manual_seed(0))
        loss = learn(network, images, torch.tensor(labels), batch_size=8, epochs=2, size=16, **options)
        return network, loss

    network, loss = trained(on_step=three)
    assert [each.steps for each in steps] == [1, 2, 3, 4, 5]  # of 3 an epoch: in the middle of the second
    assert loss == pytest.approx((steps[-1].loss.item() + steps[-1].epoch_loss.item()) * 3 / 5)
    whole, _ = trained()
    assert not torch.equal(next(network.body.parameters()), next(whole.body.parameters()))
    assert Learning().epochs == 1 and body_optimizer(network)


def test_an_alternation_ends_where_it_is_told_to_before_a_training():
    images, _ = drawings(8, 16)
    network = build("compact", image_size=16, seed=1)
    seen = []

    def second(state):
        seen.append(state.work and state.work.features)
        return state.round == 1 and state.work is not None

    rounds = list(loop(network, images, rounds=3, clusters=5, dims=8, batch_size=24, on_state=second))
    assert len(rounds) == 1
    assert seen[-1].shape == (24, network.feature_dim)
    assert [each is not None for each in seen] == [False, True, False, False, True]


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
