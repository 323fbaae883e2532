"""Which files of a run folder are ours. Nothing else is ever removed, moved or replaced there.

A file is ours by its exact name and its kind: a plain file (or a link in the place of one, which is never followed).
What is temporary lies in a scratch folder of an unpredictable name, which holds a marker that repeats this name.
"""

import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deepcluster.images.run_folders import RUN
from deepcluster.runtime import signals

LOCK = ".lock"
PROTOCOLS = ("clustering", "knn", "linear", "few")
TABLES = {"clusters.csv", "cluster_summary.csv", "skipped.csv", "duplicates.csv", "history.csv", "added.csv"}
ARRAYS = {"features.npy", "residuals.npy", "map.npy", "former.safetensors"}
REPORT = {"report.html", "tree.json", "thumbnails.webp"}
MODEL = {"model/config.json", "model/model.safetensors", "model/table.json"}
CHECKPOINTS = {"checkpoints/images.csv"}
EVALUATIONS = {f"evaluation-{protocol}.json" for protocol in PROTOCOLS}
NAMES = frozenset({RUN, "recipe.toml", "metrics.json"} | TABLES | ARRAYS | REPORT | MODEL | CHECKPOINTS | EVALUATIONS)
FOLDERS = ("model", "checkpoints")
_CHECKPOINT = re.compile(r"checkpoints/\d{6}(\.json|(-\d{1,6})?\.safetensors)")
_SCRATCH = re.compile(r"\.deepcluster-[0-9a-f]{16}")
MARKER = ".scratch-of-deepcluster"


def is_known(name: str) -> bool:
    """Whether a file of this name (relative to the run folder, with ``/``) is one that a run writes."""
    return name in NAMES or _CHECKPOINT.fullmatch(name) is not None


def own_files(run: Path) -> list[str]:
    """The names of the files in a run folder that are ours."""
    names = []
    for folder in (run, *(run / name for name in FOLDERS)):
        if not folder.is_dir() or (folder != run and folder.is_symlink()):
            continue
        for path in sorted(folder.iterdir()):
            name = path.relative_to(run).as_posix()
            if is_known(name) and is_file_or_link(path):
                names.append(name)
    return names


def remove_own(run: Path, names: list[str]) -> None:
    """Remove files of ours, and the folders that are empty then."""
    for name in names:
        if not (run / name).parent.is_symlink() or (run / name).parent == run:
            (run / name).unlink(missing_ok=True)
    for folder in FOLDERS:
        if not (run / folder).is_symlink():
            with suppress(OSError):  # not empty, or not there
                (run / folder).rmdir()


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A new scratch folder in ``folder``, which is removed at the end."""
    path = folder / f".deepcluster-{secrets.token_hex(8)}"
    try:
        path.mkdir()
        (path / MARKER).write_text(path.name, encoding="utf-8")
        yield path
    finally:
        with signals.uninterrupted():
            shutil.rmtree(path, ignore_errors=True)


def is_scratch(path: Path) -> bool:
    """Whether ``path`` is a scratch folder of ours; one without a marker is, where it is empty."""
    if not _SCRATCH.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
        return False
    marker = path / MARKER
    try:
        if _is_file(marker):
            return marker.read_bytes()[:100].decode() in (path.name, "")
        return not any(path.iterdir())
    except (OSError, UnicodeDecodeError):
        return False


def remove_stale_scratch(folder: Path) -> None:
    """Remove the scratch folders that killed processes left. Only for whoever has the lock of ``folder``."""
    for path in folder.iterdir():
        if is_scratch(path):
            shutil.rmtree(path, ignore_errors=True)


def _is_file(path: Path) -> bool:
    return stat.S_ISREG(os.lstat(path).st_mode) if os.path.lexists(path) else False


def is_file_or_link(path: Path) -> bool:
    """Whether ``path`` is a plain file or a link, itself."""
    mode = os.lstat(path).st_mode
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)
