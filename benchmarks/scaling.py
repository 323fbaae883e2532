"""How do time and memory of a round grow, and how much faster are several processes?

    python benchmarks/scaling.py processes IMAGES   one process of two threads against two of one thread, in turns
    python benchmarks/scaling.py images IMAGES      a round of N, 2 N, 4 N and 8 N images: seconds and peak memory
    python benchmarks/scaling.py clusters           k-means with K, 2 K, 4 K and 8 K clusters
    python benchmarks/scaling.py everywhere         the work that every process does for all images
    python benchmarks/scaling.py model              the cost model worked out for three scales (docs/scaling.md)

IMAGES is a folder; a seeded sample of it is used. Results go to results/scaling_NAME.json.
"""

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import fit, paths_of, save, spread

V1 = ["--recipe", "v1", "--backbone", "compact", "--set", "sobel=false", "-k", "10", "-q"]


def rounds_of(
    images: Path, count: int, arguments: Sequence[str], processes: int = 1, threads: int = 1
) -> tuple[list[dict[str, float]], int]:
    """Run `fit` on a sample; return the seconds of all rounds but the first, and the peak memory (MB) of a process."""
    with tempfile.TemporaryDirectory() as folder:
        (sample := Path(folder, "sample.txt")).write_text("\n".join(map(str, paths_of(images, count))))
        run = Path(folder, "run")
        memory = fit(sample, [*V1, *arguments], run, processes=processes, threads=threads)["peak_memory_mb"]
        with (run / "history.csv").open() as file:
            rows = list(csv.DictReader(file))[1:]
    phases = ("features_seconds", "clustering_seconds", "training_seconds")
    return [{phase: float(row[phase]) for phase in phases} for row in rows], memory


def processes(arguments: argparse.Namespace) -> dict[str, Any]:
    ways = {"1 x 2 threads": (1, 2), "2 x 1 thread": (2, 1)}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    options = ["--image-size", "32", "--pseudo-labels", "100", "--rounds", "3", "--batch-size", "128"]
    for repeat in range(arguments.repeats):
        for name, (count, threads) in ways.items():
            rounds, _ = rounds_of(arguments.images, arguments.count, options, count, threads)
            spent[name] += [sum(row.values()) for row in rounds]
            print(repeat, name, [round(value, 2) for value in spent[name]], flush=True)
    one, two = spent.values()
    ratios = [a / b for a, b in zip(one, two, strict=True)]
    print(f"throughput of two processes over one: {spread(ratios)}")
    return {"images": arguments.count, "seconds_a_round": spent, "throughput_ratio": ratios}


def images(arguments: argparse.Namespace) -> dict[str, Any]:
    rows = []
    options = ["--image-size", "16", "--pseudo-labels", "100", "--rounds", "6"]
    for count in (arguments.count * times for times in (1, 2, 4, 8)):
        rounds, memory = rounds_of(arguments.images, count, options)
        seconds = statistics.median(sum(row.values()) for row in rounds)
        medians = {phase: statistics.median(row[phase] for row in rounds) for phase in rounds[0]}
        row = {"images": count, "seconds": seconds, "peak_memory_mb": memory}
        rows.append(row | medians | {"estimate_mb": estimated(count)})
        print(rows[-1], flush=True)
    return {"rows": rows, "off_the_line": off_the_line([r["images"] for r in rows], [r["seconds"] for r in rows])}


def off_the_line(counts: Sequence[float], seconds: Sequence[float]) -> list[float]:
    """Return the distance of each measurement from the least-squares line, as a share of it."""
    slope, start = np.polyfit(counts, seconds, 1)
    off = [round(float(time / (start + slope * count) - 1), 3) for count, time in zip(counts, seconds, strict=True)]
    print(f"{start:.2f} s and {slope * 1e6:.1f} microseconds each; off that line: {off}")
    return off


def estimated(count: int) -> float:
    """Return the memory (MB) that `fit` estimates before it begins."""
    from deepcluster.presets import Facts, read_request, resolve
    from deepcluster.runs.build import network_of
    from deepcluster.runs.forecast import memory
    from deepcluster.runtime.devices import choose_device

    given = {"backbone": "compact", "sobel": False, "image_size": 16, "pseudo_labels": 100}
    recipe = resolve(read_request(given, "v1"), Facts(count, 32, False, 10, "cpu")).recipe
    return memory(network_of(recipe, 0, choose_device("cpu")), recipe, count) / 1e6


