"""A display that remembers."""

from deepcluster.runtime.console import Silent


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, heading: str, text: str) -> None:
        self.lines.append(f"{heading}: {text}")
