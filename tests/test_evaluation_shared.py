"""Protocols by several processes: the figures of one process."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepcluster.runs import evaluate as evaluating
from deepcluster.runs import fit as run
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
    found = {}
    for count in (1, 2, 3):
        memory.unlink(missing_ok=True)
        every = ranks[count](evaluated, folder, protocol, images, options)
        assert all(each == every[0] for each in every)
        found[count] = every[0]
        again = ranks[count](evaluated, folder, protocol, images, options)
        assert again == every
    for count in (2, 3):
        assert found[count].keys() == found[1].keys()
        for name, value in found[1].items():
            if isinstance(value, str) or name.endswith(("images", "labels", "dims")):
                assert found[count][name] == value
            else:
                assert found[count][name] == pytest.approx(value, abs=near), name


def test_a_probe_of_several_processes_learns(ranks, folder):
    """Not the figure of one process, as its crops are others: but that of a probe that has learnt."""
    (folder / "run" / "evaluation-linear.json").unlink(missing_ok=True)
    options = {"epochs": 30, "layers": "block1", "batch_size": 16, "lr": 0.01}
    found = ranks[2](evaluated, folder, "linear", None, options)[0]
    assert found["block1_top1"] > 0.9
    assert found["block1_loss"] < 0.5


@pytest.mark.parametrize("protocol", ["retrieval", "voc07"])
def test_what_is_for_one_process_says_so(ranks, folder, protocol):
    message = f"UsageError: the protocol {protocol} is for one process: leave torchrun out"
    assert ranks[2](evaluated, folder, protocol, None, {}) == [message] * 2
