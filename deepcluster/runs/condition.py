"""The condition of a run for a monitor, which asks often: nothing here imports torch."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from deepcluster.errors import DeepClusterError
from deepcluster.storage.content import RESULT, RunRecord
from deepcluster.storage.model_config import read_summary
from deepcluster.storage.run_folder import are_current, locked, open_run

COUNTS = ("images_count", "added_count", "skipped_count", "outlier_share")
DRIFT = ("residual_rank", "shift", "reason", "due")


def made_current(run: Path) -> RunRecord:
    """Return the record of a run. DiskError if there is no run.

    Views that are older than the run, or missing, are made again if files may be written.
    """
    folder = open_run(run)
    record = folder.read_record()
    if record.status == "done" and not are_current(folder):
        from deepcluster.runs.run import read_run  # imports torch
        from deepcluster.runs.views import refresh

        with suppress(DeepClusterError), locked(run) as writable:
            refresh(writable, read_run(writable))
    return record


def condition(run: Path) -> dict[str, Any]:
    """Return the condition of a run (docs/production.md). DiskError or ModelError if a file is damaged."""
    record = made_current(run)
    folder = open_run(run)
    model = read_summary(folder)
    result = folder.read_json(RESULT)
    with folder.as_disk_errors(RESULT):
        counts, drift = ({name: result[name] for name in names} for names in (COUNTS, DRIFT))
    return {
        "run": str(run),
        "model": model,
        "status": record.status,
        **counts,
        **({"quality": result["quality"]} if result.get("quality") else {}),
        **drift,
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
