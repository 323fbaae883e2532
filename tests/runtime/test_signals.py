"""A signal is heard at any place: in decoding, indexing, loading and writing, and before the imports.

Signals inside whole commands: whole/test_kills.py (fit), whole/test_sequences.py (all commands).
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import timm
from PIL import ImageFile

from deepcluster.errors import LostError, Stopped
from deepcluster.images import find, store
from deepcluster.images import shards as tars
from deepcluster.nets.network import build
from deepcluster.runtime.signals import advise, check, stoppable, uninterrupted
from deepcluster.runtime.threads import in_order, pool_of
from deepcluster.storage import files
from deepcluster.storage import model_files as models
from tests.helpers.commands import before_call
from tests.helpers.drawings import pack, save_drawings
from tests.helpers.tiny import tiny_run


def interrupt(patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    patch.setattr(owner, name, before_call(1, lambda: signal.raise_signal(signal.SIGTERM))(getattr(owner, name)))


INSIDE: dict[str, tuple[Any, str, Callable[[Path], Any]]] = {
    "decoding, for a run": (ImageFile.ImageFile, "load", lambda at: store.read_once(find(save_drawings(at, 1)), 16)),
    "a shard": (tars._Members, "_take", lambda at: find(pack(at / "a.tar", {"a": save_drawings(at, 1) / "0/00.png"}))),
    "loading weights": (models, "read_tensors", lambda at: models.load(tiny_run(at))),
    "building a network": (timm, "create_model", lambda at: build("timm:resnet10t", image_size=32)),
}


@pytest.mark.parametrize("place", INSIDE)
def test_a_signal_is_no_fault_of_what_is_read(monkeypatch, tmp_path, place):
    owner, name, act = INSIDE[place]
    interrupt(monkeypatch, owner, name)
    with pytest.raises(Stopped, match="SIGTERM"), stoppable():
        act(tmp_path / "here")


@pytest.mark.parametrize(("call", "content"), [("flush", "old"), ("fsync", "old"), ("replace", "old"), ("sync", "new")])
def test_a_file_is_whole_or_not_there(monkeypatch, tmp_path, call, content):
    def write(file: Any) -> None:
        file.write("new")
        if call == "flush":
            signal.raise_signal(signal.SIGTERM)

    owners = {"fsync": (os, "fsync"), "replace": (Path, "replace"), "sync": (files, "sync_folder")}
    if call in owners:
        interrupt(monkeypatch, *owners[call])
    (tmp_path / "file").write_text("old")
    with pytest.raises(Stopped), stoppable():
        files.write_whole(tmp_path / "file", write)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == content


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


def test_neither_lines_that_belong_together_nor_cleaning_up_are_broken_off():
    """Cleaning up by other signals, and by what is written meanwhile inside ``uninterrupted``."""
    done = []
    with pytest.raises(Stopped), stoppable():
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            check()
            done.append("the lines")
        done.append("and what needs no check")
        try:
            check()
            done.append("too much")
        finally:
            signal.raise_signal(signal.SIGUSR1)
            with uninterrupted():
                check()
            done.append("cleaned up")
    assert done == ["the lines", "and what needs no check", "cleaned up"]


def test_the_removal_of_a_scratch_folder_is_not_broken_off(monkeypatch, tmp_path):
    interrupt(monkeypatch, os, "rmdir")
    with pytest.raises(Stopped), stoppable():
        with suppress(LookupError), files.new_folder(tmp_path / "out", files.check_no_folder) as beside:
            (beside / "000").mkdir()
            raise LookupError
        check()
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize("place", ["before", "in the way out of an error", "while the error is written down"])
def test_the_message_says_what_to_do_wherever_the_signal_comes(place):
    """An error is on its way out, such as a lost connection; the handler of a signal raises in any line."""

    def come_at(point: str) -> None:
        if point == place:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped, match="stopped by SIGTERM; to go on: type this"), stoppable():
        advise(lambda: "; to go on: type this")
        try:
            come_at("before")
            raise RuntimeError("connection closed")
        finally:
            come_at("in the way out of an error")
            with uninterrupted():
                come_at("while the error is written down")


@pytest.mark.parametrize("nohup", [True, False])
def test_a_run_under_nohup_goes_on_when_its_terminal_is_closed(nohup, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
    try:
        with nullcontext() if nohup else pytest.raises(Stopped, match="SIGHUP"), stoppable():
            signal.raise_signal(signal.SIGHUP)
            check()
    finally:
        signal.signal(signal.SIGHUP, before)


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
        go_on.wait(200)
        ended.append(i)

    with pytest.raises(Stopped), stoppable(), pool_of(2) as pool:
        list(in_order(pool, work, range(100), ahead=4))
    assert ended == [] and len(begun) <= 4
    go_on.set()


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


RANK = "import os; os.environ.update(RANK='1', WORLD_SIZE='2')"  # another one of torchrun's processes has said it


@pytest.mark.parametrize(("name", "before", "said"), [
    ("numpy", "", "error: stopped by SIGINT: run the same command again\n"),
    ("deepcluster.commands.cli", RANK, ""),
])  # fmt: skip
def test_while_it_is_imported(tmp_path, name, before, said):
    done = start("predict", tmp_path, tmp_path, before=before + WHILE_IMPORTING.format(name=name))
    assert (done.returncode, done.stdout, done.stderr) == (75, "", said)


def test_a_second_ctrl_c_ends_at_once():
    """The first one is caught by something that cleans up forever."""
    forever = (
        "import os, signal, time\n"
        "from deepcluster.runtime.signals import stoppable\n"
        "with stoppable():\n"
        "    try: os.kill(os.getpid(), signal.SIGINT)\n"
        "    finally:\n"
        "        print('cleaning up', flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(200)\n"
    )
    done = start(before=forever)
    assert (done.returncode, done.stdout) == (130, "cleaning up\n")
