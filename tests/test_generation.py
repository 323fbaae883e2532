"""One state of a run at a time: kills between any two changes of the disk leave the old state or the new one, whole."""

import errno
import json
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deepcluster.errors import DiskError
from deepcluster.storage import generation, ownership
from deepcluster.storage import run_folder as files
from deepcluster.storage.run_folder import RunFolder
from tests.tiny import RECORD

OLD = {"run.json": "old", "clusters.csv": "old", "model/config.json": "old", "tree.json": "old"}
NEW = {"run.json": "new", "clusters.csv": "new", "model/config.json": "new", "report.html": "new"}
CHANGES = ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync")  # of os: what a process does to a disk


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """A killed process leaves what it has written, on the disk or not; a power cut is not what is tested here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def record(state: str) -> str:
    return json.dumps(RECORD | {"images": state})


def make(run: Path) -> Path:
    (run / "model").mkdir(parents=True)
    for name in OLD:
        (run / name).write_text(record("old") if name == "run.json" else "old")
    (run / "mine.txt").write_text("mine")
    (run / "model" / "mine.bin").write_text("mine")
    return run


def change(run: Path, before_the_commit: Callable[[], None] = lambda: None) -> None:
    with files.locked(run) as folder, folder.next_state() as staged:
        for name in NEW:
            staged.write_text(name, record("new") if name == "run.json" else "new")
        staged.remove("tree.json")
        before_the_commit()


def state(run: Path) -> dict[str, str]:
    """What a reader finds, by name."""
    folder = files.RunFolder(run)
    found = {name: folder.file(name).read_text() for name in {**OLD, **NEW} if folder.has(name)}
    return found | {"run.json": json.loads(found["run.json"])["images"]}


def in_a_child(work: Callable[[], None], kill_at: int) -> bool:
    """Whether ``work`` was killed, in a process of its own, before its ``kill_at``-th change of the disk."""
    pid = os.fork()
    if pid == 0:
        calls = []

        def counted(original: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object, **options: object) -> object:
                calls.append(1)
                if len(calls) == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*arguments, **options)

            return call

        for name in CHANGES:
            setattr(os, name, counted(getattr(os, name)))
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_a_kill_at_any_change_of_the_disk_leaves_the_old_state_or_the_new_one(tmp_path):
    seen, kill_at, killed = [], 1, True
    while killed:
        run = make(tmp_path / str(kill_at))
        killed = in_a_child(lambda run=run: change(run), kill_at)
        seen.append(found := state(run))
        assert found in (OLD, NEW), (kill_at, found)
        with files.locked(run):  # whoever has the lock next finishes
            assert state(run) == found
        names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
        assert names == {*found, "mine.txt", "model/mine.bin"}, (kill_at, names)
        assert (run / "mine.txt").read_text() == (run / "model" / "mine.bin").read_text() == "mine"
        kill_at += 1
    assert seen[0] == OLD and seen[-1] == NEW and kill_at > 30
    assert seen == sorted(seen, key=lambda each: each == NEW), "one moment divides old from new"


def test_a_process_that_finishes_may_be_killed_too(tmp_path):
    """After the commit, and again and again while the moves are finished."""
    run, moves = make(tmp_path / "run"), []

    def no_finish() -> None:
        generation.finish = lambda run: os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_child(lambda: change(run, no_finish), -1)
    assert generation.is_pending(run) and state(run) == NEW
    while in_a_child(lambda: generation.finish(run), 3 + len(moves)):
        moves.append(state(run))
    assert moves == [NEW] * len(moves) and len(moves) > 3
    assert not generation.is_pending(run) and state(run) == NEW


def test_an_error_drops_the_next_state(tmp_path):
    run = make(tmp_path / "run")
    with (
        pytest.raises(RuntimeError, match="half way"),
        files.locked(run) as folder,
        folder.next_state() as staged,
    ):
        staged.write_text("clusters.csv", "new")
        raise RuntimeError("half way")
    assert state(run) == OLD
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_a_file_that_cannot_be_removed_is_no_damage(tmp_path, monkeypatch):
    """As one that another program holds open on SMB or NFS: the new state is there, and the next command tidies up."""
    run = make(tmp_path / "run")

    def busy(path, missing_ok=False):
        if path.exists():
            raise OSError(errno.EBUSY, "Device or resource busy", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", busy)
        with pytest.raises(DiskError, match=r"cannot write .*run \(Device or resource busy\): close"):
            change(run)
        with pytest.raises(DiskError, match=r"cannot write .*tree.json \(Dev"), RunFolder(run).as_disk_errors():
            RunFolder(run).remove("tree.json")
    assert state(run) == NEW
    with files.locked(run):
        pass
    assert state(run) == NEW and not generation.is_pending(run)


def test_a_staged_folder_reads_its_own_files_first(tmp_path):
    run = make(tmp_path / "run")
    with files.locked(run) as folder, folder.next_state() as staged:
        staged.write_text("clusters.csv", "new")
        staged.remove("tree.json")
        assert staged.file("clusters.csv").read_text() == "new" and not staged.has("tree.json")
        assert folder.file("clusters.csv").read_text() == "old" and folder.has("tree.json")
    assert state(run) == {name: OLD[name] for name in OLD if name != "tree.json"} | {"clusters.csv": "new"}


def test_readers_beside_a_writer_see_one_state(tmp_path):
    """A hundred changes, and readers that take every file."""
    run = make(tmp_path / "run")
    done = threading.Event()
    seen: list[list[str]] = []

    def values(folder: files.RunFolder) -> list[str]:
        with folder.as_disk_errors():  # a file that moves between the look at its place and the read
            return [folder.read_record().images, folder.file("clusters.csv").read_text()]

    def read() -> None:
        while not done.is_set():
            seen.append(files.read_state(run, values))

    def write(value: str) -> None:
        with files.locked(run) as folder, folder.next_state() as staged:
            staged.write_text("run.json", record(value))
            staged.write_text("clusters.csv", value)

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        for i in range(100):
            write(str(i % 7))
        done.set()
        reader.result()  # or its error
    assert len(seen) > 3 and all(images == clusters for images, clusters in seen)


def test_a_plain_reader_would_see_two(tmp_path):
    """The negative control of the test before: a change between the two reads."""
    run = make(tmp_path / "run")
    first = files.open_run(run).read_record().images
    change(run)
    assert first != files.open_run(run).file("clusters.csv").read_text()


@pytest.mark.parametrize("name", ["report.html", "model/config.json"])
def test_what_is_in_the_way_is_left_and_named(tmp_path, name):
    run = make(tmp_path / "run")
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir()
    (run / name / "mine.txt").write_text("mine")
    with pytest.raises(DiskError, match=rf"{name} is in the way"):
        change(run)
    assert (run / name / "mine.txt").read_text() == "mine" and state(run)["run.json"] == "old"


def test_a_strangers_commit_moves_and_removes_only_files_of_a_run(tmp_path):
    run = make(tmp_path / "run")
    commit = run / generation.COMMIT
    commit.mkdir()
    (commit / "evil.sh").write_text("evil")
    (commit / "clusters.csv").write_text("new")
    removed = ["../outside.txt", "mine.txt", "model/mine.bin", "tree.json", "/etc/passwd"]
    (commit / generation.MANIFEST).write_text(json.dumps({"schema_version": 1, "removed": removed}))
    (tmp_path / "outside.txt").write_text("mine")
    with files.locked(run):
        pass
    assert (tmp_path / "outside.txt").exists() and (run / "mine.txt").exists() and (run / "model/mine.bin").exists()
    assert not (run / "evil.sh").exists() and not (run / "tree.json").exists()
    assert (run / "clusters.csv").read_text() == "new"


@pytest.mark.parametrize("manifest", ["{", '{"schema_version": 1, "removed": ["tree.json", "run.json"]}'])
def test_a_damaged_commit_is_said(tmp_path, manifest):
    run = make(tmp_path / "run")
    (run / generation.COMMIT).mkdir()
    (run / generation.COMMIT / generation.MANIFEST).write_text(manifest)
    with pytest.raises(DiskError, match=r"commit.json cannot be used"), files.locked(run):
        pass
    assert all((run / name).exists() for name in OLD)


# ---- what is ours ---------------------------------------------------------------------------------------------------


def test_own_files_are_told_by_exact_name_and_kind(tmp_path):
    run = make(tmp_path / "run")
    (run / "checkpoints").mkdir()
    checkpoint = ("000001.json", "000001.safetensors", "000001-12.safetensors")
    for name in checkpoint:
        (run / "checkpoints" / name).write_text("")
    ours = set(ownership.own_files(run))
    for name in ("step100.pt", "mine.json", "000001.json.bak", "graph.safetensors", "1-2.json", "1.json"):
        (run / "checkpoints" / name).write_text("")
    for name in ("images-2024", "images-a1b2c3d4", "report.html"):
        (run / name).mkdir()
    for name in (".notes.tmp", ".run.json.7.tmp", "clusters.csv.bak", "Clusters.csv"):
        (run / name).write_text("mine")
    assert set(ownership.own_files(run)) == ours
    assert ours == {*OLD} | {f"checkpoints/{name}" for name in checkpoint}


def test_a_linked_folder_has_no_files_of_ours(tmp_path):
    run = make(tmp_path / "run")
    (run / "model").rename(tmp_path / "elsewhere")
    (run / "model").symlink_to(tmp_path / "elsewhere")
    assert "model/config.json" not in ownership.own_files(run)
    ownership.remove_own(run, ["model/config.json"])
    assert (tmp_path / "elsewhere" / "config.json").exists()


def test_scratch_is_known_by_its_marker(tmp_path):
    with ownership.scratch(tmp_path) as folder:
        (folder / "half").write_text("half")
        kept = tmp_path / f".deepcluster-{'0' * 16}"
        kept.mkdir()
        (kept / ownership.MARKER).write_text(folder.name)  # copied: it names another folder
        (tmp_path / ".deepcluster-notes").mkdir()
        assert ownership.is_scratch(folder) and not ownership.is_scratch(kept)
        ownership.remove_stale_scratch(tmp_path)
        assert not folder.exists() and kept.exists() and (tmp_path / ".deepcluster-notes").exists()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema_version": 1}', '{"project": "my LLM"}'])
def test_a_folder_with_a_run_json_is_not_yet_a_run_folder(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    (tmp_path / "metrics.json").write_text("mine")
    with pytest.raises(DiskError, match="not a run folder"):
        files.check_free(tmp_path, overwrite=True)


def test_another_schema_version_is_refused_with_both(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(RECORD | {"schema_version": 99}))
    for check in (lambda: files.open_run(tmp_path), lambda: files.check_free(tmp_path, overwrite=True)):
        with pytest.raises(DiskError, match=r"schema_version 99, .* reads 1"):
            check()
