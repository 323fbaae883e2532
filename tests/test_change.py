"""A change of a run is known whole before anything is written, and one function writes it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deepcluster.cli import run_command
from deepcluster.runs.change import Change, preview, taken_back, undo
from deepcluster.runs.edits import apply, edited
from deepcluster.runs.lesson import Answer, lesson, teach
from deepcluster.runs.recut import cut_anew, recut
from deepcluster.runs.run import Run, read_run, recipe_of
from deepcluster.runtime.console import Silent
from deepcluster.storage.edits_file import Edits
from deepcluster.storage.model_files import read_former
from deepcluster.storage.run_folder import RunFolder, open_run
from tests.helpers.features import blobs
from tests.helpers.runs import change_record, contents

MERGE = Edits(merge=((0, 1),), names={0: "both"})
NAME = Edits(names={2: "two"})
ANSWERS = [Answer(0, 2), Answer(20, name="new")]

# The change as a value, and the function that makes and writes it.
CHANGES: dict[str, tuple[Callable[[RunFolder, Run], Change], Callable[[Path], object]]] = {
    "merge": (lambda _, run: edited(run, MERGE), lambda run: apply(run, MERGE)),
    "name": (lambda _, run: edited(run, NAME), lambda run: apply(run, NAME)),
    "lesson": (lambda _, run: lesson(run, ANSWERS), lambda run: teach(run, ANSWERS)),
    "recut": (lambda folder, run: cut_anew(run, 2, recipe_of(folder), Silent()), lambda run: recut(run, 2)),
    "undo": (lambda folder, run: taken_back(run, read_former(folder)[:1]), undo),
}


def mark(run: Path, baseline: float) -> None:
    """Give a run another verdict, and another figure before the rounds."""
    change_record(run, verdict="mine")
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**metrics, "baseline_nmi": baseline}))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clusters, after edits that can be undone."""
    folder = tmp_path_factory.mktemp("change")
    np.save(folder / "f.npy", blobs([15] * 4, 8).numpy())
    (folder / "labels.csv").write_text("path,label\n" + "".join(f"{row},{row // 15}\n" for row in range(60)))
    options = ["--features", "-o", f"{folder}/run", "-k", "4", "--labels", f"{folder}/labels.csv", "-q"]
    assert run_command(["fit", f"{folder}/f.npy", *options]) == 0
    mark(folder / "run", 0.25)
    apply(folder / "run", Edits(move=((3, 0), (18, 0), (33, 0), (48, 0)), names={1: "one"}))
    return folder / "run"


@pytest.mark.parametrize("name", CHANGES)
def test_a_preview_is_what_the_change_writes(made: Path, tmp_path: Path, name: str) -> None:
    run = Path(shutil.copytree(made, tmp_path / "run"))
    mark(run, 0.5)
    change_of, write = CHANGES[name]
    files, before = contents(run), read_run(open_run(run))
    change = change_of(open_run(run), before)
    moves = preview(before, change)
    assert contents(run) == files, "a change is a value"
    write(run)
    after = read_run(open_run(run))
    pairs = [*zip(before.placement.cluster.tolist(), after.placement.cluster.tolist(), strict=True)]
    assert moves == {pair: pairs.count(pair) for pair in {*pairs} if pair[0] != pair[1]}
    assert bool(moves) == (name != "name")
    assert (change.run.model.names, change.run.model.moves) == (after.model.names, after.model.moves)
    # Names alone keep what is known about the clusters.
    record = after.record
    assert (record.cut == before.record.cut) == (name == "name")
    assert (record.verdict == "mine") == (name == "name")
    assert (record.edits is None) == (name in ("recut", "undo"))
    baseline = json.loads((run / "metrics.json").read_text())["baseline_nmi"]
    assert {"name": 0.5, "undo": 0.25}.get(name, baseline) == baseline != (name != "name") / 2
    if change.done:
        assert read_former(open_run(run))[0].about["done"] == change.done
