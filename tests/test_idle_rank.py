"""Every collective gives the results of one process if a rank has no rows because its images cannot be read."""

import ast
import sys
import warnings
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import deepcluster
from deepcluster.clustering.agreement import drift
from deepcluster.clustering.kmeans import KMeans, kmeans
from deepcluster.clustering.pic import power_iteration
from deepcluster.clustering.whitening import Reduction
from deepcluster.errors import NonFiniteError
from deepcluster.images.views import Augmentation
from deepcluster.learning.heads import CentroidHead, CrossEntropy, Head, Loss, WithInstances, new_linear_head
from deepcluster.place import Place
from deepcluster.runs import fit as run
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import Processes
from tests.helpers.shared import OPTIONS, pixels
from tests.loop import loop
from tests.test_evaluation_shared import evaluated
from tests.test_fit_shared import predicted, small_network
from tests.test_kmeans_shared import averaged, clustered, whitened
from tests.test_learning_shared import INSTANCES, odd
from tests.test_result_shared import alike, described, features, judged, medoids, own, shared
from tests.tiny import tiny_run

ROOT = Path(deepcluster.__file__).parent
# Not called here: declarations of types, and one that test_checkpoints_shared.py calls with a rank without rows.
ELSEWHERE = {"Loss.__call__", "ClusteringStep.__call__", "restored"}
ROWS = features()[:601]
LABELS = torch.arange(601) ** 2 % 7
IMAGES = torch.from_numpy(pixels(60)).permute(0, 3, 1, 2)
RESULT = ("clusters.csv", "features.npy", "cluster_summary.csv", "tree.json", "metrics.json", "duplicates.csv")


def steps(processes: Processes, step: Callable[..., Any]) -> list[Any]:
    """Run steps 3 and 4 of two rounds."""
    rows = own(ROWS, processes)
    partition = Partition.of(processes, len(rows))
    rows = Reduction(6)(rows, Place(partition))
    (first,) = step(rows, [7], None, seed=0, round=0, partition=partition)
    again = step(rows, [7], first.labels[:, None], seed=0, round=1, partition=partition)
    return [vars(first), vars(drift(first.labels[:, None], rows, again, step, partition))]


def not_finite(processes: Processes) -> str:
    rows = own(torch.cat([ROWS, ROWS[:1] * torch.nan]), processes)
    with pytest.raises(NonFiniteError) as error:
        kmeans(rows, 7, partition=Partition.of(processes, len(rows)))
    return str(error.value)


def final(processes: Processes) -> dict[str, Any]:
    rows = own(ROWS, processes)
    return vars(KMeans().once(rows, 7, partition=Partition.of(processes, len(rows))))


def alternated(processes: Processes, head: Head, loss: Loss) -> list[Any]:
    """Run two rounds without random views, which differ by rank."""
    network = small_network()
    network.frozen_statistics = True
    rounds = loop(
        network, own(IMAGES, processes), clusters=4, rounds=2, batch_size=20, dims=3, head=head,
        views=2 * (Augmentation(crop=(1, 1), stretch=1, flip=0),), loss=loss, processes=processes,
    )  # fmt: skip
    return [[each.loss, each.clustering.labels, each.changed] for each in rounds]


def result(processes: Processes, folder: Path) -> dict[str, Any]:
    """Fit without training, and return the files."""
    out = folder / f"result-{processes.world_size}"
    shared(processes, out)
    processes.any(False)  # wait for the main rank's files
    return {name: (out / name).read_bytes() for name in RESULT}


def figures(processes: Processes, folder: Path, protocol: str, options: dict[str, Any]) -> dict[str, Any]:
    if processes.is_main:
        (folder / f"run/evaluation-{protocol}.json").unlink(missing_ok=True)
    processes.any(False)
    return evaluated(processes, folder, protocol, str(folder / "others.npz"), options)


def placed(processes: Processes, folder: Path) -> list[Any]:
    found = predicted(processes, folder / "tiny", pixels(9).repeat(2, 1).repeat(2, 2)[:, :16, :16])
    return [[each.paths, each.reduced, each.residuals] for each in found]


