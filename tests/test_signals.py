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
from deepcluster.images import find, preview, store
from deepcluster.images import webdataset as tars
from deepcluster.nets.backbone import build
from deepcluster.runtime import signals as stopping
from deepcluster.runtime.console import Terminal
from deepcluster.runtime.signals import Stop, later, listening, temporary_folder
from deepcluster.runtime.threads import in_order, pool_of
from deepcluster.storage import model_files as models
from deepcluster.storage.files import new_folder, write_whole
from tests.commands import Commands
from tests.drawings import save_drawings
from tests.helpers.runs import record, small_fit
from tests.tiny import tiny_model

OPTIONS = small_fit()
MOMENTS = int(os.environ.get("DEEPCLUSTER_SIGNALS", "20"))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return save_drawings(tmp_path_factory.mktemp("images"), 8, 16)


def interrupt(patch: pytest.MonkeyPatch, owner: Any, name: str, number: int = signal.SIGTERM) -> None:
    """Let a signal come inside a function, each time that it is called."""
    original = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        signal.raise_signal(number)
        return original(*arguments, **options)

    patch.setattr(owner, name, call)


def wait_for_it(seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


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
    "decoding, for a run": (
        ImageFile.ImageFile,
        "load",
        lambda at: store.read_once(find(pictures(at)), 16),
    ),
    "resizing": (store, "square", lambda at: store.read_once(find(pictures(at)), 16)),
    "decoding, for the preview": (
        ImageFile.ImageFile,
        "load",
        lambda at: preview.preview(find(pictures(at))),
    ),
    "a look at a header": (Image.Image, "getexif", lambda at: preview.preview(find(pictures(at)))),
    "indexing a shard": (tarfile.TarFile, "next", lambda at: find(shard(at))),
    "a member of a shard": (tars, "_take", lambda at: find(shard(at))),
    "walking a folder": (os, "scandir", lambda at: find(pictures(at))),
    "loading weights": (models, "read_tensors", lambda at: models.load(saved(at))),
    "checking a model": (models, "_check_values", lambda at: models.load(saved(at))),
    "building a network": (timm, "create_model", lambda at: build("timm:resnet10t", image_size=32)),
}


@pytest.mark.parametrize("place", INSIDE)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_no_fault_of_what_is_read(monkeypatch, tmp_path, place, number):
    owner, name, act = INSIDE[place]
    interrupt(monkeypatch, owner, name, number)
    with Stop(), pytest.raises(Stopped, match=f"^stopped by {signal.Signals(number).name}$"):
        act(tmp_path / "here")


def test_it_is_no_exception_that_somebody_may_handle():
    assert not issubclass(Stopped, Exception)
    assert Stopped.exit_code == 75


@pytest.mark.parametrize("where", ["flush", "fsync", "replace", "the folder's fsync"])
def test_a_file_is_whole_or_not_there(monkeypatch, tmp_path, where):
    calls = []
    original = os.fsync

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == (1 if where == "fsync" else 2):
            signal.raise_signal(signal.SIGTERM)
        original(descriptor)

    def write(file: Any) -> None:
        file.write("new")
        if where == "flush":
            signal.raise_signal(signal.SIGTERM)

    if "fsync" in where:
        monkeypatch.setattr(os, "fsync", fsync)
    elif where == "replace":
        interrupt(monkeypatch, Path, "replace")
    (tmp_path / "file").write_text("old")
    with Stop() as stop, pytest.MonkeyPatch.context() as quick:
        quick.setattr(stopping, "RAISE_AGAIN_SECONDS", 60)
        if where in ("flush", "fsync"):
            with pytest.raises(Stopped):
                write_whole(tmp_path / "file", write)
        else:  # it is done by then, and whoever asked for it may go on to the end
            write_whole(tmp_path / "file", write)
            assert stop.wanted
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == ("old" if where in ("flush", "fsync") else "new")


# ---- it is heard in the end ------------------------------------------------------------------------------------------


def test_where_it_is_swallowed_it_comes_again():
    def swallow() -> None:
        with suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)

    with Stop(), pytest.raises(Stopped):
        swallow()
        wait_for_it()


def test_in_a_destructor_it_is_not_lost_and_nothing_is_printed(capfd):
    class Thing:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    with Stop(), pytest.raises(Stopped):
        thing = Thing()
        del thing
        wait_for_it()
    assert capfd.readouterr().err == ""


