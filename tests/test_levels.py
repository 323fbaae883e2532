"""Two levels of groups: coarse groups above the clusters, in the tables, the predictions, the edits and the folders."""

import csv
import io
import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deepcluster import DeepCluster
from deepcluster.cli import run_command
from deepcluster.errors import DiskError, UsageError
from deepcluster.export import folders, imagefolder
from deepcluster.fitting.fit import fit
from deepcluster.fitting.plan import Request
from deepcluster.groups.choose_k import coarse_number
from deepcluster.groups.cut import Cut
from deepcluster.groups.tree import coarse_groups, merge_tree, nodes_at
from deepcluster.presets import RecipeRequest
from deepcluster.runs.inherit import with_coarse_names
from deepcluster.runs.page import report
from deepcluster.runs.recut import apply, edited, recut, undo
from deepcluster.runs.result import with_coarse_groups
from deepcluster.runs.teach import Answer, teach
from deepcluster.runs.update import update
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import Processes
from deepcluster.storage.edits_file import Edits, edits_of
from deepcluster.storage.model_files import load
from tests.helpers.runs import assert_same_result, contents, rows
from tests.tiny import tiny_model

COARSE, FINE, EACH = 3, 3, 60
KINDS = COARSE * FINE


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """f.npy: nine kinds in three families, with a picture beside it for each row; run: their groups."""
    folder = tmp_path_factory.mktemp("levels")
    random = np.random.default_rng(0)
    families = np.repeat(3 * np.eye(COARSE, 24), FINE * EACH, 0)
    kinds = np.repeat(2 * np.eye(KINDS, 24, k=COARSE), EACH, 0)
    np.save(folder / "f.npy", (families + kinds + random.normal(0, 0.6, families.shape)).astype(np.float32))
    names = [f"{row // (FINE * EACH)}/{row}.png" for row in range(KINDS * EACH)]
    for row, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (row % 256, row // 256, 0)).save(folder / name)
    (folder / "f.txt").write_text("\n".join(names))
    command = f"fit {folder}/f.npy --features -o {folder}/run -k auto -q"
    assert run_command(command.split()) == 0
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


def fit_as_a_rank(processes: Processes, features: Path, run: Path) -> None:
    request = RecipeRequest("auto")
    fit(features, Request(out=run, features=True, recipe=request), processes=processes)


def test_two_processes_make_the_groups_of_one(ranks: Any, made: Path, tmp_path: Path) -> None:
    ranks[2](fit_as_a_rank, made / "f.npy", tmp_path / "run")
    assert_same_result(made / "run", tmp_path / "run", "tree.json")


def groups_of_clusters(run: Path) -> dict[int, tuple[int, str]]:
    """The group of every cluster, and its name, as all tables of a run say."""
    by_cluster = {
        int(row["cluster"]): (int(row["group"]), row["group_name"]) for row in rows(run / "cluster_summary.csv")
    }
    for row in rows(run / "clusters.csv"):
        assert by_cluster[int(row["cluster"])] == (int(row["group"]), row["group_name"])
    return by_cluster


def test_coarse_groups_by_hand_and_those_of_the_merge_tree() -> None:
    """Five groups on a line, at 0, 1, 10, 11 and 30, the last without images; the pair on the right is the larger."""
    centroids = torch.tensor([[0.0], [1.0], [10.0], [11.0], [30.0]])
    cut = Cut(centroids, torch.tensor([3, 0, 1, 2, 4]))
    counts = torch.tensor([1, 2, 3, 3, 0])
    assert coarse_groups(cut, counts, 2) == [1, 0, 0, 1, 0]
    images = centroids.repeat_interleave(counts, 0)
    tree = merge_tree(images, cut)
    nodes = [{tree.groups[piece] for piece in inside} for inside in nodes_at(4, tree.merges, 2).values()]
    assert sorted(map(sorted, nodes)) == [[0, 3], [1, 2]]


@pytest.mark.parametrize(
    ("numbers", "coarse"), [([12, 5, 10], 5), ([12, 7, 6], 6), ([12, 6, 3], 6), ([6, 5], 0), ([4, 2], 2), ([], 0)]
)
def test_the_coarse_number_is_the_most_plausible_one_that_the_finest_refines(numbers: list[int], coarse: int) -> None:
    assert coarse_number(numbers) == coarse


@pytest.mark.parametrize(("places", "coarse"), [((0, 1, 10, 11), (0, 0, 1, 1)), ((0, 1, 2, 11), ())])
def test_two_levels_have_two_groups_of_several_clusters(
    places: tuple[int, ...], coarse: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clusters on a line, of an image each, and two groups of them; so few clusters have no groups otherwise."""
    centroids, all_four = torch.tensor(places, dtype=torch.float).unsqueeze(1), torch.arange(4)
    model = replace(tiny_model(names=("",) * 4), cut=Cut(centroids, all_four))
    record: Any = SimpleNamespace(candidates=[{"k": 4}, {"k": 2}])
    placement: Any = SimpleNamespace(centroid=all_four)
    of_rows: Any = SimpleNamespace(fitted=4, partition=Partition.single(4))
    assert with_coarse_groups(model, placement, record, of_rows).coarse == ()
    monkeypatch.setattr("deepcluster.runs.result.MIN_GROUPED", 4)
    assert with_coarse_groups(model, placement, record, of_rows).coarse == coarse


def test_families_are_groups_whose_clusters_are_kinds(made: Path) -> None:
    family = defaultdict(set)
    for row in rows(made / "run" / "clusters.csv"):
        family[row["group"]].add(row["path"].split("/")[0])
    assert sorted(map(sorted, family.values())) == [["0"], ["1"], ["2"]]
    assert len(groups_of_clusters(made / "run")) >= KINDS
    assert 'id="group-2"' in (made / "run" / "report.html").read_text()


def test_predictions_give_both_levels(made: Path, run: Path, prints: Callable[..., str]) -> None:
    apply(run, Edits(group_names={0: "left"}))
    expected = [(row["cluster"], row["group"], row["group_name"]) for row in rows(run / "clusters.csv")]
    table = [*csv.DictReader(io.StringIO(prints("predict", run, made / "f.npy")))]
    assert [(row["cluster"], row["group"], row["group_name"]) for row in table] == expected
    placed = DeepCluster.load(run).place()[["cluster", "group", "group_name"]]
    assert [(str(cluster), str(group), name) for cluster, group, name in placed.tolist()] == expected
    lines = [json.loads(line) for line in prints("predict", run, made / "f.npy", "--json", "--reject").splitlines()]
    assert {line["group"] for line in lines if line["cluster"] == -1} <= {-1}
    assert {line["group"] for line in lines if line["cluster"] != -1} == {0, 1, 2}


@pytest.mark.parametrize(("group", "is_refused"), [("x", True), ("-1", True), ("7", False), ("", False)])
def test_a_summary_with_other_groups_is_refused_or_shown(run: Path, group: str, is_refused: bool) -> None:
    path = run / "cluster_summary.csv"
    path.write_text(path.read_text().replace(",0,\n", f",{group},\n"))  # the last two cells: a group without a name
    with pytest.raises(DiskError, match=r"cluster_summary.csv: group") if is_refused else nullcontext():
        report(run)


def test_folders_of_folders(run: Path, tmp_path: Path) -> None:
    apply(run, Edits(group_names={1: "sea/side"}, names={0: "shells"}, junk=(2,)))
    inventory = folders(run, tmp_path / "two", levels=2)
    of = groups_of_clusters(run)
    shown = {group: f"{group:03}-" + ("sea_side" if group == 1 else "group") for group in range(COARSE)}
    for row in inventory:
        cluster = int(row["cluster"])
        above = f"_junk/{shown[of[cluster][0]]}" if cluster == 2 else shown[of[cluster][0]]
        assert row["exported_path"].startswith(f"{above}/{cluster:03}" + ("-shells/" if cluster == 0 else "/"))
    folders(run, tmp_path / "one")
    assert not (tmp_path / "one" / "001-sea_side").exists()
    with pytest.raises(UsageError, match="levels"):
        imagefolder(run, tmp_path / "data", levels=2)
    recut(run, 4)
    with pytest.raises(UsageError, match=r"recut .* -k auto"):
        folders(run, tmp_path / "three", levels=2)
    assert not (tmp_path / "three").exists()


def test_edits_keep_the_levels_and_undo_takes_them_back(run: Path) -> None:
    before = contents(run)
    of = groups_of_clusters(run)
    first, second = [cluster for cluster in of if of[cluster][0] == 0][:2]
    other = next(cluster for cluster in of if of[cluster][0] == 1)
    apply(run, Edits(group_names={0: "left", 2: "right"}, merge=((first, second),), split=((other, 2),)))
    after = groups_of_clusters(run)
    assert second not in after and after[first] == (0, "left") and after[other] == after[len(of)] == (1, "")
    undo(run)
    undone = contents(run)
    assert all(undone[name] == before[name] for name in ("clusters.csv", "cluster_summary.csv"))


def test_a_recut_with_a_number_has_one_level_and_the_guess_finds_its_names_again(made: Path, run: Path) -> None:
    """Also after an update with many images of one kind, which define no groups."""
    apply(run, Edits(group_names={0: "left", 1: "middle"}))
    named, tree = groups_of_clusters(run), json.loads((run / "tree.json").read_text())
    update(run, np.load(made / "f.npy")[-EACH:].repeat(30, 0) + np.linspace(1e-4, 1e-3, 30 * EACH)[:, None])
    updated = json.loads((run / "tree.json").read_text())
    assert (updated["groups"], updated["merges"]) == (tree["groups"], tree["merges"])
    assert updated["sizes"][-1] == (KINDS + 30) * EACH
    recut(run, None)
    assert groups_of_clusters(run) == named
    recut(run, 5)
    assert {"group", "group_name"}.isdisjoint(rows(run / "clusters.csv")[0])
    assert load(run).coarse == ()
    assert 'class="level"' not in (run / "report.html").read_text()


def test_a_new_fit_like_this_one_knows_the_names_of_groups(made: Path, run: Path, tmp_path: Path) -> None:
    apply(run, Edits(group_names={0: "left"}, names={0: "shells"}))
    command = f"fit {made}/f.npy --features -o {tmp_path}/new --like {run} -q"
    assert run_command(command.split()) == 0
    assert groups_of_clusters(tmp_path / "new") == groups_of_clusters(run)


def test_edits_of_groups_by_hand() -> None:
    """Rows of groups 0, 1, 2 and 0; coarse group 0 has 0 and 2."""
    model = replace(tiny_model(names=("a", "b", "c")), coarse=(0, 1, 0), coarse_names=("x", ""))
    rows, paths = model.cut.centroids, [f"{row}.png" for row in range(4)]
    changed = edited(model, Edits(move=((1, 3), (3, 4)), group_names={1: "y", 0: ""}), rows, paths)
    assert changed.coarse == (0, 1, 0, 1, 0) and changed.coarse_names == ("", "y")
    assert edited(model, Edits(merge=((3, 1),), move=((1, 3), (2, 3))), rows, paths).coarse == (0, 1, 0, 1)
    with pytest.raises(UsageError, match="group 2"):
        edited(model, Edits(group_names={2: "z"}), rows, paths)
    with pytest.raises(UsageError, match="group 0"):
        edited(tiny_model(names=("a", "b", "c")), Edits(group_names={0: "z"}), rows, paths)
    assert edits_of({"schema_version": 1, "group_names": {"1": " y "}}) == Edits(group_names={1: "y"})
    turned = replace(model, coarse=(1, 0, 1), coarse_names=("", ""))
    clusters = torch.tensor([0, 1, 2, 0])
    assert with_coarse_names(turned, clusters, model, clusters).coarse_names == ("", "x")


def test_a_new_cluster_of_answers_is_in_the_group_of_its_images(run: Path) -> None:
    before = groups_of_clusters(run)
    table = [row["cluster"] for row in rows(run / "clusters.csv")]
    some = [row for row, cluster in enumerate(table) if cluster == table[0]][:9]
    teach(run, [Answer(row, name="new") for row in some])
    assert groups_of_clusters(run) == before | {KINDS: before[int(table[0])]}
    undo(run)
    assert groups_of_clusters(run) == before