def table(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Return by name: a tolerance for the results, a function and its arguments."""
    clustering = {"splits": {}, "samples": {"empty": "sample"}, "angles": {"spherical": True}}
    return {
        **{name: (1e-5, clustered, ROWS, 40, None, options) for name, options in clustering.items()},
        "from labels": (1e-5, clustered, ROWS, 7, LABELS, {}),
        "whitening": (1e-5, whitened, ROWS, 5, False),
        "whitening of few": (1e-5, whitened, ROWS[:7], 5, True),
        "k-means": (1e-5, steps, KMeans()),
        "power iteration": (1e-5, steps, power_iteration),
        "the last clustering": (1e-5, final),
        "not finite": (0, not_finite),
        "means": (1e-5, averaged, ROWS, LABELS, 7),
        "agreement": (1e-5, judged, LABELS, LABELS.roll(1)),
        "medoids": (0, medoids, ROWS[:, 0], LABELS.clamp(max=3)),
        "groups and tables": (1e-5, described, ROWS, 400),
        "near-duplicates": (1e-5, alike, torch.cat([IMAGES, IMAGES])),
        "learning": (1e-5, odd, 5, {}),
        "learning with instances": (1e-5, odd, 5, INSTANCES),
        "rounds": (1e-3, alternated, new_linear_head, CrossEntropy()),
        "rounds with instances": (1e-3, alternated, CentroidHead(0.1), WithInstances(0.2)),
        "run": (0, result, folder),
        "predict": (1e-5, placed, folder),
        "clustering": (1e-5, figures, folder, "clustering", {}),
        "knn": (1e-5, figures, folder, "knn", {"neighbours": "3"}),
        "linear": (0.2, figures, folder, "linear", {"layers": "block2", "epochs": 1, "lr": 1e-4}),
        "few": (0.2, figures, folder, "few", {"shares": "0.5", "epochs": 1, "lr": "1e-4", "head_lr": "1e-4"}),
    }


def watched(processes: Processes, work: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, set[str]]:
    """Return the result of ``work`` and the names of the functions of the package that ran."""
    codes: set[CodeType] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        codes.add(frame.f_code)

    sys.setprofile(note)
    try:
        with warnings.catch_warnings(action="error"):
            value = work(processes, *arguments)
    finally:
        sys.setprofile(None)
    return value, {code.co_qualname for code in codes if code.co_filename.startswith(str(ROOT))}


def collectives() -> set[str]:
    """Return the names of the public functions of the package that take a Partition or Processes."""
    names = set()
    for path in ROOT.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for scope in (tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))):
            for node in scope.body:
                if isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name == "__call__"):
                    types = [
                        ast.unparse(each.annotation)
                        for each in ast.walk(node.args)
                        if getattr(each, "annotation", None)
                    ]
                    if any(kind in text for text in types for kind in ("Partition", "Processes")):
                        names.add(f"{scope.name}.{node.name}" if isinstance(scope, ast.ClassDef) else node.name)
    return names


def same(parts: list[Any], whole: Any, near: float) -> None:
    """Assert that each rank has the whole, or that the parts of all make it up."""
    if is_dataclass(whole):
        parts, whole = [vars(part) for part in parts], vars(whole)
    if isinstance(whole, dict):
        for name, value in whole.items():
            same([part[name] for part in parts if name in part], value, near)
    elif isinstance(whole, Tensor):
        each_has_all = all(part.shape == whole.shape for part in parts)
        for part in parts if each_has_all else [torch.cat(parts)]:
            torch.testing.assert_close(part, whole, rtol=near, atol=near)
    elif isinstance(whole, list | tuple):
        if any(len(part) != len(whole) for part in parts):
            parts = [[value for part in parts for value in part]]
        for *mine, value in zip(*parts, whole, strict=True):
            same(mine, value, near)
    elif isinstance(whole, float):
        assert parts == [pytest.approx(whole, rel=near, abs=near, nan_ok=True)] * len(parts)
    else:
        assert parts == [whole] * len(parts)


@pytest.mark.parametrize(("count", "idle"), [(2, 0), (3, 1)])
def test_a_rank_without_rows_changes_nothing(ranks, tmp_path, count, idle):
    np.savez(tmp_path / "images.npz", images=pixels(60), labels=np.arange(60) % 4)
    np.savez(tmp_path / "others.npz", images=pixels(7), labels=np.arange(7) % 4)
    run.fit(str(tmp_path / "images.npz"), run.Request(out=tmp_path / "run", n_clusters=4, options=OPTIONS))
    tiny_run(tmp_path / "tiny")
    called = ELSEWHERE
    for name, (near, work, *arguments) in table(tmp_path).items():
        print(name)  # shown if it fails
        (whole,) = ranks[1](work, *arguments)
        found = ranks[count](watched, work, arguments, idle=idle)
        same([value for value, _ in found], whole, near)
        called = called | found[idle][1]
    assert collectives() <= called
