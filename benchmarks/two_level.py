"""What do two levels save, and what do they cost? k-means in two levels against flat k-means, and at K = 100,000.

    python benchmarks/two_level.py [--part scan|flat|large ...]

Rows: a seeded mixture of three levels. 300 directions, around each 30 at half their distance, around each of these 10
at a quarter; a row is one of these 90,000 points plus noise of .3 of a length, with length 1. The 300 are drawn with
weights 1 / rank^.5, so that sizes differ 17 times. They lie in a file that is mapped into memory. One thread; seconds
are those of the processor (other sessions share the machine), wall seconds stand beside them; memory as in
paper_scale.py.

scan: one size, several numbers of coarse clusters. flat: against flat k-means with the same iterations, and flat
iterations after the two levels, from their centroids. large: 1 M rows, 100,000 clusters.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, save, spread
from paper_scale import Peak

from deepcluster.clustering import kmeans, two_level, two_level_kmeans
from deepcluster.clustering.two_level import coarse_number
from deepcluster.records import Clustering

PARTS = ("scan", "flat", "large")
SEEDS = (0, 1, 2)


def nested(file: Path, rows: int, width: int = 64) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(0)

    def around(centres: Any, each: int, distance: float) -> Any:
        steps = random.standard_normal((len(centres) * each, width), np.float32) / width**0.5
        return np.repeat(centres, each, 0) + distance * steps

    points = around(around(around(np.zeros((1, width), np.float32), 300, 1), 30, 0.5), 10, 0.25)
    weights = 1 / np.arange(1, 301) ** 0.5
    array = np.lib.format.open_memmap(file, "w+", np.float32, (rows, width))
    for begin in range(0, rows, 1 << 16):
        part = array[begin : begin + (1 << 16)]
        first = random.choice(300, len(part), p=weights / weights.sum())
        noise = 0.3 * random.standard_normal(part.shape, np.float32) / width**0.5
        part[:] = points[300 * first + random.integers(300, size=len(part))] + noise
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    array.flush()
    return np.load(file, mmap_mode="r")


def measured(cluster: Callable[[], Clustering], rows: int) -> tuple[Clustering, dict[str, Any]]:
    wall, begin = time.perf_counter(), time.process_time()
    found = cluster()
    return found, {
        "cpu_seconds": round(time.process_time() - begin, 2),
        "wall_seconds": round(time.perf_counter() - wall, 2),
        "objective": found.inertia / rows,
        "smallest": int(found.sizes.min()),
        "largest": int(found.sizes.max()),
        "reseeded": found.reseeded,
    }


def scan(folder: Path) -> dict[str, Any]:
    rows, k = 200_000, 10_000
    x = nested(folder / "scan.npy", rows)
    found = {}
    for coarse in (25, 50, 100, 200, 400, 800):
        two_level.coarse_number = lambda k, coarse=coarse: coarse
        found[str(coarse)] = measured(lambda: two_level_kmeans(x, k), rows)[1]
        print(coarse, found[str(coarse)], flush=True)
    return {"rows": rows, "k": k, "by_coarse": found}


def flat(folder: Path) -> dict[str, Any]:
    rows = 100_000
    x = nested(folder / "flat.npy", rows)
    result: dict[str, Any] = {"rows": rows}
    for k in (2000, 10_000):
        runs: dict[str, list[dict[str, Any]]] = {}
        for seed in SEEDS:
            levels, first = measured(lambda k=k, seed=seed: two_level_kmeans(x, k, seed=seed), rows)
            runs.setdefault("two levels", []).append(first)
            for after in (0, 3):

                def again(k: int = k, after: int = after, start: Any = levels.centroids) -> Clustering:
                    return kmeans(x, k, start=start, iterations=after)

                more = measured(again, rows)[1]
                for kind in ("cpu_seconds", "wall_seconds"):
                    more[kind] = round(more[kind] + first[kind], 2)
                runs.setdefault(f"two levels, then {after} flat", []).append(more)
            alone = measured(lambda k=k, seed=seed: kmeans(x, k, seed=seed), rows)[1]
            runs.setdefault("flat", []).append(alone)
            print(k, seed, {name: (each[-1]["cpu_seconds"], each[-1]["objective"]) for name, each in runs.items()},
                  flush=True)  # fmt: skip
        result[str(k)] = {
            name: {
                "cpu_seconds": spread([each["cpu_seconds"] for each in these]),
                "wall_seconds": spread([each["wall_seconds"] for each in these]),
                "objective": f"{np.mean([each['objective'] for each in these]):.5f} ± "
                f"{np.std([each['objective'] for each in these], ddof=1):.5f}",
                "objective_over_flat_percent": spread([
                    100 * (each["objective"] / best["objective"] - 1)
                    for each, best in zip(these, runs["flat"], strict=True)
                ]),
                "runs": these,
            }
            for name, these in runs.items()
        }  # fmt: skip
    return result


def large(folder: Path) -> dict[str, Any]:
    rows, k = 1_000_000, 100_000
    x = nested(folder / "large.npy", rows)
    two_level_kmeans(torch.randn(20_000, 64), 200)  # the libraries are loaded before the measurement begins
    with Peak() as peak:
        found, result = measured(lambda: two_level_kmeans(x, k), rows)
    return {
        "rows": rows,
        "k": k,
        "coarse": coarse_number(k),
        **result,
        "empty": k - found.occupied,
        "peak_memory_over_features_mb": round((peak.bytes - peak.before) / 1e6),
        "features_mb": round(x.nbytes / 1e6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    file = RESULTS / "two_level.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    result = {part: known[part] for part in PARTS if part in known}
    for part in arguments.part or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            result[part] = {"scan": scan, "flat": flat, "large": large}[part](Path(folder))
        print(result[part] if part == "large" else "")
        save("two_level", result)


if __name__ == "__main__":
    main()
