"""The condition of a run for a monitor, which asks often: nothing here imports torch."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from deepcluster.storage.content import RESULT
from deepcluster.storage.model_config import read_summary
from deepcluster.storage.run_folder import are_current, open_run

COUNTS = ("images_count", "added_count", "skipped_count", "outlier_share")
DRIFT = ("residual_rank", "shift", "reason", "due")


def condition(run: Path) -> dict[str, Any]:
    """Return the condition of a run (docs/production.md). DiskError or ModelError if a file is damaged."""
    folder = open_run(run)
    model = read_summary(folder)
    record = folder.read_record()
    if not are_current(folder):
        from deepcluster.runs.views import made_current  # imports torch

        made_current(run)
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
