"""One state of a run at a time: kills between any two changes of the disk leave the old state or the new one, whole."""

import errno
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from deepcluster.errors import DiskError, Stopped
from deepcluster.records import State
from deepcluster.runtime.signals import stoppable
from deepcluster.storage import run_folder
from deepcluster.storage import state as states
from deepcluster.storage.checkpoint import Checkpoints
from deepcluster.storage.run_folder import LockedFolder
from tests.commands import CHANGES, before_call, in_a_child, killed_at_every_change
from tests.helpers.runs import contents, left_behind
from tests.ranks import WAIT
from tests.tiny import RECORD

OLD = {"run.json": "old", "clusters.csv": "old", "model/config.json": "old", "tree.json": "old"}
OLD |= {"checkpoints/000001.json": "old"}
NEW = {"run.json": "new", "clusters.csv": "new", "model/config.json": "new", "report.html": "new"}


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """A killed process leaves what it has written, on the disk or not; a power cut is not what is tested here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def record(state: str) -> str:
    return json.dumps(RECORD | {"images": state})


def make(run: Path) -> Path:
    for name in OLD:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(record("old") if name == "run.json" else "old")
    (run / "mine.txt").write_text("mine")
    (run / "model" / "mine.bin").write_text("mine")
    return run


def change(run: Path, before_the_commit: Callable[[], None] = lambda: None) -> None:
    with run_folder.locked(run) as folder, folder.next_state() as staged:
        for name in NEW:
            staged.write(name, record("new") if name == "run.json" else "new")
        for name in ("tree.json", *states.checkpoint_files(run)):
            staged.remove(name)
        before_the_commit()


def state(run: Path) -> dict[str, str]:
    """Return the files that a reader sees, by name."""
    folder = run_folder.open_run(run)
    found = {name: folder.file(name).read_text() for name in {**OLD, **NEW} if folder.has(name)}
    return found | {"run.json": json.loads(found["run.json"])["images"]}


def make_where_a_rank_was_killed(run: Path) -> Path:
    unfinished = run / states.SCRATCH / "rank-3/half"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_text("half")
    return make(run)


def test_a_kill_at_any_change_of_the_disk_leaves_the_old_state_or_the_new_one(tmp_path):
    seen = []
    for run in killed_at_every_change(tmp_path, make_where_a_rank_was_killed, change):
        copy = Path(shutil.copytree(run, tmp_path / f"copy{run.name}"))
        seen.append(found := state(run))  # a reader completes the state
        assert found in (OLD, NEW), run.name
        for place in (run, copy):
            with run_folder.locked(place):  # and so does the next lock holder
                assert state(place) == found
            names = {path.relative_to(place).as_posix() for path in place.rglob("*") if not path.is_dir()}
            assert names == {*found, "mine.txt", "model/mine.bin", states.LOCK}, run.name
        assert (run / "mine.txt").read_text() == (run / "model" / "mine.bin").read_text() == "mine"
    assert seen[0] == OLD and seen[-1] == NEW and len(seen) > 30
    assert seen == sorted(seen, key=lambda each: each == NEW), "one moment divides old from new"


def test_a_kill_at_any_change_of_the_disk_leaves_the_last_checkpoint_or_the_next(tmp_path):
    def write(folder: Path, *rounds: int) -> Path:
        folder.mkdir(exist_ok=True)
        for number in rounds:
            Checkpoints(folder).write(State(number), {"weight": torch.full((3,), number)}, {})
        return folder

    rounds = []
    for folder in killed_at_every_change(tmp_path, lambda folder: write(folder, 1, 2), lambda folder: write(folder, 3)):
        checkpoint = Checkpoints(folder).latest()  # without a warning: none is damaged
        assert checkpoint and checkpoint.tensors["network.weight"].tolist() == [checkpoint.values["round"]] * 3
        rounds.append(checkpoint.values["round"])
    assert rounds[0] == 2 and rounds[-1] == 3 and rounds == sorted(rounds) and len(rounds) > 7


def leave_pending(run: Path) -> None:
    """Kill a process between the commit and the moves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(states, "finish", before_call(2, lambda: os.kill(os.getpid(), signal.SIGKILL))(states.finish))
        assert in_a_child(lambda: change(run), -1)
    assert states.pending(run)


