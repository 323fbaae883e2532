"""Protocols by several processes: the figures of one process."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepcluster.evaluation import FewLabelsOptions, LinearOptions, few, linear
from deepcluster.evaluation.common import Labelled, ProbeTask
from deepcluster.images.views import fixed_view
from deepcluster.nets.network import build
from deepcluster.runs import evaluate as evaluating
from deepcluster.runs import fit as run
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import Processes
from tests.test_fit_shared import OPTIONS, pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 60 images of four kinds."""
    place = tmp_path_factory.mktemp("shared")
    np.savez(place / "images.npz", images=pixels(60), labels=np.arange(60) % 4)
    run.fit(str(place / "images.npz"), run.Request(out=place / "run", n_clusters=4, options=OPTIONS))
    np.savez(place / "others.npz", images=pixels(7), labels=np.arange(7) % 4)
    return place


def evaluated(processes: Processes, folder: Path, protocol: str, images: str | None, options: dict[str, Any]) -> Any:
    request = evaluating.EvaluationRequest(protocol=protocol, images=images, labels="folders", options=options)
    try:
        return dict(evaluating.evaluate(folder / "run", request, processes=processes))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize(
    ("protocol", "others", "options", "near"),
    [
        pytest.param("clustering", False, {}, 0.0, marks=pytest.mark.slow),
        ("clustering", True, {}, 0.0),
        pytest.param("knn", False, {"neighbours": "3,20"}, 1e-6, marks=pytest.mark.slow),
        ("knn", True, {"neighbours": "5"}, 1e-6),
        ("linear", False, {"epochs": 3, "layers": "block2", "lr": 0.001, "batch_size": 16}, 0.3),
        ("few", True, {"epochs": 2, "shares": "0.5", "lr": "0.01", "head_lr": "0.1"}, 1.0),
    ],
)
def test_figures_are_those_of_one_process(ranks, folder, protocol, others, options, near):
    images = str(folder / "others.npz") if others else None
    memory = folder / "run" / f"evaluation-{protocol}.json"
    figures = {}
    for count in (1, 2, 3):
        memory.unlink(missing_ok=True)
        every = ranks[count](evaluated, folder, protocol, images, options)
        assert all(each == every[0] for each in every)
        figures[count] = every[0]
        again = ranks[count](evaluated, folder, protocol, images, options)
        assert again == every
    for count in (2, 3):
        assert figures[count].keys() == figures[1].keys()
        for name, value in figures[1].items():
            if isinstance(value, str) or name.endswith(("images", "labels", "dims")):
                assert figures[count][name] == value
            else:
                assert figures[count][name] == pytest.approx(value, abs=near), name


def test_a_probe_of_several_processes_learns(ranks, folder):
    """Not the figure of one process, as its crops are others: but that of a probe that has learnt."""
    (folder / "run" / "evaluation-linear.json").unlink(missing_ok=True)
    options = {"epochs": 30, "layers": "block1", "batch_size": 16, "lr": 0.01}
    figures = ranks[2](evaluated, folder, "linear", None, options)[0]
    assert figures["block1_top1"] > 0.9
    assert figures["block1_loss"] < 0.5


def learnt(processes: Processes, protocol: str) -> dict[str, Any]:
    """Figures of a probe without random views and statistics of batches, which differ by rank."""
    images, classes = torch.from_numpy(pixels(23)).permute(0, 3, 1, 2), torch.arange(23) % 4
    share = processes.part(len(images))
    own = images[share.start : share.stop]
    network = build("compact", image_size=12, seed=0).eval()
    network.frozen_statistics = True
    labelled = Labelled(own, classes, Partition.of(processes, len(own)))
    task = ProbeTask(network, labelled, labelled, "abcd", 12, 8, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few, "random_views", lambda images, size, how, random: fixed_view(images, size))
        patch.setattr(linear, "random_crops", lambda images, size, random: images)
        if protocol == "few":  # 20 images of 4 classes, 7 or 6 in a batch
            options = FewLabelsOptions(shares="0.9", epochs=3, batch_size=7, lr="0.01", head_lr="0.05")
            return dict(few.few(task, options))
        figures = dict(linear.linear(task, LinearOptions(layers="block2", epochs=3, batch_size=7, lr=1e-4)))
        return {name: value for name, value in figures.items() if not isinstance(value, str)}


@pytest.mark.parametrize("protocol", ["few", "linear"])
def test_an_image_that_fills_up_a_batch_counts_once(ranks, protocol):
    (alone,) = ranks[1](learnt, protocol)
    for count in (2, 3):
        for figures in ranks[count](learnt, protocol):
            assert figures == pytest.approx(alone, rel=1e-4)