def test_a_generator_that_is_left_cleans_up_first():
    done = []

    def generate():
        try:
            yield 1
        finally:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.01)
            done.append(True)

    with Stop(), pytest.raises(Stopped):
        found = generate()
        next(found)
        del found
        assert done == [True]
        wait_for_it()


def test_what_cleans_up_is_not_broken_off(monkeypatch):
    """However often the signal comes again, and whatever goes wrong meanwhile."""
    monkeypatch.setattr(stopping, "RAISE_AGAIN_SECONDS", 0.01)
    done = []
    with Stop(), pytest.raises(Stopped):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            try:
                raise OSError
            except OSError:
                wait_for_it(0.1)
                signal.raise_signal(signal.SIGTERM)
            done.append(True)
    assert done == [True]


@pytest.mark.parametrize("error", [ImportError("no module"), SystemError("returned a result with an exception set")])
def test_what_compiled_code_makes_of_it_is_a_stop(error):
    def turn() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except Stopped:
            raise error from None

    with pytest.raises(Stopped, match="SIGINT"), listening():
        turn()


def test_but_not_that_another_process_has_ended():
    with pytest.raises(LostError), listening() as stop:
        stop.at_once = False
        signal.raise_signal(signal.SIGTERM)
        raise LostError("another process of this run has ended")


def test_nothing_becomes_final_of_what_a_swallowed_one_left(monkeypatch, tmp_path):
    """As figures of the images that came before it."""
    monkeypatch.setattr(stopping, "RAISE_AGAIN_SECONDS", 60)
    with Stop(), pytest.raises(Stopped):
        with suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        write_whole(tmp_path / "figures", lambda file: file.write("wrong"))
    assert list(tmp_path.iterdir()) == []


def test_a_few_lines_that_belong_together(monkeypatch):
    monkeypatch.setattr(stopping, "RAISE_AGAIN_SECONDS", 0.01)
    done = []
    with Stop(), pytest.raises(Stopped):
        with later():
            signal.raise_signal(signal.SIGTERM)
            wait_for_it(0.05)
            done.append(True)
        wait_for_it()
    assert done == [True]


def test_in_a_step_of_training_it_is_only_wanted(monkeypatch):
    monkeypatch.setattr(stopping, "RAISE_AGAIN_SECONDS", 0.01)
    with Stop() as stop:
        stop.at_once = False
        signal.raise_signal(signal.SIGTERM)
        wait_for_it(0.05)
        assert stop.wanted


def handlers() -> list[Any]:
    return [*map(signal.getsignal, (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)), sys.unraisablehook]


def test_behind_it_all_is_as_before():
    before = handlers()
    with pytest.raises(Stopped), listening() as outer:
        with listening() as inner:
            assert inner is outer
        outer.at_once = True
        signal.raise_signal(signal.SIGTERM)
    assert handlers() == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_in_another_thread_nothing_is_listened_to():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: Stop().__enter__().wanted).result() is False
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# ---- threads and folders ---------------------------------------------------------------------------------------------


def test_nobody_waits_for_threads_or_for_what_is_left_for_them():
    begun, ended, go_on = [], [], threading.Event()

    def work(i: int) -> None:
        begun.append(i)
        if i == 0:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
        go_on.wait(20)
        ended.append(i)

    with Stop(), pytest.raises(Stopped), pool_of(2) as pool:
        list(in_order(pool, work, range(100), ahead=4))
    assert ended == [] and len(begun) <= 4
    go_on.set()


@pytest.mark.parametrize("when", ["made", "used", "removed"])
def test_a_temporary_folder_is_gone(monkeypatch, tmp_path, when):
    monkeypatch.setattr(stopping, "RAISE_AGAIN_SECONDS", 0.01)
    where = {"made": "mkdir", "removed": "rmdir"}.get(when)
    if where:
        interrupt(monkeypatch, os, where)
    with Stop(), pytest.raises(Stopped):
        with temporary_folder(tmp_path) as folder:
            (folder / "file").touch()
            if when == "used":
                signal.raise_signal(signal.SIGTERM)
        wait_for_it()
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_whole_or_not_there(tmp_path):
    with Stop(), pytest.raises(Stopped), new_folder(tmp_path / "out") as folder:
        (folder / "file").touch()
        signal.raise_signal(signal.SIGTERM)
    assert list(tmp_path.iterdir()) == []


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
        return self.command(*self.arguments, *(["--resume"] if self.name == "fit" else []))

    def left(self) -> list[Path]:
        """What nobody wants to find."""
        return [path for path in self.place.rglob("*") if path.name.startswith(".") or path.name.endswith(".u8")]

    def files(self) -> dict[str, bytes]:
        """What came out of it, without what is measured."""
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


