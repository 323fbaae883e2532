"""How long do commands take that have little to do? Processor and wall time, each in turn with ``import torch``.

    python benchmarks/startup.py RUN IMAGE [EDITS] [--repeats 5]

RUN is a finished run, IMAGE one image, EDITS an edits.json for the run. On a busy machine the processor time counts.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def seconds(command: list[str]) -> tuple[float, float]:
    """Return the processor and the wall time of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("image")
    parser.add_argument("edits", nargs="?")
    parser.add_argument("-k", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    program = [sys.executable, "-m", "deepcluster"]
    times: dict[str, list[tuple[float, float]]] = {}
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            run = shutil.copytree(options.run, Path(folder, "run"))
            commands = {
                "import torch": [sys.executable, "-c", "import torch"],
                "predict of one image": [*program, "predict", str(run), options.image],
                "doctor RUN --json": [*program, "doctor", str(run), "--json"],
            }
            if options.edits:
                commands["apply"] = [*program, "apply", str(run), options.edits]
            if options.k:
                commands["recut"] = [*program, "recut", str(run), "-k", str(options.k)]
            for name, command in commands.items():
                times.setdefault(name, []).append(seconds(command))
    for name, both in times.items():
        cpu, wall = ([round(value, 2) for value in values] for values in zip(*both, strict=True))
        medians = {"cpu": statistics.median(cpu), "wall": statistics.median(wall)}
        print(json.dumps({"command": name, **medians, "all_cpu": cpu, "all_wall": wall}))


if __name__ == "__main__":
    main()
