"""Photographs by default: the plain command against the usual pipeline with the same network, side by side.

    python benchmarks/photographs.py NAME IMAGES K WEIGHTS [NAME IMAGES K WEIGHTS ...] [--backbone timm:NAME]
                                     [--methods ...] [--seeds 0 1 2] [-- options of deepcluster fit]

IMAGES has a folder a class, which only scores. WEIGHTS is a file for ``--backbone``; ``auto`` gives the command
neither, so that it takes what it chooses itself (and there is nothing to compare it with).

plain: `deepcluster fit IMAGES -k K`. frozen, frozen-umap: k-means (10 starts) on the frozen features of length 1, or on
10 dimensions of UMAP of them (pip install umap-learn), each in a process of its own that reads the images. Seconds and
peak memory are of the whole process. What rivals ship by default (CLIP or DINOv2 with UMAP and HDBSCAN) is not here:
their weights are not at hand; frozen-umap is their pipeline with our network.

Writes results/photographs.json, which grows by every run, and prints the table of what is there.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

from common import METRICS, RESULTS, fit, save, spread
from quality import frozen as frozen_features

METHODS = ("plain", "frozen", "frozen-umap")
COLUMNS = (*METRICS, "seconds", "peak_memory_mb")


def plain(images: str, k: str, network: list[str], seed: int, passed: list[str]) -> dict[str, Any]:
    result = fit(images, ["-k", k, "--labels", "folders", "--seed", str(seed), *network, *passed])
    return {name: result[name] for name in (*COLUMNS, "rounds", "seconds_by_phase")}


def frozen(method: str, images: str, k: str, network: list[str], seed: int) -> dict[str, Any]:
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--process", method, images, k, str(seed), network[1], network[3]],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return {**json.loads(done.stdout.splitlines()[-1]), "seconds": round(time.perf_counter() - begin, 1)}


def process(method: str, images: str, k: str, seed: str, backbone: str, weights: str) -> None:
    options = argparse.Namespace(images=images, k=int(k), backbone=backbone, weights=weights)
    result = frozen_features(options, int(seed), umap=method == "frozen-umap")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({**result, "peak_memory_mb": round(peak / 1e3)}))


def runs() -> list[dict[str, Any]]:
    file = RESULTS / "photographs.json"
    return list(json.loads(file.read_text())["runs"]) if file.is_file() else []


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| images | method | seeds | " + " | ".join(COLUMNS) + " |", "|" + "---|" * (3 + len(COLUMNS))]
    for name in dict.fromkeys(row["images"] for row in rows):
        for method in METHODS:
            of = [row for row in rows if (row["images"], row["method"]) == (name, method)]
            if of:
                cells = [spread([row[column] for row in of]) for column in COLUMNS]
                lines.append(f"| {name} | {method} | {len(of)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    own, _, passed = "\0".join(sys.argv[1:]).partition("\0--\0")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="NAME IMAGES K WEIGHTS")
    parser.add_argument("--backbone", default="timm:tf_efficientnet_lite0")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args(own.split("\0"))
    if len(options.sets) % 4:
        parser.error("give NAME IMAGES K WEIGHTS, once or more often")
    extra = passed.split("\0") if passed else []
    for name, images, k, weights in zip(*(options.sets[start::4] for start in range(4)), strict=True):
        network = [] if weights == "auto" else ["--backbone", options.backbone, "--weights", weights]
        for seed in options.seeds:
            for method in options.methods if network else ("plain",):
                result = (
                    plain(images, k, network, seed, extra)
                    if method == "plain"
                    else frozen(method, images, k, network, seed)
                )
                key = (name, method, seed)
                rows = [row for row in runs() if (row["images"], row["method"], row["seed"]) != key]
                rows.append({"images": name, "method": method, "seed": seed, "options": " ".join(extra), **result})
                save("photographs", {"backbone": options.backbone, "runs": rows})
                print(rows[-1], file=sys.stderr, flush=True)
    print(table(runs()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--process"]:
        process(*sys.argv[2:])
    else:
        main()
