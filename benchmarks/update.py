"""What does `deepcluster update` take, beside a fit?

    python benchmarks/update.py IMAGES [--fitted 3000] [--more 1000] [-- OPTIONS OF FIT]

A seeded sample of a folder of images is fitted, and another one added. Processor and wall time of both commands, and
what must not change: rows, numbers, features and model of the fitted images. Results go to results/update.json.
"""

import argparse
import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import save


def timed(*arguments: object) -> dict[str, float]:
    """Seconds of a command."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "deepcluster", *map(str, arguments), "-q"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": round(time.perf_counter() - begin, 1), "processor": round(processor, 1)}


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "clusters.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["status"] == "ok"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("--fitted", type=int, default=3000)
    parser.add_argument("--more", type=int, default=1000)
    parser.add_argument("options", nargs="*")
    asked = parser.parse_args()
    suffixes = (".jpg", ".jpeg", ".png")
    paths = sorted(str(path.resolve()) for path in asked.images.rglob("*") if path.suffix.lower() in suffixes)
    chosen = [paths[i] for i in np.random.default_rng(0).permutation(len(paths))[: asked.fitted + asked.more]]
    with tempfile.TemporaryDirectory() as name:
        folder, run = Path(name), Path(name) / "run"
        (folder / "fitted.txt").write_text("\n".join(sorted(chosen[: asked.fitted])) + "\n")
        (folder / "more.txt").write_text("\n".join(sorted(chosen[asked.fitted :])) + "\n")
        fit = timed("fit", folder / "fitted.txt", "-o", run, *asked.options)
        before, features = rows(run), np.load(run / "features.npy")
        model = (run / "model/model.safetensors").read_bytes()
        update = timed("update", run, folder / "more.txt")
        assert rows(run)[: len(before)] == before and model == (run / "model/model.safetensors").read_bytes()
        assert np.array_equal(np.load(run / "features.npy")[: len(before)], features)
        placed = rows(run)[len(before) :]
        found = {
            "fitted": len(before), "added": len(placed), "outliers": sum(row["is_outlier"] == "1" for row in placed),
            "rounds": json.loads((run / "run.json").read_text())["rounds"], "fit_seconds": fit,
            "update_seconds": update, "times_as_fast": round(fit["processor"] / update["processor"], 1),
        }  # fmt: skip
    print(found)
    save("update", found)


if __name__ == "__main__":
    main()
