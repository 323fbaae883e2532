"""What a person sees of a command: short lines that are safe on a terminal, and a live bar."""

import os
import sys
import textwrap
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

WIDTH = 100  # characters of a line at most


def printable(text: str) -> str:
    """``text`` with control characters and the lone surrogates of odd file names escaped."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def paragraph(heading: str, text: str) -> str:
    """A heading and a text that is safe on a terminal, and wrapped unless it has a path: that may be copied."""
    heading, text = printable(f"{heading:9} "), printable(text)
    if os.sep in text:
        return heading + text
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=heading,
        subsequent_indent=" " * 10,
        break_long_words=False,
        break_on_hyphens=False,
    )


class Printed:
    """A stream that escapes the control characters of its lines: they could move the cursor of a terminal, or worse."""

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
    with suppress(OSError):  # reported at the end (streams.py)
        print(printable(text), file=sys.stderr)


class PipeConsole(Console):
    """A console that raises BrokenPipeError when its reader has gone: rich would end the process, and the run."""

    def on_broken_pipe(self) -> None:
        raise


class _Count(MofNCompleteColumn):
    """done/total, where there is a total."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None else super().render(task)


class Terminal:
    """Shows a run: a line per message and round, and on a terminal a live bar.

    The results are in files, so a run continues silently when the reader of its output has gone.
    """

    def __init__(self, quiet: bool, *, to_stderr: bool = False):
        self.quiet = quiet
        self.console = PipeConsole(stderr=to_stderr, highlight=False, soft_wrap=True)
        self.bar = Progress(
            TextColumn("{task.description:9}"),
            BarColumn(),
            _Count(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self.task: TaskID | None = None
        self.phase = ""

    def __enter__(self) -> "Terminal":
        self.progress("starting", 0, None)  # until something is: torch takes seconds to import
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, heading: str, text: str) -> None:
        if not self.quiet:
            # The run continues without a reader; a full disk is reported at the end (streams.py).
            with suppress(OSError):
                self.console.print(paragraph(heading.capitalize(), text), markup=False)

    def progress(self, phase: str, done: int, total: int | None) -> None:
        if self.bar.disable:
            return
        if self.task is None or phase != self.phase:
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.task, self.phase = self.bar.add_task(phase, total=total), phase
        self.bar.update(self.task, completed=done, total=total)

    def round(self, row: Mapping[str, Any], rounds: int, groups: str) -> None:
        loss = f"loss {row['loss']:.2f} (chance {row['chance_loss']:.2f})"
        if groups:
            parts = [f"groups: {groups}", loss]
        else:
            changed = "-" if row["changed"] == "" else f"{row['changed']:.1%}"
            parts = [loss, f"changed {changed}"]
            if row["cluster_weight"] < 1:
                parts.append(f"cluster weight {row['cluster_weight']:.0%}")
            parts.append(f"largest {row['largest_share']:.0%}")
        if "nmi_labels" in row:
            parts.append(f"NMI {row['nmi_labels']:.3f}")
        parts.append(f"{sum(row[f'{phase}_seconds'] for phase in ('features', 'clustering', 'training')):.1f} s")
        self.say(f"{row['round'] + 1}/{rounds}", "  ".join(parts))
