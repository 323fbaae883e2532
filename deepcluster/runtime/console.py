"""Lines on the screen: safe texts, standard streams that may fail, displays of a run, and the live bar."""

import os
import re
import sys
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from deepcluster.errors import DiskError
from deepcluster.runtime import log
from deepcluster.texts import printable

WIDTH = 100  # characters of a line at most
DETAILS = ("Plan", "Features", "Run", "Alike", "Clusters")  # headings that are shown to a user who asks
# Names of the phases on the screen, if they differ from the names in the code.
PHASES = {
    "starting": "starting up",
    "reading": "reading the images",
    "duplicates": "looking for duplicates",
    "features": "comparing the images",
    "clustering": "making clusters to learn",
    "training": "learning from the images",
    "cut": "making the clusters",
    "map": "drawing the map",
    "report": "writing the report",
}


# ---- texts ----------------------------------------------------------------------------------------------------------


def paragraph(heading: str, text: str) -> str:
    """Return a heading and a text, safe on a terminal. A text with a path is not wrapped: it may be copied."""
    heading = printable(f"{heading:9} ")
    text = printable(text)
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


def round_line(row: Mapping[str, Any], rounds: int, *, verbose: bool) -> tuple[str, str]:
    """Return the heading and the text of a round: its row of history.csv, in short or with all figures."""
    seconds = sum(row[f"{phase}_seconds"] for phase in ("features", "clustering", "training"))
    parts = [f"NMI {row['nmi_labels']:.3f}"] if "nmi_labels" in row else []
    parts.append(f"{seconds:.1f} s")
    number = row["round"] + 1
    if not verbose:
        return "Round", f"{number} of {rounds}: {'  '.join(parts)}"
    changed = "-" if row["changed"] == "" else f"{row['changed']:.1%}"
    figures = [f"loss {row['loss']:.2f} (chance {row['chance_loss']:.2f})", f"changed {changed}"]
    if row["cluster_weight"] < 1:
        figures.append(f"cluster weight {row['cluster_weight']:.0%}")
    figures.append(f"largest {row['largest_share']:.0%}")
    return f"{number}/{rounds}", "  ".join([*figures, *parts])


def write_printable(text: str) -> None:
    """Print lines with their control characters escaped: these could move the cursor of a terminal, or worse."""
    sys.stdout.write("\n".join(map(printable, text.split("\n"))))


def say(text: str) -> None:
    print(printable(text))


def complain(text: str) -> None:
    with suppress(OSError):  # reported at the end (flush_streams)
        print(printable(text), file=sys.stderr)


# ---- standard streams -----------------------------------------------------------------------------------------------


def set_up_streams() -> None:
    """Make both streams writable, also if they are closed; letters that a terminal lacks are shown by their codes."""
    # A closed stream gets a file that refuses to be written to; else the next file that is opened would be the stream.
    while (lowest := os.open(os.devnull, os.O_RDONLY)) <= 2:
        pass
    os.close(lowest)
    # COLUMNS of 0, 1 or millions makes rich lay out the help forever.
    if not re.fullmatch("[2-9][0-9]|[1-9][0-9]{2}", os.environ.get("COLUMNS", "80")):
        del os.environ["COLUMNS"]
    # Buffered under PYTHONUNBUFFERED too: unwritten text is kept, so that flush_streams meets the error again.
    for number, name, buffering in ((1, "stdout", -1), (2, "stderr", 1)):
        encoding = getattr(getattr(sys, name), "encoding", "utf-8")
        setattr(sys, name, os.fdopen(number, "w", buffering, encoding, "backslashreplace", closefd=False))


def flush_streams() -> DiskError | None:
    """Flush both streams, and return an error for the first that cannot be written to; none if its reader has gone."""
    failures = []
    for stream, name in ((sys.stdout, "standard output"), (sys.stderr, "standard error")):
        try:
            stream.flush()
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                failures.append(DiskError(f"cannot write to {name} ({error.strerror}): send it elsewhere"))
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())  # Python flushes once more when it ends
            os.close(nowhere)
    return failures[0] if failures else None


