"""Kills, signals, power cuts, failing calls and full disks: each leaves the old state or the new one, whole.

Operations that change files are broken off at each change of the disk, fits in each of their phases.
"""

import errno
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deepcluster.commands.cli import run_command
from deepcluster.errors import DiskError, Stopped
from deepcluster.export import folders
from deepcluster.fitting import fit as fitting
from deepcluster.fitting import journal
from deepcluster.nets.network import build
from deepcluster.recipes.presets import read_request
from deepcluster.records import State
from deepcluster.runs.apply import apply
from deepcluster.runs.change import redo, undo
from deepcluster.runs.promote import promote
from deepcluster.runs.run import read_run
from deepcluster.runs.update import update
from deepcluster.runtime import machine
from deepcluster.runtime.processes import Processes
from deepcluster.runtime.signals import stoppable
from deepcluster.storage import former, run_folder
from deepcluster.storage.checkpoint import Checkpoints
from deepcluster.storage.content import FILES, LOG
from deepcluster.storage.edits_file import Edits
from deepcluster.storage.lock import own_files
from tests.helpers import disk
from tests.helpers.commands import DISK_CALLS, Trap, before_call, command, killed_at_every_change, largest_file
from tests.helpers.features import blobs
from tests.helpers.pages import ROOT
from tests.helpers.ranks import WAIT, Ranks
from tests.helpers.runs import assert_same_result, contents, left_behind, record, small_fit, state_of, tree
from tests.helpers.shared import OPTIONS, files_of, pixels
from tests.helpers.tiny import photos_run

# ---- operations, broken off at each change of the disk ---------------------------------------------------------------

# A copy by links takes a third of the time, and a file that is not replaced but written into would change the original.
copied = partial(shutil.copytree, copy_function=os.link)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the disk, and for a look at the free memory, which is a third of the time to read a small run."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(machine, "available", lambda: float("inf"))


at_each_change = pytest.mark.usefixtures("no_waiting")


