"""Edits: read with suspicion, applied exactly, and carried over to another cut where a cluster lives on; such a cut."""

import csv
import json
import shutil
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deepcluster.clustering.kmeans import kmeans
from deepcluster.commands.cli import run_command
from deepcluster.errors import UsageError
from deepcluster.fitting.like import Former, continued
from deepcluster.groups import graph
from deepcluster.groups.cut import Cut, as_clusters, pinned, placement_of
from deepcluster.groups.tree import parts_of, split_cluster
from deepcluster.model import Model, Said
from deepcluster.recipes.options import Recipe
from deepcluster.runs.apply import applied, apply
from deepcluster.runs.change import undo
from deepcluster.runs.inherit import heirs, lost, past_of, taught_again
from deepcluster.runs.recut import cut_anew, recut
from deepcluster.runs.update import update
from deepcluster.runtime.console import Silent
from deepcluster.storage import model_files as models
from deepcluster.storage.content import CLUSTERS
from deepcluster.storage.edits_file import Edits, read_edits
from deepcluster.storage.former import name_of
from deepcluster.storage.model_files import LAYOUTS_FILE, load
from tests.helpers.runs import contents, model_digest, result, rows, same_files, without_page
from tests.helpers.tiny import change_tensors, run_of, tiny_model

# What a fit writes, and no change.
TRUTHS = ("run.json", "recipe.toml", "images.csv", "features.npy", "residuals.npy", "model/config.json")
TRUTHS += ("model/model.safetensors",)


def written(folder: Path, **table: object) -> Path:
    path = folder / "edits.json"
    path.write_text(json.dumps({"schema_version": 1, **table}))
    return path


def moving(model: Model, reduced: torch.Tensor | None = None, **changes: Any) -> Model:
    """``model`` with edits, of a run whose images are its centroids, or have these features."""
    reduced = model.cut.centroids if reduced is None else reduced
    return applied(run_of(model, reduced, [f"{row}.png" for row in range(len(reduced))]), Edits(**changes)).run.model


@pytest.mark.parametrize(
    ("changes", "clusters", "names", "junk"),
    [  # rows of groups 0 1 2 0, named a, b and "", of which 0 and 2 are junk
        ({}, [0, 1, 2, 0], ("a", "b", ""), (0, 2)),
        ({"merge": ((2, 0),), "names": {1: ""}}, [2, 1, 2, 2], ("", "", "a"), (2,)),
        ({"merge": ((0, 2),)}, [0, 1, 0, 0], ("a", "b", ""), (0,)),  # 2, the last number, is never given again
        ({"junk": (1,)}, [0, 1, 2, 0], ("a", "b", ""), (1,)),
        ({"move": ((1, 2), ("3.png", 3)), "names": {3: "new"}, "junk": (3,)}, [0, 2, 2, 3], ("a", "", "", "new"), (3,)),
        ({"merge": ((1, 2),), "move": ((0, 1),)}, [1, 1, 1, 0], ("a", "b", ""), (0,)),
        ({"move": ((2, 0),)}, [0, 1, 0, 0], ("a", "b", ""), (0,)),
        ({"split": ((0, 2),), "names": {0: "x"}}, [0, 1, 2, 3], ("x", "b", "", "a (2)"), (0, 2)),
        ({"move": ((0, 4), (1, 3), (2, 4), (3, 3)), "names": {3: "x"}}, [4, 3, 4, 3], ("", "", "", "x", ""), ()),
    ],
)
def test_edits_by_hand(changes, clusters, names, junk):
    model = replace(tiny_model(names=("a", "b", "")), junk=(0, 2))
    changed = moving(model, **changes)
    assert changed.placement(model.cut.centroids).cluster.tolist() == clusters
    assert (changed.names, changed.junk) == (names, junk)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": {7: "x"}}, "7: .* 0, 1, 2"),
        ({"junk": (5,)}, "cluster 5"),
        ({"merge": ((0, 1), (1, 2))}, "cluster 1"),
        ({"merge": ((0, 1),), "names": {1: "x"}}, "cluster 1"),
        ({"move": ((4, 0),)}, "row 4.* 0 .*3"),
        ({"move": (("x.png", 0),)}, "'x.png'"),
        ({"move": ((1, 0), ("1.png", 2))}, r"row 1 \('1.png'\)"),
        ({"move": ((1, 2000),)}, "2000: .*0, 1, 2.* 3 to 1002"),
        ({"move": ((1, 2),), "merge": ((0, 2),)}, "cluster 2"),
        ({"split": ((7, 2),)}, "cluster 7"),
        ({"split": ((0, 3),)}, "cluster 0 .*2 .*3"),
        ({"split": ((1, 2),)}, "cluster 1 .*1 .* 2"),
        ({"split": ((0, 2), (0, 2))}, "cluster"),
    ],
)
def test_edits_that_do_not_fit(changes, message):
    with pytest.raises(UsageError, match=message):
        moving(tiny_model(names=("", "", "")), **changes)


