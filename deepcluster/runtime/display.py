"""Where a command says what it does."""

from collections.abc import Mapping
from typing import Any, Protocol


class Display(Protocol):
    """Where a run says what it does."""

    def say(self, heading: str, text: str) -> None: ...

    def progress(self, phase: str, done: int, total: int) -> None: ...

    def round(self, row: Mapping[str, Any], rounds: int, groups: str) -> None:
        """A row of history.csv, and whether the groups got better in words; empty where nobody looked."""


class Silent:
    """A display that shows nothing."""

    def say(self, heading: str, text: str) -> None:
        pass

    def progress(self, phase: str, done: int, total: int) -> None:
        pass

    def round(self, row: Mapping[str, Any], rounds: int, groups: str) -> None:
        pass
