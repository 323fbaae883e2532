"""The log: the logger ``deepcluster``, and the file log.txt of the run that a command changes.

A line goes to both. In the file it has the time (UTC) and the level in front. The lines of a command are kept until it
locks a run, and then appended, as are all later ones. A line that cannot be appended is lost, and the run goes on.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path

from deepcluster.errors import DeepClusterWarning
from deepcluster.runtime.machine import is_main_rank
from deepcluster.texts import printable

LOGGER = logging.getLogger("deepcluster")
LOGGER.addHandler(logging.NullHandler())
APPEND = os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)  # to a file that exists, and not through a link

# The lines of a command so far, and the file of the run that it has locked. By thread: two threads may change two runs.
_lines: ContextVar[list[str] | None] = ContextVar("lines", default=None)
_file: ContextVar[Path | None] = ContextVar("file", default=None)


def record(text: str, level: str = "INFO") -> None:
    LOGGER.log(getattr(logging, level), "%s", text := printable(text))
    if (so_far := _lines.get()) is not None:
        so_far.append(f"{datetime.now(UTC).isoformat(timespec='seconds')} {level} {text}\n")
        _append(so_far[-1])


def warn(text: str) -> None:
    """Give the user a DeepClusterWarning, in the line that called the caller, and log it on the main rank."""
    if is_main_rank():
        record(text, "WARNING")
    warnings.warn(text, DeepClusterWarning, stacklevel=3)


@contextmanager
def logged(command: str) -> Iterator[None]:
    """Hold log lines back until the command has locked a run, then write them first."""
    before = _lines.get()
    _lines.set([])
    try:
        record(command)
        yield
    finally:
        _lines.set(before)


@contextmanager
def logged_in(file: Path) -> Iterator[None]:
    """Append lines to a file inside the context, and the error that ends it."""
    before = _lines.get()
    _lines.set([] if before is None else before)
    _file.set(file)
    _append(lines())
    try:
        yield
    except BaseException as error:
        record(f"{type(error).__name__}: {error}", "ERROR")
        raise
    finally:
        _lines.set(before)
        _file.set(None)


def lines() -> str:
    """Return the lines of the command so far."""
    return "".join(_lines.get() or ())


def _append(text: str) -> None:
    with suppress(OSError):
        if (file := _file.get()) and text:
            with os.fdopen(os.open(file, APPEND), "wb", buffering=0) as stream:
                stream.write(text.encode())
