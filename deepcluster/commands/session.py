"""Shared by all commands: the checks before their work, the printing of results, and errors with their exit codes."""

import json
import os
import re
import shlex
import signal
import sys
import time
import webbrowser  # noqa: TID251 (--open)
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

import cyclopts

from deepcluster import errors
from deepcluster.errors import DeepClusterError, UsageError
from deepcluster.nets.names import NO_NETWORK
from deepcluster.recipes import flags
from deepcluster.runtime import console
from deepcluster.runtime.console import Terminal, complain, say
from deepcluster.runtime.machine import is_main_rank, world_size
from deepcluster.storage import files
from deepcluster.texts import plural, short

if TYPE_CHECKING:
    from deepcluster.images import Source
    from deepcluster.model import Model
    from deepcluster.storage.content import RunRecord


RANK_WAIT_SECONDS = 20.0  # before another rank than the main rank prints an error
# Messages of torch's allocators, of the system, of its loader of libraries and of oneDNN. (With "descriptor", it is an
# operation that oneDNN lacks.)
NO_MEMORY = re.compile(
    "can't allocate memory|[Cc]annot allocate memory|out of memory|failed to map segment"
    "|could not create a primitive(?! descriptor)"
)
MAX_WORDS = 60  # of a command in run.json, log.txt and the page
BY_PARTS = ("predict", "embed")  # commands whose images may be divided


@contextmanager
def session(
    images: str | None, quiet: bool, *, to_stderr: bool, verbose: bool = False
) -> Iterator[tuple[Terminal, dict[str, Any]]]:
    """Yield a display of fit that shows only on the main rank, and the keyword argument ``processes`` under torchrun.

    These processes join before anything is checked, so that an error of one ends all at once. A single process has no
    such argument: it checks first and imports torch later.
    """
    if world_size() > 1 and images == "-":
        raise UsageError("several processes cannot share standard input: write the paths to a .txt file, and give that")
    with Terminal(quiet or not is_main_rank(), to_stderr=to_stderr, verbose=verbose) as terminal:
        if world_size() == 1:
            yield terminal, {}
            return
        from deepcluster.runtime.processes import init_processes

        with init_processes() as processes:
            yield terminal, {"processes": processes}


def check_run(run: Path) -> "RunRecord":
    """Return the record of a run, after its views were brought up to date."""
    from deepcluster.runs.condition import made_current

    return made_current(run)


def images_for(run: Path, images: str, *others: str, may_be_empty: bool = False) -> "Source | str":
    """Return images for the model of a run, or the file of features for a model that takes these."""
    from deepcluster.images.files import find
    from deepcluster.images.own_features import check_features_there

    if check_run(run).backbone == NO_NETWORK:
        return check_features_there(images, *others)
    return find(images, *others, may_be_empty=may_be_empty)


def checked_output(path: Path, run: Path, images: "Source | str", overwrite: bool) -> Path:
    """Return ``path`` if a command that reads this run and these images may write it."""
    files.check_output(path, overwrite=overwrite, inputs=lambda: _files_read(run, images))
    return path


def _files_read(run: Path, images: "Source | str") -> Iterator[Path]:
    from deepcluster.storage.lock import own_files
    from deepcluster.storage.run_folder import open_run

    yield from (run / name for name in own_files(run))
    if isinstance(images, str):  # an image, perhaps by its path in the run, or features with their paths beside them
        path = Path(images)
        yield Path(open_run(run).read_record().base) / path
        yield from (path, path.parent / f"{path.stem}.csv", path.parent / f"{path.stem}.txt", *path.rglob("*.parquet"))
    else:
        yield Path(images.location)
        yield from {Path(images.origin(i).source) for i in range(len(images.paths))}  # files, arrays and shards


def model_of(run: Path, device: str) -> "Model":
    from deepcluster.runtime.devices import choose_device
    from deepcluster.storage.model_files import load

    return load(run, choose_device(device))


def print_result(
    run: Path,
    output: flags.Output,
    command: str,
    preview: Mapping[str, object] | None = None,
    summary: Mapping[str, object] | None = None,
) -> None:
    """Print the result of a fit, recut, apply, teach or update. For ``--json``: ``preview`` is of a dry run."""
    from deepcluster.storage.run_folder import open_run

    if output.dry_run:
        if output.as_json:
            print(json.dumps({"run": str(run), "dry_run": True, **(preview or {})}, indent=2))
        return
    folder = open_run(run)
    result = folder.read_json("result.json")
    record = folder.read_record()
    metrics = folder.read_json("metrics.json") if folder.has("metrics.json") else {}
    if output.as_json:
        names = ("clusters", "images_count", "skipped_count")
        about = {name: result[name] for name in names} | {"rounds": record.rounds, "metrics": metrics or None}
        summary = summary or about
        print(json.dumps({"run": str(run), **summary}, indent=2))
    elif not output.quiet:
        lines = _metric_lines({"clusters": result["clusters"], **metrics}) if command in ("fit", "recut") else ()
        following = _next_commands(folder.path, record, result, command)
        headed = (f"{heading:9} {line}" for heading, line in zip_longest(["Next"], following, fillvalue=""))
        for line in (*lines, *headed):
            say(line)
    if output.open_:
        open_page((run / "report.html").absolute().as_uri())