def test_a_process_that_finishes_may_be_killed_too(tmp_path):
    """After the commit, and again and again while the moves are finished."""
    run, moves = make(tmp_path / "run"), []

    leave_pending(run)
    while in_a_child(lambda: states.finish(run), 3 + len(moves)):
        moves.append(state(Path(shutil.copytree(run, tmp_path / f"copy{len(moves)}"))))
    assert moves == [NEW] * len(moves) and len(moves) > 3
    assert not states.pending(run) and state(run) == NEW

    leave_pending(new := make(tmp_path / "new"))
    (new / "run.json").unlink()  # as of a run without an earlier state
    run_folder.check_free(new, resume=True)
    assert not states.pending(new) and state(new) == NEW


def test_a_signal_at_any_change_of_the_disk_is_a_stop_only_before_the_change(tmp_path):
    """A command whose state is current has done its work, and ends like one."""
    stops, came = [], [True]

    def stop() -> None:
        came.append(True)
        signal.raise_signal(signal.SIGTERM)

    while came:
        run, wrapped = make(tmp_path / str(len(stops))), before_call(len(stops) + 1, stop)
        came.clear()
        with pytest.MonkeyPatch.context() as patch:
            for name in CHANGES:
                patch.setattr(os, name, wrapped(getattr(os, name)))
            try:
                with stoppable():
                    change(run)
                stops.append(False)
            except Stopped:
                stops.append(True)
        assert state(run) == (OLD if stops[-1] else NEW), len(stops)
    assert stops == sorted(stops, reverse=True) and 10 < sum(stops) < len(stops) - 10