def test_a_cluster_that_all_images_have_left_is_gone_with_its_number():
    """Its centroid is none of the images."""
    model = tiny_model(names=("a", "b", "c"))
    rows = 0.9 * model.cut.centroids
    changed = moving(model, rows, move=((1, 2),))
    assert changed.placement(rows).cluster.tolist() == [0, 2, 2, 0]
    assert set(changed.cut.cluster_of.tolist()) == {0, 2} and changed.names == ("a", "", "c")
    with pytest.raises(UsageError, match=r"1: .* 0, 2, .* 3 to 1002"):
        moving(changed, names={1: "x"})
    split = moving(moving(model, rows, move=((2, 0),)), rows, split=((0, 2),))
    assert {*split.cut.cluster_of.tolist()} == {0, 1, 3}  # 2 was given
    without_b = rows[[0, 2, 3]]  # no image is in b before the move, as some cluster of a recut
    assert {*moving(model, without_b, move=((2, 2),)).cut.cluster_of.tolist()} == {0, 2}


def test_a_move_is_the_last_answer_about_an_image() -> None:
    """Also if the image stays. A drawn one is judged by the cluster without its answer, which a merge renumbers."""
    drawn, moved = (Said(0, "drawn", 1), Said(1, "drawn", 0)), (Said(3, "answer"),)
    model = replace(tiny_model(names=("a", "b", "")), said=drawn + moved)
    assert moving(model, move=((0, 0), (2, 2))).said == (drawn[1], *moved, Said(0, "answer"), Said(2, "answer"))
    assert moving(model, merge=((2, 1),)).said == (Said(0, "drawn", 2), drawn[1], *moved)
    # The answers were about the whole cluster, and teach from now on.
    assert {one.by for one in moving(model, split=((0, 2),)).said} == {"answer"}
    assert moving(model, checked=(0, 2)).said == (*drawn, *moved, Said(2, "checked"))  # others have a word already


def test_millions_of_numbers_take_no_quadratic_work():
    """The 4 MB that are read hold two million numbers: a comparison of each pair would take an hour."""
    count = 30_000
    begin = time.process_time()
    with pytest.raises(UsageError, match="cluster 0"):
        moving(tiny_model(names=("",) * count), merge=((*range(count), 0),))
    before = torch.arange(count).repeat(3)
    heir = heirs(before, (before + 1) % count, mutual=True)
    assert (heir[0], heir[count - 1]) == (1, 0)
    assert time.process_time() - begin < 20


ROWS = torch.nn.functional.normalize(torch.randn(30, 4, generator=torch.Generator().manual_seed(0)))
WAYS = ["merge", "split", "move", "like", "recut"]
STEPS = st.lists(st.sampled_from(WAYS), min_size=8, max_size=16)


@settings(max_examples=10)
@given(STEPS, st.integers(0, 1 << 32))
@example(["move", "split", "split", "split", "like", "recut", "merge"], 77533)
def test_a_number_is_never_given_twice(ways: list[str], seed: int) -> None:
    """The walks of test_change have undo and redo, too."""
    random = Random(seed)
    model = tiny_model(("",) * 4, cut=as_clusters(kmeans(ROWS, 4)))
    present = ever = {*range(4)}
    for step in ways:
        free, pair = len(model.names), random.sample(sorted(present), min(2, len(present)))
        target = random.choice([pair[0], free - 1, free, free + 1])
        moves = tuple((row, target) for row in random.sample(range(30), random.choice([1, 9, 30])))
        edits: dict[str, Any] = {"merge": (tuple(pair),), "split": ((pair[0], 2),), "move": moves}
        count = 0
        with suppress(UsageError):  # a cluster of one part, a number that was given, or a recut into too few
            if step == "like":
                new = replace(model, names=("",) * 5, cut=as_clusters(kmeans(ROWS, random.randrange(1, 6), seed=1)))
                former = Former(Path("old"), run_of(model, ROWS), [], 16)
                model = continued(run_of(new, ROWS), former, torch.arange(30))[0].model
            elif step == "recut":
                count = random.randrange(1, 6)
                model = cut_anew(run_of(model, ROWS), count, Recipe(), Silent()).run.model
            else:
                model = moving(model, ROWS, **{step: edits[step]})
        now_present = {*model.cut.cluster_of.tolist()}
        first = {*range(count)}  # of a recut, and moved images may leave some empty
        assert not (now_present - present - first) & ever
        present, ever = now_present, ever | now_present