@pytest.fixture(scope="module")
def files_of_all(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on four clusters, without pages; the first has a change to undo and one to make again.

    Beside them are two checkpoints, and a run on photographs that can be sorted.
    """
    place = tmp_path_factory.mktemp("kills") / "place"
    photos_run(place / "album", {"a.png": 0, "b.png": 1, "sea/a.png": 1})
    np.save(place / "images.npy", blobs([15] * 4).numpy())
    np.save(place / "more.npy", blobs([1] * 4, seed=1).numpy())
    for name in ("run", "new"):
        line = ["fit", f"{place}/images.npy", "--features", "-o", f"{place}/{name}", "-k", "4", "-q"]
        assert run_command(line) == 0
        for page in ("report.html", "map.npy", "thumbnails.webp", "tiles.json"):
            (place / name / page).unlink(missing_ok=True)
        apply(place / name, Edits(names={0: "a"}))
    apply(place / "run", Edits(names={0: "b"}))
    undo(place / "run")
    (place / "run" / "mine.txt").write_text("mine")
    for number in (1, 2):
        save(place, number)
    return place


TRUTHS = [name for name in FILES if not (FILES[name].view or FILES[name].spare or name == LOG)]


def overwrite(place: Path) -> None:
    """Replace a run, as a fit without rounds does it."""
    with run_folder.locked(place / "run") as folder, run_folder.staged(folder) as staged:
        for name in (name for name in own_files(place / "new") if name in TRUTHS):
            staged.write(name, (place / "new" / name).read_bytes())


def save(place: Path, number: int = 3) -> None:
    (place / "checkpoints").mkdir(exist_ok=True)
    Checkpoints(place / "checkpoints").write(State(number), {"weight": torch.full((3,), number)}, {})


def of_run(place: Path) -> tuple[object, ...]:
    """Return the truths of the run in a place. A promotion that was killed is made again."""
    run = place / "run"
    if not run.exists() and [*place.glob("run-until-*")]:
        promote(place / "new", run, force=True)
    folder = run_folder.open_run(run)
    whole = read_run(folder)
    done = [made.text for made in former.history(folder)[0]]
    return whole.record.run, whole.model.names, whole.model.said, whole.placement.cluster.tolist(), *done


def of_checkpoints(place: Path) -> tuple[object, ...]:
    checkpoint = Checkpoints(place / "checkpoints").latest()  # without a warning: none is damaged
    assert checkpoint
    return checkpoint.values["round"], *checkpoint.tensors["network.weight"].tolist()


def of_sorted(place: Path) -> list[str]:
    return tree(place / "sorted")


Work = Callable[[Path], object]
# What is done to a place, the state of what it changes (that before or that after is allowed), and the files it needs.
OPERATIONS: dict[str, tuple[Work, Callable[[Path], object], str]] = {
    "name": (lambda place: apply(place / "run", Edits(names={2: "c"})), of_run, "run"),
    "undo": (lambda place: undo(place / "run"), of_run, "run"),
    "redo": (lambda place: redo(place / "run"), of_run, "run"),
    "update": (lambda place: update(place / "run", str(place / "more.npy")), of_run, "run more.npy"),
    "overwrite": (overwrite, of_run, "run new"),
    "promote": (lambda place: promote(place / "new", place / "run", force=True), of_run, "run new"),
    "checkpoint": (save, of_checkpoints, "checkpoints"),
    "export": (lambda place: folders(place / "album/run", place / "sorted", mode="copy"), of_sorted, "album"),
}
promoting = pytest.mark.filterwarnings("ignore:.*no fit --like")


@pytest.fixture(params=OPERATIONS)
def operation(request: pytest.FixtureRequest) -> tuple[Work, Callable[[Path], object], str]:
    return OPERATIONS[request.param]


@pytest.fixture
def made(files_of_all: Path, operation: Any, tmp_path: Path) -> Path:
    """The files that an operation needs, in a place of their own."""
    place = tmp_path / "made"
    shutil.copytree(files_of_all, place)
    for path in place.iterdir():
        if path.name not in operation[2].split():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return place


@pytest.fixture
def both(made: Path, operation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, object]:
    """The states before and after an operation, which draws no page."""
    monkeypatch.setattr("deepcluster.runs.views.report", lambda run: None)
    work, state, _ = operation
    work(after := Path(shutil.copytree(made, tmp_path / "after")))
    return state(Path(shutil.copytree(made, tmp_path / "before"))), state(after)


@at_each_change
@promoting
def test_a_kill_leaves_the_old_state_or_the_new_one(made, operation, both, tmp_path):
    """The same command completes it, and the next one makes the views again and tidies up."""
    (work, state, parts), seen, originals = operation, [], contents(made)
    (tmp_path / "kills").mkdir()
    for place in killed_at_every_change(tmp_path / "kills", lambda to: Path(copied(made, to)), work):
        seen.append(both.index(state(place)))
        if not seen[-1]:
            work(place)
        assert state(place) == both[1]
        if "run" in parts.split():
            assert state_of(place / "run")
            with run_folder.locked(place / "run"):
                pass
            assert not [*place.glob(".run.*")] and not left_behind(place / "run")
            assert next(place.rglob("mine.txt")).read_text() == "mine"
    assert seen == sorted(seen) and {*seen} == {0, 1} and len(seen) > 5, "one moment divides old from new"
    assert contents(made) == originals


@at_each_change
@promoting
@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name != "export"], indirect=True)
def test_a_power_cut_leaves_the_old_state_or_the_new_one(made, operation, both, tmp_path):
    (work, state, _), place = operation, Path(shutil.copytree(made, tmp_path / "place"))
    with pytest.MonkeyPatch.context() as patch:
        work_of_disk = disk.Disk(place, patch)
        work(place)
    assert state(disk.write(work_of_disk.safe(), tmp_path / "safe")) == both[1], "what is done lasts"
    trees = [*work_of_disk.trees]
    seen = [both.index(state(disk.write(dict(tree), tmp_path / str(i)))) for i, tree in enumerate(trees)]
    assert {*seen} == {0, 1} and len(seen) > 3


NUMBERS = [errno.EIO, errno.ENOSPC, errno.EACCES]


@at_each_change
@promoting
def test_a_call_that_fails_leaves_the_old_state_or_the_new_one_and_names_a_file(made, operation, both, tmp_path):
    (work, state, _), failed = operation, [True]
    for n in itertools.count(1):
        if not failed:
            break
        failed.clear()
        number = NUMBERS[n % len(NUMBERS)]

        def fail(number: int = number) -> None:
            failed.append(True)
            raise OSError(number, os.strerror(number))

        place, wrapped = Path(copied(made, tmp_path / str(n))), before_call(n, fail)
        done = True
        with pytest.MonkeyPatch.context() as patch:
            for name in (*DISK_CALLS, "open"):
                patch.setattr(os, name, wrapped(getattr(os, name)))
            try:
                work(place)
            except DiskError as error:
                done = False
                assert str(place) in str(error) and os.strerror(number) in str(error), error
        assert state(place) in (both[1:] if done else both), n
        shutil.rmtree(place)
    assert n > 7


@at_each_change
@pytest.mark.parametrize("operation", ["name", "overwrite", "export"], indirect=True)
def test_a_signal_says_if_the_run_has_changed_and_leaves_nothing_else(made, operation, tmp_path):
    """A command that has changed nothing is to be repeated; an undo, typed again, would take back two changes."""
    work, state, parts = operation
    before, came, seen = state(Path(shutil.copytree(made, tmp_path / "before"))), [True], []

    def stop() -> None:
        came.append(True)
        signal.raise_signal(signal.SIGTERM)

    while came:
        place = Path(copied(made, tmp_path / str(len(seen))))
        wrapped = before_call(len(seen) + 1, stop, after=True)
        came.clear()
        said = ""
        with pytest.MonkeyPatch.context() as patch:
            for call in DISK_CALLS:
                patch.setattr(os, call, wrapped(getattr(os, call)))
            try:
                with stoppable():
                    work(place)
            except Stopped as error:
                said = str(error)
        seen.append(state(place) != before)
        if parts != "album":  # an export, which is repeated in any case, with another -o
            assert not said or seen[-1] == ("has changed already" in said), (len(seen), said)
        assert said or seen[-1]
        assert not [*place.glob(".deepcluster*")]
    assert seen == sorted(seen) and {*seen} == {False, True}


@pytest.mark.parametrize("operation", ["export"], indirect=True)
def test_an_export_on_a_full_disk_leaves_nothing(made, operation):
    with largest_file(50), pytest.raises(DiskError, match=os.strerror(errno.EFBIG)):
        operation[0](made)
    assert not (made / "sorted").exists() and not [*made.glob(".deepcluster*")]


# ---- fits, ended in each phase ---------------------------------------------------------------------------------------

OUTPUTS = "deepcluster.learning.training:Outputs"
# What ends a fit of three rounds, one after the other.
BREAKS: dict[str, list[Trap]] = {
    "reading": [("SIGINT", "deepcluster.images.store:_results", 1)],
    "features": [("SIGUSR1", "deepcluster.algorithm:features_of", 1)],
    "clustering": [("SIGINT", "deepcluster.clustering.kmeans:KMeans.__call__", 2)],
    "training": [("SIGTERM", OUTPUTS, 5), ("FSIZE", "", 400_000)],
    "saving": [("SIGTERM", "deepcluster.storage.checkpoint:write_tensors", 3)],
    "result": [("SIGUSR1", "deepcluster.recipes.build:cut_features", 1)],
    "report": [("SIGTERM", "deepcluster.runs.page:render", 1)],
    "adapting": [
        ("SIGKILL", "deepcluster.algorithm:train_on_pseudo_labels", 2),
        ("SIGKILL", "deepcluster.fitting.journal:Journal.end", 1),
    ],
}
SLOW = {name: pytest.mark.slow for name in BREAKS if name not in ("training", "adapting")}
CODES = {"SIGKILL": -9, "FSIZE": 5}
STATUS = {-9: "running", 5: "failed", 75: "stopped"}
ENDINGS = ("residuals.npy", "map.npy", "tree.json", "recipe.toml", "metrics.json")


@pytest.fixture(scope="module")
def fit_of(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[object]]:
    """The words of a fit of three rounds in a folder, with a new network or one that is adapted."""
    weights = tmp_path_factory.mktemp("weights") / "compact.safetensors"
    save_file(build("compact", image_size=16, seed=3).body.state_dict(), weights)
    adapting = ["--backbone", "compact", "--weights", weights, "--set", "view_size=0"]

    def words(out: Path, phase: str = "", *options: object) -> list[object]:
        given = [*(adapting if phase == "adapting" else []), *options]
        return ["fit", photos, "-o", out, *small_fit("--rounds", "3", "--labels", "folders", *given)]

    return words


@pytest.fixture(scope="module")
def whole_of(fit_of: Callable[..., list[object]], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A fit without a break."""

    @cache
    def whole(is_adapting: bool) -> Path:
        out = tmp_path_factory.mktemp("whole") / "run"
        assert command(*fit_of(out, "adapting" * is_adapting))[0] == 0
        return out

    return whole


@pytest.mark.parametrize("phase", [pytest.param(phase, marks=SLOW.get(phase, ())) for phase in BREAKS])
def test_a_fit_goes_on_to_the_same_bits(fit_of, whole_of, photos, tmp_path, phase):
    out, whole = tmp_path / "run", whole_of(phase == "adapting")
    for i, trap in enumerate(BREAKS[phase]):
        ended, said = command(*fit_of(out, phase, *["--resume"] * bool(i)), trap=trap)
        assert ended == CODES.get(trap[0], 75), said
        if phase == "reading":  # the run has not begun
            assert not (out / "run.json").exists()
            continue
        assert record(out)["status"] == STATUS[ended] and not left_behind(out / "checkpoints")
        if ended == 75:
            assert re.fullmatch("(warning: after 3 rounds .*\n)?error: stopped .* --resume(; to end .*)?\n", said)
        if ended == 5:
            assert re.search(rf"{os.strerror(errno.EFBIG)}.* [0-9.]+ MB", said)
        if phase == "training":
            assert Checkpoints(out / "checkpoints").latest()
            assert i or said.endswith(f" -o {out} --resume; to end it with 1 round: --resume --rounds 1\n")
    assert phase != "adapting" or "after 3 rounds the network learns little (loss " in said
    last = fit_of(out, phase, "--resume") if phase == "reading" else ["fit", "-o", out, "--resume", "-q"]
    ended, said = command(*last)
    assert ended == 0, said
    assert_same_result(whole, out, *ENDINGS)
    resumed, expected = record(out), record(whole)
    assert all(resumed[name] == expected[name] for name in ("status", "seed", "n_clusters", "labels", "requested"))
    assert str(photos) in resumed["command"]


# A function before which the signal comes, in a fit or on the way out of its error, and the end of the message.
MOMENTS = {
    "before the run begins": (fitting, "network_of", False, ": run the same command again"),
    "as an error ends the run": (journal, "_record_end", True, "; to end it with 1 round: --resume --rounds 1"),
    "after the result": (fitting, "summary_text", False, " is done"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_stop_says_what_is_true_at_its_moment(photos, tmp_path, ends, monkeypatch, moment):
    owner, name, has_error, end = MOMENTS[moment]
    out = tmp_path / "run"
    signalled = before_call(1, lambda: signal.raise_signal(signal.SIGTERM))(getattr(owner, name))

    def lose_connection(*_: Any) -> None:
        monkeypatch.setattr(owner, name, signalled)
        raise RuntimeError("connection closed by peer")

    if has_error:
        monkeypatch.setattr(fitting, "conclude", lose_connection)
    else:
        monkeypatch.setattr(owner, name, signalled)
    # Only a run with rounds has a run.json before its result.
    said = ends(["fit", photos, "-o", out, *small_fit("--rounds", str(int(has_error)))], 75)
    assert said.startswith("error: stopped by SIGTERM") and said.endswith(f"{end}\n") and said.count("\n") == 1
    assert not (out / "run.json").exists() or record(out)["status"] != "running"


# What ends a fit with --overwrite: rounds, trap, words. It has replaced the run if --resume goes on.
OVERWRITES: list[tuple[str, Trap, str]] = [
    ("0", ("SIGINT", "deepcluster.runs.page:render", 1), "same command"),
    ("0", ("FSIZE", "", 30_000), os.strerror(errno.EFBIG)),
    ("3", ("SIGINT", "deepcluster.images.store:square", 5), "same command"),
    ("3", ("SIGUSR1", "deepcluster.algorithm:features_of", 1), "--resume"),
]


@pytest.mark.parametrize(("rounds", "trap", "words"), OVERWRITES)
def test_a_run_is_replaced_before_the_first_round_or_by_the_result(photos, run, tmp_path, ends, rounds, trap, words):
    before = contents(run)
    anew = ["fit", photos, "-o", run, *small_fit("--rounds", rounds)]
    ended, said = command(*anew, "--overwrite", trap=trap)
    assert ended == CODES.get(trap[0], 75) and words in said and (words == "--resume") == ("--resume" in said), said
    if words != "--resume":
        assert contents(run) == before  # with run.json, which has no error of the other run
        return
    assert record(run)["run"] != before["run.json"] and not (run / "clusters.csv").exists()
    ends([*anew, "--resume"], 0)
    assert record(run)["rounds"] == 3 and not (run / "metrics.json").exists() and not left_behind(run)


# ---- fits of several processes under torchrun, one of which is killed ------------------------------------------------

KILLS = int(os.environ.get("DEEPCLUSTER_KILLS", "4"))
ROUNDS = 6
OF_RANKS = OPTIONS | {"epochs": 1, "rounds": ROUNDS}
RANKS_FIT = ["-q", "-k", "4", *(f"--{name.replace('_', '-')}={value}" for name, value in OF_RANKS.items())]
# The command, each process of which writes its number into a folder; one of them sends a signal at an event.
SIGNALLED = """
import os, sys
from pathlib import Path
from deepcluster.__main__ import main
from tests.helpers.commands import trapped

folder, rank, target, *trap = sys.argv.pop(1).split(",")
Path(folder, os.environ["RANK"]).write_text(str(os.getpid()))
if os.environ["RANK"] == rank:
    trapped(trap[0], trap[1], int(trap[2]), os.getppid() if target == "launcher" else None)
main()
"""
EVENTS = ("deepcluster.algorithm:features_of", "deepcluster.algorithm:_by_main")  # one of each a round


def signalled(folder: Path, trap: tuple[object, ...], *arguments: object) -> str:
    """Run a command in two processes, one of which signals itself or the launcher, and return what they say."""
    (script := folder / "signalled.py").write_text(SIGNALLED)
    environment = {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    said = subprocess.run(
        [*launcher, ",".join(map(str, (folder, *trap))), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env=environment | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, timeout=WAIT,
    ).stdout  # fmt: skip
    until = time.monotonic() + WAIT  # the end of their output should be the end of both
    for process in ((folder / str(rank)).read_text() for rank in range(2)):
        with suppress(OSError):
            while Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z":  # a zombie is dead
                assert time.monotonic() < until, "some are still alive"
                time.sleep(0.05)
    return said


def fitted(processes: Processes, out: Path, images: Path) -> None:
    request = fitting.Request(out=out, n_clusters=4, recipe=read_request(OF_RANKS), resume=out.exists())
    fitting.fit(str(images), request, processes=processes)


@pytest.fixture(scope="module")
def of_ranks(ranks: dict[int, Ranks], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Images, and a fit of two processes without a break."""
    folder = tmp_path_factory.mktemp("ranks")
    np.save(folder / "images.npy", pixels())
    ranks[2](fitted, folder / "whole", folder / "images.npy")
    return folder / "images.npy", folder / "whole"


@pytest.mark.parametrize("draw", [pytest.param(i, marks=pytest.mark.slow if i else ()) for i in range(KILLS)])
def test_a_signal_to_a_process_or_the_launcher_ends_all_and_the_run_goes_on(ranks, of_ranks, tmp_path, draw):
    """In a random round."""
    chance, out, (images, whole) = random.Random(draw), tmp_path / "run", of_ranks
    rank, target, name = ((1, "rank", "SIGKILL"), (0, "rank", "SIGKILL"), (0, "launcher", "SIGKILL"),
                          (0, "launcher", "SIGTERM"))[draw % 4]  # fmt: skip
    event = (chance.choice(EVENTS), chance.randrange(2, ROUNDS))
    said = signalled(tmp_path, (rank, target, name, *event), "fit", images, "-o", out, *RANKS_FIT)
    if name == "SIGTERM":
        assert len(re.findall("^error: ", said, re.M)) == 1 and record(out)["status"] == "stopped", said
        assert re.search(f"error: stopped .*; to go on: run it again with -o {out} --resume(; to end .*)?$", said, re.M)
    elif target == "rank" and rank == 0:  # torchrun names the signal that ended the main rank, and ends the other one
        assert "error: " not in said and "SIGKILL" in said
    elif target == "rank":
        # The launcher sends SIGTERM to the main rank, which may hear it before the connection is lost.
        (error,) = re.findall("^.*error: .*$", said, re.M)
        assert re.search("another process|stopped .* --resume(; to end .*)?$", error)
    ranks[2](fitted, out, images)
    assert files_of(out) == files_of(whole)
