import resource
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from deepcluster.errors import OutOfMemoryError
from deepcluster.nets.network import build
from deepcluster.recipe import Recipe
from deepcluster.runs import forecast
from deepcluster.runs.forecast import BASE, PAGE, TABLES, expected, memory
from deepcluster.runtime import machine
from deepcluster.runtime.machine import check_fits

SMALL = Recipe(backbone="compact", sobel=False, image_size=32, margin=1.0, pseudo_labels=100)
NETWORK = build("compact", image_size=32)


def without_training(count: int, **options: Any) -> float:
    return memory(NETWORK, SMALL, count, gpu=True, **options)


def of_a_step(**options: Any) -> float:
    recipe = replace(SMALL, **options)
    return memory(NETWORK, recipe, 10_000) - memory(NETWORK, recipe, 10_000, gpu=True)


def test_by_hand():
    """Images of 3 x 32 x 32 bytes; features of 128 numbers, and reduced ones twice; tables and page."""
    images, features = 10_000 * 3 * 32 * 32, 4 * 10_000 * (128 + 2 * 128)
    assert without_training(10_000) == BASE + images + features + (TABLES + PAGE) * 10_000
    # Two million images are in a mapped file, and 20,000 of them in the page.
    assert without_training(2_000_000) < BASE + 200 * features + TABLES * 2_000_000 + PAGE * 20_001


def test_what_a_step_keeps_grows_with_its_batch_views_and_pixels():
    one = of_a_step()
    assert of_a_step(batch_size=512) / one == pytest.approx(2, rel=0.1)
    assert of_a_step(views=2) / one == pytest.approx(2, rel=0.1)
    assert of_a_step(view_size=16) / one == pytest.approx(0.25, rel=0.2)
    assert of_a_step(views=2, view_size=16) > of_a_step(view_size=16)


def test_a_network_whose_images_stay_apart_keeps_a_part_of_the_batch():
    frozen = build("compact", image_size=32)
    frozen.frozen_statistics = True
    large = replace(SMALL, view_size=64)  # 256 images of 64 px are 4 parts
    base = memory(NETWORK, large, 10_000, gpu=True)
    assert memory(frozen, large, 10_000) - base < 0.4 * (memory(NETWORK, large, 10_000) - base)


def test_processes_share_all_but_the_tables():
    tables, base = (TABLES + PAGE) * 10_000, without_training(10_000)
    shared = without_training(10_000, processes=4)
    assert (base - BASE - tables) / 4 < shared - BASE - tables < base - BASE - tables
    assert memory(NETWORK, SMALL, 10_000, processes=4) - shared < of_a_step()


def test_a_run_that_cannot_fit_is_refused_with_both_numbers(monkeypatch):
    monkeypatch.setattr(machine, "available", lambda: 8e9)
    check_fits("it", 10e9, "wait")  # an estimate may be too high
    monkeypatch.setattr(machine, "available", lambda: 6e9)
    with pytest.raises(OutOfMemoryError, match=r"it takes 10.0 GB, and 6.0 GB are free: wait"):
        check_fits("it", 10e9, "wait")


def test_a_limit_of_the_process_counts():
    script = (
        "import resource; from deepcluster.runtime.machine import available\n"
        "before = available(); resource.setrlimit(resource.RLIMIT_AS, (5 << 30, resource.RLIM_INFINITY))\n"
        "print(before > 0, available() <= 5 << 30)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "True True\n"
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def test_the_command_refuses_before_it_writes(tmp_path, photos, monkeypatch, ends):
    monkeypatch.setattr(machine, "available", lambda: 1e8)
    said = ends(["fit", photos, "-k", 3, "-o", tmp_path / "run"], 6)
    assert said.startswith("error: the run takes ") and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_look_leaves_the_network_as_it_is():
    before = {name: value.clone() for name, value in NETWORK.state_dict().items()}
    memory(NETWORK, SMALL, 100)
    assert NETWORK.training
    assert all((value == before[name]).all() for name, value in NETWORK.state_dict().items())
    assert not any(module._forward_hooks for module in NETWORK.modules())


@pytest.mark.parametrize(("ranks", "rounds", "wanted"), [(1, 9, (410, 410 + 9 * 800)), (2, 0, (210, 210))])
def test_the_time_is_that_of_all_rounds_on_all_ranks(monkeypatch, ranks, rounds, wanted):
    """By hand: 1000 images, .2 s each to read and for a pass; training is three passes, and a result takes 10 s."""
    monkeypatch.setattr(forecast, "RESULT", 10 - 1000 * forecast.RESULT_EACH)
    recipe = replace(SMALL, rounds=rounds, epochs=1, view_size=0, views=1)
    assert expected((0.2, 0.2), recipe, 1000, ranks) == pytest.approx(wanted)
