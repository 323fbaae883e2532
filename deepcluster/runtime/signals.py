"""Stopping on a signal: at once where nothing is lost by it, else after the step that is being made."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from deepcluster.errors import LostError, Stopped

if TYPE_CHECKING:
    from pathlib import Path

SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
EXIT_ON_SECOND_SIGINT = 130
RAISE_AGAIN_SECONDS = 0.25  # seconds after which Stopped is raised once more where something has swallowed it


class Stop:
    """Whether somebody ``wanted`` the command to stop. As a context it listens to SIGNALS, but not to a SIGHUP
    that is ignored (nohup).

    ``at_once``: whether the work under way can be left where it is (all but a step of training, which changes the
    network). Then a signal raises Stopped there and then; else whoever works looks at ``wanted`` after the step. A
    handler saves nothing itself. A second Ctrl-C ends the process without another word.

    An exception that a handler raises may be lost: Python drops it in a destructor, compiled code may turn it into
    another one. So it is raised again every ``RAISE_AGAIN_SECONDS`` until it propagates; never while it does, as that
    would break off the clean-up.
    """

    def __init__(self) -> None:
        self.wanted = False
        self.at_once = True
        self.reason = ""
        self.run = ""  # the folder of the fit under way, once there is something to resume; each rank knows it
        self.held = 0  # contexts of later() that are open
        self._before: dict[int, Any] = {}
        self._unraisable = sys.unraisablehook

    def __enter__(self) -> Self:
        global _listening
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            _listening = self
            self._unraisable, sys.unraisablehook = sys.unraisablehook, self._drop
            for name in (*SIGNALS, "SIGALRM"):
                if hasattr(signal, name):  # Windows has only the first two
                    number = getattr(signal, name)
                    if name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN:
                        continue
                    self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        global _listening
        self.at_once = False
        if not self._before:
            return
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._heard:  # processes that share a run may ignore one by now
                signal.signal(number, handler)
        sys.unraisablehook = self._unraisable
        _listening = None

    def too_late(self) -> None:
        """The work is done but for its last lines: no signal breaks them off any more."""
        self.at_once = False

    def ignore(self) -> None:
        """The command is done, and it is too late to stop it."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    def check(self) -> None:
        """Raise Stopped where it is wanted and nothing speaks against it."""
        if self.wanted and self.at_once and not self.held and not _on_its_way():
            raise Stopped(self.reason)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.wanted and number == signal.SIGINT:
            os._exit(EXIT_ON_SECOND_SIGINT)
        if not self.wanted:
            self.wanted, self.reason = True, f"stopped by {signal.Signals(number).name}"
            if hasattr(signal, "setitimer"):
                signal.setitimer(signal.ITIMER_REAL, RAISE_AGAIN_SECONDS, RAISE_AGAIN_SECONDS)
        self.check()

    def _drop(self, unraisable: Any) -> None:
        """Say nothing of a Stopped that was raised in a destructor: it comes again."""
        if not issubclass(unraisable.exc_type, Stopped):
            self._unraisable(unraisable)


_listening: Stop | None = None


@contextmanager
def listening() -> Iterator[Stop]:
    """The Stop that listens already, or one that listens for as long as the context lasts. With its end it is too late
    to stop. What fails after a signal has failed by it, whatever it looks like: it becomes Stopped."""
    stop = _listening or Stop()
    with nullcontext() if _listening else stop:
        try:
            yield stop
        except Exception as error:
            if stop.wanted and not isinstance(error, LostError):
                raise Stopped(stop.reason) from error
            raise
        finally:
            stop.at_once = False


@contextmanager
def later() -> Iterator[None]:
    """A few lines that belong together: a signal that comes meanwhile is heard soon after them, and not at all where
    the command is done by then."""
    stop = _listening
    if stop is None:
        yield
        return
    stop.held += 1
    try:
        yield
    finally:
        stop.held -= 1


@contextmanager
def temporary_folder(place: "Path | None" = None) -> "Iterator[Path]":
    """A folder that is gone with the context, also where a signal comes while it is made or removed."""
    from pathlib import Path  # here, as signals are to be heard before anything else is imported
    from tempfile import TemporaryDirectory

    with later():
        folder = TemporaryDirectory(dir=place)
    try:
        yield Path(folder.name)
    finally:
        with later():
            folder.cleanup()


def check() -> None:
    """Raise Stopped where a signal asked for it: before something is made final, lest what was made of a Stopped that
    somebody swallowed is taken for a result."""
    if _listening:
        _listening.check()


def _on_its_way() -> bool:
    """Whether what runs now cleans up behind a Stopped, or behind a generator that is left, where it would be lost."""
    error = sys.exception()
    while error is not None and not isinstance(error, Stopped | GeneratorExit):
        error = error.__context__
    return error is not None
