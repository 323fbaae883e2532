"""Runs that are killed, stopped, out of disk, or come back to other images: made to happen, with the real command."""

import errno
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from deepcluster.fitting import fit as fitting_a_run
from deepcluster.fitting import journal
from deepcluster.runtime import log
from deepcluster.storage import run_folder
from deepcluster.storage.checkpoint import Checkpoints
from deepcluster.storage.lock import LOCK
from tests.helpers.commands import command
from tests.helpers.drawings import save_drawings
from tests.helpers.runs import assert_same_result, change_record, contents, left_behind, record, result, rows, small_fit

ROUNDS = ("--rounds", "3")
OPTIONS = small_fit(*ROUNDS)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return save_drawings(tmp_path_factory.mktemp("pictures"), 16, 16)


@pytest.fixture(scope="module")
def fit(pictures) -> Callable[..., str]:
    """Fits the pictures in a process of its own, which must end with a code; returns what it says."""

    def run_to_its_end(out: Path, *options: str, code: int = 0, trap: tuple[str, str, int] | None = None) -> str:
        ended, said = command("fit", pictures, "-o", out, *OPTIONS, *options, trap=trap)
        assert ended == code, said
        return said

    return run_to_its_end


@pytest.fixture(scope="module")
def whole(fit, tmp_path_factory) -> Path:
    """A run without a break."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    fit(out)
    return out


# ---- signals --------------------------------------------------------------------------------------------------------

PHASES = {
    "reading": ("SIGINT", "deepcluster.images.store:_results", 1),
    "features": ("SIGUSR1", "deepcluster.algorithm:features_of", 1),
    "clustering": ("SIGINT", "deepcluster.clustering.kmeans:KMeans.__call__", 2),
    "training": ("SIGTERM", "deepcluster.learning.training:Outputs", 5),
    "saving": ("SIGTERM", "deepcluster.storage.checkpoint:write_tensors", 3),
    "result": ("SIGUSR1", "deepcluster.recipes.build:cut_features", 1),
    "report": ("SIGTERM", "deepcluster.runs.page:render", 1),
}


SLOW = {name: pytest.mark.slow for name in PHASES if name not in ("training", "reading")}


@pytest.mark.parametrize("phase", [pytest.param(phase, marks=SLOW.get(phase, ())) for phase in PHASES])
def test_a_signal_saves_and_ends_with_75(fit, whole, tmp_path, phase):
    out = tmp_path / "run"
    said = fit(out, code=75, trap=PHASES[phase])
    assert re.fullmatch("(warning: after 3 rounds .*\n)?error: stopped .* --resume(; to end .*)?\n", said)
    if phase == "reading":  # the run has not begun
        assert not (out / "run.json").exists()
    else:
        assert record(out)["status"] == "stopped"
        (out / "metrics.json").write_text('{"acc": 1.0}')
    fit(out, "--resume")
    assert_same_result(whole, out)
    assert not (out / "metrics.json").exists()  # a run without labels has no metrics


# A function before which the signal comes, in a fit or on the way out of its error, and the end of the message.
TO_END = "; to end it with 1 round: --resume --rounds 1"
MOMENTS = {
    "before the run begins": (fitting_a_run, "network_of", False, ": run the same command again"),
    "as an error ends the run": (journal, "_record_end", True, TO_END),
    "as the error is written into run.json": (
        run_folder.LockedFolder,
        "write_record",
        True,
        "; to end it with 1 round: --resume --rounds 1",
    ),
    "as the error is logged": (log, "record", True, TO_END),
    "after the result": (fitting_a_run, "summary_text", False, " is done"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_stop_says_what_is_true_at_its_moment(pictures, tmp_path, ends, monkeypatch, moment):
    owner, name, has_error, end = MOMENTS[moment]
    out = tmp_path / "run"
    original = getattr(owner, name)

    def signalled(*arguments: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return original(*arguments, **options)

    def lose_connection(*_: Any) -> None:
        monkeypatch.setattr(owner, name, signalled)
        raise RuntimeError("connection closed by peer")

    if has_error:
        monkeypatch.setattr(fitting_a_run, "conclude", lose_connection)
    else:
        monkeypatch.setattr(owner, name, signalled)
    # Only a run with rounds has a run.json before its result.
    said = ends(["fit", pictures, "-o", out, *small_fit("--rounds", str(int(has_error)))], 75)
    assert said.startswith("error: stopped by SIGTERM") and said.endswith(f"{end}\n") and said.count("\n") == 1
    assert not (out / "run.json").exists() or record(out)["status"] != "running"


# ---- another run, other options, other images -----------------------------------------------------------------------


def test_two_runs_in_one_folder(pictures, replaced, tmp_path, ends):
    run = Path(shutil.copytree(replaced, tmp_path / "run"))
    fit = ["fit", pictures, "-o", run, *small_fit("--rounds", "0")]
    change_record(run, status="stopped")
    with run_folder.locked(run):
        for line in ([*fit, "--resume"], [*fit, "--overwrite"], ["report", run], ["recut", run, "-k", "3"]):
            assert re.search(rf"{run} .*{os.getpid()}", ends(line, 5))
    with run_folder.locked(tmp_path / "new", make=True):
        assert str(os.getpid()) in ends([*fit[:3], tmp_path / "new", *fit[4:]], 5)
    (run / LOCK).write_text("process 1 on elsewhere\n")  # as a killed process leaves it
    ends(["report", run], 0)


@pytest.fixture(scope="module")
def stopped(fit, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "stopped"
    fit(out, code=75, trap=PHASES["training"])
    return out


@pytest.fixture
def copy_of(stopped, whole, tmp_path):
    """A copy of the run that is "stopped", or of the other one, which is "done"; or that "without checkpoints"."""

    def copied(state: str) -> Path:
        run = Path(shutil.copytree(stopped if state == "stopped" else whole, tmp_path / "run"))
        if state == "without checkpoints":
            shutil.rmtree(run / "checkpoints")
        return run

    return copied


# The run goes on by its own recipe, whatever the recipe of a command that names few options would choose.
FEW = ["-k", "3", "--seed", "5", "-q"]


def edit_keeping_the_time(path: Path) -> None:
    status = path.stat()
    ImageOps.invert(Image.open(path)).save(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def swap(one: Path, other: Path) -> None:
    second = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(second)


TAMPERINGS = {
    "": lambda folder: None,
    "added": lambda folder: shutil.copy(folder / "0/00.png", folder / "0/zz.png"),
    "removed": lambda folder: (folder / "0/00.png").unlink(),
    "renamed": lambda folder: (folder / "0/00.png").rename(folder / "0/000.png"),
    "edited": lambda folder: edit_keeping_the_time(folder / "0/00.png"),
    "swapped": lambda folder: swap(folder / "0/00.png", folder / "1/16.png"),
    "broken": lambda folder: (folder / "0/00.png").write_bytes(b"no image"),
    "a whole class gone": lambda folder: shutil.rmtree(folder / "2"),
}
RENAMED = "0/000.png 0/00.png"
REFUSED = [  # state of the run, change of its images, options, exit code, words
    ("stopped", "", small_fit(*ROUNDS, "-k", "5"), 2, "began as"),
    ("done", "", [*FEW, "--labels", "folders"], 2, "began as"),
    ("stopped", "added", OPTIONS, 3, "0/zz.png"),
    ("stopped", "removed", OPTIONS, 3, "0/00.png"),
    ("stopped", "renamed", OPTIONS, 3, RENAMED),
    ("stopped", "edited", OPTIONS, 3, "0/00.png"),
    ("stopped", "swapped", OPTIONS, 3, "0/00.png 1/16.png"),
    ("stopped", "broken", OPTIONS, 3, "0/00.png"),
    ("stopped", "a whole class gone", OPTIONS, 3, "16 2/32.png 2/33.png 2/34.png"),
    ("done", "renamed", OPTIONS, 3, RENAMED),
    ("without checkpoints", "removed", OPTIONS, 3, "0/00.png"),
    ("stopped", "added", FEW, 3, "0/zz.png"),
    ("stopped", "added", [*FEW, "--lr", "0.3"], 2, "began as"),
]  # fmt: skip


@pytest.mark.parametrize(("state", "change", "options", "code", "words"), REFUSED)
def test_another_fit_is_refused_and_changes_nothing(
    pictures, copy_of, tmp_path, state, change, options, code, words, ends
):
    run, folder = copy_of(state), Path(shutil.copytree(pictures, tmp_path / pictures.name))
    TAMPERINGS[change](folder)
    before = contents(run)
    said = ends(["fit", folder, "-o", run, *options, "--resume"], code)
    assert all(word in said for word in words.split()) and ("--overwrite" in said or code == 2)
    assert contents(run) == before  # run.json and recipe.toml, too


@pytest.mark.parametrize("moved", [False, True])
def test_a_finished_run_stays(pictures, whole, tmp_path, moved, ends):
    folder = shutil.copytree(pictures, tmp_path / pictures.name) if moved else pictures
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    ends(["fit", folder, "-o", whole, *OPTIONS, "--resume"], 0)
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}


# The run "done" began with TYPED.
TYPED = {"base": "auto", "file_options": {"pseudo_labels": 500}, "options": {"image_size": 17, "lr": 0.5, "rounds": 9}}
SAME = ["--recipe", "mine.toml", "--image-size", "17", "--lr", "0.5"]
REQUESTED = [  # options, exit code
    ([], 0),
    (SAME, 0),  # although the recipe has other sizes now
    ([*SAME, "--rounds", "3"], 0),  # as the recipe has them
    (["--rounds", "1"], 0),  # which are done
    ([*SAME, "--rounds", "9"], 2),
    (["--image-size", "16"], 2),
    ([*SAME, "--epochs", "2"], 2),
    (["--recipe", "classic"], 2),
    (["--seed", "1"], 2),
]


@pytest.mark.parametrize(("options", "code"), REQUESTED)
def test_a_resumed_run_takes_nothing_or_the_same(pictures, copy_of, options, code, ends, monkeypatch):
    run = copy_of("done")
    monkeypatch.chdir(run)
    recipe = (run / "recipe.toml").read_text()
    (run / "recipe.toml").write_text(re.sub("grouping = .*\n", "", recipe))  # of a version without this option
    (run / "mine.toml").write_text("pseudo_labels = 500\n")
    change_record(run, requested=TYPED, command="deepcluster fit photos -k 4")
    said = ends(["fit", pictures, "-o", run, *options, "--resume"], code)
    wanted = f"the run began as: deepcluster fit photos -k 4; give that, or only -o {run} --resume [--rounds N]"
    assert (wanted in said) == (code == 2)


def test_labels_belong_to_the_run(pictures, tmp_path, ends):
    """A resumed run scores by the labels that it began with, from any folder, and refuses others."""
    run, labels, others = tmp_path / "run", tmp_path / "labels.csv", tmp_path / "others.csv"
    names = [path.relative_to(pictures).as_posix() for path in sorted(pictures.rglob("*.png"))]
    labels.write_text("path,label\n" + "".join(f"{name},{name[0]}\n" for name in names))
    shutil.copy(labels, others)
    beginning = ["fit", pictures, "-o", run, *small_fit("--rounds", "2")]
    stop = ("SIGTERM", "deepcluster.algorithm:train_on_pseudo_labels", 2)
    assert command(*beginning, "--labels", labels, trap=stop)[0] == 75
    before = contents(run)
    for other in (others, "folders"):
        said = ends([*beginning, "--resume", "--labels", other], 2)
        assert f"--labels {labels}" in said and said.count("\n") == 1
    assert contents(run) == before
    ends([*beginning, "--resume"], 0)
    assert json.loads((run / "metrics.json").read_text())["labelled"] == len(names)
    assert record(run)["labels"] == str(labels)
    assert all(row["nmi_labels"] for row in rows(run / "history.csv"))


# ---- a run that is replaced ------------------------------------------------------------------------------------------

# What ends a fit with --overwrite before its result: the exit code, and words of its message.
BEFORE_THE_RESULT = {
    "a signal while it reads": (("SIGINT", "deepcluster.images.store:square", 5), 75, "same command"),
    "a kill before the last file": (("SIGKILL", "deepcluster.storage.model_files:save_in_run", 1), -9, ""),
    "a signal in the result": (("SIGINT", "deepcluster.runs.page:render", 1), 75, "same command"),
    "a full disk": (("FSIZE", "", 30_000), 5, os.strerror(errno.EFBIG)),
}


@pytest.fixture(scope="module")
def replaced(pictures, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "replaced"
    assert command("fit", pictures, "-o", out, *small_fit("--rounds", "0", "--labels", "folders")) == (0, "")
    return out


def own(run: Path) -> dict[str, bytes | Path]:
    return {name: content for name, content in contents(run).items() if not name.startswith(".deepcluster/")}


@pytest.mark.parametrize("end", BEFORE_THE_RESULT)
def test_a_run_is_replaced_only_by_a_run_that_has_a_result(pictures, replaced, tmp_path, end, ends):
    trap, code, words = BEFORE_THE_RESULT[end]
    run, before = Path(shutil.copytree(replaced, tmp_path / "run")), own(replaced)
    anew = ["fit", pictures, "-o", run, *small_fit("-k", "4", "--rounds", "0"), "--overwrite"]
    ended, said = command(*anew, trap=trap)
    assert ended == code and words in said and "--resume" not in said, said
    assert own(run) == before  # with run.json, which has no error of the other run
    if end == "a kill before the last file":
        ends(anew, 0)
        assert result(run)["clusters"] == 4 and record(run)["run"] != record(replaced)["run"]
        assert not (run / "metrics.json").exists() and not left_behind(run)


def test_a_run_that_trains_replaces_another_before_its_first_round(pictures, fit, replaced, tmp_path):
    run, before = Path(shutil.copytree(replaced, tmp_path / "run")), own(replaced)
    assert "same command" in fit(run, "--overwrite", code=75, trap=PHASES["reading"])
    assert own(run) == before
    assert "--resume" in fit(run, "--overwrite", code=75, trap=PHASES["features"])
    assert record(run)["run"] != record(replaced)["run"] and not (run / "clusters.csv").exists()
    fit(run, "--resume")
    assert record(run)["rounds"] == 3 and not left_behind(run)


# ---- a full disk ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_full_disk_at_some_sizes(fit, whole, stopped, tmp_path, sizes):
    """No file may grow beyond a size: the run ends with 5, and what was written before is whole."""
    largest = max(path.stat().st_size for path in (stopped / "checkpoints").glob("*.safetensors"))
    for i in range(sizes):
        out = Path(shutil.copytree(stopped, tmp_path / f"run{i}"))
        size = 40_000 + (largest - 40_001) * i // max(1, sizes - 1)
        said = fit(out, "--resume", code=5, trap=("FSIZE", "", size))
        assert re.search(rf"{os.strerror(errno.EFBIG)}.* [0-9.]+ MB", said)
        assert Checkpoints(out / "checkpoints").latest() is not None
        assert not list((out / "checkpoints").glob(".*"))
        if i % 5 == 0:
            fit(out, "--resume")
            assert_same_result(whole, out)
        shutil.rmtree(out)