def check(case: Case, code: int, said: str, whole: Case) -> None:
    """It has stopped with a word and without a trace, and ends like the undisturbed one when it is given again; or it
    was done already."""
    assert code in (0, 75), said
    if code == 75:
        assert said.startswith("error: stopped ") and said.count("\n") == 1
        if case.name == "fit" and (run := case.place / "run" / "run.json").exists():
            assert record(run.parent)["status"] == "stopped"
        assert case.left() == []
        code, said = case.again()
        assert code == 0, said
    assert case.left() == []
    assert case.files() == whole.files()


PLACES = {
    "fit, preview": ("fit", "deepcluster.images.preview:_is_grey", 3),
    "fit, reading": ("fit", "deepcluster.images.store:square", 3),
    "fit, network": ("fit", "deepcluster.runs.fit:network_of", 1),
    "fit, lock": ("fit", "fcntl:flock", 1),
    "fit, final features": ("fit", "deepcluster.runs.finish:conclude", 1),
    "evaluate, model": ("evaluate", "deepcluster.storage.model_files:read_tensors", 1),
    "evaluate, reading": ("evaluate", "deepcluster.images.store:square", 3),
    "evaluate, scoring": ("evaluate", "deepcluster.evaluation.knn:weighted_votes", 1),
    "predict, model": ("predict", "deepcluster.storage.model_files:_check_values", 1),
    "predict, reading": ("predict", "PIL.ImageFile:ImageFile.load", 3),
    "embed, reading": ("embed", "PIL.ImageFile:ImageFile.load", 3),
    "export, copying": ("export", "deepcluster.export.transfer:Transfer.__call__", 3),
    "recut, model": ("recut", "deepcluster.storage.model_files:read_tensors", 1),
    "recut, cut": ("recut", "deepcluster.runs.recut:groups_of", 1),
    "apply, model": ("apply", "deepcluster.storage.model_files:read_tensors", 1),
    "report, pictures": ("report", "PIL.ImageFile:ImageFile.load", 1),
}


QUICK_PLACES = ("fit, reading", "predict, reading", "export, copying", "recut, cut")


@pytest.mark.parametrize(
    "place", [pytest.param(name, marks=() if name in QUICK_PLACES else pytest.mark.slow) for name in PLACES]
)
def test_a_signal_inside_a_command(command, images, undisturbed, tmp_path, place):
    name, where, count = PLACES[place]
    case = Case(command, images, undisturbed("fit")[0].place / "run", name, tmp_path / "case")
    code, said = case(trap=("SIGTERM", where, count))
    assert code == 75, f"{code} {said}"
    check(case, code, said, undisturbed(name)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("where", ["os:fsync", "pathlib:Path.replace", "pathlib:Path.mkdir", "pathlib:Path.unlink"])
def test_a_signal_at_every_write(command, images, undisturbed, tmp_path, name, where):
    for count in range(1, 100):
        case = Case(command, images, undisturbed("fit")[0].place / "run", name, tmp_path / str(count))
        code, said = case(trap=("SIGINT", where, count))
        check(case, code, said, undisturbed(name)[0])
        shutil.rmtree(case.place)
        if code == 0:
            return
    raise AssertionError("it never came to the end")


@pytest.mark.slow
@pytest.mark.parametrize("draw", range(MOMENTS))
def test_a_signal_at_a_random_moment(command, images, undisturbed, tmp_path, draw):
    chance = random.Random(f"signal {draw}")
    name, what = COMMANDS[draw % len(COMMANDS)], chance.choice(["SIGINT", "SIGTERM"])
    whole, seconds = undisturbed(name)
    case = Case(command, images, undisturbed("fit")[0].place / "run", name, tmp_path / "case")
    code, said = case(seconds=chance.uniform(0, seconds), what=what)
    check(case, code, said, whole)