def test_an_error_drops_the_next_state(tmp_path):
    run = make(tmp_path / "run")
    with pytest.raises(ZeroDivisionError):
        change(run, lambda: 1 // 0)
    assert state(run) == OLD and left_behind(run) == []
    assert (run / states.LOCK).read_text() == ""  # a run that is passed on names no machine


def test_a_reader_waits_for_the_process_that_finishes(tmp_path, monkeypatch):
    run = make(tmp_path / "run")
    leave_pending(run)
    waits, released = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool, monkeypatch.context() as patch:
        patch.setattr(states.time, "sleep", lambda _: waits.set() or released.wait())
        with states.hold(run, states.LOCK):
            reader = pool.submit(state, run)
            assert waits.wait(WAIT) and not reader.done()
        released.set()
        assert reader.result() == NEW
    leave_pending(make(tmp_path / "other"))
    monkeypatch.setattr(states, "ATTEMPTS", 3)
    with (
        states.hold(tmp_path / "other", states.LOCK),
        pytest.raises(DiskError, match=str(os.getpid())),
    ):
        state(tmp_path / "other")
    assert state(tmp_path / "other") == NEW


@pytest.mark.parametrize(("platform", "before"), [("linux", (1, False)), ("win32", (2, True))])
def test_the_file_of_a_lock_is_removed_before_another_holder_comes(tmp_path, monkeypatch, platform, before):
    """It is locked until then, or, on Windows, closed, because no open file can be removed. An error releases it."""
    lock, seen = Mock(), []

    def unlink(path: Path) -> None:
        seen.append((lock.call_count, lock.call_args.args[0].closed))
        raise PermissionError

    monkeypatch.setattr(states, "_lock", lock)
    with monkeypatch.context() as patch, states.hold(tmp_path, "lock", remove=True):
        patch.setattr(Path, "unlink", unlink)
        patch.setattr(sys, "platform", platform)
    assert seen == [before] and lock.call_args.kwargs == {"release": True}


def test_a_reader_that_cannot_complete_a_state_says_so(tmp_path, monkeypatch):
    run = make(tmp_path / "run")
    leave_pending(run)

    def read_only(run: Path, name: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(run))

    with monkeypatch.context() as patch:
        patch.setattr(states, "hold", read_only)
        with pytest.raises(DiskError, match=os.strerror(errno.EROFS)):
            state(run)
    assert state(run) == NEW


def test_a_file_that_cannot_be_removed_is_no_damage(tmp_path, monkeypatch):
    """As one that another program holds open on SMB or NFS: the new state is there, and the next command tidies up."""
    run = make(tmp_path / "run")

    def busy(path, missing_ok=False):
        if path.exists():
            raise OSError(errno.EBUSY, "Device or resource busy", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", busy)
        for work in (lambda: change(run), lambda: LockedFolder(run).remove("tree.json")):
            with pytest.raises(DiskError, match=rf"(run|tree.json) \({os.strerror(errno.EBUSY)}\)"):
                work()
    assert states.pending(run) and state(run) == NEW and not states.pending(run)


def test_an_entry_that_goes_while_it_is_looked_at_is_in_nobodys_way(tmp_path, monkeypatch):
    (tmp_path / states.SCRATCH).mkdir(parents=True)
    kind = states._kind
    monkeypatch.setattr(states, "_kind", lambda path: 0 if path.name == "scratch" else kind(path))
    states._check_places(tmp_path)


def test_readers_beside_a_writer_see_one_state(tmp_path):
    """A hundred changes, and readers that take every file."""
    run, done, seen = make(tmp_path / "run"), threading.Event(), list[list[str]]()

    def values(folder: run_folder.RunFolder) -> list[str]:
        with folder.as_disk_errors():  # a file that moves between the look at its place and the read
            return [folder.read_record().images, folder.file("clusters.csv").read_text()]

    def read() -> None:
        while not done.is_set():
            seen.append(run_folder.read_state(run, values))

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        for i in range(100):
            with run_folder.locked(run) as folder, folder.next_state() as staged:
                staged.write("run.json", record(str(i % 7)))
                staged.write("clusters.csv", str(i % 7))
        done.set()
        reader.result()  # or its error
    assert len(seen) > 3 and all(images == clusters for images, clusters in seen)


@pytest.mark.parametrize("name", ["report.html", "model/config.json"])
def test_what_is_in_the_way_is_left_and_named(tmp_path, name):
    run = make(tmp_path / "run")
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir()
    (run / name / "mine.txt").write_text("mine")
    with pytest.raises(DiskError, match=name):
        change(run)
    assert (run / name / "mine.txt").read_text() == "mine" and state(run)["run.json"] == "old"


def test_a_strangers_commit_moves_and_removes_only_files_of_a_run(tmp_path):
    run = make(tmp_path / "run")
    (tmp_path / "outside.txt").write_text("mine")
    ((commit := run / states.COMMIT) / "model").mkdir(parents=True)
    names = {"evil.sh": "evil", "mine.txt": "", "model/mine.bin": "", "clusters.csv": "new", "tree.json": ""}
    for name, content in names.items():
        (commit / name).write_text(content)
    (commit / "report.html").symlink_to(tmp_path / "outside.txt")
    left = {name: text for name, text in OLD.items() if name != "tree.json"}
    assert state(run) == left | {"clusters.csv": "new"}
    assert not (run / "evil.sh").exists() and not (run / "report.html").is_symlink()
    assert (run / "mine.txt").read_text() == (run / "model/mine.bin").read_text() == "mine"
    assert (tmp_path / "outside.txt").read_text() == "mine" and (commit / "evil.sh").exists()
    with pytest.raises(DiskError, match="commit"):
        change(run)


@pytest.mark.parametrize("name", [states.HIDDEN, states.SCRATCH, states.COMMIT, states.LOCK])
def test_no_hidden_link_is_followed(tmp_path, name):
    run, elsewhere = make(tmp_path / "run"), tmp_path / "elsewhere"
    for folder in ("rank-0", "scratch", "commit"):
        (elsewhere / folder).mkdir(parents=True)
        (elsewhere / folder / "clusters.csv").write_text("mine")
    (elsewhere / "checkpoints").mkdir()
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(elsewhere / "rank-0/clusters.csv" if name == states.LOCK else elsewhere)
    before = contents(elsewhere)
    assert state(run) == OLD
    with pytest.raises(DiskError):
        change(run)
    assert contents(elsewhere) == before and (elsewhere / "checkpoints").is_dir() and state(run) == OLD


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
