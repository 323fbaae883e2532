"""The state of a run, for a monitor."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from deepcluster.groups.due import drift
from deepcluster.model import Model
from deepcluster.runs.rows import Rows, read_run
from deepcluster.runtime.plain_files import shaped
from deepcluster.storage import run_folder as files


def condition(run: Path) -> dict[str, Any]:
    """Return the state of a run for a monitor (docs/production.md). Errors are those of ``read_run``."""
    record, model, rows = files.read_state(run, read_run)
    with files.RunFolder(run).as_disk_errors(files.RUN):
        for name, kind in {"result": str, "stability": int | float, "verdict": str}.items():
            shaped(getattr(record, name), kind | None, name)
    limit = model.outliers.limit
    entries = drift_entries(model, rows)
    return {
        "run": str(run),
        "model": model.identity,
        "status": record.status,
        "result": record.result,
        "images_count": len(rows.paths),
        "added_count": rows.added,
        "skipped_count": len(rows.skipped),
        "outlier_share": round((rows.residuals > limit).double().mean().item(), 4) if limit < torch.inf else None,
        "stability": record.stability,
        "verdict": record.verdict,
        **entries,
        "due": entries["reason"] is not None,
        "run_bytes": _bytes(run),
        "model_bytes": _bytes(run / "model"),
        "checkpoints_bytes": _bytes(run / "checkpoints"),
    }


def drift_entries(model: Model, rows: Rows) -> dict[str, Any]:
    """Return the fields of an Update on all images added since the fit."""
    drifted = drift(model.place(rows.reduced).cluster, rows.residuals, rows.fitted, model.outliers.limit)
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