def test_a_split_by_hand() -> None:
    # Seven centroids on a line, in two groups; the three of group 0 have 5, 1 and 4 images.
    points = torch.tensor([[0.0], [1.0], [5.0], [20.0], [21.0], [22.0], [0.9]])
    groups = Cut(points, torch.tensor([0, 0, 0, 1, 1, 1, 0]))
    parts = parts_of(groups, torch.tensor([5, 1, 4, 1, 1, 1, 0]), 0)
    # 0.9, without an image, is with 1.
    assert parts.of_centroid.tolist() == [0, 1, 2, -1, -1, -1, 1] and parts.sizes == (5, 1, 4)
    for count, expected in ((2, [0, 0, 2, 1, 1, 1, 0]), (3, [0, 3, 2, 1, 1, 1, 3])):
        divided = split_cluster(groups, parts, count, 2)
        assert divided.cluster_of.tolist() == expected and torch.equal(divided.centroids, points)


def test_moved_rows_are_where_they_should_be_and_the_others_stay() -> None:
    random = torch.Generator().manual_seed(1)
    rows = torch.nn.functional.normalize(torch.randn(400, 6, generator=random))
    groups = Cut(torch.randn(20, 6, generator=random), torch.arange(20) % 4)
    before = placement_of(rows, groups, rows[:1])
    placed = before.cluster
    wanted = placed.clone()
    wanted[100:160] = torch.randint(6, (60,), generator=random)  # some of them in groups that are new
    moved = pinned(rows, groups, wanted, before)
    after = placement_of(rows, moved, rows[:1])
    assert torch.equal(after.cluster, wanted)
    # Moved again, and back.
    again = pinned(rows, moved, placed, after)
    assert torch.equal(placement_of(rows, again, rows[:1]).cluster, placed)
    assert torch.equal(pinned(rows, groups, placed, before).cluster_of, groups.cluster_of)  # nothing to do
    # An image that equals a moved one goes with it.
    rows = torch.tensor([[0.0, 1.0], [0.6, 0.8], [0.6, 0.8], [1.0, 0.0]])
    two = Cut(rows[[0, 3]], torch.tensor([0, 1]))
    equal = pinned(rows, two, torch.tensor([0, 1, 0, 1]), placement_of(rows, two, rows[:1]))
    assert placement_of(rows, equal, rows[:1]).cluster.tolist() == [0, 1, 1, 1]


def test_places_in_a_cut_follow_from_those_in_another_bit_for_bit() -> None:
    random = torch.Generator().manual_seed(2)
    rows = torch.nn.functional.normalize(torch.randn(300, 5, generator=random))
    cut = Cut(torch.cat([rows[:20], rows[:2], torch.randn(18, 5, generator=random)]), torch.arange(40) % 6)
    places = placement_of(rows, cut, rows[:3])
    for staying, new in ((40, 0), (40, 1), (40, 7), (33, 0), (33, 20), (5, 2), (1, 0), (0, 3), (30, 10)):
        stays = torch.randperm(len(cut.centroids), generator=random)[:staying]
        added = rows[torch.randint(300, (new,), generator=random)]
        numbers = torch.cat([cut.cluster_of[stays], torch.randint(8, (new,), generator=random)])
        numbers = numbers.where(torch.tensor(staying != 33) | (numbers != 1), 2)  # two are merged
        former, cut = cut, Cut(torch.cat([cut.centroids[stays], added]), numbers)
        wanted, places = placement_of(rows, cut, rows[:3]), placement_of(rows, cut, rows[:3], (former, places))
        for name, values in vars(places).items():
            assert name == "rival" or torch.equal(values, vars(wanted)[name]), (name, staying, new)


