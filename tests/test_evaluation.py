"""`deepcluster evaluate`: what all protocols share, and the protocol ``clustering``."""

import json
import os
import re
import shutil
import signal
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from deepcluster.cli import run_command
from deepcluster.clustering import whiten
from deepcluster.errors import DataError
from deepcluster.evaluation import ClusteringOptions, KnnOptions, LinearOptions, common
from deepcluster.evaluation.common import Labelled, ProbeTask, clustering, knn, linear
from deepcluster.images import find
from deepcluster.images.views import fixed_view
from deepcluster.nets.network import build
from deepcluster.runtime.partition import Partition
from tests.drawings import KINDS, drawings, pack
from tests.helpers.features import normal
from tests.helpers.runs import Said, change_record, rows
from tests.test_nets import same, snapshot


@pytest.fixture
def evaluated(run, prints):
    """Returns the figures of `deepcluster evaluate` of the run."""
    return lambda *arguments: json.loads(prints("evaluate", run, *arguments, "--json"))["values"]


def test_agreement_by_hand():
    # Classes aabb, clusters 0 1 1 1: the best matching is a-0, b-1, three of four right.
    figures = dict(clustering([0, 1, 1, 1, 7], ["a", "a", "b", "b", ""], seed=3))
    assert (figures["images"], figures["classes"], figures["clusters"]) == (4, 2, 2)
    assert figures["acc"] == 0.75
    assert figures["ari"] == 0.0  # pairs together in both: 1; expected: 2 * 3 / 6
    # Of the six orders of aabb, each gives the same table up to names: 0.75 again.
    assert figures["acc_chance"] == 0.75
    with pytest.raises(DataError):
        list(clustering([0, 1], ["", ""]))


def test_the_chance_level_is_that_of_labels_in_another_order():
    labels = [str(i % 4) for i in range(400)]
    perfect = dict(clustering([int(label) for label in labels], labels, seed=1))
    assert perfect["acc"] == perfect["nmi"] == perfect["ari"] == 1.0
    assert 0.25 < float(perfect["acc_chance"]) < 0.35
    assert abs(float(perfect["ari_chance"])) < 0.02
    again, other = (dict(clustering([*map(int, labels)], labels, seed=seed)) for seed in (1, 2))
    assert again == perfect != other
    assert "acc_chance" not in dict(clustering([0, 1], ["a", "b"], ClusteringOptions(shuffles=0)))


def test_held_out_is_a_fifth_and_depends_on_the_seed():
    def parts(count: int, seed: int = 0) -> list[list[int]]:
        source, labels = find(np.zeros((count + 1, 2, 2), np.uint8)), ["", *map(str, range(count))]
        train, train_labels, test, test_labels = common.hold_out(source, labels, seed)
        assert [labels[int(path)] for path in train.paths + test.paths] == train_labels + test_labels
        return [[int(path) for path in part.paths] for part in (train, test)]

    train, test = parts(101)
    assert len(test) == 20 and train == sorted(train) and test == sorted(test)
    assert sorted(train + test) == list(range(1, 102))  # the image without a label is in neither
    assert test == parts(101)[1] != parts(101, seed=1)[1]
    assert [len(part) for part in parts(2)] == [1, 1]
    with pytest.raises(DataError):
        parts(1)


def test_accuracies_by_hand():
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert common.accuracies(scores, torch.tensor([1, 0, 0, 0])) == {"top1": 0.75}
    scores = torch.eye(6)[[0, 1, 2]] + torch.arange(6) / 100  # the least, beside the one of the row, is class 0 or 1
    assert common.accuracies(scores, torch.tensor([0, 0, 5])) == pytest.approx({"top1": 1 / 3, "top5": 2 / 3})


def test_clusters_of_the_run_itself(run, photos, evaluated):
    figures = evaluated("--labels", "folders")
    table = [(int(row["cluster"]), row["path"].split("/")[0]) for row in rows(run / "clusters.csv")]
    assert figures == dict(clustering(*zip(*table, strict=True)))
    assert evaluated(photos, "--labels", "folders") == figures  # by the model: as fit places them
    assert evaluated(photos) == evaluated() == figures  # the labels of the fit


