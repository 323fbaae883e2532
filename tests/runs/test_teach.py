"""Answers about a few images: how they spread, which questions are asked, and what a run does with them."""

import csv
import itertools
import json
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from deepcluster import DeepCluster
from deepcluster.commands.cli import run_command
from deepcluster.errors import UsageError
from deepcluster.groups import spread
from deepcluster.groups.cut import Cut, recentred
from deepcluster.groups.graph import Layouts, neighbour_ties
from deepcluster.groups.spread import Taught, beliefs, followed, questions
from deepcluster.model import Annotations, Said
from deepcluster.recipes.options import Recipe
from deepcluster.runs import teach as teaching
from deepcluster.runs.apply import apply, rows_of
from deepcluster.runs.change import preview, undo
from deepcluster.runs.quality import estimated_quality
from deepcluster.runs.recut import cut_anew, recut
from deepcluster.runs.run import Run, read_run
from deepcluster.runs.teach import Answer, ask, asked, read_answers, taught_by, teach
from deepcluster.runs.views import report
from deepcluster.runtime.console import Silent
from deepcluster.storage.content import CLUSTERS
from deepcluster.storage.edits_file import Edits
from deepcluster.storage.model_files import load
from deepcluster.storage.run_folder import open_run
from deepcluster.texts import quality_text
from tests.helpers.features import normal
from tests.helpers.runs import result, rows, same_files, state_of, without_page
from tests.helpers.tiny import run_of, tiny_model

KINDS, COUNT = 6, 240
RECIPE = Recipe(grouping="layout")


