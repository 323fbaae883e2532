"""One state of a run: mixed copies are one of the two or refused, undo and redo are exact, one process changes it."""

import csv
import itertools
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deepcluster.commands.cli import run_command
from deepcluster.errors import DiskError, ModelError, UsageError
from deepcluster.runs.apply import apply
from deepcluster.runs.change import redo, undo
from deepcluster.runs.recut import recut
from deepcluster.runs.run import read_run
from deepcluster.runs.teach import Answer, teach
from deepcluster.storage import former, run_folder
from deepcluster.storage import lock as locks
from deepcluster.storage.checkpoint import Checkpoints
from deepcluster.storage.content import FILES
from deepcluster.storage.edits_file import Edits
from tests.helpers.features import blobs
from tests.helpers.runs import change_record, contents, left_behind, small_fit, state_of, without_page
from tests.helpers.tiny import change_config, tiny_run


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with a run on four clusters, without a page; it has a change to undo and one to make again."""
    place = tmp_path_factory.mktemp("state") / "place"
    place.mkdir()
    np.save(place / "images.npy", blobs([15] * 4).numpy())
    assert run_command(["fit", f"{place}/images.npy", "--features", "-o", f"{place}/run", "-k", "4", "-q"]) == 0
    without_page(place / "run")
    for name in "ab":
        apply(place / "run", Edits(names={0: name}))
    undo(place / "run")
    return place


def state(place: Path) -> tuple[object, ...]:
    """The truths of the run in a place."""
    folder = run_folder.open_run(place / "run")
    whole = read_run(folder)
    done = [made.text for made in former.history(folder)[0]]
    return whole.record.run, whole.model.names, whole.model.said, whole.placement.cluster.tolist(), *done


def test_a_copy_of_two_halves_is_one_of_the_two_or_refused_by_name(made, tmp_path):
    """Every file that differs comes from either of two copies that went their own ways."""
    one, other = (Path(shutil.copytree(made, tmp_path / name)) for name in ("one", "other"))
    apply(one / "run", Edits(move=((3, 1),), names={2: "c"}))
    teach(other / "run", [Answer(row, row // 15) for row in range(0, 60, 7)])
    either = (state(one), state(other))
    files = [contents(place / "run") for place in (one, other)]
    names = sorted(name for name in {*files[0], *files[1]} if files[0].get(name) != files[1].get(name))
    assert "model/clusters.safetensors" in names and "clusters.csv" in names
    for i, chosen in enumerate(itertools.product((0, 1), repeat=len(names))):
        place = Path(shutil.copytree(one, tmp_path / str(i)))
        for name, which in zip(names, chosen, strict=True):
            (place / "run" / name).unlink(missing_ok=True)
            if name in files[which]:
                (place / "run" / name).write_bytes(files[which][name])
        try:
            assert state(place) in either, dict(zip(names, chosen, strict=True))
        except (DiskError, ModelError) as error:
            assert any(name in str(error) for name in names)
        shutil.rmtree(place)


# ---- undo and redo ---------------------------------------------------------------------------------------------------

# The steps of a history, and the state after each: the name of a cluster, and the number of clusters. A letter gives a
# name, a digit cuts anew, u and r are undo and redo, U and R those of all; an error is a ! and changes nothing.
HISTORIES = {
    "undo and redo of all": ("x y z U R", "x4 y4 z4 -4 z4"),
    "undo of redo": ("x u r u r", "x4 -4 x4 -4 x4"),
    "redo without undo": ("x r u r r", "x4 !x4 -4 x4 !x4"),
    "undo of nothing": ("u x u u", "!-4 x4 -4 !-4"),
    "a change over a redo stack, then undo through it": ("x y z u u w u u u u u", "x4 y4 z4 y4 x4 w4 x4 z4 y4 x4 -4"),
    "two adjacent redo stacks": (
        "x y u w u u u z u u u u u u", "x4 y4 x4 w4 x4 y4 x4 z4 x4 w4 x4 y4 x4 -4"
    ),
    "redo after a change": ("x y u w r", "x4 y4 x4 w4 !w4"),
    "redo after recut": ("x 2 u r u w r", "x4 x2 x4 x2 x4 w4 !w4"),
    "a change to the same name keeps the redo stack": ("x y u x r", "x4 y4 x4 x4 y4"),
}  # fmt: skip


@pytest.mark.parametrize("name", HISTORIES)
def test_histories_of_undo_and_redo(made, tmp_path, name):
    run = Path(shutil.copytree(made, tmp_path / "place")) / "run"
    undo(run, changes=None)
    shutil.rmtree(run / "former")
    steps: dict[str, Callable[[], object]] = {
        "u": lambda: undo(run), "r": lambda: redo(run),
        "U": lambda: undo(run, changes=None), "R": lambda: redo(run, changes=None),
    }  # fmt: skip
    seen = []
    for step in HISTORIES[name][0].split():
        mark = ""
        try:
            if step.isdigit():
                recut(run, int(step))
            else:
                steps.get(step, lambda step=step: apply(run, Edits(names={0: step})))()
        except UsageError:
            mark = "!"
        model = read_run(run_folder.open_run(run)).model
        seen.append(f"{mark}{''.join(model.names) or '-'}{len(model.cut.cluster_of.unique())}")
    assert seen == HISTORIES[name][1].split()


# ---- views -----------------------------------------------------------------------------------------------------------


def save_reversed(run: Path) -> None:
    """Sort clusters.csv, and save it as a spreadsheet does: with a byte order mark, semicolons and numbers its way."""
    with (run / "clusters.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    with (run / "clusters.csv").open("w", encoding="utf-8-sig", newline="") as file:
        rows = [[cell.removesuffix("000").replace(".", ",") for cell in line] for line in reversed(lines)]
        csv.writer(file, delimiter=";").writerows([header, *rows])


def delete_all(run: Path) -> None:
    for name in FILES:
        if FILES[name].view:
            (run / name).unlink(missing_ok=True)


COMMANDS = (
    "export RUN --to folders -o OUT", "export RUN --to parquet -o OUT", "predict RUN PHOTOS",
    "embed RUN PHOTOS -o features.npy", "evaluate RUN", "evaluate RUN --labels folders", "doctor RUN", "ask RUN -o OUT",
    "apply RUN edits.json", "apply RUN --undo", "apply RUN --redo",
    "teach RUN answers.csv", "update RUN PHOTOS", "recut RUN -k 2", "report RUN",
    "fit PHOTOS --like RUN -o OUT -k 2 --rounds 0 --image-size 16 -q",
)  # fmt: skip


def test_every_command_works_whatever_became_of_the_views(run, photos, tmp_path, prints, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("edits.json").write_text('{"schema_version": 1, "names": {"0": "a"}}')
    Path("answers.csv").write_text("path,name\nbars/00.png,bars\n")
    before = read_run(run_folder.open_run(run)).placement.cluster.tolist()
    failed = []
    for i, line in enumerate(COMMANDS):
        (delete_all if "parquet" in line or "doctor" in line else save_reversed)(run)
        words = {"RUN": run, "PHOTOS": photos, "OUT": f"out{i}"}
        failed += [line] * bool(run_command([str(words.get(word, word)) for word in line.split()]))
        if line.startswith("export RUN --to folders"):
            assert read_run(run_folder.open_run(run)).placement.cluster.tolist() == before
    delete_all(run)
    prints("report", run)
    assert failed == [] and state_of(run)


# ---- locks, and what lies in the way ---------------------------------------------------------------------------------


def test_one_process_at_a_time_changes_a_run(run, photos, tmp_path, ends):
    """A lock that a killed process has left blocks nothing."""
    fit = ["fit", photos, *small_fit("--rounds", "0"), "-o"]
    change_record(run, status="stopped")
    with run_folder.locked(run):
        for line in ([*fit, run, "--resume"], [*fit, run, "--overwrite"], ["report", run], ["recut", run, "-k", "3"]):
            assert re.search(rf"{run} .*{os.getpid()}", ends(line, 5))
    with run_folder.locked(tmp_path / "new", make=True):
        assert str(os.getpid()) in ends([*fit, tmp_path / "new"], 5)
    (run / locks.LOCK).write_text("process 1 on elsewhere\n")
    change_record(run, status="done")
    ends(["report", run], 0)


def test_an_error_drops_the_run_that_would_replace_another(made, tmp_path):
    place = Path(shutil.copytree(made, tmp_path / "place"))
    before = contents(place)
    with (
        pytest.raises(ZeroDivisionError),
        run_folder.locked(place / "run") as folder,
        run_folder.staged(folder) as staged,
    ):
        staged.write("clusters.csv", f"{1 // 0}")
    assert contents(place) == before and left_behind(place / "run") == []
    assert (place / "run" / locks.LOCK).read_text() == ""  # a run that is passed on names no machine


@pytest.mark.parametrize("name", ["report.html", "model/config.json", "former", locks.SCRATCH])
def test_what_is_in_the_way_is_left_and_named(made, tmp_path, name):
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    way = run / name
    shutil.rmtree(way) if way.is_dir() else way.unlink(missing_ok=True)
    (way.touch if name in ("former", locks.SCRATCH) else way.mkdir)()
    with pytest.raises(DiskError, match=name):
        apply(run, Edits(names={2: "c"}))
    assert way.exists()


@pytest.mark.parametrize("name", [locks.HIDDEN, locks.SCRATCH, locks.LOCK, "former", "model"])
def test_no_link_is_followed(made, tmp_path, name):
    run, elsewhere = Path(shutil.copytree(made / "run", tmp_path / "run")), tmp_path / "elsewhere"
    shutil.copytree(made / "run" / "model", elsewhere / "rank-0")
    for place in (run / locks.HIDDEN, run / name):
        shutil.rmtree(place, ignore_errors=True)
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(elsewhere / "rank-0/config.json" if name == locks.LOCK else elsewhere)
    before = contents(elsewhere)
    with pytest.raises((DiskError, ModelError)):
        apply(run, Edits(names={2: "c"}))
    assert contents(elsewhere) == before


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema_version": 1}', '{"project": "my LLM"}'])
def test_a_folder_with_a_run_json_is_not_yet_a_run_folder(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    (tmp_path / "metrics.json").write_text("mine")
    with pytest.raises(DiskError):
        run_folder.check_free(tmp_path, overwrite=True)


@pytest.mark.parametrize(("version", "advice"), [(0, "use that version, or fit again"), (99, "update deepcluster")])
def test_another_schema_is_named_with_a_way_out(tmp_path, photos, ends, version, advice):
    run = tiny_run(tmp_path / "run")
    (run / "checkpoints").mkdir()
    (run / "checkpoints/000001.json").write_text(f'{{"schema_version": {version}, "sha256": ""}}')
    with pytest.raises(ModelError) as error:
        Checkpoints(run / "checkpoints").latest()
    change_config(run / "model", schema_version=version)
    said = [str(error.value), ends(["predict", run, photos], 4)]
    change_record(run, schema_version=version)
    said += [ends(command, 5) for command in (["report", run], ["fit", photos, "-o", run, "--overwrite"])]
    for text in said:
        assert f"schema_version {version}" in text and advice in text and "damaged" not in text, text