def test_labels_of_a_table_need_no_images(run, photos, tmp_path, evaluated, ends, prints):
    change_record(run, location=str(tmp_path / "gone"))
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\nbars/00.png,x\nblob/01.png,y\n")
    assert evaluated("--labels", labels)["images"] == 2
    assert evaluated()["images"] == 48  # clusters.csv has the labels of the fit
    ends(["evaluate", run, "--labels", "folders"], 3)
    change_record(run, labels=None)
    ends(["evaluate", run], 2)
    change_record(run, quality={"share": 0.9, "low": 0.71, "high": 0.97, "right": 27, "drawn": 30})
    assert "71 to 97" in ends(["evaluate", run], 2) and "71 to 97" in prints("doctor", run)


@pytest.mark.parametrize(("protocol", "figure"), [("clustering", "acc"), ("knn", "top1_k20")])
def test_it_is_said_that_some_images_of_the_run_are_missing(run, photos, tmp_path, capsys, protocol, figure):
    images = shutil.copytree(photos, tmp_path / "photos")
    shutil.rmtree(images / "bars")
    change_record(run, location=str(images))
    assert run_command(["evaluate", str(run), "--labels", "folders", "--protocol", protocol]) == 0
    printed = capsys.readouterr()
    assert re.search(r"\b16 .*48\b", printed.err) and str(images) in printed.err
    assert re.search(rf"^{figure} +\d\.\d{{4}}$", printed.out, re.MULTILINE)


def test_a_signal_ends_an_evaluation(run, monkeypatch, capsys):
    monkeypatch.setattr("deepcluster.clustering.agreement.scores", lambda *_: signal.raise_signal(signal.SIGINT))
    assert run_command(["evaluate", str(run), "--labels", "folders", "--json"]) == 75
    told = json.loads(capsys.readouterr().out)
    assert told["code"] == 75 and "SIGINT" in told["error"]


def test_images_to_learn_from_and_to_be_scored_on(run, photos, tmp_path, evaluated, ends):
    apart = tmp_path / "apart"
    for kind in ("bars", "blob"):
        shutil.copytree(photos / kind, apart / kind)
    (apart / "bars" / "00.png").write_text("no image")
    common = ("--labels", "folders", "--protocol", "knn", "--set", "neighbours=1")
    figures = evaluated(*common)  # a fifth is held out
    assert (figures["train_images"], figures["images"]) == (39, 9)
    assert evaluated(*common[2:]) == figures
    figures = evaluated(apart, *common)
    assert (figures["train_images"], figures["images"], figures["top1_k1"]) == (48, 31, 1.0)  # copies of what it learnt
    figures = evaluated(photos, "--train", apart, *common)
    assert (figures["train_images"], figures["images"], figures["classes"]) == (31, 48, 3)
    assert figures["top1_k1"] == pytest.approx(32 / 48, abs=0.03)  # nothing of the third class was learnt
    assert not list(run.glob(".evaluate-*"))

    (tmp_path / "link").symlink_to(photos)
    assert "link" in ends(["evaluate", run, tmp_path / "link", *common], 3)


# Images to score that are those to learn from: what is learnt from, what is scored, and how many are the same.
SAME = {
    "a link to it": ("photos", "link", 4),
    "hard links": ("photos", "hard", 4),
    "a list of links": ("photos", "list.txt", 4),
    "one of its shards": ("shards", "shards/1.tar", 2),
    "a link to a shard": ("shards", "link.tar", 2),
    "a link to an array": ("a.npy", "b.npy", 4),
    "copies": ("photos", "copies", 0),
    "the same names in another shard": ("shards", "other.tar", 0),
}