def clusters(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    from deepcluster.clustering import kmeans

    torch.set_num_threads(1)
    x = torch.nn.functional.normalize(torch.randn(50_000, 256, generator=torch.Generator().manual_seed(0)))
    rows = []
    for times in (1, 2, 4, 8):
        k, spent = 500 * times, []
        for seed in range(arguments.repeats):
            begin = time.process_time()
            kmeans(x, k, iterations=5, seed=seed)
            spent.append(time.process_time() - begin)
        rows.append({"clusters": k, "seconds": spent})
        print(k, spread(spent), flush=True)
    off = off_the_line([row["clusters"] for row in rows], [statistics.mean(row["seconds"]) for row in rows])
    return {"rows_of_features": 50_000, "dims": 256, "iterations": 5, "rows": rows, "off_the_line": off}


def everywhere(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time the sample of an epoch and the comparison with the round before."""
    import torch

    from deepcluster.clustering.agreement import compared
    from deepcluster.images.views import uniform_over_clusters
    from deepcluster.seeding import generator

    torch.set_num_threads(1)
    rows = []
    for count in (250_000, 1_000_000, 4_000_000):
        labels = torch.randint(10_000, (count,), generator=generator(0, "labels"))
        before = torch.where(torch.rand(count, generator=generator(0, "change")) < 0.3, labels.flip(0), labels)
        row: dict[str, Any] = {"images": count}
        for name, work in {
            "sampling": lambda: uniform_over_clusters(labels, len(labels), generator(0, "sample")),  # noqa: B023
            "comparing": lambda: compared(before, labels),  # noqa: B023
        }.items():
            begin = time.process_time()
            work()
            row[f"{name}_ns_an_image"] = round((time.process_time() - begin) / count * 1e9)
        rows.append(row)
        print(row, flush=True)
    return {"clusters": 10_000, "rows": rows}


# ---- the model ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """Images and machines of a round. Rates of devices are assumptions if nothing was measured."""

    name: str
    images: float
    clusters: float
    ranks: int
    nodes: int
    parameters: float = 24e6  # ResNet-50 below its last layer
    features: int = 2048
    dims: int = 256
    size: int = 224
    store: int = 256
    batch: int = 4096
    forward: float = 7000.0  # images a second a device, bf16, inference
    training: float = 2400.0  # images a second a device, bf16
    products: float = 30e12  # floating-point operations a second of k-means on a device, with its argmax
    link: float = 100e9 / 8  # bytes a second between machines, each way, a machine


def round_of(at: Scale) -> dict[str, float]:
    """Return the seconds of the parts of a round and the bytes of a process (docs/scaling.md has the formulas)."""
    own = at.images / at.ranks
    steps = at.images / at.batch
    devices_a_node = at.ranks / at.nodes
    across = (at.nodes - 1) / at.nodes  # the share of what goes round that leaves a machine
    iterations = 21
    return {
        "features": own / at.forward,
        "covariance": 2 * own * at.features**2 / at.products + 8 * at.features**2 * 2 / at.link * (at.nodes > 1),
        "k-means": iterations * 2 * own * at.clusters * at.dims / at.products,
        "sums of k-means": iterations * 2 * 8 * at.clusters * (at.dims + 1) / at.link * (at.nodes > 1),
        "labels": 4 * at.images * across / at.link,
        "training": own / at.training,
        "pictures": own * devices_a_node * across * 3 * at.store**2 / at.link,
        "gradients": steps * 2 * 4 * at.parameters * across / at.link,
        "everywhere": (at.images * SAMPLING_NS + own * COMPARING_NS) * 1e-9,
        "bytes: pixels (file)": own * 3 * at.store**2,
        "bytes: features": own * 4 * (at.features + at.dims),
        "bytes: labels": at.images * (8 + 8 + 8),
        "bytes: paths and tables": at.images * 300,
    }


# Measured by `everywhere`, once a round: the sample of all images, and NMI and changed share of a process's own.
SAMPLING_NS, COMPARING_NS = 220, 140
SCALES = (
    Scale("1.28 M on 8", 1.28e6, 1e4, 8, 1),
    Scale("100 M on 64", 1e8, 3.2e5, 64, 8),
    Scale("1 B on 512", 1e9, 1e6, 512, 64, batch=16384),
)


def model(arguments: argparse.Namespace) -> dict[str, Any]:
    scales = {at.name: round_of(at) for at in SCALES}
    for name in scales[SCALES[0].name]:
        unit = 1e9 if name.startswith("bytes") else 1
        print(f"{name:30}", *(f"{scale[name] / unit:14,.1f}" for scale in scales.values()))
    print("seconds", *(f"{sum(v for n, v in scale.items() if 'bytes' not in n):,.0f}" for scale in scales.values()))
    return {"scales": scales}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    questions = {question.__name__: question for question in (processes, images, clusters, everywhere, model)}
    parser.add_argument("question", choices=questions)
    parser.add_argument("images", type=Path, nargs="?")
    parser.add_argument("--count", type=int, help="images (default 10,000, and 2,500 for the first N)")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    arguments.count = arguments.count or (10_000 if arguments.question == "processes" else 2_500)
    save(f"scaling_{arguments.question}", questions[arguments.question](arguments))


if __name__ == "__main__":
    main()
