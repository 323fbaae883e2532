"""Tools of the benchmark scripts: run the command as a user would, read its files, print mean and spread."""

import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
METRICS = ("acc", "nmi", "ami", "ari")


def fit(images: str, arguments: Sequence[str], run: Path) -> dict[str, Any]:
    """Run `deepcluster fit` in a process of its own; return its metrics, time (s, whole process) and memory (MB)."""
    command = [sys.executable, "-m", "deepcluster", "fit", images, "-o", str(run), "--overwrite", *arguments]
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    record = json.loads((run / "run.json").read_text())
    return {
        "seconds": round(time.perf_counter() - begin, 1),
        "peak_memory_mb": record["peak_memory_mb"],
        "rounds": record["rounds"],
        **json.loads((run / "metrics.json").read_text()),
    }


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation (n - 1) as text; one value has no deviation."""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def machine() -> dict[str, Any]:
    """Return the hardware and versions that a result was measured with."""
    import torch

    from deepcluster.runtime.devices import environment

    return {**environment(torch.device("cpu")), "date": time.strftime("%Y-%m-%d"), "host": platform.machine()}


def save(name: str, content: Mapping[str, Any]) -> None:
    """Write results/NAME.json: the figures with the machine they were measured on."""
    text = json.dumps({"command": " ".join(["python", *sys.argv]), "machine": machine(), **content}, indent=2)
    # Drop the folders of this machine.
    (RESULTS / f"{name}.json").write_text(re.sub(r"(?<=[ \"])/[^ \"]*/", "", text) + "\n")
