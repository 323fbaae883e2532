"""What a person sees of a command: text that is safe on a terminal, and a live bar."""

import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from deepcluster.errors import DiskError


def printable(text: str) -> str:
    """One line that is safe on a terminal: no control characters, no half characters from odd file names."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Printed:
    """A table on a terminal: lines as they are but for control characters, which could move the cursor or worse."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        self.stream.write("\n".join(map(printable, text.split("\n"))))

    def writelines(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.write(text)


def say(text: str) -> None:
    print(printable(text))


def complain(text: str) -> None:
    with suppress(DiskError):  # said at the end (streams.py)
        print(printable(text), file=sys.stderr)


class PipeConsole(Console):
    """A console that raises where nobody reads it any more."""

    def on_broken_pipe(self) -> None:
        raise  # the BrokenPipeError: rich would end the process, and the run with it


class Terminal:
    """Shows a run: a live bar on a terminal, otherwise a line for each round and each thing said.

    A run is in files: where nobody reads what is said any more, it goes on without a word.
    """

    def __init__(self, quiet: bool, *, to_stderr: bool = False):
        self.quiet = quiet
        self.console = PipeConsole(stderr=to_stderr, highlight=False, soft_wrap=True)
        self.bar = Progress(
            TextColumn("{task.description:9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self.task: TaskID | None = None
        self.phase = ""
        self.run = ""

    def __enter__(self) -> "Terminal":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, heading: str, text: str) -> None:
        if heading == "Run":
            self.run = text
        if not self.quiet:
            # A run goes on where nobody reads its log; a full disk is said at the end (streams.py).
            with suppress(BrokenPipeError, DiskError):
                self.console.print(printable(f"{heading.capitalize():9} {text}"), markup=False)

    def progress(self, phase: str, done: int, total: int) -> None:
        if self.bar.disable:
            return
        if self.task is None or phase != self.phase:
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.task, self.phase = self.bar.add_task(phase, total=total), phase
        self.bar.update(self.task, completed=done, total=total)

    def round(self, row: Mapping[str, Any], rounds: int) -> None:
        def value(name: str, form: str) -> str:
            return "-" if row[name] == "" else format(row[name], form)

        seconds = sum(row[f"{phase}_seconds"] for phase in ("features", "clustering", "training"))
        with_labels = f"  NMI labels {row['nmi_labels']:.3f}" if "nmi_labels" in row else ""
        self.say(
            f"{row['round'] + 1}/{rounds}",
            f"loss {row['loss']:.3f} (chance {row['chance_loss']:.2f})  NMI previous {value('nmi_previous', '.3f')}"
            f"  changed {value('changed', '.1%')}  cluster weight {row['cluster_weight']:.0%}"
            f"  largest {row['largest_share']:.1%}  reseeded {row['reseeded']}{with_labels}"
            f"  {row['images_per_second']:,.0f} img/s  {seconds:.1f} s",
        )