def test_every_edit_counts_in_the_digest() -> None:
    edits = Edits("c", {1: "a"}, ((0, 2),), (1,))
    others = {"cut": "d", "names": {1: "b"}, "merge": (), "junk": None, "move": ((0, 1),), "split": ((0, 2),)}
    others["checked"] = (1,)
    changed = {replace(edits, **{name: value}).digest for name, value in others.items()}
    assert len({edits.digest, replace(edits).digest, *changed}) == 8


NO_NAMES = ("[]", '{"-1": "a"}', '{"01": "a"}', '{"1": 2}', '{"\u0661": "a"}', '{"1": "a\\nb"}', '{"1": "\\ud800"}')
NO_EDITS = {
    "colour": ("3",),
    "cut": ("3",),
    "names": (*NO_NAMES, '{"1": "%s"}' % ("a" * 201), '{"1": "a", "1": "b"}'),
    "merge": ("[3]", "[[]]", "[[1, true]]"),
    "junk": ("[-1]",),
    "checked": ("[-1]", "3"),
    "move": ("[[1]]", "[[1, -1]]", "[[true, 1]]"),
    "split": ("[[1, 1]]", "[[1, 13]]"),
}


@pytest.mark.parametrize("name", NO_EDITS)
def test_a_file_that_is_no_edits_is_named(name, tmp_path):
    texts = [f'{{"schema_version": 1, "{name}": {value}}}' for value in NO_EDITS[name]]
    for text in ("{}", *(f'{{"schema_version": {version}}}' for version in ("2", "true", "1.0")), *texts):
        (tmp_path / "edits.json").write_text(text)
        with pytest.raises(UsageError, match=r"edits\.json"):
            read_edits(tmp_path / "edits.json")
    (tmp_path / "edits.json").write_text('{"version": 1}')
    with pytest.raises(UsageError, match=r'edits\.json.*"schema_version": 1'):
        read_edits(tmp_path / "edits.json")


def test_names_may_have_joiners(tmp_path):
    """Persian, Hindi and a family of emoji; a joiner alone is no name."""
    joined = ("\u0645\u06cc\u200c\u0631\u0648\u062f", "\u0915\u094d\u200d\u0937", "\U0001f468\u200d\U0001f467")
    names = {str(number): name for number, name in enumerate([*joined, " \u200d "])}
    assert [*read_edits(written(tmp_path, names=names)).names.values()] == [*joined, ""]


def test_clusters_that_continue_by_hand():
    model = moving(tiny_model(names=("a", "b", "c")), junk=(2,))
    before = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
    after = torch.tensor([3, 3, 3, 1, 0, 0, 1, 1, 2, 2, 2])  # a goes on as 3, b falls into halves, c stays
    heir = heirs(before, after, mutual=True)
    assert heir == {0: 3, 2: 2}
    model = replace(
        model, said=tuple(Said(row, "answer") for row in (0, 8, 10)), cut=Cut(torch.eye(4), torch.arange(4))
    )
    past = past_of(run_of(model, torch.eye(4)[before]))
    assert lost(past, heir) == [1] and [*past.placed] == [0, 8, 10]
    cut_anew = run_of(replace(model, cut=Cut(torch.eye(4), torch.arange(4)), names=("",) * 4), torch.eye(4)[after])
    new = taught_again(cut_anew, past, heir)
    assert (new.names, new.junk, new.said) == (("", "", "c", "a"), (2,), model.said)
    swallowed = torch.zeros(11, dtype=torch.int64)  # all in one: none is more than half of it
    assert heirs(before, swallowed, mutual=True) == {}
    assert heirs(before, swallowed, mutual=False) == {0: 0}  # of two that are equal the first goes on


