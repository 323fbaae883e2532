"""The errors, with the exit codes of the command line.

A message says what is wrong, names the file or the value, and says what to do next; both numbers when two disagree.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class DeepClusterError(Exception):
    """Base class of the errors that a user may see."""

    exit_code = 1


class UsageError(DeepClusterError, ValueError):
    """An option or argument that cannot be used."""

    exit_code = 2


class DataError(DeepClusterError, ValueError):
    """The images or labels: none readable, fewer than the clusters asked for, ..."""

    exit_code = 3


class ModelError(DeepClusterError, ValueError):
    """A model, weights or checkpoint file that is missing, damaged or of another network."""

    exit_code = 4


class DiskError(DeepClusterError, OSError):
    """A run folder that exists, is missing, read-only or full."""

    exit_code = 5


class OutOfMemoryError(DeepClusterError, MemoryError):
    """The run does not fit into memory."""

    exit_code = 6


class NonFiniteError(DeepClusterError, ArithmeticError):
    """The loss, the weights or the features are no longer finite numbers."""

    exit_code = 7


class Stopped(BaseException):
    """A signal ended the command; a run can continue from its last checkpoint.

    It is no Exception, because it may be raised in any line: no handler may take it for an error of an image, a model
    or a disk.
    """

    exit_code = 75  # EX_TEMPFAIL


class LostError(DeepClusterError):
    """Another process of the run has ended."""


class DeepClusterWarning(UserWarning):
    """Something the user should know although the run goes on."""


def first_line(error: BaseException) -> str:
    """Return the first line of the error's message, or else its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def needing(packages: str) -> Iterator[None]:
    """Raise UsageError if an import inside fails; it is of optional ``packages``, separated by spaces."""
    try:
        yield
    except ImportError as error:
        raise UsageError(f"this needs packages that are not installed ({error}): pip install {packages}") from None


def other_version(version: int, readable: range) -> str:
    """Return the end of an error about a file whose schema version is not ``readable``; empty if it is."""
    if version in readable:
        return ""
    is_newer = version >= readable.stop
    age, advice = ("a newer", "update deepcluster") if is_newer else ("an older", "use that version, or fit again")
    both = f"schema_version {version}, and this version writes {readable[-1]}"
    return f"was made by {age} version of deepcluster ({both}): {advice}"
