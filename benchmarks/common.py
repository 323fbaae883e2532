"""What the benchmark scripts share: run the command as a user would, read its files, print mean and spread."""

import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
METRICS = ("acc", "nmi", "ami", "ari")


def fit(images: str, arguments: Sequence[str], *, out: Path | None = None) -> dict[str, Any]:
    """Run `deepcluster fit` in a process of its own; returns its metrics, time (s, whole process) and memory (MB)."""
    with tempfile.TemporaryDirectory() as folder:
        run = out or Path(folder) / "run"
        command = [sys.executable, "-m", "deepcluster", "fit", images, "-o", str(run), "--overwrite", *arguments]
        begin = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - begin
        record = json.loads((run / "run.json").read_text())
        metrics = run / "metrics.json"
        return {
            "seconds": round(seconds, 1),
            "peak_memory_mb": record["peak_memory_mb"],
            "rounds": record["rounds"],
            "images": record["images_count"],
            "skipped": record["skipped_count"],
            "seconds_by_phase": record["seconds_by_phase"],
            **(json.loads(metrics.read_text()) if metrics.is_file() else {}),
        }


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation (n - 1), as text; one value has no deviation."""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def machine() -> dict[str, Any]:
    """The hardware and versions that a result was measured with."""
    import torch

    from deepcluster.runtime.devices import environment

    return {**environment(torch.device("cpu")), "date": time.strftime("%Y-%m-%d"), "host": platform.machine()}


def save(name: str, content: Mapping[str, Any]) -> None:
    """Write results/NAME.json: the figures with the machine they were measured on."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"command": " ".join(["python", *sys.argv]), "machine": machine(), **content}, indent=2)
    # Where this machine keeps its data is nobody's concern.
    (RESULTS / f"{name}.json").write_text(re.sub(r"(?<=[ \"])/[^ \"]*/", "", text) + "\n")