def test_apply_changes_names_numbers_stay_and_predict_knows(five_clusters, photos, tmp_path, prints, ends):
    before, cut = rows(five_clusters / "clusters.csv"), result(five_clusters)["cut"]
    path = written(tmp_path, cut=cut, names={"1": "=stripes", "2": "dots"}, merge=[[1, 3]], junk=[2])
    prints("apply", five_clusters, path)
    after = rows(five_clusters / "clusters.csv")
    assert [row["cluster"] for row in after] == [row["cluster"].replace("3", "1") for row in before]
    assert {row["name"] for row in after if row["cluster"] == "1"} == {"'=stripes"}
    summary = rows(five_clusters / "cluster_summary.csv")
    assert [(row["cluster"], row["junk"]) for row in summary] == [("0", "0"), ("1", "0"), ("2", "1"), ("4", "0")]
    assert {row["nearest_cluster"] for row in summary} <= {"0", "1", "2", "4"}
    assert sum(int(row["size"]) for row in summary) == len(before)
    now = result(five_clusters)
    assert now["clusters"] == now["cut_k"] == 4 and now["cut"] != cut
    assert "=stripes" in (five_clusters / "report.html").read_text()

    given = list(csv.DictReader(prints("predict", five_clusters, photos).splitlines()))
    assert given == [{name: row[name] for name in given[0]} for row in after]

    files_after = contents(five_clusters)
    prints("apply", five_clusters, path)  # as after a kill: they are applied already
    assert contents(five_clusters) == files_after
    path.write_text(path.read_text().replace("stripes", "bars"))
    ends(["apply", five_clusters, path], 2)  # made for the clusters before


def test_the_last_edits_are_taken_back_and_one_file_changes(five_clusters, tmp_path, prints, ends):
    def same() -> dict[str, object]:
        views = ("clusters.csv", "cluster_summary.csv", "tree.json", "metrics.json")
        return {name: (five_clusters / name).read_bytes() for name in views} | {"digest": model_digest(five_clusters)}

    first, truths = same(), {name: (five_clusters / name).stat().st_mtime_ns for name in TRUTHS}
    apply(five_clusters, read_edits(written(tmp_path, names={"0": "a", "1": "b"}, junk=[1])))
    once, state = same(), (five_clusters / CLUSTERS).read_bytes()
    assert once["metrics.json"] == first["metrics.json"]  # names change no figure
    edits = written(tmp_path, merge=[[1, 3]], move=[[0, 600]], names={"600": "c"})
    prints("apply", five_clusters, edits)
    assert rows(five_clusters / "clusters.csv")[0]["cluster"] == "600" and same() != once
    assert '"parts":{' in (five_clusters / "report.html").read_text()  # there are few clusters, whatever their numbers
    prints("apply", five_clusters, "--undo")
    # Number 600 was given, and is not given again.
    assert same() == once and (five_clusters / CLUSTERS).read_bytes() == state
    assert '"next":601,' in (five_clusters / "report.html").read_text()
    assert "601" in ends(["apply", five_clusters, edits], 2)
    ends(["apply", five_clusters, "--undo", "2"], 2)
    # A recut keeps the kinds, and can be taken back.
    before = contents(five_clusters)
    assert "2 clusters have names or answers" in ends(["recut", five_clusters, "-k", "1"], 2)
    assert contents(five_clusters) == before
    assert "--undo" in prints("recut", five_clusters, "-k", "2")
    assert {row["name"] for row in rows(five_clusters / "cluster_summary.csv")} == {"a", "b"}
    prints("apply", five_clusters, "--undo")
    assert same() == once
    # Names that came over from an earlier cut, too.
    apply(five_clusters, Edits("", {number: f"name {number}" for number in range(5)}, (), (0,)))
    recut(five_clusters, 5)
    assert models.load(five_clusters).junk == (0,)
    prints("apply", five_clusters, "--undo", "all")
    assert same() == first
    ends(["apply", five_clusters, "--undo"], 2)
    assert {name: (five_clusters / name).stat().st_mtime_ns for name in TRUTHS} == truths


def test_the_first_result_outlives_the_states_between(five_clusters, monkeypatch, prints, ends):
    monkeypatch.setattr("deepcluster.storage.former.MAX_STATES", 3)
    for name in "abcde":
        apply(five_clusters, Edits("", {0: name}))
    ends(["apply", five_clusters, "--undo", "4"], 2)
    for steps, name, undone in (("2", "c", "1 name: e; 1 name: d"), ("1", "", "1 name: c")):
        assert undone in prints("apply", five_clusters, "--undo", steps)
        assert models.load(five_clusters).names[0] == name
    ends(["apply", five_clusters, "--undo"], 2)


