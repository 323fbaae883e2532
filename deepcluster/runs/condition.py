"""The state of a run for a monitor, which asks often: nothing here imports torch."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.groups.due import drift
from deepcluster.storage.content import RESULT
from deepcluster.storage.model_config import read_summary
from deepcluster.storage.run_folder import are_current, open_run


def condition(run: Path) -> dict[str, Any]:
    """Return the state of a run for a monitor (docs/production.md). DiskError or ModelError if a file is damaged.

    The clusters of the images come from clusters.csv, which is made again if it is older than the run.
    """
    folder = open_run(run)
    model, limit = read_summary(folder)
    record = folder.read_record()
    images = folder.read_images()
    residuals = folder.read_array("residuals.npy", len(images.used), 1)[:, 0]
    if not are_current(folder):
        from deepcluster.runs.views import made_current  # imports torch

        made_current(run)
    result = folder.read_json(RESULT)
    table = folder.read_rows("clusters.csv")
    cluster = np.array([row["cluster"] for row in table if row["status"] == "ok"], np.int64)
    drifted = drift(cluster, residuals, images.fitted, limit)
    return {
        "run": str(run),
        "model": model,
        "status": record.status,
        "images_count": len(images.used),
        "added_count": len(images.used) - images.fitted,
        "skipped_count": len(images.skipped),
        "outlier_share": round((residuals > limit).mean().item(), 4) if limit < np.inf else None,
        **({"quality": result["quality"]} if result.get("quality") else {}),
        **drifted.entries,
        "due": drifted.reason is not None,
        "run_bytes": _bytes(run),
        "model_bytes": _bytes(run / "model"),
        "checkpoints_bytes": _bytes(run / "checkpoints"),
    }


def _bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # a scratch file of another process
                total += Path(parent, name).lstat().st_size
    return total
