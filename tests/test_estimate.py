import resource
import subprocess
import sys

import pytest
import torch
from PIL import Image

from deepcluster.errors import OutOfMemoryError
from deepcluster.images import find
from deepcluster.images import preview as previewing
from deepcluster.images.decode import MAX_PIXELS
from deepcluster.nets.backbone import build
from deepcluster.recipe import Recipe
from deepcluster.runs import resources as estimate
from deepcluster.runs.resources import Memory, memory
from deepcluster.runtime import devices

SMALL = Recipe(backbone="compact", sobel=False, image_size=32, margin=1.0, pseudo_labels=100)
NETWORK = build("compact", image_size=32)


def test_by_hand():
    """Images of 3 x 32 x 32 bytes; features of 128 numbers, and reduced ones twice."""
    found = memory(NETWORK, SMALL, 10_000)
    assert found.images == 10_000 * 3 * 32 * 32
    assert found.features == 4 * 10_000 * (128 + 2 * 128)
    assert memory(NETWORK, SMALL, 2_000_000).images == 0  # in a mapped file


def test_what_a_step_keeps_grows_with_its_batch_views_and_pixels():
    def training(**options):
        return memory(NETWORK, Recipe(**{**SMALL.__dict__, **options}), 10_000).training

    one = training()
    assert training(batch_size=512) / one == pytest.approx(2, rel=0.1)
    assert training(views=2) / one == pytest.approx(2, rel=0.1)
    assert training(view_size=16) / one == pytest.approx(0.25, rel=0.2)
    assert training(views=2, view_size=16) > training(view_size=16)


def test_a_network_whose_images_stay_apart_keeps_a_part_of_the_batch():
    frozen = build("compact", image_size=32)
    frozen.frozen_statistics = True
    large = Recipe(**{**SMALL.__dict__, "view_size": 64})  # 256 images of 64 px are 4 parts
    assert memory(frozen, large, 10_000).training < 0.4 * memory(NETWORK, large, 10_000).training


def test_processes_share_images_features_and_steps_but_not_the_tables():
    whole, shared = memory(NETWORK, SMALL, 10_000), memory(NETWORK, SMALL, 10_000, processes=4)
    assert shared.images == whole.images / 4
    assert whole.features / 4 < shared.features < whole.features
    assert shared.training < whole.training
    assert shared.tables == whole.tables


def test_a_run_that_cannot_fit_is_refused_with_both_numbers():
    needed = Memory(1e9, 1e9, 7.4e9, 0.1e9)
    estimate.check(needed, 8e9, SMALL)
    with pytest.raises(OutOfMemoryError, match=r"about 10.0 GB .* and 6.0 GB are free: try --batch-size 64"):
        estimate.check(needed, 6e9, SMALL)


def test_a_gpu_takes_the_network_and_the_features_that_it_holds(monkeypatch):
    gpu = torch.device("cuda:0")
    on_cpu = memory(NETWORK, SMALL, 10_000)
    totals = []
    for total in (1e12, 1e6):
        monkeypatch.setattr(devices, "total_memory", lambda device, total=total: total)
        found = memory(NETWORK, SMALL, 10_000, device=gpu)
        totals.append(found.on_gpu)
        assert found.total == on_cpu.total - on_cpu.training
        assert "on the GPU" in found.text
    assert totals[0] - totals[1] == 4 * 10_000 * (128 + 128)
    assert totals[1] == estimate.BASE + on_cpu.training
    with pytest.raises(OutOfMemoryError, match=r"0\.\d GB on cuda:0, and 0.1 GB are free there: try --batch-size 64"):
        estimate.check_gpu(found, 0.1e9, SMALL, gpu)
    estimate.check_gpu(found, 10e9, SMALL, gpu)


def test_a_limit_of_the_process_counts():
    script = (
        "import resource; from deepcluster.runs.resources import available\n"
        "before = available(); resource.setrlimit(resource.RLIMIT_AS, (5 << 30, resource.RLIM_INFINITY))\n"
        "print(before > 0, available() <= 5 << 30)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "True True\n"
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def test_the_command_refuses_before_it_writes(tmp_path, photos):
    script = (
        "import sys; import deepcluster.runs.resources as estimate; estimate.available = lambda: 1e8\n"
        "from deepcluster.cli import run_command; sys.exit(run_command(sys.argv[1:]))"
    )
    out = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", script, "fit", str(photos), "-k", "3", "-o", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 6
    assert done.stderr.startswith("error: the run needs about ") and done.stderr.count("\n") == 1
    assert not out.exists()


def test_the_look_leaves_the_network_as_it_is():
    before = {name: value.clone() for name, value in NETWORK.state_dict().items()}
    memory(NETWORK, SMALL, 100)
    assert NETWORK.training
    assert all(torch.equal(value, before[name]) for name, value in NETWORK.state_dict().items())
    assert not any(module._forward_hooks for module in NETWORK.modules())


def test_decoding_counts_where_it_takes_more_than_what_comes_after_it():
    small, large = (memory(NETWORK, SMALL, 10_000, decoding=each) for each in (1e6, 50e9))
    assert small.total == memory(NETWORK, SMALL, 10_000).total
    assert large.total == pytest.approx(50e9 + estimate.BASE + large.images + large.tables)
    assert "decoding 50.00" in large.text


def test_what_decoding_takes_is_seen_in_the_preview(tmp_path, monkeypatch):
    Image.new("RGB", (100, 60)).save(tmp_path / "a.png")
    source = find(tmp_path)
    monkeypatch.setattr(previewing, "cores", lambda: 16)
    assert previewing.preview(source).decoding == 16 * 12 * 6_000
    monkeypatch.setattr(previewing, "AT_ONCE", 40_000)
    assert previewing.preview(source).decoding == 16 * 40_000 + 12 * MAX_PIXELS
