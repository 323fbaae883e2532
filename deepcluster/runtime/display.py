"""Where a command says what it does."""

from collections.abc import Mapping
from typing import Any, Protocol


class Display(Protocol):
    """Where a run says what it does: ``fit(..., display=)`` calls these in the main process, and waits for them."""

    def say(self, heading: str, text: str) -> None:
        """A line: ``Run`` with the folder, ``Plan``, ``Images``, ``Done``, ..."""

    def progress(self, phase: str, done: int, total: int) -> None:
        """How many of the images a ``phase`` has done, many times a second."""

    def round(self, row: Mapping[str, Any], rounds: int, groups: str) -> None:
        """After each round: its row of history.csv (cells without a value are ""), the number of rounds planned, and
        whether the groups got better in words; empty where nobody looked."""


class Silent:
    """A display that shows nothing; a display of your own may begin with it."""

    def say(self, heading: str, text: str) -> None:
        pass

    def progress(self, phase: str, done: int, total: int) -> None:
        pass

    def round(self, row: Mapping[str, Any], rounds: int, groups: str) -> None:
        pass


class Several:
    """Displays that all show a run."""

    def __init__(self, *displays: Display):
        self.displays = displays

    def say(self, heading: str, text: str) -> None:
        for display in self.displays:
            display.say(heading, text)

    def progress(self, phase: str, done: int, total: int) -> None:
        for display in self.displays:
            display.progress(phase, done, total)

    def round(self, row: Mapping[str, Any], rounds: int, groups: str) -> None:
        for display in self.displays:
            display.round(row, rounds, groups)
