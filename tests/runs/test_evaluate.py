"""`deepcluster evaluate`: clusters against labels."""

import json
import re
import shutil
import signal

import pytest

from deepcluster.commands.cli import run_command
from deepcluster.errors import DataError
from deepcluster.runs.evaluate import scores_with_chance
from tests.helpers.runs import change_record, rows


@pytest.fixture
def evaluated(run, prints):
    """Returns the figures of `deepcluster evaluate` of the run."""
    return lambda *arguments: json.loads(prints("evaluate", run, *arguments, "--json"))["values"]


def test_agreement_by_hand():
    # Classes aabb, clusters 0 1 1 1: the best matching is a-0, b-1, three of four right.
    figures = scores_with_chance([0, 1, 1, 1, 7], ["a", "a", "b", "b", ""])
    assert (figures["images"], figures["classes"], figures["clusters"]) == (4, 2, 2)
    assert figures["acc"] == 0.75
    assert figures["ari"] == 0.0  # pairs together in both: 1; expected: 2 * 3 / 6
    # Of the six orders of aabb, each gives the same table up to names: 0.75 again.
    assert figures["acc_chance"] == 0.75
    with pytest.raises(DataError):
        scores_with_chance([0, 1], ["", ""])


def test_the_chance_level_is_that_of_labels_in_another_order():
    labels = [str(i % 4) for i in range(400)]
    clusters = [int(label) for label in labels]
    perfect = scores_with_chance(clusters, labels)
    assert perfect["acc"] == perfect["nmi"] == perfect["ari"] == 1.0
    assert 0.25 < float(perfect["acc_chance"]) < 0.35
    assert abs(float(perfect["ari_chance"])) < 0.02

    def right(labels, clusters):
        return {"right": sum(str(cluster) == label for label, cluster in zip(labels, clusters, strict=True))}

    of_ones_own = scores_with_chance([*clusters, 7], [*labels, ""], right)
    assert [*of_ones_own] == ["images", "classes", "clusters", "right", "right_chance"]
    assert of_ones_own["right"] == 400 and 90 < of_ones_own["right_chance"] < 110


def test_clusters_of_the_run_itself(run, photos, evaluated):
    figures = evaluated("--labels", "folders")
    table = [(int(row["cluster"]), row["path"].split("/")[0]) for row in rows(run / "clusters.csv")]
    assert figures == scores_with_chance(*zip(*table, strict=True))
    assert evaluated(photos, "--labels", "folders") == figures  # by the model: as fit places them
    assert evaluated(photos) == evaluated() == figures  # the labels of the fit


def test_other_images_are_scored_if_they_have_a_label(run, photos, tmp_path, evaluated, prints):
    others = shutil.copytree(photos, tmp_path / "others")
    (others / "bars" / "00.png").write_text("no image")
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\n" + "".join(f"bars/{i:02}.png,x\nblob/{i:02}.png,y\n" for i in range(16)))
    figures = evaluated(others, "--labels", labels)
    assert (figures["images"], figures["classes"]) == (31, 2)


def test_labels_of_a_table_need_no_images(run, tmp_path, evaluated, ends, monkeypatch):
    change_record(run, base=str(tmp_path / "gone"))
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\nbars/00.png,x\nblob/01.png,y\n")
    assert evaluated("--labels", labels)["images"] == 2
    assert evaluated()["images"] == 48  # clusters.csv has the labels of the fit
    ends(["evaluate", run, "--labels", "folders"], 3)
    change_record(run, labels=None)
    ends(["evaluate", run], 2)
    quality = {"share": 0.9, "low": 0.71, "high": 0.97, "right": 27, "drawn": 30}
    monkeypatch.setattr("deepcluster.runs.run.estimated_quality", lambda *_: quality)
    assert "71 to 97" in ends(["evaluate", run], 2)


def test_it_is_said_that_some_images_of_the_run_are_missing(run, photos, tmp_path, capsys):
    images = shutil.copytree(photos, tmp_path / "photos")
    shutil.rmtree(images / "bars")
    change_record(run, base=str(images))
    assert run_command(["evaluate", str(run), "--labels", "folders"]) == 0
    printed = capsys.readouterr()
    assert re.search(r"\b16 .*48\b", printed.err) and str(images) in printed.err
    assert re.search(r"^acc +\d\.\d{4}$", printed.out, re.MULTILINE)


def test_a_signal_ends_an_evaluation(run, monkeypatch, capsys):
    monkeypatch.setattr("deepcluster.clustering.agreement.scores", lambda *_: signal.raise_signal(signal.SIGINT))
    assert run_command(["evaluate", str(run), "--labels", "folders", "--json"]) == 75
    error = json.loads(capsys.readouterr().out)
    assert error["code"] == 75 and "SIGINT" in error["error"]
