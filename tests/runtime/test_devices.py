"""Tensors lie on the network's device if they must: on a pretended second one (tests/helpers/second_device.py)."""

import os
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from deepcluster.algorithm import conclude
from deepcluster.clustering import kmeans, whiten
from deepcluster.clustering.agreement import nmi
from deepcluster.clustering.whitening import Reduction
from deepcluster.images.views import Augmentation, random_views
from deepcluster.learning.draws import each_once
from deepcluster.learning.features import extract
from deepcluster.learning.heads import CentroidHead, WithInstances
from deepcluster.learning.training import Learning, body_optimizer
from deepcluster.nets.network import build
from deepcluster.runtime import compute as compute_module
from deepcluster.runtime import devices
from deepcluster.runtime.compute import Compute
from deepcluster.runtime.devices import exact_float32, holds_rows, working_on
from deepcluster.seeding import generator
from tests.helpers.drawings import drawings
from tests.helpers.loop import learn, loop
from tests.helpers.second_device import ELSEWHERE, second_device

ROWS = torch.nn.functional.normalize(torch.randn(3000, 16, generator=generator(0, "rows")))
ROWS[:1500] = ROWS[0]  # most k-means begin with empty clusters
COLOURED = Augmentation(colour=0.4, grey=0.2)


@pytest.mark.parametrize(
    "cluster",
    [
        lambda x: kmeans(x, 50),
        lambda x: kmeans(x, 50, empty="sample"),
        lambda x: kmeans(x, 50, empty="faiss"),
        lambda x: kmeans(x, 50, spherical=True),
        lambda x: kmeans(x, 50, start=torch.arange(3000) % 50),
        lambda x: kmeans(x, 50, start=ROWS[-50:]),
    ],
)
def test_a_clustering_lies_where_its_rows_lie(cluster):
    on_cpu = cluster(ROWS)
    with second_device():
        on_device = cluster(ROWS.to(ELSEWHERE))
        assert {tensor.device.type for tensor in (on_device.labels, on_device.centroids, on_device.sizes)} == {"meta"}
        assert nmi(on_device.labels.cpu(), on_cpu.labels) > 0.98
        assert on_device.sizes.sum().item() == on_cpu.sizes.sum().item()


def test_whitening_by_blocks_on_another_device_is_that_of_the_cpu():
    on_cpu = whiten(ROWS, 8)
    with second_device():
        for x in (ROWS, ROWS.to(ELSEWHERE)):
            on_device = whiten(x, 8, device=ELSEWHERE)
            assert on_device.mean.device.type == "cpu"
            reduced = on_device(x, ELSEWHERE)
            assert reduced.device.type == "meta"
            assert torch.allclose(reduced.cpu().abs(), on_cpu(ROWS).abs(), atol=1e-3)


