"""Real commands in processes of their own that can be killed, and kills at each change of a disk."""

import importlib
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, reduce
from itertools import count
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

DISK_CALLS = ("rename", "replace", "link", "unlink", "rmdir", "mkdir", "fsync")  # of os: what a process does to a disk
Trap = tuple[str, str, int]


def before_call(count: int, act: Callable[[], object], *, after: bool = False) -> Callable[[Any], Any]:
    """Return a wrapper of functions: ``act`` is called before (or after) the count-th call of all that it wraps."""
    calls: list[int] = []

    def wrapped(original: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(1)
            is_counted = len(calls) == count
            if is_counted and not after:
                act()
            try:
                return original(*arguments, **options)
            finally:
                if is_counted and after:
                    act()

        return call

    return wrapped


def in_a_child(work: Callable[[], object], kill_at: int) -> bool:
    """Run ``work`` in a process, kill it before change ``kill_at`` of the disk, and return whether it came to that."""
    pid = os.fork()
    if pid == 0:
        wrapped = before_call(kill_at, lambda: os.kill(os.getpid(), signal.SIGKILL))
        for name in DISK_CALLS:
            setattr(os, name, wrapped(getattr(os, name)))
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def killed_at_every_change(
    folder: Path, make: Callable[[Path], Path], work: Callable[[Path], object]
) -> Iterator[Path]:
    """Yield a new place in ``folder`` after each kill of ``work`` on it, and the last one, of a process that ended.

    A kill that leaves the same files as the one before (only an fsync lies between) is no other case.
    """
    former: list[object] = []
    for kill_at in count(1):
        place = make(folder / str(kill_at))
        killed = in_a_child(partial(work, place), kill_at)
        files = _files_below(place)
        if files != former or not killed:
            yield place
        former = files
        if not killed:
            return


def _files_below(place: Path) -> list[object]:
    """Return the files and folders, but for logs, random numbers in hidden names and the process that has a lock."""
    return sorted(
        (re.sub("[0-9a-f]{16}", "", str(path.relative_to(place))), path.is_dir(), path.is_file() and path.read_bytes())
        for path in place.rglob("*")
        if path.name not in ("lock", "log.txt")
    )


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk that is full when a file has so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def trapped(what: str, functions: str, count: int, launcher: int | None = None) -> None:
    """Let the count-th call of a function, or of any of several (with spaces between), send a signal to this process
    before it does its work, or to its launcher, and wait until that ends this process."""

    def act() -> None:
        os.kill(launcher or os.getpid(), getattr(signal, what))
        if launcher:
            signal.pause()

    wrapped = before_call(count, act)
    for place in functions.split():
        module, _, name = place.partition(":")
        *classes, name = name.split(".")
        owner: Any = reduce(getattr, classes, importlib.import_module(module))
        setattr(owner, name, wrapped(getattr(owner, name)))


def forkserver() -> ForkServerContext:
    """Return the context whose processes are forks of one that has imported everything, once for all tests."""
    context = multiprocessing.get_context("forkserver")
    # Imported late by an optimizer (the second) and by scores and cuts (the next two): most of a small run's time.
    modules = [
        "torch",
        "torch._dynamo",
        "sklearn.metrics",
        "scipy.sparse.csgraph",
        "deepcluster.fitting.fit",
        "deepcluster.runs.evaluate",
        "deepcluster.commands.cli",
    ]
    context.set_forkserver_preload(modules)
    return context


def child(arguments: list[str], trap: Trap | None, errors: str) -> None:
    import torch

    from deepcluster.commands.cli import run_command
    from deepcluster.errors import Stopped
    from deepcluster.runtime import signals

    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(errors, os.O_WRONLY), 2)
    if trap and trap[0] == "FSIZE":
        resource.setrlimit(resource.RLIMIT_FSIZE, (trap[2], trap[2]))
    elif trap:
        trapped(*trap)
    sys.argv = ["deepcluster", *arguments]
    try:
        with signals.stoppable():  # as __main__ does
            code = run_command(arguments)
            signals.ignore()
    except Stopped as error:
        print(f"error: {error}", file=sys.stderr)
        code = Stopped.exit_code
    sys.stderr.flush()
    os._exit(code)


def command(*arguments: object, trap: Trap | None = None) -> tuple[int | None, str]:
    """Run a command in a process of its own; return its exit code and what it says on stderr.

    Args:
        arguments: Those of the command.
        trap: A signal, a function (module:name, or several) and a count: at its count-th call the process gets the
            signal. Or "FSIZE", nothing and a number of bytes: it can write no file that is larger.
    """
    with tempfile.NamedTemporaryFile() as errors:
        process = forkserver().Process(target=child, args=([*map(str, arguments)], trap, errors.name))
        process.start()
        process.join()
        return process.exitcode, Path(errors.name).read_text(errors="replace")
