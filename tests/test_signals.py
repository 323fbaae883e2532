"""A signal is heard wherever it comes: in decoding, indexing, loading and writing, before the imports, in any command.

The number of random moments: 20, or DEEPCLUSTER_SIGNALS.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
from PIL import Image, ImageFile

from deepcluster.errors import LostError, Stopped
from deepcluster.images import find, store
from deepcluster.images import shards as tars
from deepcluster.nets.network import build
from deepcluster.runtime.console import Terminal
from deepcluster.runtime.signals import check, stoppable, uninterrupted
from deepcluster.runtime.threads import in_order, pool_of
from deepcluster.storage import files
from deepcluster.storage import model_files as models
from deepcluster.storage.files import new_folder
from tests.commands import Commands
from tests.drawings import save_drawings
from tests.helpers.runs import record, small_fit
from tests.tiny import tiny_model

OPTIONS = small_fit()
MOMENTS = int(os.environ.get("DEEPCLUSTER_SIGNALS", "20"))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return save_drawings(tmp_path_factory.mktemp("images"), 8, 16)


def interrupt(patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """Let a signal come inside a function, each time that it is called."""
    original = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return original(*arguments, **options)

    patch.setattr(owner, name, call)


# ---- nobody takes a stop for something that is wrong -----------------------------------------------------------------


def pictures(folder: Path) -> Path:
    return save_drawings(folder, 1)


def shard(folder: Path) -> Path:
    pictures(folder)
    with tarfile.open(folder / "a.tar", "w") as tar:
        for image in sorted(folder.glob("*/*.png")):
            tar.add(image, image.name)
    return folder / "a.tar"


def saved(folder: Path) -> Path:
    models.save(tiny_model(), folder)
    return folder


INSIDE: dict[str, tuple[Any, str, Callable[[Path], Any]]] = {
    "decoding, for a run": (ImageFile.ImageFile, "load", lambda at: store.read_once(find(pictures(at)), 16)),
    "a look at a header": (Image.Image, "getexif", lambda at: store.preview(find(pictures(at)))),
    "a member of a shard": (tars, "_take", lambda at: find(shard(at))),
    "walking a folder": (os, "scandir", lambda at: find(pictures(at))),
    "loading weights": (models, "read_tensors", lambda at: models.load(saved(at))),
    "building a network": (timm, "create_model", lambda at: build("timm:resnet10t", image_size=32)),
}


@pytest.mark.parametrize("place", INSIDE)
def test_a_signal_is_no_fault_of_what_is_read(monkeypatch, tmp_path, place):
    owner, name, act = INSIDE[place]
    interrupt(monkeypatch, owner, name)
    with pytest.raises(Stopped, match=r"^stopped by SIGTERM$"), stoppable():
        act(tmp_path / "here")


def test_it_is_no_exception_that_somebody_may_handle():
    assert not issubclass(Stopped, Exception)
    assert Stopped.exit_code == 75


@pytest.mark.parametrize(("where", "found"), [("flush", "old"), ("fsync", "old"), ("replace", "old"), ("sync", "new")])
def test_a_file_is_whole_or_not_there(monkeypatch, tmp_path, where, found):
    def write(file: Any) -> None:
        file.write("new")
        if where == "flush":
            signal.raise_signal(signal.SIGTERM)

    owners = {"fsync": (os, "fsync"), "replace": (Path, "replace"), "sync": (files, "sync_folder")}
    if where in owners:
        interrupt(monkeypatch, *owners[where])
    (tmp_path / "file").write_text("old")
    with pytest.raises(Stopped), stoppable():
        files.write_whole(tmp_path / "file", write)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == found


def test_an_export_is_whole_or_not_there(tmp_path):
    with pytest.raises(Stopped), stoppable(), new_folder(tmp_path / "out") as folder:
        (folder / "file").touch()
        signal.raise_signal(signal.SIGTERM)
    assert list(tmp_path.iterdir()) == []


# ---- it is heard in the end ------------------------------------------------------------------------------------------


def test_nothing_becomes_final_of_what_a_swallowed_one_left(tmp_path):
    """As figures of the images that came before it."""
    with pytest.raises(Stopped), stoppable():
        with suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        files.write_whole(tmp_path / "figures", lambda file: file.write("wrong"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ImportError("no module"), SystemError("returned a result with an exception set")])
def test_an_error_that_compiled_code_makes_of_it_is_a_stop(error):
    with pytest.raises(Stopped, match="SIGINT"), stoppable():
        try:
            signal.raise_signal(signal.SIGINT)
        except Stopped:
            raise error from None


def test_an_error_that_another_process_has_reported_is_none():
    with pytest.raises(LostError), stoppable():
        with suppress(Stopped):
            signal.raise_signal(signal.SIGTERM)
        raise LostError("the launcher has ended")


def test_a_few_lines_that_belong_together():
    done = []
    with pytest.raises(Stopped), stoppable():
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            check()
            done.append("the lines")
        done.append("too much")
    assert done == ["the lines"]


def test_cleaning_up_is_not_broken_off():
    """By other signals, and by what is written meanwhile inside ``uninterrupted``."""
    done = []
    with pytest.raises(Stopped), stoppable():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGUSR1)
            with uninterrupted():
                check()
            done.append(True)
    assert done == [True]


def test_behind_it_all_is_as_before():
    def handlers() -> list[Any]:
        return [*map(signal.getsignal, (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1))]

    before = handlers()
    with pytest.raises(Stopped), stoppable():
        with stoppable():
            inside = handlers()
        assert handlers() == inside != before
        signal.raise_signal(signal.SIGTERM)
    assert handlers() == before
    check()
    with stoppable():  # a new one knows nothing of the last
        check()


def test_in_another_thread_nothing_is_listened_to():
    def listen() -> Any:
        with stoppable():
            return signal.getsignal(signal.SIGTERM)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(listen).result() == signal.SIG_DFL


def test_nobody_waits_for_threads_or_for_what_is_left_for_them():
    begun, ended, go_on = [], [], threading.Event()

    def work(i: int) -> None:
        begun.append(i)
        if i == 0:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
        go_on.wait(20)
        ended.append(i)

    with pytest.raises(Stopped), stoppable(), pool_of(2) as pool:
        list(in_order(pool, work, range(100), ahead=4))
    assert ended == [] and len(begun) <= 4
    go_on.set()


# ---- the way in and the way out --------------------------------------------------------------------------------------


def start(*arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
    """The command as it is installed, with a line of Python ``before`` it."""
    script = f"import sys\n{before}\nfrom deepcluster.__main__ import main\nmain()"
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=200
    )


WHILE_IMPORTING = """
import os, signal
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
signal.signal(signal.SIGINT, signal.default_int_handler)
"""


@pytest.mark.parametrize("name", ["deepcluster.cli", "rich.console", "numpy"])
def test_while_it_is_imported(tmp_path, name):
    done = start("predict", tmp_path, tmp_path, before=WHILE_IMPORTING.format(name=name))
    assert (done.returncode, done.stderr, done.stdout) == (75, "error: stopped by SIGINT\n", "")


def unread_pipe() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def test_a_terminal_that_nobody_reads_is_silent():
    """The run goes on; rich alone would end the process."""
    terminal, said = Terminal(False), []
    with suppress(BrokenPipeError), os.fdopen(unread_pipe(), "w") as file:
        terminal.console.file = file
        for heading in ("Run", "Images"):
            terminal.say(heading, "runs/a")
            said.append(heading)
    assert said == ["Run", "Images"]


FIT = ["fit", "{images}", "-o", "{out}", *OPTIONS[:-1]]  # without --quiet


@pytest.mark.parametrize(
    "arguments",
    [["recipes"], *(pytest.param(slow, marks=pytest.mark.slow) for slow in (["fit", "--help"], FIT))],
    ids=" ".join,
)
def test_a_command_that_nobody_reads_ends_quietly(images, tmp_path, arguments):
    """rich alone would end it with 1."""
    script, writing = "from deepcluster.__main__ import main; main()", unread_pipe()
    given = [word.format(images=images, out=tmp_path / "run") for word in arguments]
    done = subprocess.run([sys.executable, "-c", script, *given], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "run").exists() or record(tmp_path / "run")["status"] == "done"


# ---- every command, at every place -----------------------------------------------------------------------------------

MEASURED = {"run.json", "history.csv", "report.html"}  # have times, or the name of the folder, in them


class Case:
    """A command in a folder of its own, which has a copy of a run and ``edits.json`` for it."""

    def __init__(self, command: Commands, images: Path, base: Path | None, name: str, place: Path):
        self.command, self.place, self.name, run = command, place, name, place / "run"
        place.mkdir(parents=True)
        if name != "fit":
            assert base is not None
            shutil.copytree(base, run)
            edits = {"schema_version": 1, "cut": record(run)["cut"]}
            (place / "edits.json").write_text(json.dumps(edits | {"merge": [[0, 1]], "names": {"0": "one"}}))
        self.arguments: list[object] = {
            "fit": ["fit", images, "-o", run, *OPTIONS],
            "evaluate": ["evaluate", run, "--protocol", "knn", "--labels", "folders", "-q"],
            "predict": ["predict", run, images, "-o", place / "p.csv", "-q"],
            "embed": ["embed", run, images, "-o", place / "e.npy", "-q"],
            "export": ["export", run, "--to", "imagefolder", "-o", place / "exported", "-q"],
            "recut": ["recut", run, "-k", "2", "-q"],
            "apply": ["apply", run, place / "edits.json", "-q"],
            "report": ["report", run],
        }[name]

    def __call__(self, **how: Any) -> tuple[int, str]:
        return self.command(*self.arguments, **how)

    def again(self) -> tuple[int, str]:
        """Give the command again, unless it was done when the signal came."""
        made = {"predict": "p.csv", "embed": "e.npy", "export": "exported"}.get(self.name)
        if made and (self.place / made).exists():
            return 0, ""
        return self.command(*self.arguments, *(["--resume"] if self.name == "fit" else []))

    def files(self) -> dict[str, bytes]:
        """What came out of it, hidden files too, without what is measured."""
        return {
            str(path.relative_to(self.place)): b"" if path.name in MEASURED else path.read_bytes()
            for path in sorted(self.place.rglob("*"))
            if path.is_file() and "checkpoints" not in path.parts
        }


COMMANDS = ("fit", "evaluate", "predict", "embed", "export", "recut", "apply", "report")


@pytest.fixture(scope="module")
def undisturbed(command, images, tmp_path_factory) -> Callable[[str], tuple[Case, float]]:
    """A command without a signal, and its seconds. ``fit`` makes the run that the others are for."""

    @cache
    def run(name: str) -> tuple[Case, float]:
        base = None if name == "fit" else run("fit")[0].place / "run"
        case = Case(command, images, base, name, tmp_path_factory.mktemp("undisturbed") / name)
        begin = time.perf_counter()
        code, said = case()
        assert code == 0, said
        return case, time.perf_counter() - begin

    return run


def check_case(case: Case, code: int, said: str, whole: Case) -> None:
    """It has stopped with a word, and ends like the undisturbed one when it is given again; or it was done already."""
    assert code in (0, 75), said
    if code == 75:
        assert said.startswith("error: stopped ") and said.count("\n") == 1
        if case.name == "fit" and (run := case.place / "run" / "run.json").exists():
            assert record(run.parent)["status"] in ("stopped", "done")
        code, said = case.again()
        assert code == 0, said
    assert case.files() == whole.files()


PLACES = {
    "fit, reading": ("fit", "deepcluster.images.store:square", 3),
    "predict, reading": ("predict", "PIL.ImageFile:ImageFile.load", 3),
    "export, copying": ("export", "deepcluster.export.folders:Transfer.__call__", 3),
    "recut, cut": ("recut", "deepcluster.runs.recut:groups_of", 1),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_signal_inside_a_command(command, images, undisturbed, tmp_path, place):
    name, where, count = PLACES[place]
    case = Case(command, images, undisturbed("fit")[0].place / "run", name, tmp_path / "case")
    code, said = case(trap=("SIGTERM", where, count))
    assert code == 75, f"{code} {said}"
    check_case(case, code, said, undisturbed(name)[0])


@pytest.mark.slow
@pytest.mark.parametrize("draw", range(MOMENTS))
def test_a_signal_at_a_random_moment(command, images, undisturbed, tmp_path, draw):
    chance = random.Random(f"signal {draw}")
    name, what = COMMANDS[draw % len(COMMANDS)], chance.choice(["SIGINT", "SIGTERM"])
    whole, seconds = undisturbed(name)
    case = Case(command, images, undisturbed("fit")[0].place / "run", name, tmp_path / "case")
    code, said = case(seconds=chance.uniform(0, seconds), what=what)
    check_case(case, code, said, whole)