RECIPES = {
    "v1": {"clusters": 5, "dims": 8},
    "v2": {
        "clusters": [4, 6], "reuse_features": True, "head": CentroidHead(0.1), "dims": None, "sample": each_once,
        "views": (COLOURED, COLOURED, Augmentation(size=16)), "spherical": True, "loss": WithInstances(0.2),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("room", [True, False])
def test_a_run_on_another_device(name, room, monkeypatch):
    monkeypatch.setattr(compute_module, "holds_rows", lambda *_: room)
    images, _ = drawings(10)
    places = []
    with second_device():
        net = build("compact", image_size=24, projection=(16, 8) if name == "v2" else None)
        net.to(ELSEWHERE)
        device = Compute.of(net, images).device_for(16)
        assert device.type == ("meta" if room else "cpu")
        options = {"rounds": 2, "batch_size": 10, **RECIPES[name]}
        for round in loop(net, images, **options):
            places += [round.reduced, round.clustering.labels, round.clustering.centroids]
            assert round.state.features is None or round.state.features.device == device
            assert (round.state.features is not None) is (name == "v2")
        result = conclude(
            net, images, clusters=5, reduction=Reduction(8), compute=Compute.of(net, images, batch_size=10)
        )
        places += [result.reduced, result.reduction.projection, result.clustering.labels, result.clustering.centroids]
    assert {tensor.device.type for tensor in places} == {"cpu"}  # what the run writes


@pytest.mark.parametrize("side", [40, 41, 91])
def test_views_on_another_device_are_those_of_the_cpu(side):
    images = torch.randint(0, 256, (6, 3, side, side), generator=generator(0, "pixels"), dtype=torch.uint8)
    on_cpu = random_views(images, 16, COLOURED, generator(0, "views"))
    with second_device():
        on_device = random_views(images.to(ELSEWHERE), 16, COLOURED, generator(0, "views"))
        assert on_device.device.type == "meta" and torch.allclose(on_device.cpu(), on_cpu, atol=1e-6)


@pytest.mark.parametrize("memory", [False, True])
def test_no_batch_waits_for_the_device(memory):
    """No pass for features waits, and an epoch of eight steps as often as one of two: its loss is read once."""
    images, kinds = drawings(8)

    def waits(batch_size: int) -> int:
        with second_device() as synchronisations:
            net = build("compact", image_size=24).to(ELSEWHERE)
            net.centroid_head(torch.randn(3, net.embedding_dim, generator=generator(0, "centroids")), 0.1)
            rows = torch.zeros(24, net.embedding_dim).to(ELSEWHERE) if memory else None
            optimizer = body_optimizer(net, Learning())
            synchronisations.clear()
            extract(net, images, Compute.of(net, images, batch_size=batch_size))
            assert not synchronisations.total()
            learn(
                net, images, torch.tensor(kinds), optimizer, size=24, lr=0.1, epochs=1, batch_size=batch_size,
                views=(COLOURED, COLOURED), cluster_weight=0.5, loss=WithInstances(0.2), memory=rows,
            )  # fmt: skip
        return synchronisations.total()

    assert waits(3) == waits(12) <= 2


def test_rows_go_to_a_device_that_has_room_and_float64(monkeypatch):
    gpu = torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=10e9))
    assert holds_rows(gpu, 1_000_000, 1000)
    assert not holds_rows(gpu, 1_000_000, 1001)
    assert not holds_rows(torch.device("mps"), 10, 10)


def test_each_process_of_several_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert devices.choose_device("cuda:0") == devices.choose_device("cuda") == torch.device("cuda:1")


@pytest.mark.parametrize("mine", [None, ":16:8"])
def test_cublas_has_a_fixed_workspace_for_as_long_as_a_run_works_on_a_gpu(mine, monkeypatch):
    name = "CUBLAS_WORKSPACE_CONFIG"
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setenv(name, mine) if mine else monkeypatch.delenv(name, raising=False)
    with working_on(torch.device("cuda:0")):
        assert os.environ[name] == (mine or ":4096:8")
    assert os.environ.get(name) == mine


def test_the_c_library_keeps_freed_memory(monkeypatch):
    mallopt = Mock()
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    devices.keep_freed_memory()
    trim, mmap = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    assert {call.args for call in mallopt.call_args_list} == {(mmap, 1 << 30), (trim, 2**31 - 1)}


def test_settings_are_lent():
    def settings():
        return (
            torch.get_deterministic_debug_mode(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.conv.fp32_precision,
            torch.backends.cuda.matmul.fp32_precision,
            torch.utils.deterministic.fill_uninitialized_memory,
            dict(os.environ),
        )

    before = settings()
    with pytest.raises(KeyError), working_on(torch.device("mps"), deterministic=True), exact_float32():
        assert settings()[:6] == (1, True, False, "ieee", "ieee", False)  # 1: warn only
        raise KeyError
    assert settings() == before
    with working_on(torch.device("cpu"), deterministic=True):  # where all kernels are deterministic anyway
        assert settings() == before
    assert torch.backends.cudnn.allow_tf32  # the older name of the setting still answers
