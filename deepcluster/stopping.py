"""Stopping on a signal: at once where nothing is lost by it, else after the step that is being made."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Self

from deepcluster.errors import Stopped

SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")
EXIT_OF_A_SECOND = 130


class Stop:
    """Whether somebody ``wanted`` the run to stop. As a context it listens to SIGINT, SIGTERM and SIGUSR1.

    ``at_once``: whether the work under way can be left where it is (all but a step of training, which changes the
    network). Then a signal raises Stopped there and then; else whoever works looks at ``wanted`` after the step. A
    handler saves nothing itself. A second Ctrl-C ends the process without another word.
    """

    def __init__(self) -> None:
        self.wanted = False
        self.at_once = True
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            for name in SIGNALS:
                if hasattr(signal, name):  # Windows has no SIGUSR1
                    number = getattr(signal, name)
                    self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:
            if number == signal.SIGINT:
                os._exit(EXIT_OF_A_SECOND)
            return
        self.wanted = True
        if self.at_once:
            raise Stopped(f"stopped by {signal.Signals(number).name}")
