"""Edits: read with suspicion, applied exactly, and carried over to another cut where a cluster lives on."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from deepcluster.cli import run_command
from deepcluster.errors import UsageError
from deepcluster.runs.recut import apply, recut
from deepcluster.storage import model_files as models
from deepcluster.storage.csv_rows import placement_rows
from deepcluster.storage.edits import Edits, carried_over, edited, read_edits
from tests.helpers.runs import contents, record, rows
from tests.predicting import predicted
from tests.tiny import sign, tiny_model


def written(folder: Path, **table: object) -> Path:
    path = folder / "edits.json"
    path.write_text(json.dumps({"schema_version": 1, **table}))
    return path


@pytest.fixture
def finished(fitted, tmp_path: Path) -> Path:
    """A copy of a run with five clusters."""
    made = fitted("-k", "5", "--rounds", "0", "--pseudo-labels", "12", "--labels", "folders")
    return Path(shutil.copytree(made, tmp_path / "run"))


def test_a_merge_by_hand():
    model = tiny_model(names=("", "b", "c", "", "e"))
    found = edited(model, Edits("", {3: "d"}, ((2, 4), (3, 0)), None))
    centroids = {number: model.groups.groups == number for number in range(5)}
    assert torch.equal(found.groups.groups == 2, centroids[2] | centroids[4])
    assert torch.equal(found.groups.groups == 3, centroids[3] | centroids[0])
    assert torch.equal(found.groups.groups == 1, centroids[1])
    assert found.names == ("", "b", "c", "d")  # 4, the last number, is no more
    assert torch.equal(found.groups.centroids, model.groups.centroids)


def test_a_name_is_inherited_in_a_merge_and_can_be_taken_away():
    model = tiny_model(names=("", "b", "c"))
    assert edited(model, Edits("", {}, ((0, 1),), None)).names == ("b", "", "c")
    assert edited(model, Edits("", {1: ""}, (), None)).names == ("", "", "c")


def test_marks_are_replaced_or_left():
    model = edited(tiny_model(names=("", "", "")), Edits("", {}, (), (0, 2)))
    assert model.junk == (0, 2)
    assert edited(model, Edits("", {}, (), None)).junk == (0, 2)
    assert edited(model, Edits("", {}, (), (1,))).junk == (1,)
    assert edited(model, Edits("", {}, ((0, 2),), None)).junk == (0,)


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        (Edits("", {7: "x"}, (), None), "there is no cluster 7: the clusters are 0, 1, 2"),
        (Edits("", {}, ((0, 9),), None), "there is no cluster 9"),
        (Edits("", {}, (), (5,)), "there is no cluster 5"),
        (Edits("", {}, ((0, 1), (1, 2)), None), "cluster 1 is merged twice"),
        (Edits("", {}, ((0, 0),), None), "cluster 0 is merged twice"),
        (Edits("", {1: "x"}, ((0, 1),), None), "cluster 1 is merged into another one"),
    ],
)
def test_edits_that_do_not_fit(edits, said):
    with pytest.raises(UsageError, match=said):
        edited(tiny_model(names=("", "", "")), edits)


def test_a_number_that_was_merged_away_is_no_cluster_any_more():
    once = edited(tiny_model(names=("", "", "")), Edits("", {}, ((0, 1),), None))
    with pytest.raises(UsageError, match="there is no cluster 1: the clusters are 0, 2"):
        edited(once, Edits("", {1: "x"}, (), None))


NO_EDITS = [
    '"schema_version": 2',
    '"schema_version": 1, "colour": 3',
    '"schema_version": 1, "names": []',
    '"schema_version": 1, "names": {"-1": "a"}',
    '"schema_version": 1, "names": {"1": 2}',
    '"schema_version": 1, "names": {"\u0661": "a"}',
    '"schema_version": 1, "names": {"1": "a\\nb"}',
    '"schema_version": 1, "names": {"1": "\\ud800"}',
    '"schema_version": 1, "names": {"1": "%s"}' % ("a" * 201),
    '"schema_version": 1, "names": {"1": "a", "1": "b"}',
    '"schema_version": 1, "merge": [3]',
    '"schema_version": 1, "merge": [[]]',
    '"schema_version": 1, "merge": [[1, true]]',
    '"schema_version": 1, "merge": [[1, 2.0]]',
    '"schema_version": 1, "junk": [-1]',
    '"schema_version": 1, "junk": 3',
    '"schema_version": 1, "cut": 3',
]


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 100_000, *(f"{{{text}}}" for text in NO_EDITS)])
def test_a_file_that_is_no_edits_is_named(text, tmp_path):
    (tmp_path / "edits.json").write_text(text)
    with pytest.raises(UsageError, match=r"edits\.json cannot be used"):
        read_edits(tmp_path / "edits.json")


def test_a_missing_file_is_named(tmp_path, capsys, finished):
    assert run_command(["apply", str(finished), str(tmp_path / "none.json")]) == 2
    assert "there is no file" in capsys.readouterr().err


def test_who_lives_on_by_hand():
    model = edited(tiny_model(names=("a", "b", "c")), Edits("", {}, (), (2,)))
    before = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
    after = torch.tensor([3, 3, 3, 1, 0, 0, 1, 1, 2, 2, 2])  # a goes on as 3, b falls into halves, c stays
    assert carried_over(model, before, after, 4) == (("", "", "c", "a"), (2,))
    swallowed = torch.zeros(11, dtype=torch.int64)  # all in one: none is more than half of it
    assert carried_over(model, before, swallowed, 1) == (("",), ())


def test_apply_changes_names_numbers_stay_and_predict_knows(finished, photos, tmp_path, capsys):
    before = rows(finished / "clusters.csv")
    cut = record(finished)["cut"]
    path = written(tmp_path, cut=cut, names={"1": "=stripes", "2": "dots"}, merge=[[1, 3]], junk=[2])
    assert run_command(["apply", str(finished), str(path)]) == 0
    after = rows(finished / "clusters.csv")
    number = {"3": "1"}
    assert [row["cluster"] for row in after] == [number.get(row["cluster"], row["cluster"]) for row in before]
    assert {row["name"] for row in after if row["cluster"] == "1"} == {"'=stripes"}
    summary = rows(finished / "cluster_summary.csv")
    assert [row["cluster"] for row in summary] == ["0", "1", "2", "4"]
    assert [row["junk"] for row in summary] == ["0", "0", "1", "0"]
    assert all(row["nearest_cluster"] in ("0", "1", "2", "4") for row in summary)
    assert sum(int(row["size"]) for row in summary) == len(before)
    assert record(finished)["clusters"] == 4 and record(finished)["cut"] != cut
    assert "=stripes" in (finished / "report.html").read_text()

    capsys.readouterr()
    assert run_command(["predict", str(finished), str(photos)]) == 0
    given = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    columns = ("path", "cluster", "name", "distance", "margin", "is_outlier")
    assert given == [{name: row[name] for name in columns} for row in after]

    files_after = contents(finished)
    assert run_command(["apply", str(finished), str(path)]) == 0  # as after a kill: they are applied already
    assert contents(finished) == files_after
    path.write_text(path.read_text().replace("stripes", "bars"))
    capsys.readouterr()
    assert run_command(["apply", str(finished), str(path)]) == 2  # made for the clusters before
    assert "for other clusters than" in capsys.readouterr().err


def test_names_alone_change_no_figure(finished, tmp_path):
    metrics = json.loads((finished / "metrics.json").read_text())
    before = record(finished)
    apply(finished, read_edits(written(tmp_path, names={"0": "a"})))
    assert json.loads((finished / "metrics.json").read_text()) == metrics
    assert {name: value for name, value in record(finished).items() if name != "edits"} == before


def test_rejected_are_outliers_and_junk(finished, photos, tmp_path):
    apply(finished, read_edits(written(tmp_path, junk=[2], names={"2": "blurred"})))
    found = predicted(finished, photos)
    placement = found.model.place(found.reduced)
    for row, number in zip(placement_rows(found.model, placement, reject=True), placement.cluster, strict=True):
        assert (row["cluster"] == -1) == (int(number) == 2 or row["is_outlier"] == 1)
        assert row["name"] == ""


def test_names_survive_a_recut_where_the_cluster_does(finished, tmp_path):
    before = [row["cluster"] for row in rows(finished / "clusters.csv")]
    apply(finished, read_edits(written(tmp_path, names={str(i): f"name {i}" for i in range(5)}, junk=[0])))
    recut(finished, 3)
    after = rows(finished / "clusters.csv")
    for row in rows(finished / "cluster_summary.csv"):
        members = [i for i, image in enumerate(after) if image["cluster"] == row["cluster"]]
        old = [before[i] for i in members]
        most = max(set(old), key=old.count)
        lives = 2 * old.count(most) > len(old) and 2 * old.count(most) > before.count(most)
        assert row["name"] == (f"name {most}" if lives else "")
        assert row["junk"] == str(int(lives and most == "0"))
    recut(finished, 5)
    assert models.load(finished).groups.count == 5


def test_the_same_cut_again_keeps_all_names(finished, tmp_path):
    recut(finished, 5)
    apply(finished, read_edits(written(tmp_path, names={str(i): f"name {i}" for i in range(5)}, junk=[3])))
    model = models.load(finished)
    recut(finished, 5)
    assert (models.load(finished).names, models.load(finished).junk) == (model.names, model.junk)


def test_a_model_of_version_0_1_has_no_marks(finished):
    config = json.loads((finished / "model" / "config.json").read_text())
    sign(finished / "model", {key: value for key, value in config.items() if key != "junk"})
    assert models.load(finished).junk == ()


class Counted(int):
    """A number that counts how often it is compared."""

    compared = 0
    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return int(self) == other


def test_edits_of_many_numbers_take_no_quadratic_work():
    """The 4 MB that are read hold two million: one comparison for each pair would take an hour."""
    numbers = tuple(map(Counted, [*range(2_000), 0]))
    with pytest.raises(UsageError, match="cluster 0 is merged twice"):
        edited(tiny_model(names=("",) * 2_000), Edits("", {}, (numbers,), None))
    assert Counted.compared < 10 * len(numbers)


def test_many_names_are_carried_over_at_once():
    """The images are looked at as a whole, not for each cluster that has a name."""
    count = 3_000
    model = tiny_model(names=tuple(map(str, range(count))))
    before = torch.arange(count).repeat(3)
    names, junk = carried_over(model, before, (before + 1) % count, count)
    assert names[1:] == model.names[:-1]
    assert (names[0], junk) == (model.names[-1], ())