@pytest.mark.parametrize("way", SAME)
def test_images_are_not_scored_that_were_learnt_from_by_another_name(way, tmp_path):
    for folder in ("0", "1"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for i in range(2):
            (tmp_path / "photos" / folder / f"{i}.png").write_bytes(b"never decoded")
        for shard in (f"shards/{folder}.tar", "other.tar"):
            pack(tmp_path / shard, {"images": tmp_path / "photos" / folder})
    for link, target in (("link", "photos"), ("link.tar", "shards/0.tar"), ("b.npy", "a.npy")):
        (tmp_path / link).symlink_to(tmp_path / target)
    shutil.copytree(tmp_path / "photos", tmp_path / "hard", copy_function=os.link)
    shutil.copytree(tmp_path / "photos", tmp_path / "copies")
    files = sorted((tmp_path / "link").glob("*/*.png"))
    (tmp_path / "list.txt").write_text("\n".join(map(str, files)))
    np.save(tmp_path / "a.npy", np.zeros((4, 2, 2), np.uint8))
    learnt, scored, count = SAME[way]
    train, test = find(str(tmp_path / learnt)), find(str(tmp_path / scored))
    refused = pytest.raises(DataError, match=f"^{count} ")
    with refused if count else nullcontext():
        common.check_apart(train, test)


# ---- the protocols ``knn`` and ``linear``: the results against scikit-learn ------------------------------------------


def task_of() -> ProbeTask:
    images, kinds = drawings(40, size=18)
    train, test = torch.randperm(120, generator=torch.Generator().manual_seed(1)).tensor_split([90])
    labelled = [
        Labelled(images[rows], torch.tensor(kinds)[rows], Partition.single(len(rows))) for rows in (train, test)
    ]
    return ProbeTask(build("compact", image_size=16, seed=0).eval(), *labelled, KINDS, 16, 16)


# The smallest would overflow.
@pytest.mark.parametrize(("temperature", "tolerance"), [(1e-3, 1e-3), (0.07, 2e-5), (0.5, 2e-5)])
def test_votes_are_those_of_scikit_learn(temperature, tolerance):
    train, test = F.normalize(normal(333, 12, 0)), F.normalize(normal(100, 12, 1))
    classes = torch.randint(4, (333,), generator=torch.Generator().manual_seed(2))
    counts = [20, 5, 333]
    for k, votes in zip(counts, common.weighted_votes(train, classes, test, counts, temperature, 4), strict=True):
        theirs = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp(-distance / temperature)
        )
        theirs.fit(train.double().numpy(), classes.numpy())
        np.testing.assert_allclose(votes.numpy(), theirs.predict_proba(test.double().numpy()), atol=tolerance)


@pytest.mark.parametrize("reduced", [True, False])
def test_the_protocol_on_reduced_features_and_on_those_of_the_backbone(reduced):
    task = task_of()
    whitened = whiten(normal(200, 128, 3), 8)
    figures = dict(knn(replace(task, reduction=whitened), KnnOptions(neighbours="3,1000", reduced=reduced)))
    assert list(figures) == ["train_images", "images", "classes", "chance", "top1_k3", "top1_k90"]
    most = int(torch.bincount(task.train.classes).argmax())
    assert figures["chance"] == pytest.approx(float((task.test.classes == most).float().mean()))

    with torch.no_grad():
        rows = (task.network.features(fixed_view(part.images, 16)) for part in (task.train, task.test))
        train, test = map(whitened if reduced else F.normalize, rows)
    theirs = KNeighborsClassifier(3, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    right = theirs.fit(train, task.train.classes).score(test, task.test.classes.numpy())
    assert figures["top1_k3"] == pytest.approx(right)


@pytest.mark.parametrize("reduced", [True, False])
def test_a_linear_classifier_is_that_of_scikit_learn(reduced):
    task = task_of()
    whitened = whiten(normal(200, 128, 3), 8)
    before = snapshot(task.network)
    figures = dict(linear(replace(task, reduction=whitened), LinearOptions(c=0.01, reduced=reduced)))
    assert list(figures) == ["train_images", "images", "classes", "chance", "top1"]
    with torch.no_grad():
        rows = (task.network.features(fixed_view(part.images, 16)) for part in (task.train, task.test))
        train, test = ((whitened if reduced else F.normalize)(part).numpy() for part in rows)
    middle, deviation = train.mean(0), train.std(0)
    theirs = LogisticRegression(C=0.01, max_iter=1000).fit((train - middle) / deviation, task.train.classes)
    assert figures["top1"] == theirs.score((test - middle) / deviation, task.test.classes.numpy())
    assert same(task.network.state_dict(), before)


def test_classes_that_were_not_learnt_are_wrong_and_one_class_is_none():
    task = task_of()
    learnt = replace(task.train, classes=task.train.classes.clamp(min=1))
    figures = dict(linear(replace(task, train=learnt)))
    assert figures["classes"] == 3 and 0.5 < figures["top1"] <= float((task.test.classes > 0).double().mean())
    with pytest.raises(DataError, match="one label"):
        dict(linear(replace(task, train=replace(learnt, classes=learnt.classes * 0))))


def test_a_solver_that_stops_early_is_said():
    for iterations in (1, 1000):
        said = Said()
        dict(linear(task_of(), LinearOptions(iterations=iterations), display=said))
        assert any("iterations=N" in line for line in said.lines) == (iterations == 1)
