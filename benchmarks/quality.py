"""How good are the clusters? Methods side by side on images with true labels, over seeds; the labels only score.

    python benchmarks/quality.py NAME IMAGES -k K [--test IMAGES] [--methods ...] [--seeds 0 1 2] [--minutes 60]
                                 [-- options of deepcluster fit]

Prints mean and standard deviation over the seeds. results/NAME.json grows by every run, so a long comparison can be
made in parts; ``--methods`` without a name prints what is there. benchmarks/README.md has a command for each case:
digits and folders.

auto, classic, v1, v2: the recipes; v1 and v2 with the compact network at --size px and K = 10 k. untrained: the network
of auto before its first round. pixels: scikit-learn's k-means (10 starts) on the pixels (at most 32 px). dec, idec,
dcn: ClustPy's (pip install clustpy), with their defaults; fewer epochs if 100 + 150 do not fit into --minutes, and one
seed. The recipes have no limit of time: give them --rounds N.

--test adds the accuracy of 20 nearest neighbours on those images by the features.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import METRICS, fit, labelled, parser_of, runs_of, save, vote_accuracy
from tables import table

Run = Callable[[argparse.Namespace, int], dict[str, float]]
CLUSTPY = ("dec", "idec", "dcn")
CLUSTPY_EPOCHS = (100, 150)  # its defaults: pretraining, clustering


def pixels(images: str) -> tuple[npt.NDArray[np.float32], Any]:
    """Return the pixels, N x 3 S^2 in [0, 1] with S at most 32, and the numbers of the classes."""
    from deepcluster.images import find
    from deepcluster.images.store import survey

    stored, labels, _ = labelled(images, min(32, survey(find(images))[0]))
    return stored.permute(0, 2, 3, 1).numpy().reshape(len(labels), -1).astype(np.float32) / 255, labels


def scored(labels: Any, clusters: npt.NDArray[Any], begin: float) -> dict[str, float]:
    from deepcluster.clustering.agreement import scores

    return {**scores(labels, clusters), "seconds": round(time.perf_counter() - begin, 1)}


# ---- methods --------------------------------------------------------------------------------------------------------


def on_pixels(options: argparse.Namespace, seed: int) -> dict[str, float]:
    from sklearn.cluster import KMeans

    rows, labels = pixels(options.images)
    begin = time.perf_counter()
    return scored(labels, KMeans(options.k, n_init=10, random_state=seed).fit_predict(rows), begin)


def command(options: argparse.Namespace, seed: int, *, arguments: tuple[str, ...]) -> dict[str, float]:
    """Run `deepcluster fit` in a process of its own."""
    settings = ["-k", str(options.k), "--labels", "folders", "--seed", str(seed)]
    if {"v1", "v2"} & set(arguments):
        settings += ["--backbone", "compact", "--image-size", str(options.size), "--pseudo-labels", str(10 * options.k)]
    settings += [*arguments, *options.passed]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        result = fit(options.images, settings, run)
        figures = {name: result[name] for name in (*METRICS, "seconds", "rounds", "peak_memory_mb")}
        figures |= {"start_nmi": result["baseline_nmi"]} if "baseline_nmi" in result else {}
        return figures | ({"knn": neighbours(run, options.test)} if options.test else {})


def neighbours(run: Path, test: str) -> float:
    """Return the accuracy on ``test`` of the weighted vote of the nearest training images, by the run's features."""
    import torch

    file = run / "test.npy"
    subprocess.run(
        [sys.executable, "-m", "deepcluster", "embed", str(run), test, "-o", str(file), "--overwrite"], check=True
    )
    _, truth, classes = labelled(test, 8)
    with (run / "clusters.csv").open() as table:
        known = [classes.index(row["label"]) for row in csv.DictReader(table) if row["status"] == "ok"]
    rows, queries = (torch.from_numpy(np.load(path)) for path in (run / "features.npy", file))
    return vote_accuracy(rows, torch.tensor(known), queries, truth)


def clustpy(options: argparse.Namespace, seed: int, *, name: str) -> dict[str, float]:
    """Run one of ClustPy's methods in a process of its own, with a time limit."""
    script = [sys.executable, __file__, "--clustpy", name, options.images, str(options.k), str(seed)]
    limit = 60 * options.minutes
    done = subprocess.run(
        [*script, str(limit)],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=limit * 1.5 + 60,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def clustpy_process(name: str, images: str, k: str, seed: str, limit: str) -> None:
    import clustpy.deep

    method = getattr(clustpy.deep, name.upper())
    rows, labels = pixels(images)

    def run(epochs: tuple[int, int]) -> tuple[npt.NDArray[Any], float]:
        begin = time.perf_counter()
        model = method(
            int(k), pretrain_epochs=epochs[0], clustering_epochs=epochs[1], random_state=int(seed), device="cpu"
        )
        return model.fit(rows).labels_, time.perf_counter() - begin

    one, two = run((1, 1))[1], run((2, 2))[1]  # their difference is an epoch of each, without the start
    share = min(1.0, 0.9 * float(limit) / (sum(CLUSTPY_EPOCHS) / 2 * max(two - one, 1e-3) + one))
    epochs = tuple(max(1, round(share * number)) for number in CLUSTPY_EPOCHS)
    begin = time.perf_counter()
    clusters, _ = run((epochs[0], epochs[1]))
    result = scored(labels, clusters, begin)
    print(json.dumps({**result, "pretrain_epochs": epochs[0], "clustering_epochs": epochs[1]}))


METHODS: dict[str, Run] = {
    "pixels": on_pixels,
    "untrained": partial(command, arguments=("--rounds", "0")),
    "v1": partial(command, arguments=("--recipe", "v1", "--set", "margin=1")),
    "v2": partial(command, arguments=("--recipe", "v2", "--set", "margin=1")),
    "classic": partial(command, arguments=("--recipe", "classic")),
    "auto": partial(command, arguments=()),
    **{name: partial(clustpy, name=name) for name in CLUSTPY},
}
COLUMNS = (*METRICS, "start_nmi", "knn", "seconds", "peak_memory_mb")


# ---- the comparison -------------------------------------------------------------------------------------------------


def main() -> None:
    arguments, _, passed = "\0".join(sys.argv[1:]).partition("\0--\0")
    parser = parser_of(__doc__, seeds=(0, 1, 2))
    parser.add_argument("name", help="results/NAME.json is written")
    parser.add_argument("images")
    parser.add_argument("-k", type=int, required=True)
    parser.add_argument("--test")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--size", type=int, default=32, help="px, for v1 and v2")
    parser.add_argument("--minutes", type=float, default=60)
    options = parser.parse_args(arguments.split("\0"))
    options.passed = passed.split("\0") if passed else []
    for method in options.methods:
        for seed in options.seeds if method not in CLUSTPY else options.seeds[:1]:
            result = METHODS[method](options, seed)
            rows = [row for row in runs_of(options.name) if (row["method"], row["seed"]) != (method, seed)]
            rows.append({"method": method, "seed": seed, "options": " ".join(options.passed), **result})
            save(options.name, {"runs": rows})
            print(rows[-1], file=sys.stderr, flush=True)
    measured = [column for column in COLUMNS if any(column in row for row in runs_of(options.name))]
    print(table(options.name, "method", *measured))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--clustpy"]:
        clustpy_process(*sys.argv[2:])
    else:
        main()
