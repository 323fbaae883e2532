"""Real commands in processes of their own that can be killed: a server that has imported everything forks one for each.

    python -m tests.commands     reads a JSON list a line, [arguments, seconds, trap]; answers [exit code, stderr]

``seconds``: kill -9 after that time (null: never). ``trap``: null or [what, where, count]; at the count-th call of the
function ``where`` (module:name, or several) the process gets the signal called ``what`` (SIGKILL, SIGTERM, ...), or
with FSIZE it may write no file larger than ``count`` bytes from the beginning.
"""

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, reduce
from itertools import count
from pathlib import Path
from typing import Any

CHANGES = ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync")  # of os: what a process does to a disk
EARLY = (signal.SIGINT, signal.SIGTERM)  # kept back until a child listens


def before_call(count: int, act: Callable[[], object]) -> Callable[[Any], Any]:
    """Return a wrapper of functions: ``act`` is called before the count-th call of all that it wraps."""
    calls: list[int] = []

    def wrapped(original: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == count:
                act()
            return original(*arguments, **options)

        return call

    return wrapped


def in_a_child(work: Callable[[], object], kill_at: int) -> bool:
    """Run ``work`` in a process, kill it before change ``kill_at`` of the disk, and return whether it came to that."""
    pid = os.fork()
    if pid == 0:
        wrapped = before_call(kill_at, lambda: os.kill(os.getpid(), signal.SIGKILL))
        for name in CHANGES:
            setattr(os, name, wrapped(getattr(os, name)))
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def killed_at_every_change(
    folder: Path, make: Callable[[Path], Path], work: Callable[[Path], object]
) -> Iterator[Path]:
    """Yield a new place in ``folder`` after each kill of ``work`` on it, and the last one, of a process that ended."""
    for kill_at in count(1):
        place = make(folder / str(kill_at))
        killed = in_a_child(partial(work, place), kill_at)
        yield place
        if not killed:
            return


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk that is full when a file has so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def trapped(what: str, where: str, count: int) -> None:
    """Let the count-th call of a function, or of any of several (with spaces between), send a signal to this process
    before it does its work."""
    wrapped = before_call(count, lambda: os.kill(os.getpid(), getattr(signal, what)))
    for place in where.split():
        module, _, name = place.partition(":")
        *classes, name = name.split(".")
        owner: Any = reduce(getattr, classes, importlib.import_module(module))
        setattr(owner, name, wrapped(getattr(owner, name)))


def child(arguments: list[str], trap: list[Any] | None, errors: int) -> int:
    from deepcluster.cli import run_command
    from deepcluster.errors import Stopped
    from deepcluster.runtime import signals

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(errors, 2)
    if trap and trap[0] == "FSIZE":
        resource.setrlimit(resource.RLIMIT_FSIZE, (trap[2], trap[2]))
    elif trap:
        trapped(*trap)
    sys.argv = ["deepcluster", *arguments]
    try:
        with signals.stoppable():  # as __main__ does
            signal.pthread_sigmask(signal.SIG_UNBLOCK, EARLY)
            code = run_command(arguments)
            signals.ignore()
    except Stopped as error:
        print(f"error: {error}", file=sys.stderr)
        code = Stopped.exit_code
    sys.stderr.flush()
    return code


def serve() -> None:
    import torch
    import torch._dynamo  # an optimizer imports it: 1.7 s of each run's 2.8

    import deepcluster.fitting.fit  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        arguments, seconds, trap = json.loads(line)
        with tempfile.TemporaryFile() as errors:
            signal.pthread_sigmask(signal.SIG_BLOCK, EARLY)
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    code = child(arguments, trap, errors.fileno())
                finally:
                    os._exit(code)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, EARLY)
            if seconds is not None:
                until, kind = time.monotonic() + seconds, os.WEXITED | os.WNOHANG | os.WNOWAIT
                while time.monotonic() < until and os.waitid(os.P_PID, pid, kind) is None:
                    time.sleep(0.005)
                os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
            errors.seek(0)
            print(json.dumps([os.waitstatus_to_exitcode(status), errors.read().decode(errors="replace")]), flush=True)


class Commands:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.commands"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )

    def __call__(
        self, *arguments: object, seconds: float | None = None, trap: tuple[str, str, int] | None = None
    ) -> tuple[int, str]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([list(map(str, arguments)), seconds, trap]) + "\n")
        self.process.stdin.flush()
        code, said = json.loads(self.process.stdout.readline())
        return code, said

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


if __name__ == "__main__":
    serve()
