"""Standard output and standard error of a command, which may be closed, full, or not read to the end."""

import os
import re
import sys

from deepcluster.errors import DiskError


def set_up() -> None:
    """Make both streams writable, also if they are closed; letters that a terminal lacks are shown by their codes."""
    # A closed stream gets a file that refuses to be written to; else the next file that is opened would be the stream.
    while (lowest := os.open(os.devnull, os.O_RDONLY)) <= 2:
        pass
    os.close(lowest)
    # COLUMNS of 0, 1 or millions makes rich lay out the help forever.
    if not re.fullmatch("[2-9][0-9]|[1-9][0-9]{2}", os.environ.get("COLUMNS", "80")):
        del os.environ["COLUMNS"]
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def flush() -> DiskError | None:
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
