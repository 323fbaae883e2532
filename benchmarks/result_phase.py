"""What does the result of a run take beside the features: memory and time?

    python benchmarks/result_phase.py 200000 1000000

Rows of 64 numbers around 20 centres (one thread), grouped as `deepcluster fit FILE --features` does it: groups,
placement, tables, map and report. The peak is over what the process has when features, reduction and k-means are
there. Results go to results/result_phase.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from common import save

from deepcluster.runs import own_features
from deepcluster.runs.job import Request

WIDTH, GROUPS = 64, 20


def rows(count: int, file: Path) -> None:
    random = np.random.default_rng(0)
    centres = random.standard_normal((GROUPS, WIDTH), np.float32)
    table = np.lib.format.open_memmap(file, "w+", np.float32, (count, WIDTH))
    for begin in range(0, count, 1 << 16):
        part = table[begin : begin + (1 << 16)]
        part[:] = centres[random.integers(0, GROUPS, len(part))] + random.standard_normal(part.shape, np.float32)


def resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(count: int) -> dict[str, Any]:
    """One run, in this process."""
    torch.set_num_threads(1)
    begun: list[float] = []  # memory, clock and processor time when the features are there
    peak = 0.0
    result_of = own_features.result_of

    def watched(*arguments: Any, **named: Any) -> Any:
        result = result_of(*arguments, **named)
        begun[:] = [resident(), time.perf_counter(), time.process_time()]
        return result

    def watch() -> None:
        nonlocal peak
        while True:
            if begun:
                peak = max(peak, resident() - begun[0])
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        rows(count, Path(folder) / "rows.npy")
        options = {"pseudo_labels": 100, "kmeans_iterations": 3}
        request = Request(out=Path(folder) / "run", n_clusters=GROUPS, options=options)
        with mock.patch.object(own_features, "result_of", watched):
            own_features.fit_features(Path(folder) / "rows.npy", request)
        page = (Path(folder) / "run/report.html").stat().st_size
    return {
        "rows": count,
        "peak_over_features_mb": round(peak),
        "seconds": round(time.perf_counter() - begun[1], 1),
        "processor_seconds": round(time.process_time() - begun[2], 1),
        "report_mb": round(page / 1e6, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", type=int, nargs="+")
    parser.add_argument("--here", action="store_true", help="one count, in this process, printed as JSON")
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measure(arguments.counts[0])))
        return
    found = []
    for count in arguments.counts:
        command = [sys.executable, __file__, str(count), "--here"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(found[-1])
    save("result_phase", {"runs": found})


if __name__ == "__main__":
    main()
