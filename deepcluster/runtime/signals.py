"""Stopping on a signal: it raises Stopped in the line under way, as Ctrl-C raises KeyboardInterrupt in any program.

A round needs no protection: the checkpoint before it is on disk. Every write survives a kill, and therefore a stop.
The message of a stop is made as it leaves :func:`stoppable`, because a signal may come in any handler before.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from deepcluster.errors import LostError, Stopped

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")  # Windows has only the first two
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
EXIT_ON_SECOND_SIGINT = 130
REPEAT = ": run the same command again"

_reason = ""  # of the stop, once a signal has come
_listening = False
_uninterrupted_depth = 0  # contexts of uninterrupted() that are open
_advice: Callable[[], str] | None = None  # returns the end of the message of a stop; None: nothing has changed so far


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise Stopped on SIGNALS (on SIGHUP not if it is ignored, as under nohup); end the process on a second Ctrl-C.

    An error after a signal becomes Stopped, too: compiled code may have turned it into an error of its own. A Stopped
    that somebody swallows is raised again by the next :func:`check`. Only the main thread can listen.
    """
    global _listening, _reason, _advice
    outermost = not _listening and threading.current_thread() is threading.main_thread()
    numbers = SIGNALS if outermost else []
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        if outermost:
            _listening = True
            _reason = ""
            _advice = None
        for number in numbers:
            if signal.Signals(number).name != "SIGHUP" or before[number] != signal.SIG_IGN:
                signal.signal(number, _heard)
        try:
            yield
        except (Exception, Stopped) as error:
            if _reason and not isinstance(error, LostError):
                raise Stopped(f"{_reason}{_advice() if _advice else REPEAT}") from error
            raise
    finally:
        for number in numbers:
            if signal.getsignal(number) == _heard:  # processes that share a run may ignore one by now
                signal.signal(number, before[number])
        if outermost:
            _listening = False


def _heard(number: int, frame: FrameType | None) -> None:
    global _reason
    if _reason:
        if number == signal.SIGINT:
            os._exit(EXIT_ON_SECOND_SIGINT)
        return
    _reason = f"stopped by {signal.Signals(number).name}"
    check()


def advise(advice: Callable[[], str]) -> None:
    """End the message of a stop with the text of ``advice``, which is asked at the stop: the state, and the command."""
    global _advice
    _advice = advice


def changed(path: Path) -> None:
    """Say in the message of a stop that ``path`` has changed, so that nobody repeats an undo. An advice stays."""
    if not _advice:
        advise(lambda: f"; {path} has changed already")


def check() -> None:
    """Raise Stopped if a signal has come: before anything becomes final, in case the first Stopped was swallowed."""
    if _listening and _reason and not _uninterrupted_depth:
        raise Stopped(_reason)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let a signal wait for the first :func:`check` after a few lines that belong together.

    If no check follows, the command ends as done.
    """
    global _uninterrupted_depth
    _uninterrupted_depth += 1
    try:
        yield
    finally:
        _uninterrupted_depth -= 1


def ignore() -> None:
    """Ignore signals from now on: only the last lines remain."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def stopped() -> bool:
    """Return whether a signal has come."""
    return _listening and bool(_reason)