def test_a_damaged_former_state_is_named(five_clusters, tmp_path, ends):
    apply(five_clusters, read_edits(written(tmp_path, names={"0": "a"})))
    path = five_clusters / name_of(0)
    whole = path.read_bytes()
    path.unlink()  # a link to the clusters of before
    for bad in (b"", whole[:-9], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(bad)
        assert path.name in ends(["apply", five_clusters, "--undo"], 5)
    path.write_bytes(whole)
    change_tensors(five_clusters / "model", f"../{name_of(0)}", centroids=lambda value: value[:, 1:].contiguous())
    assert path.name in ends(["apply", five_clusters, "--undo"], 5)


# ---- another number of groups: cut from embeddings that the run has kept, with names and moves of groups that stay ---


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 400 features in eight groups."""
    folder = tmp_path_factory.mktemp("many")
    random = np.random.default_rng(0)
    features = np.eye(8)[np.arange(400) % 8] * 2 + random.normal(0, 0.15, (400, 8))
    np.save(folder / "features.npy", features.astype(np.float32))
    fit = ["fit", folder / "features.npy", "--features", "-o", folder / "run", "-k", "4", "--seed", "3", "-q"]
    assert run_command([str(word) for word in fit]) == 0
    return without_page(folder / "run")


@pytest.fixture
def run(many: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(many, tmp_path / "run"))


def recut_without_embedding(run: Path, number: int | None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "graph_layouts", lambda *_: pytest.fail("it is computed again"))
        recut(run, number)


def test_another_number_is_one_k_means_and_the_same_as_without_the_file(run: Path) -> None:
    without = Path(shutil.copytree(run, run.parent / "other" / "run"))
    (without / LAYOUTS_FILE).unlink()
    recut(without, 8)
    recut_without_embedding(run, 8)
    assert same_files(run, "tree.json", LAYOUTS_FILE) == same_files(without, "tree.json", LAYOUTS_FILE)
    recut(run, None)  # computes that of the candidates, because the fit asked for no guess
    assert result(run)["candidates"][0]["k"] == 8
    recut_without_embedding(run, None)


def test_many_nouns_of_a_run_raise_its_guess(run: Path) -> None:
    lines = (f"{i},noun {i},0.1\n" for i in range(127))
    (run / "nouns.csv").write_text("".join(["path,noun,probability\n", *lines]))
    recut(run, None)
    assert result(run)["candidates"][0]["k"] == 16


def test_embeddings_serve_the_images_of_the_fit_and_no_others(run: Path, tmp_path: Path) -> None:
    more = np.eye(8)[np.arange(30) % 8] + np.random.default_rng(1).normal(0, 0.05, (30, 8))
    np.save(tmp_path / "more.npy", more.astype(np.float32))
    update(run, str(tmp_path / "more.npy"))
    recut_without_embedding(run, 5)
    before = (run / LAYOUTS_FILE).read_bytes()
    fit = ["fit", str(tmp_path / "more.npy"), "--features", "-o", str(run), "-k", "2", "-q", "--overwrite"]
    assert run_command(fit) == 0
    assert (run / LAYOUTS_FILE).read_bytes() != before
    assert run_command([*fit, "--set", "grouping=kmeans"]) == 0
    assert not (run / LAYOUTS_FILE).exists()


def test_a_damaged_file_of_embeddings_is_made_again(run: Path, many: Path) -> None:
    path, whole = run / LAYOUTS_FILE, (run / LAYOUTS_FILE).read_bytes()
    path.write_bytes(whole[:-100])
    recut(run, 4)
    assert path.read_bytes() == whole
    assert rows(run / "clusters.csv") == rows(many / "clusters.csv")


def test_moves_survive_a_recut_and_undo_takes_it_back(run: Path) -> None:
    recut(run, 8)
    table = rows(run / "clusters.csv")
    origin, target = table[0]["cluster"], table[1]["cluster"]
    apply(run, Edits(names={int(target): "there"}, move=((0, int(target)), (8, int(target)))))
    apply(run, Edits(move=((8, int(origin)),)))  # and back, where it stays
    assert load(run).placed == {0: "answer", 8: "answer"}
    for _ in range(2):
        recut(run, 8)  # the same eight groups
        after = rows(run / "clusters.csv")
        assert after[0]["name"] == after[1]["name"] == "there" and after[8]["cluster"] != after[0]["cluster"]
        assert {row["cluster"] for row in after[9::8]} == {after[0]["cluster"]}
    undo(run)
    assert rows(run / "clusters.csv")[:9] == after[:9] and load(run).placed == {0: "answer", 8: "answer"}
    apply(run, Edits(merge=((int(after[0]["cluster"]), int(after[8]["cluster"])),)))
    recut(run, 8)
    assert rows(run / "clusters.csv")[0]["name"] == "there"
