"""Run folders among the images: recognised by their run.json and left out, as their pictures are not the user's."""

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RUN = "run.json"
# The values that every run.json has.
RECORD: Mapping[str, type] = {"schema_version": int, "images": str, "location": str, "seed": int}
MOST_BYTES = 4 << 20


def is_run(folder: Path) -> bool:
    """Whether a folder is a run folder: its run.json is one of ours."""
    path = folder / RUN
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            return False
        record: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and all(type(record.get(key)) is kind for key, kind in RECORD.items())
