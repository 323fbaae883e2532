"""The state of a run for a monitor, which asks often: nothing here imports torch."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.groups.due import drift
from deepcluster.storage.model_config import read_summary
from deepcluster.storage.run_folder import RunFolder, read_state


def condition(run: Path) -> dict[str, Any]:
    """Return the state of a run for a monitor (docs/production.md). DiskError or ModelError if a file is damaged."""
    return read_state(run, _condition)


def _condition(run: RunFolder) -> dict[str, Any]:
    model, limit = read_summary(run)
    record = run.read_record()
    table = run.read_clusters()
    used = table.where("status", "ok")
    residuals = run.read_array("residuals.npy", len(used), 1)[:, 0]
    cluster = used.column("cluster").astype(np.int64)
    added = run.count_added(used)
    drifted = drift(cluster, residuals, len(used) - added, limit)
    return {
        "run": str(run.path),
        "model": model,
        "status": record.status,
        "images_count": len(used),
        "added_count": added,
        "skipped_count": len(table) - len(used),
        "outlier_share": round((residuals > limit).mean().item(), 4) if limit < np.inf else None,
        **({"quality": record.quality} if record.quality else {}),
        **drifted.entries,
        "due": drifted.reason is not None,
        "run_bytes": _bytes(run.path),
        "model_bytes": _bytes(run.path / "model"),
        "checkpoints_bytes": _bytes(run.path / "checkpoints"),
    }


def _bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # a scratch file of another process
                total += Path(parent, name).lstat().st_size
    return total