# ---- displays -------------------------------------------------------------------------------------------------------


class Display(Protocol):
    """Shows the progress of a run: ``fit(..., display=)`` calls these in the main process, and waits for them.

    Examples:
        >>> class Rounds(Silent):
        ...     def round(self, row, rounds):
        ...         print(f"round {row['round']} of {rounds}")
        >>> Rounds().round({"round": 3}, rounds=20)
        round 3 of 20
    """

    def say(self, heading: str, text: str) -> None:
        """Show a line: ``Run`` with the folder, ``Plan``, ``Images``, ``Done``, ..."""
        return

    def progress(self, phase: str, done: int, total: int) -> None:
        """Show how many of the images a ``phase`` has done (``total`` 0: unknown); called many times a second."""
        return

    def round(self, row: Mapping[str, Any], rounds: int) -> None:
        """Show a round at its end: its row of history.csv (cells without a value are ""), and the planned rounds."""
        return


class Silent(Display):
    """Shows nothing. Subclass it to write your own display.

    Examples:
        >>> Silent().say("Done", "in 3 s")  # prints nothing
    """


class Several:
    """Displays that all show a run (None is no display); its lines are logged, too, with all figures of a round."""

    def __init__(self, *displays: Display | None, logged: bool = True):
        self.displays = [display for display in displays if display is not None]
        self.logged = logged

    def say(self, heading: str, text: str) -> None:
        if self.logged:
            log.record(f"{heading}: {text}")
        for display in self.displays:
            display.say(heading, text)

    def progress(self, phase: str, done: int, total: int) -> None:
        for display in self.displays:
            display.progress(phase, done, total)

    def round(self, row: Mapping[str, Any], rounds: int) -> None:
        if self.logged:
            log.record(": ".join(round_line(row, rounds, verbose=True)))
        for display in self.displays:
            display.round(row, rounds)


class PipeConsole(Console):
    """A console that raises BrokenPipeError when its reader has gone: rich would end the process, and the run."""

    def on_broken_pipe(self) -> None:
        raise


def has_widgets() -> bool:
    """Return True in a notebook that can show a live bar."""
    return Console().is_jupyter and find_spec("ipywidgets") is not None


class Terminal:
    """Shows a run: a line per message and round, and on a terminal or in a notebook a live bar.

    The results are in files, so a run continues silently when the reader of its output has gone. ``quiet`` shows
    nothing, ``verbose`` also ``DETAILS`` and all figures of a round; without ``lines`` the bar comes alone.
    """

    def __init__(self, quiet: bool, *, to_stderr: bool = False, verbose: bool = False, lines: bool = True):
        self.quiet = quiet
        self.verbose = verbose
        self.lines = lines
        self.console = PipeConsole(stderr=to_stderr, highlight=False, soft_wrap=True)
        self.bar = Progress(
            TextColumn("{task.description:24}"),
            BarColumn(),
            TextColumn("{task.fields[count]}", style="progress.download"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=quiet or not (self.console.is_terminal or has_widgets()),
        )
        self.task: TaskID | None = None
        self.phase = ""

    def __enter__(self) -> "Terminal":
        self.progress("starting", 0, 0)  # until something is: torch takes seconds to import
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, heading: str, text: str) -> None:
        if self.lines and not self.quiet and (self.verbose or heading not in DETAILS):
            # The run continues without a reader; a full disk is reported at the end (flush_streams).
            with suppress(OSError):
                self.console.print(paragraph(heading.capitalize(), text), markup=False)

    def progress(self, phase: str, done: int, total: int) -> None:
        if self.bar.disable:
            return
        known = total or None
        if self.task is None or phase != self.phase:
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.task = self.bar.add_task(PHASES.get(phase, phase), total=known, count="")
            self.phase = phase
        self.bar.update(self.task, completed=done, total=known, count=f"{done}/{total}" if known else "")

    def round(self, row: Mapping[str, Any], rounds: int) -> None:
        self.say(*round_line(row, rounds, verbose=self.verbose))
