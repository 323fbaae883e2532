"""How do time and memory of a round grow, and how much faster are several processes?

    python benchmarks/scaling.py processes IMAGES   one process of two threads against two of one thread, in turns
    python benchmarks/scaling.py images IMAGES      a round of N, 2 N, 4 N and 8 N images: seconds and peak memory

IMAGES is a folder; a seeded sample of it is used. Results go to results/scaling_NAME.json.
"""

import argparse
import csv
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import fit, parser_of, paths_of, save
from tables import cell

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
    print(f"throughput of two processes over one: {cell(ratios)}")
    return {"images": arguments.count, "seconds_a_round": spent, "throughput_ratio": ratios}


def images(arguments: argparse.Namespace) -> dict[str, Any]:
    rows = []
    options = ["--image-size", "16", "--pseudo-labels", "100", "--rounds", "6"]
    for count in (arguments.count * times for times in (1, 2, 4, 8)):
        rounds, memory = rounds_of(arguments.images, count, options)
        seconds = statistics.median(sum(row.values()) for row in rounds)
        medians = {phase: statistics.median(row[phase] for row in rounds) for phase in rounds[0]}
        rows.append({"images": count, "seconds": seconds, "peak_memory_mb": memory, **medians})
        print(rows[-1], flush=True)
    return {"rows": rows}


def main() -> None:
    parser = parser_of(__doc__)
    questions = {question.__name__: question for question in (processes, images)}
    parser.add_argument("question", choices=questions)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, help="images (default 10,000, and 2,500 for the first N)")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    arguments.count = arguments.count or (10_000 if arguments.question == "processes" else 2_500)
    save(f"scaling_{arguments.question}", questions[arguments.question](arguments))


if __name__ == "__main__":
    main()