def _next_commands(folder: Path, record: "RunRecord", result: Mapping[str, Any], command: str) -> Iterator[str]:
    run = shlex.quote(str(folder))
    others = [candidate["k"] for candidate in result["candidates"][1:]]
    yield f"deepcluster report {run} --serve --open   # look, correct and sort in a browser"
    if command == "fit" and others:
        yield f"deepcluster recut {run} -k {others[0]}   # another number of clusters"
    if command != "update" and record.backbone != NO_NETWORK:
        yield f"deepcluster export {run} --to folders -o sorted   # a folder for every cluster"
    yield f"open {(folder / 'report.html').absolute().as_uri()}   # the page as a file, to look at and to pass on"


def _metric_lines(metrics: Mapping[str, Any]) -> Iterator[str]:
    for prefix, heading in (("", "Metrics"), ("baseline_", "At start")):
        if f"{prefix}acc" in metrics:
            shown = "  ".join(f"{name.upper()} {metrics[prefix + name]:.3f}" for name in ("acc", "nmi", "ami", "ari"))
            about = "" if prefix else f"; NMI: {metrics['nmi_average']} mean; {metrics['labelled']:,} labels"
            yield f"{heading:9} {shown}  ({plural(metrics[f'{prefix}clusters'], 'cluster')}{about})"


def open_page(page: str, address: str = "") -> None:
    """Show a page in the user's browser. ``address``: The page that it redirects to."""
    if not webbrowser.open(page):
        complain(f"no browser could be opened: open {address or page} yourself")


def check_arguments(arguments: list[str]) -> None:
    """Raise UsageError if an argument is empty (such as "$UNSET"), or if torchrun starts another command than fit."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option = re.fullmatch(r"(--?[\w-]+)=", argument)
        if option or not argument:
            what = f"value of {option[1]}" if option else f"argument after {before or 'deepcluster'}"
            raise UsageError(f"the {what} is empty (a variable that is not set?): give it a value, or leave it out")
    name = next(iter(arguments), "-")
    if world_size() > 1 and name != "fit" and not name.startswith("-"):
        how = ", once for each part of a list of your images" if name in BY_PARTS else ""
        raise UsageError(f"{name} does not share its work among processes: run it without torchrun{how}")


def typed(arguments: Sequence[str]) -> str:
    """Return the command as it was typed, without the middle of a long list of images."""
    words = ["deepcluster", *arguments]
    if len(words) > MAX_WORDS:
        words[MAX_WORDS // 2 : -MAX_WORDS // 2] = ["..."]
    return shlex.join(words)


def report_error(text: str) -> None:
    """Print an error. Another rank waits first: if the main rank meets it too, torchrun ends the waiting one."""
    if is_main_rank():
        complain(f"error: {short(text, 2000)}")
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(RANK_WAIT_SECONDS)
    complain(f"[rank {os.environ['RANK']}] error: {short(text, 2000)}")


def explained(error: Exception) -> tuple[int, str]:
    if isinstance(error, cyclopts.UnknownCommandError) and os.path.lexists(path := (error.unused_tokens or [""])[0]):
        return UsageError.exit_code, f"{path} is no command: did you mean deepcluster fit {shlex.quote(path)}?"
    if isinstance(error, cyclopts.UnusedCliTokensError):
        extra = short(shlex.join(error.unused_tokens or []), 200)
        return UsageError.exit_code, f"too many arguments: {extra}. Several IMAGES stand together, before the options"
    if isinstance(error, cyclopts.CycloptsError):
        return UsageError.exit_code, str(error)
    if isinstance(error, DeepClusterError):
        return error.exit_code, str(error)
    if isinstance(error, OSError) and (unwritten := console.flush_streams()):
        return unwritten.exit_code, str(unwritten)
    if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
        return errors.OutOfMemoryError.exit_code, f"out of memory ({error}); try a smaller --image-size or --batch-size"
    if isinstance(error, OSError) and error.errno and isinstance(error.filename, str):
        # A path that cannot be used: too long a name, a file in place of a folder, ...
        problem = f"cannot use {error.filename} ({error.strerror})"
        return errors.DiskError.exit_code, f"{problem}: check what is there, or name another place"
    modules = (frame.f_globals["__name__"] for frame, _ in walk_tb(error.__traceback__))
    if "torch" not in sys.modules and "torch" in (getattr(error, "name", ""), *modules):
        return errors.ModelError.exit_code, f"torch cannot be imported ({errors.first_line(error)}): install it again"
    return 1, f"{type(error).__name__}: {error} (this is a bug; --debug shows where)"