def kind(row: int) -> str:
    return f"kind {row % KINDS}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """f.npy: six kinds in turn, of which rows 0 and 6 are equal; run: five clusters, named after most images."""
    folder = tmp_path_factory.mktemp("teach")
    features = np.eye(12)[np.arange(COUNT) % KINDS] + np.random.default_rng(0).normal(0, 0.3, (COUNT, 12))
    features[6] = features[0]
    np.save(folder / "f.npy", features.astype(np.float32))
    (folder / "f.txt").write_text("\n".join(f"{kind(row)}/{row}.png" for row in range(COUNT)))
    assert run_command(["fit", f"{folder}/f.npy", "--features", "-o", f"{folder}/run", "-k", "5", "-q"]) == 0
    kinds: dict[int, list[str]] = {}
    for path, (cluster, _) in placed(folder / "run").items():
        kinds.setdefault(cluster, []).append(path.partition("/")[0])
    without_page(folder / "run")
    apply(folder / "run", Edits(names={cluster: max(names, key=names.count) for cluster, names in kinds.items()}))
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


def placed(run: Path) -> dict[str, tuple[int, str]]:
    return {row["path"]: (int(row["cluster"]), row["name"]) for row in rows(run / "clusters.csv")}


def right(run: Path) -> float:
    return float(np.mean([name == path.partition("/")[0] for path, (_, name) in placed(run).items() if "/" in path]))


def said(run: Path, count: int, **options: bool) -> list[Answer]:
    return [
        Answer(one.path, name=one.path.partition("/")[0], by="drawn" if one.drawn else "answer")
        for one in ask(run, count, **options)
    ]


def true(rows: Sequence[int], **options: str) -> list[Answer]:
    return [Answer(row, name=kind(row), **options) for row in rows]


def graph_of_first(run: Path, count: int) -> Run:
    """Return the run, of whose images the first ones alone are in the graph."""
    whole = read_run(open_run(run))
    rows = replace(whole.rows, sample=whole.rows.reduced[:count], layouts=Layouts())
    return replace(whole, rows=rows)


# ---- how answers spread, and what is asked --------------------------------------------------------------------------


def test_label_spreading_by_hand_and_by_the_inverse():
    pair = scipy.sparse.csr_array(np.array([[0.0, 0.3], [0.3, 0.0]]))  # normalised, the tie is 1
    alpha = spread.ALPHA
    expected = np.array([[1, 0.5 * alpha], [alpha, 0.5]]) / (1 - alpha**2)
    np.testing.assert_allclose(spread.label_spreading(pair, np.diag([1, 0.5])), expected)
    ties, scores = neighbour_ties(normal(80, 6)), np.random.default_rng(0).random((80, 3))
    scale = np.diag(1 / np.sqrt(ties.sum(1)))
    inverse = np.linalg.inv(np.eye(80) - alpha * scale @ ties.toarray() @ scale)
    np.testing.assert_allclose(spread.label_spreading(ties, scores), inverse @ scores, rtol=1e-5)
    assert spread.label_spreading(scipy.sparse.csr_array((1, 1)), np.ones((1, 1))) == 1  # one image, without a tie


def test_the_discriminant_is_that_of_scikit_learn():
    labels = np.arange(90) % 3
    points = np.random.default_rng(1).normal(size=(90, 5)) + np.eye(3, 5)[labels]
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=spread.SHRINKAGE).fit(points, labels)
    ours = spread.discriminant(points, np.eye(3)[labels], np.full(90, 0.2))
    np.testing.assert_allclose(ours, theirs.predict_proba(points), atol=1e-6)


def two_kinds(**changes: object) -> Taught:
    """Sixty rows of two kinds in turn, all in group 0 of four; an answer about one of each kind."""
    points = torch.nn.functional.normalize(normal(60, 4) * 0.2 + torch.eye(2, 4).repeat(30, 1))
    return replace(
        Taught(points, neighbour_ties(points), np.zeros(60, np.int64), np.arange(4), {0: 0, 1: 1}), **changes
    )


def test_rows_follow_the_answers():
    assert np.mean(followed(two_kinds()) == [0, 1] * 30) > 0.9
    assert followed(two_kinds(answers={})).tolist() == [0] * 60
    np.testing.assert_allclose(beliefs(two_kinds()).sum(1), 1)
    assert followed(two_kinds(answers={0: 0, 1: 1, 2: 3}))[:3].tolist() == [0, 1, 3]  # whatever the neighbours say
    # Groups 1 and 2 have one name: rows stay in either, and their beliefs count together.
    labels = np.array([0, 1] * 20 + [0, 2] * 10)
    alike = followed(two_kinds(labels=labels, kinds=np.array([0, 1, 1, 3]), answers={41: 2, 40: 0}))
    assert alike.tolist() == labels.tolist()


def test_questions_are_typical_of_unknown_regions_and_then_uncertain_and_apart():
    taught = two_kinds()
    chosen = questions(taught, 4)
    assert len({*chosen} - {0, 1}) == 4 and sorted(questions(taught, 100)) == [*range(2, 60)]
    lead = np.abs(np.diff(beliefs(taught)[:, :2], axis=1)).ravel()
    order = spread.uncertain(taught.ties, beliefs(taught), [0, 1], 4)
    assert lead[order[0]] == lead[2:].min() and lead[order].mean() < np.median(lead)
    assert all(taught.ties[[a], [b]] == 0 for a, b in itertools.combinations(order, 2))
    typical = questions(two_kinds(answers={}), 2)[0]
    assert min((taught.rows[typical] - taught.rows[first::2].mean(0)).norm() for first in (0, 1)) < 0.4


def test_groups_that_change_get_new_centroids_and_others_keep_theirs():
    points = torch.eye(4).repeat_interleave(10, 0) + 0.01 * normal(40, 4)
    before, after = torch.arange(40) // 10, torch.tensor([5] * 10 + [5, 5] + [1] * 8 + [2] * 10 + [3] * 10)
    changed = recentred(Cut(2 * torch.eye(4), torch.arange(4)), points, before, after)
    assert changed.cluster_of.tolist() == [1, 2, 3, 5]
    assert torch.equal(changed.centroids[1:3], 2 * torch.eye(4)[2:])
    torch.testing.assert_close(changed.centroids[[0, 3]], torch.stack([points[12:20].mean(0), points[:12].mean(0)]))


def test_the_estimate_of_fourteen_images_by_hand():
    """Two images teach, ten are drawn, and nobody has placed the other two, of which as many are right."""

    def estimated(
        right: int, *, count: int = 10, images: int = 14, more: tuple[int, ...] = (), **names: object
    ) -> object:
        drawn = (Said(row, "drawn", 0 if row - 2 < right else 1) for row in range(2, 2 + count))
        answers = (Said(row, "answer") for row in (0, 1, *more))
        model = Annotations(said=(*answers, *drawn), **{"names": ("a", "b")} | names)
        return estimated_quality(model, torch.zeros(images, dtype=torch.int64), 14)

    # Wilson's bounds of 10 (10 + 2 - 1) / 2 = 55 images of which .8 are right, .69818 and .87368, are of 12 images.
    eight = {"drawn": 10, "right": 8, "share": (12 + 1.6) / 14, "low": (4 + 12 * 0.69818) / 14, "high": 1}
    assert estimated(8) == pytest.approx(eight, abs=1e-4)
    assert estimated(10) == pytest.approx(
        {"drawn": 10, "right": 10, "share": 1, "low": 13.4373 / 14, "high": 1}, abs=1e-4
    )
    assert estimated(8, names=("a", "a")) == estimated(10)  # clusters of one kind
    assert estimated(8, more=(12, 13)) == {"drawn": 10, "right": 8, "share": 1, "low": 1, "high": 1}
    # Of four images that came after the fit none is drawn, so none or all may be right: roots of the sums of squares.
    low, high = 16.8 - np.hypot(13.6 - 14 * eight["low"], 3.2), 16.8 + np.hypot(0.4, 0.8)
    assert estimated(8, images=18) == pytest.approx(
        {"drawn": 10, "right": 8, "share": 16.8 / 18, "low": low / 18, "high": high / 18}, abs=1e-4
    )
    assert estimated(8, count=9) == {"drawn": 9, "needed": 10} and estimated(8, count=0) is None
    assert quality_text(estimated(8, count=9)) == "Right: not known yet (9 of 10 drawn)"
    assert quality_text({"share": 0.86, "low": 0.7, "high": 0.94}) == "Right: about 86 % (70 to 94)"


# ---- a run ----------------------------------------------------------------------------------------------------------


def test_a_run_is_taught_by_commands_and_predict_follows(made, run, tmp_path, prints):
    share, clusters = right(run), placed(run)
    prints("ask", run, "-n", 24, "-o", tmp_path / "answers.csv")
    table = rows(tmp_path / "answers.csv")
    assert len({row["path"] for row in table}) == 24 and {row["drawn"] for row in table} == {"0"}
    assert all((row["now"], row["name"]) == (clusters[row["path"]][1], "") for row in table)
    assert all(len({*row["likely"].split()}) == 5 for row in table)
    answers = [{"image": "/data/x", **row, "name": row["path"].partition("/")[0]} for row in table]  # path counts
    with (tmp_path / "answers.csv").open("w") as file:
        (writer := csv.DictWriter(file, answers[0])).writeheader()
        writer.writerows(answers)
    out = " ".join(prints("teach", run, tmp_path / "answers.csv").split())
    now = placed(run)
    assert all(now[row["path"]][1] == row["name"] for row in answers)
    assert {cluster for cluster, _ in now.values()} == {*range(6)} and right(run) > max(0.9, share + 0.1)
    moved = sum(cluster != now[path][0] for path, (cluster, _) in clusters.items())
    assert f"{moved} images changed their cluster: " in out and "apply" in out and state_of(run)
    prints("predict", run, made / "f.npy", "-o", tmp_path / "placed.csv")
    assert {row["path"]: (int(row["cluster"]), row["name"]) for row in rows(tmp_path / "placed.csv")} == now
    taught = same_files(run, CLUSTERS)
    again = json.loads(prints("teach", run, tmp_path / "answers.csv", "--json"))  # the run has them already
    assert (
        again == {"run": str(run), "changed": 0, "changes": [], "quality": None} and same_files(run, CLUSTERS) == taught
    )
    prints("apply", run, "--undo")
    assert placed(run) == clusters and len(read_run(open_run(run)).model.names) == 6  # no other cluster gets the number


def test_what_an_answer_means(run):
    """A name, or else a number; of equal names the present cluster, that of the number, or the largest one.

    "cluster 4" names the cluster of this number if it has no name. Another name becomes that of the cluster.
    """
    apply(run, Edits(names={0: "a", 1: "b", 2: "b", 3: "", 4: ""}))
    cluster = [number for number, _ in placed(run).values()]
    first, second, third = ([cluster[start:].index(number) + start for number in range(5)] for start in (0, 80, 160))
    largest = max((1, 2), key=lambda number: (cluster.count(number), -number))
    expected = {
        Answer(first[0]): 0, Answer(first[1], 1, "b"): 1, Answer(first[2], name="b"): 2, Answer(first[3], 3, "new"): 3,
        Answer(second[0], 3, "new"): 3, Answer(second[3], 0): 0, Answer(second[1], 1, "a"): 0,
        Answer(second[4], name="b"): largest, Answer(third[4], 3 - largest, "b"): 3 - largest,
        Answer(third[3], name="cluster 4"): 4,
    }  # fmt: skip
    with pytest.raises(UsageError, match="'a' and the number 1"):  # the name of its cluster, and another number
        teach(run, [Answer(first[0], 1, "a")])
    teach(run, [*expected])
    now = [*placed(run).values()]
    assert {answer: now[answer.path][0] for answer in expected} == expected and now[first[3]][1] == "new"
    apply(run, Edits(move=((third[0], 3),)))
    teach(run, [Answer(0, 4)])
    now = [number for number, _ in placed(run).values()]
    assert now[0] == now[6] == 4 and now[third[0]] == 3  # equal images go together, and a moved one stays
    apply(run, Edits(names={0: "cluster 3", 3: ""}))
    teach(run, [Answer(third[0], name="cluster 3")])  # as 3 is called, too: `ask` shows this text for both
    assert [number for number, _ in placed(run).values()][third[0]] == 3


WRONG = {
    "path,name\nkind 0/0.png,a, b,\n": "line 2",
    "path,name\nnone.png,x\n": "none.png", "path,cluster\nkind 0/0.png,5\n": "cluster 5", "path,x\na,b\n": ".csv",
    "path,cluster\nkind 0/0.png,x\n": "'x' in line 2", "path,name\nkind 0/0.png,a\nkind 0/0.png,b\n": "kind 0/0.png",
    "name\na\n": "path", "path,name\nkind 0/0.png,\n": ".csv", f"path,name\na,{'x' * 201}\n": "200",
    "path,name,drawn\nx,a,0\ny,a,maybe\n": "'maybe' in line 3",
}  # fmt: skip


def without_names(run: Run) -> tuple[Run, list[list[int]]]:
    """The run without names, and the rows of each cluster."""
    cluster = run.placement.cluster.tolist()
    groups = [[row for row in range(7, COUNT) if cluster[row] == group] for group in range(5)]
    return replace(run, model=replace(run.model, names=("",) * len(run.model.names))), groups


def test_the_first_name_said_in_a_cluster_names_it(run):
    """The commonest one; others make clusters. None does if the number is an answer."""
    nameless, (zero, one, *_) = without_names(graph_of_first(run, COUNT))
    sizes = Counter(nameless.placement.cluster.tolist())
    about = [int(question.path.rpartition("/")[2][:-4]) for question in asked(nameless, 5)[0]]
    assert [int(nameless.placement.cluster[row]) for row in about] == [group for group, _ in sizes.most_common()]
    answers = [Answer(zero[0], name="x"), *(Answer(row, name="y") for row in zero[1:3]), Answer(one[0], name="x")]
    done = taught_by(nameless, answers)
    assert done.run.model.names == ("y", "x", "", "", "") and done.lines["Names"] == "3 clusters have no name: 2, 3, 4"
    assert done.run.placement.cluster[zero[:3]].tolist() == [1, 0, 0]
    assert taught_by(done.run, [Answer(one[1], name="z")]).run.model.names == ("y", "x", "", "", "", "z")
    again = taught_by(done.run, [Answer(about[-1], name="y")]).run.model.names
    assert again.count("y") == 2 and len(again) == 5  # a kind may have two clusters
    contradicted = taught_by(nameless, [Answer(zero[0], name="x"), Answer(zero[1], 0)]).run.model
    assert contradicted.names == ("", "", "", "", "", "x")
    drawn = taught_by(nameless, [replace(answer, by="drawn") for answer in answers])
    assert drawn.run.model.names == ("y", "x", "", "", "") and "2 answers about drawn images" in drawn.lines["Answers"]
    assert drawn.run.model.drawn.keys() == {zero[0], zero[2]}  # the first with the name teaches
    both = taught_by(nameless, [answers[0], replace(answers[1], by="drawn"), *answers[2:]])
    assert both.run.model.drawn.keys() == {zero[1]}  # another answer has named the cluster


def test_the_page_numbers_its_new_clusters(run):
    """A number that no cluster has is an answer of the page alone."""
    untaught = graph_of_first(run, COUNT)
    numbers = {7: 5, 8: 6}
    taught = taught_by(untaught, [Answer(row, number, may_be_new=True) for row, number in numbers.items()])
    assert {row: int(taught.run.placement.cluster[row]) for row in numbers} == numbers
    for wrong in ([Answer(7, 5)], [Answer(7, 6, may_be_new=True)]):  # the next new number is 5
        with pytest.raises(UsageError, match="no cluster"):
            taught_by(untaught, wrong)


def test_a_new_cluster_gets_a_number_that_no_other_one_ever_had(run):
    apply(run, Edits(merge=((0, 4),)))
    merged = read_run(open_run(run))
    taught = taught_by(merged, [Answer(7, name="new")]).run
    assert int(taught.placement.cluster[7]) == 5 and taught.model.names[4:] == ("", "new")
    with pytest.raises(UsageError, match="no cluster 4"):
        taught_by(merged, [Answer(7, 4, may_be_new=True)])


def test_answers_that_cannot_be_used_are_named_and_change_nothing(run, tmp_path, ends, monkeypatch):
    before = same_files(run, CLUSTERS)
    for text, words in WRONG.items():
        (tmp_path / "answers.csv").write_text(text)
        assert words in ends(["teach", run, tmp_path / "answers.csv"], 2)
    with monkeypatch.context() as patch:
        patch.setattr(teaching, "MAX_NEW", 1)
        with pytest.raises(UsageError):
            teach(run, [Answer(1, name="a"), Answer(2, name="b")])
    assert "none.csv" in ends(["teach", run, "none.csv"], 2) and ends(["teach", run], 2)
    assert same_files(run, CLUSTERS) == before


def test_junk_and_clusters_of_answers_that_agree_stay(run):
    apply(run, Edits(junk=(3,)))
    made = teach(run, [Answer(one.path, name=one.now) for one in ask(run, 24)])
    assert made.to_json()["changed"] < 0.05 * COUNT and len({*placed(run).values()}) == 5
    assert load(run).junk == (3,)


def test_answers_survive_an_update_and_a_recut_and_count_again(run, tmp_path, prints):
    teach(run, said(run, 30))
    answers, paths = load(run).placed, [*placed(run)]
    np.save(tmp_path / "more.npy", np.eye(12, dtype=np.float32)[:KINDS] * 2)
    prints("update", run, tmp_path / "more.npy", "-q")
    assert load(run).placed == answers and len(ask(run, 1000)) == COUNT - 1 - len(answers)
    added = [name for path, (_, name) in placed(run).items() if path not in paths]
    assert added == [kind(row) for row in range(KINDS)] and state_of(run)
    out = " ".join(prints("recut", run, "-k", "7").split())
    assert f"{len(answers)} of {len(answers)} answers kept" in out and load(run).placed == answers
    assert all(placed(run)[paths[row]][1] == kind(row) for row in answers) and "images kept their name." in out
    share = right(run)
    teach(run)
    assert right(run) >= share - 0.02 and load(run).placed == answers and state_of(run)


def test_only_answers_about_images_drawn_at_random_tell_the_quality(run):
    """It is there from ten of them on, after each change, and begins anew when a cluster is split."""
    before = placed(run)
    teach(run, said(run, 10))
    assert result(run)["quality"] is None
    undo(run)
    answers = said(run, 40, drawn=True)
    teach(run, answers[:9])
    assert result(run)["quality"] == {"drawn": 9, "needed": 10} and "9 of 10 drawn" in report(run).read_text()
    teach(run, answers[9:])
    now, quality = placed(run), result(run)["quality"]
    paths = {answer.path for answer in answers}
    assert all(now[path][1] == path.partition("/")[0] if path in paths else now[path] == before[path] for path in now)
    assert quality["drawn"] == 40 and quality["right"] == sum(before[one.path][1] == one.name for one in answers)
    assert quality["low"] < right(run) < quality["high"]
    teach(run, said(run, 30))
    taught = load(run)
    assert result(run)["quality"]["low"] < right(run) <= result(run)["quality"]["high"]
    for change in (lambda: recut(run, 6), lambda: apply(run, Edits(merge=((0, 1),)))):
        change()
        assert len(load(run).drawn) in (0, len(taught.drawn))  # a part would be no sample
        undo(run)
        assert load(run).drawn == taught.drawn
    apply(run, Edits(split=((0, 2),)))
    assert load(run).drawn == {} and result(run)["quality"] is None


@pytest.mark.parametrize("inside", [COUNT, 150])
def test_drawn_images_are_judged_by_their_clusters_without_their_answers(run, inside):
    """Of the drawn images some or all are in the graph."""
    untaught = graph_of_first(run, inside)
    before = untaught.placement.cluster
    names = untaught.model.names
    wrong = [row for row in range(160, 240) if names[before[row]] != kind(row)][:8]
    drawn = [*wrong, *range(70, 102)]
    for portion in (5, 40):
        taught = untaught
        for begin in range(0, 40, portion):
            taught = taught_by(taught, true(drawn[begin : begin + portion], by="drawn")).run
        assert taught.model.drawn == {row: int(before[row]) for row in drawn}
        assert {*torch.nonzero(taught.placement.cluster != before).flatten().tolist()} <= {*drawn}
    third = next(kind(row) for row in range(KINDS) if kind(row) not in (names[before[wrong[0]]], kind(wrong[0])))
    again = taught_by(taught, [Answer(wrong[0], name=third, by="drawn"), *true(drawn[1:2])]).run
    assert again.model.drawn.keys() == {*drawn} - {drawn[1]}  # an answer without the mark teaches
    assert names[again.placement.cluster[wrong[0]]] == third


def shown(run: Run, count: int) -> list[tuple[str, str]]:
    return [(one.path, one.name) for one in asked(run, count)[0]]


def test_drawn_images_neither_teach_nor_count_by_their_own_answers():
    """Fifteen of twenty images are said to be of another kind, which the five others do not hear."""
    untaught = three_kinds(0, 0.05)
    drawn, others = [*range(0, 45, 3)], [row for row in range(60) if row % 3 or row >= 45]
    said_b = taught_by(untaught, [Answer(row, name="b", by="drawn") for row in drawn]).run
    questions_then = shown(said_b, 60)
    assert [path for path, _ in questions_then] == [path for path, _ in shown(untaught, 60)]
    assert {path: name for path, name in questions_then if name} == dict.fromkeys(map(str, drawn), "b")
    taught = taught_by(said_b, true_of_three([2])).run
    for run in (said_b, taught):
        assert run.placement.cluster[others].tolist() == [row % 3 for row in others]
        assert run.model.drawn == dict.fromkeys(drawn, 0) and {*run.placement.cluster[drawn].tolist()} == {1}
    changed = taught_by(taught, [Answer(57, name="c")]).run  # b keeps its centroids, and those of the answers
    assert 1 not in changed.model.drawn.values() and len(changed.model.drawn) == 15
    assert estimated_quality(changed.model, changed.placement.cluster, 60)["right"] == 0


def three_kinds(seed: int, noise: float = 0.5, names: tuple[str, ...] = ("a", "b", "c")) -> Run:
    """Sixty images of three kinds in turn, which may overlap; three clusters, named after them if not otherwise."""
    points = torch.nn.functional.normalize(noise * normal(60, 4, seed) + torch.eye(3, 4).repeat(20, 1))
    model = replace(tiny_model(names), cut=Cut(torch.eye(3, 4), torch.arange(3)))
    return run_of(model, points)


def true_of_three(rows: Sequence[int], **options: str) -> list[Answer]:
    return [Answer(row, name="abc"[row % 3], **options) for row in rows]


def test_the_estimate_is_near_the_truth_if_drawn_images_name_the_clusters():
    """In ten runs, of which .87 to .98 are right. While a cluster has no name there is none."""
    errors = []
    for seed in range(10):
        untaught = three_kinds(seed, 0.4, ("", "", ""))
        drawn = [int(one.path) for one in asked(untaught, 24)[1]]
        taught = taught_by(untaught, true_of_three(drawn, by="drawn")).run
        quality = estimated_quality(taught.model, taught.placement.cluster, 60)
        assert taught.model.names == ("a", "b", "c") and quality["drawn"] == 21
        errors.append(quality["share"] - np.mean([name == "abc"[row % 3] for row, name in enumerate(taught.names)]))
    assert abs(np.mean(errors)) < 0.02 and np.std(errors) < 0.05
    in_two = [row for row in range(60) if untaught.placement.cluster[row]][:24]
    two_named = taught_by(untaught, true_of_three(in_two, by="drawn"))
    assert two_named.lines["Quality"] == "Right: not known until all clusters have names"
    assert "share" in estimated_quality(replace(two_named.run.model, junk=(0,)), two_named.run.placement.cluster, 60)


@pytest.mark.parametrize(("names", "count"), [(("cluster 1", "", ""), 3), (("", "cluster 0", ""), 2)])
def test_a_name_like_that_of_a_nameless_cluster_keeps_its_answers_in_a_recut(names, count):
    taught = taught_by(three_kinds(0, 0.4, names), [Answer(row, names.index(max(names))) for row in range(9)]).run
    assert {*cut_anew(taught, count, RECIPE, Silent()).run.names[:9]} == {max(names)}


def test_a_lesson_after_many_answers_takes_no_quadratic_work():
    few, count = three_kinds(0), 40_000
    points = few.rows.reduced.repeat(-(-count // 60), 1)[:count]
    many, begin = run_of(few.model, points), time.process_time()
    taught = taught_by(many, [Answer(row, number) for row, number in enumerate(many.placement.cluster.tolist())]).run
    middle = time.process_time()
    taught_by(taught, [Answer(0, 0)])
    assert time.process_time() - middle < 3 * (middle - begin)  # with quadratic work ten times as long


def test_an_answer_about_an_image_outside_the_graph_moves_no_other(run):
    untaught = graph_of_first(run, 150)
    cluster = untaught.placement.cluster
    row = next(int(row) for row in torch.nonzero(cluster == 0).flatten() if row >= 150)
    done = taught_by(untaught, [Answer(row, 1)])
    assert preview(untaught, done.run) == {(0, 1): 1} and done.run.placement.cluster[row] == 1
    assert taught_by(done.run, [Answer(row, 1, by="drawn")]).run.model.drawn == {row: 0}  # marked later


def test_answers_about_equal_images_that_contradict_each_other(run):
    """The last one counts, and the other one teaches nobody."""
    untaught = graph_of_first(run, COUNT)
    both = taught_by(untaught, [Answer(0, 3, by="drawn"), Answer(6, 0)])
    alone = taught_by(untaught, [Answer(6, 0)])
    assert both.run.model.said == (Said(6, "answer"),)
    assert untaught.rows.paths[0] in both.lines["Answers"]
    assert both.run.placement.cluster.equal(alone.run.placement.cluster) and both.run.placement.cluster[0] == 0
    older = taught_by(taught_by(untaught, [Answer(0, 3, by="drawn")]).run, [Answer(6, 0, by="drawn")]).run.model
    assert [*older.placed] == [*older.drawn] == [6]


MARKS = {"1": 1, "1.0": 1, "TRUE": 1, "yes": 1, " x ": 1, "": 0, "0": 0, "0.0": 0, "False": 0, "no": 0}


def test_a_table_answers_by_its_filled_rows_alone(run, tmp_path, prints, ends):
    prints("ask", run, "-n", 5, "-o", tmp_path / "a.csv")
    assert "name" in ends(["teach", run, tmp_path / "a.csv"], 2)
    table = pd.read_csv(tmp_path / "a.csv", dtype=str, keep_default_na=False)
    table.loc[1, "name"] = table["now"][1]
    table.to_csv(tmp_path / "a.csv", index=False)
    assert "4 rows of a.csv" in " ".join(prints("teach", run, tmp_path / "a.csv").split())
    assert len(load(run).said) == 1
    apply(run, Edits(names={0: ""}))
    asked = json.loads(prints("ask", run, "-n", 40, "--json", "-o", tmp_path / "b.csv"))
    assert {"cluster 0"} < {one["now"] for one in asked} and {one["name"] for one in asked} == {""}
    assert [[*row] for row in (asked[0], rows(tmp_path / "b.csv")[0])] == [[*teaching.COLUMNS]] * 2
    excel = (tmp_path / "b.csv").read_bytes()
    assert excel.startswith(b"\xef\xbb\xbfpath,") and not prints("ask", run, "-n", 1).startswith("\ufeff")
    # As a spreadsheet stores it where commas are decimal, as Unicode, and as Windows' text.
    for encoding, delimiter in (("utf-8-sig", ";"), ("utf-16", "\t"), ("cp1252", ";")):
        lines = [*csv.reader(excel.decode("utf-8-sig").splitlines())]
        lines[1][2] = "Käfer, groß"
        (tmp_path / "c.csv").write_text("\n".join(map(delimiter.join, lines)), encoding)
        assert [(one.path, one.name) for one in read_answers(tmp_path / "c.csv")] == [(lines[1][0], "Käfer, groß")]
    assert rows_of(["K\udce4fer.png"], ["a.png", "Käfer.png"]) == [1]
    for mark, means in MARKS.items():
        (tmp_path / "a.csv").write_text(f"path,cluster,name,drawn\na,1,,{mark}\n")
        assert read_answers(tmp_path / "a.csv") == [Answer("a", 1, by="drawn" if means else "answer")]


def test_labels_of_some_images_are_answers_in_python(made, tmp_path):
    features, truth = np.load(made / "f.npy"), np.arange(COUNT) % KINDS
    fit = partial(deepcopy, DeepCluster(n_clusters=KINDS).fit(features))
    labels = np.where(np.arange(COUNT) < 30, truth, -1)
    unknown = (-1, None, np.nan)
    mixed = [float(x) if x >= 0 else unknown[i % 3] for i, x in enumerate(labels)]
    for y in (labels.astype(str), mixed, pd.Series(labels)):
        dc = fit().teach(y)
        assert (dc.place()["name"] == truth.astype(str)).mean() > 0.9 and dc.n_clusters_ == KINDS
    halves = np.arange(COUNT) * 2 // COUNT
    other = fit().teach(halves)
    assert {*other.names_[other.labels_]} == {"0", "1"}
    untaught = fit()
    for y, words in (
        (labels[1:], "239 .*240"), (["a\nb"] * COUNT, "printable"), (["x" * 201] * COUNT, "200"),
        ([-1] * COUNT, "answers"), ("a.csv", "str"), (truth + 0.5, r"0\.5 .*whole"), (truth - 3, "-3 .*whole"),
        ([np.inf] * COUNT, "inf .*whole"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            untaught.teach(y)
    assert (untaught.labels_ == fit().labels_).all() and {*untaught.names_} == {""}
    dc = fit()
    one, other = dc.ask(2)
    assert one.now == f"cluster {dc.labels_[int(one.path)]}" and one.name == "" and dc.quality_ is None
    dc.teach({one.path: "owl", int(other.path): 2}, drawn=[int(other.path)])
    assert dc.place()["name"][int(one.path)] == "owl" and dc.labels_[int(other.path)] == 2
    assert dc.quality_["drawn"] == 1 and (dc.predict(features) == dc.labels_).all()
    dc.teach(pd.Series({Path(other.path): "owl"}))
    assert dc.place()["name"][int(other.path)] == "owl"
    for wrong in ({0: -1}, {0: 2.5}, {0: None}, {0: False}, {0: "a\nb"}, {0.5: "a"}, ["a"]):
        with pytest.raises(UsageError):
            dc.teach(wrong)
    alone = DeepCluster(n_clusters=1).fit(features[:1], run=tmp_path / "one")
    assert [question.path for question in alone.ask(3)] == ["0"]
    assert alone.teach({0: "only"}).place()["name"].tolist() == ["only"] and alone.n_clusters_ == 1
