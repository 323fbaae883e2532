"""A change of a run is known whole before anything is written, and one function writes it."""

import json
import os
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random

import numpy as np
import pytest

from deepcluster.commands.cli import run_command
from deepcluster.errors import UsageError
from deepcluster.model import WORDS
from deepcluster.runs.apply import apply
from deepcluster.runs.change import redo, undo
from deepcluster.runs.page import tree_of
from deepcluster.runs.recut import recut
from deepcluster.runs.run import read_run
from deepcluster.runs.teach import Answer, teach
from deepcluster.runs.update import update
from deepcluster.storage.edits_file import Edits
from deepcluster.storage.former import history
from deepcluster.storage.run_folder import open_run
from tests.helpers.features import blobs
from tests.helpers.runs import contents, rows, without_page


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clusters, after edits that can be undone."""
    folder = tmp_path_factory.mktemp("change")
    np.save(folder / "f.npy", blobs([15] * 4, 8).numpy())
    (folder / "labels.csv").write_text("path,label\n" + "".join(f"{row},{row // 15}\n" for row in range(60)))
    options = ["--features", "-o", f"{folder}/run", "-k", "4", "--labels", f"{folder}/labels.csv", "-q"]
    assert run_command(["fit", f"{folder}/f.npy", *options]) == 0
    apply(folder / "run", Edits(move=((3, 0), (18, 0), (33, 0), (48, 0)), names={1: "one"}))
    recut(folder / "run", 3)
    recut(folder / "run", 5)
    undo(folder / "run")
    return folder / "run"


def whole(run: Path) -> dict[str, object]:
    """All that a command could change in a run folder, the log and times too."""
    paths = [path for path in sorted(run.rglob("*")) if path.name != "lock"]
    return {str(path): (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in paths}


LINES = {
    "merge": "apply RUN merge.json",
    "name": "apply RUN name.json",
    "undo": "apply RUN --undo 2",
    "redo": "apply RUN --redo",
    "recut": "recut RUN -k 2",
    "teach": "teach RUN answers.csv",
    "update": "update RUN more.npy",
}


@pytest.mark.parametrize("name", LINES)
def test_a_dry_run_says_what_the_command_does_and_writes_nothing(
    made: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path(shutil.copytree(made, "RUN"))
    Path("merge.json").write_text(json.dumps({"schema_version": 1, "merge": [[0, 2]], "names": {"0": "both"}}))
    Path("name.json").write_text(json.dumps({"schema_version": 1, "names": {"2": "two"}}))
    Path("answers.csv").write_text("path,name\n0,\n20,new\n40,new\n")
    np.save("more.npy", blobs([0, 3], 8, seed=1).numpy())
    before, files = read_run(open_run(run)), whole(run)
    assert run_command([*LINES[name].split(), "--dry-run"]) == 0
    assert "nothing was written" in capsys.readouterr().out and whole(run) == files
    assert run_command([*LINES[name].split(), "--dry-run", "--json"]) == 0
    preview = json.loads(capsys.readouterr().out)
    assert preview["dry_run"] and whole(run) == files
    assert run_command(LINES[name].split()) == 0
    after, summary = read_run(open_run(run)), rows(run / "cluster_summary.csv")
    assert preview["clusters"] == len(summary)
    sizes = {row["cluster"]: row["before"] for row in preview["sizes"] if row["before"]}
    assert sizes == Counter(before.placement.cluster.tolist())
    named = {str(row["cluster"]): (row["after"], row["name"]) for row in preview["sizes"] if row["after"]}
    assert named == {row["cluster"]: (int(row["size"]), row["name"]) for row in summary if row["size"] != "0"}
    pairs = zip(before.placement.cluster.tolist(), after.placement.cluster.tolist(), strict=False)
    moves = Counter(pair for pair in pairs if pair[0] != pair[1])
    assert {(row["before"], row["after"]): row["images"] for row in preview["changes"]} == moves
    assert preview["changed"] == moves.total() and bool(moves) == (name not in ("name", "update"))
    # Edits of a page before a name or an update are edits of the page after it.
    assert (after.facts.cut == before.facts.cut) == (name in ("name", "update"))
    assert (after.facts.edits is None) == (name not in ("merge", "name", "teach"))


# ---- steps back and forward -----------------------------------------------------------------------------------------


def state(run: Path) -> dict[str, object]:
    """A run without its earlier and later states, the last of which is copied when it is left."""
    return {name: content for name, content in contents(run).items() if not name.startswith("former/")}


@pytest.fixture
def undrawn(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run without a page, which would be drawn anew after each change."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return without_page(Path(shutil.copytree(made, tmp_path / "run")))


def a_change(run: Path, random: Random) -> str:
    """Make a change at random that a person may make, and return its kind."""
    model = read_run(open_run(run)).model
    present = sorted(numbers(run))
    one, other = random.choice(present), random.choice(present)
    images = random.sample(range(60), 3)
    free = len(model.names)
    kind = random.choice(["name", "merge", "split", "move", "new", "junk", "teach", "named", "see", "recut", "update"])
    edits = {
        "name": {"names": {one: random.choice("abc")}},
        "merge": {"merge": ((one, other),)},
        "split": {"split": ((one, 2),)},
        "move": {"move": tuple((row, one) for row in images)},
        "new": {"move": tuple((row, free) for row in images), "names": {free: random.choice("abc")}},
        "junk": {"junk": (one,)},
        "see": {"checked": tuple(images)},
    }
    with suppress(UsageError):  # one cluster merged with itself, one part, nothing left to teach
        if kind in edits:
            apply(run, Edits(**edits[kind]))
        elif kind == "teach":
            teach(run, [Answer(row, one) for row in images])
        elif kind == "named":
            teach(run, [Answer(row, name=random.choice("abc"), by=random.choice(WORDS)) for row in images])
        elif kind == "recut":
            recut(run, random.choice([2, 3, 6]))
        else:
            new = blobs([1] * 4, 8, seed=random.randrange(1000)).numpy()
            np.save(run.parent / "more.npy", new)
            update(run, str(run.parent / "more.npy"))
    return kind


def numbers(run: Path) -> set[int]:
    return {*read_run(open_run(run)).model.cut.cluster_of.tolist()}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_undo_and_redo_are_the_identity_and_no_number_is_given_twice(undrawn: Path, seed: int) -> None:
    random = Random(seed)
    given = len(read_run(open_run(undrawn)).model.names)
    for _ in range(6):
        before = numbers(undrawn)
        kind = a_change(undrawn, random)
        after = state(undrawn)
        new = numbers(undrawn) - before - {*range(6 if kind == "recut" else 0)}
        assert min(new, default=given) >= given, "no number is given twice"
        assert len(read_run(open_run(undrawn)).model.names) >= given, "numbers that were given stay given"
        given = len(read_run(open_run(undrawn)).model.names)
        done = len(history(open_run(undrawn))[0])
        for number in {min(2, done), done}:
            undo(undrawn, changes=number)
            assert len(read_run(open_run(undrawn)).model.names) == given
            redo(undrawn)
            if number > 1:
                redo(undrawn, changes=number - 1)
            assert state(undrawn) == after, (kind, number)
        if random.random() < 0.3:
            undo(undrawn, changes=random.randint(1, min(3, done)))


def test_answers_that_move_no_image_leave_the_tree_of_their_centroids(undrawn: Path) -> None:
    before = read_run(open_run(undrawn))
    teach(undrawn, [Answer(row, int(before.placement.cluster[row])) for row in range(10)])
    after = read_run(open_run(undrawn))
    assert after.placement.cluster.equal(before.placement.cluster)
    assert not after.model.cut.centroids.equal(before.model.cut.centroids)
    assert [[*pair] for pair in tree_of(after).merges] == open_run(undrawn).read_json("tree.json")["merges"]


def test_an_update_counts_in_the_tree(undrawn: Path) -> None:
    np.save(undrawn.parent / "more.npy", blobs([1] * 4, 8, seed=1).numpy())
    update(undrawn, str(undrawn.parent / "more.npy"))
    assert open_run(undrawn).read_json("tree.json")["sizes"][-1] == len(read_run(open_run(undrawn)).rows.paths) == 64


def test_changes_that_were_taken_back_before_another_one_are_one_line_of_the_history(undrawn: Path) -> None:
    undo(undrawn, changes=None)
    for name in "ab":
        apply(undrawn, Edits(names={0: name}))
    undo(undrawn, changes=2)
    apply(undrawn, Edits(names={0: "c"}))
    texts = [made.text for made in history(open_run(undrawn))[0]]
    assert texts[:4] == ["1 name: c", "2 changes taken back", "1 name: b", "1 name: a"]
