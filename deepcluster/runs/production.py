"""A run in production: its state for a monitor, and a new run in its place.

A monitor asks often, so torch is imported only to write a report.
"""

import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepcluster.errors import UsageError
from deepcluster.groups.due import drift
from deepcluster.runtime import signals
from deepcluster.runtime.console import Display, Log, Several
from deepcluster.runtime.plain_files import RUN, check_file, sha256, shaped
from deepcluster.storage.files import changing, new_folder, write_whole
from deepcluster.storage.model_config import read_summary
from deepcluster.storage.run_folder import RunFolder, locked, open_run, read_state
from deepcluster.storage.state import FOLDERS, HIDDEN, LOCK, own_files


def condition(run: Path) -> dict[str, Any]:
    """Return the state of a run for a monitor (docs/production.md). DiskError or ModelError if a file is damaged."""
    return read_state(run, _condition)


def _condition(run: RunFolder) -> dict[str, Any]:
    model, limit = read_summary(run)
    record = run.read_record({"rounds": int})
    with run.as_disk_errors(RUN):
        for name, kind in {"result": str, "stability": int | float, "verdict": str}.items():
            shaped(getattr(record, name), kind | None, name)
    table = run.read_clusters()
    used = table.where("status", "ok")
    residuals = run.read_array("residuals.npy", len(used), 1)[:, 0]
    with run.as_disk_errors("clusters.csv"):
        cluster = used.column("cluster").astype(np.int64)
    added = run.count_added(used)
    entries = drift_entries(cluster, residuals, len(used) - added, limit)
    return {
        "run": str(run.path),
        "model": model,
        "status": record.status,
        "result": record.result,
        "images_count": len(used),
        "added_count": added,
        "skipped_count": len(table) - len(used),
        "outlier_share": round((residuals > limit).mean().item(), 4) if limit < np.inf else None,
        "stability": record.stability,
        "verdict": record.verdict,
        **entries,
        "due": entries["reason"] is not None,
        "run_bytes": _bytes(run.path),
        "model_bytes": _bytes(run.path / "model"),
        "checkpoints_bytes": _bytes(run.path / "checkpoints"),
    }


def drift_entries(
    cluster: npt.NDArray[np.int64], residuals: npt.NDArray[np.float32], fitted: int, limit: float
) -> dict[str, Any]:
    """Return the fields of an Update on all images added since the fit, from the arguments of :func:`drift`."""
    drifted = drift(cluster, residuals, fitted, limit)
    rank = drifted.residual_rank
    return {
        "residual_rank": None if rank is None else round(float(rank), 3),
        "shift": round(float(drifted.shift), 3),
        "reason": drifted.reason,
    }


def _bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # a scratch file of another process
                total += Path(parent, name).lstat().st_size
    return total


# ---- a new run in its place ------------------------------------------------------------------------------------------


def promote(new: Path, old: Path, display: Display | None = None) -> Path:
    """Put a finished run in the place of another one, and return the folder that keeps the other one.

    The old folder gets a next state, as in every command: a reader sees the old run or the new one. Other files in the
    two folders stay there.

    Raises UsageError if the new run is not finished, or is the old one.
    """
    for run in (new, old):
        open_run(run)
    if sha256(new / RUN) == sha256(old / RUN):
        raise UsageError(f"{old} is the run in {new} already: nothing is left to promote")
    here = Path(os.path.abspath(old))  # noqa: PTH100 (without following links)
    aside = here.with_name(f"{here.name}-until-{time.strftime('%Y%m%d-%H%M%S')}")
    with locked(new) as source, locked(old) as place:
        record = source.read_record()
        if record.status != "done":
            raise UsageError(f"{new} is not finished (its status is {record.status}): go on with its fit and --resume")
        with new_folder(aside) as beside:
            _copy(place, own_files(old), beside)
        with place.next_state(anew=True) as staged:
            names = own_files(new)
            _copy(source, names, staged.path_of(RUN).parent)
            if "report.html" in names:  # which names its folder, and has links from there
                from deepcluster.runs.page import write_report  # imports torch

                write_report(staged)
        Several(Log(), display).say("Promoted", f"{old} is now the run of {new}. The old run is in {aside}")
        with signals.uninterrupted(), changing(new):
            for name in names:
                (new / name).unlink()
            with suppress(OSError):  # Windows removes no open file
                (new / LOCK).unlink()
    for folder in (*(new / name for name in (*FOLDERS, HIDDEN)), new):
        with suppress(OSError):  # not there, or not empty
            folder.rmdir()
    return aside


def _copy(run: RunFolder, names: Iterable[str], folder: Path) -> None:
    for name in names:
        with run.as_disk_errors(name):
            check_file(run.file(name), 1 << 62)
        (folder / name).parent.mkdir(exist_ok=True)
        with run.file(name).open("rb") as file:
            write_whole(folder / name, partial(shutil.copyfileobj, file), binary=True)
