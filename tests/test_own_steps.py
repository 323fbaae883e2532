"""Steps of the user's own in a run: a clustering, a loss and an optimizer."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.cluster import AgglomerativeClustering
from torch.optim import AdamW

from deepcluster import DeepCluster
from deepcluster.cli import run_command
from deepcluster.clustering import as_clustering
from deepcluster.clustering.agreement import label_change
from deepcluster.errors import UsageError
from deepcluster.learning import CrossEntropy
from deepcluster.runtime import Silent
from deepcluster.runtime.partition import Partition
from tests.helpers.runs import record, rows
from tests.helpers.shared import OPTIONS, files_of, pixels


@dataclass(frozen=True)
class Tree:
    linkage: str = "ward"

    def __call__(self, rows, clusters, previous, *, seed, round, partition):
        all_rows = partition.all_gather(rows).numpy()
        trees = [AgglomerativeClustering(k, linkage=self.linkage).fit_predict(all_rows) for k in clusters]
        return tuple(as_clustering(labels, rows, partition=partition) for labels in trees)


class Halved(CrossEntropy):
    def __call__(self, outputs, cluster_weight, processes):
        loss, figure = super().__call__(outputs, cluster_weight, processes)
        return loss / 2, figure


def decayed(parameters):
    return AdamW(parameters, weight_decay=0.1)


STEPS = {"clustering": Tree(), "loss": Halved(), "optimizer": decayed}


class AfterOne(Silent):
    def round(self, row, rounds):
        raise KeyboardInterrupt


def test_a_run_resumes_to_the_same_bits_and_with_the_same_steps_only(tmp_path, photos, capsys):
    images, stopped = pixels(), tmp_path / "stopped"
    ours = DeepCluster(n_clusters=4, options=OPTIONS | {"rounds": 2, "lr": 0.001}, **STEPS)
    whole = clone(ours).fit(images, run=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        clone(ours).fit(images, run=stopped, display=AfterOne())
    assert record(stopped)["steps"] == {
        "own clustering": f"{__name__}.Tree: Tree(linkage='ward')",
        "own loss": f"{__name__}.Halved",
        "own optimizer": f"{__name__}.decayed",
    }
    for name, other in {"clustering": Tree("average"), "loss": None, "optimizer": AdamW}.items():
        with pytest.raises(UsageError, match=f"own {name}"):
            clone(ours).set_params(**{name: other}).fit(images, run=stopped, resume=True)
    assert run_command(["fit", str(photos), "-k", "4", "-o", str(stopped), "--resume"]) == 2
    assert "resume=True" in capsys.readouterr().err

    resumed = clone(ours).fit(images, run=stopped, resume=True)
    assert files_of(stopped) == files_of(tmp_path / "whole") and (stopped / "report.html").exists()
    clusters = [int(row["cluster"]) for row in rows(stopped / "clusters.csv")]
    assert resumed.predict(images).tolist() == clusters == whole.labels_.tolist()
    for name in STEPS:  # without one of them the result is another
        assert not np.array_equal(clone(ours).set_params(**{name: None}).fit(images).embedding_, whole.embedding_)


def test_a_loss_that_is_none_is_refused_at_once():
    with pytest.raises(UsageError, match=r"loss=CrossEntropyLoss\(\)"):
        DeepCluster(loss=torch.nn.CrossEntropyLoss()).fit(pixels())


def labels_become(change):
    """A clustering of which ``change`` makes other labels."""

    def step(rows, clusters, previous, *, seed, round, partition):
        clusterings = Tree()(rows, clusters, previous, seed=seed, round=round, partition=partition)
        return tuple(replace(clustering, labels=change(clustering.labels)) for clustering in clusterings)

    return step


class Returns(CrossEntropy):
    def __init__(self, change):
        self.change = change

    def __call__(self, outputs, cluster_weight, processes):
        return self.change(*super().__call__(outputs, cluster_weight, processes))


WRONG_LABELS = (
    lambda labels: labels[:-1], lambda labels: labels.int(), lambda labels: labels - 1, lambda labels: labels + 1,
    lambda labels: None, lambda labels: labels.tolist(),
)  # fmt: skip
WRONG_LOSSES = (
    lambda loss, figure: loss, lambda loss, figure: (loss, figure, figure), lambda loss, figure: (loss, 0.5),
    lambda loss, figure: (loss.expand(3), figure), lambda loss, figure: (loss.detach(), figure),
)  # fmt: skip


@pytest.mark.parametrize(
    ("step", "message"),
    [
        *(({"clustering": labels_become(change)}, r"Clustering.* 40 rows") for change in WRONG_LABELS),
        ({"clustering": lambda *arguments, **named: None}, "Clustering"),
        ({"clustering": lambda *arguments, **named: 2 * Tree()(*arguments, **named)}, "Clustering"),
        *(({"loss": Returns(change)}, "two tensors") for change in WRONG_LOSSES),
        ({"optimizer": lambda parameters: None}, "torch.optim.Optimizer"),
        ({"optimizer": zip}, "torch.optim.Optimizer"),  # a builtin does not tell its arguments
    ],
)
def test_a_wrong_result_of_a_step_is_refused_with_what_was_expected(step, message):
    with pytest.raises(UsageError, match=message):
        DeepCluster(n_clusters=3, options=OPTIONS | {"pseudo_labels": 4}, **step).fit(pixels())


def test_the_change_of_an_own_clustering_is_that_of_its_labels():
    """And not of a k-means that continues the previous ones, which would change nothing here."""
    rows, labels = torch.tensor([[0.0], [1], [9], [10]]), torch.tensor([1, 1, 0, 0])
    now = as_clustering(labels[[0, 0, 0, 3]], rows)
    change = label_change(labels[:, None], rows, [now], Tree(), Partition.single(4))
    assert change.changed == 0.25 and change.labels.tolist() == [1, 1, 1, 0]
