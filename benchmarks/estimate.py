"""Coverage of the estimated quality: how often its interval holds the share of all images under their right names.

    python benchmarks/estimate.py CACHE NAME [NAME ...] [--seeds 0 1 2 3 4]

`sets.py` makes CACHE/NAME.pt. A person, as in `teach.py`, first answers about FIRST images drawn at random, and then
STEP questions at a time, a quarter of them about drawn images, as the page asks. For each number of answers after the
first ones, results/estimate.json has the share of runs whose interval holds the true share (`holds`), the mean of the
estimate minus the truth (`bias`) and of the length of the interval (`length`), and the drawn images that do not teach
(`drawn`).
"""

from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from common import parser_of, save
from teach import STEP, named, right, runs_of_sets

from deepcluster.runs.run import Run
from deepcluster.runs.teach import Answer, asked, taught_by

FIRST = 15
ANSWERS = (0, 60, 120, 180)


def estimates(run: Run, truth: list[str]) -> Iterator[dict[str, float]]:
    """Yield the figures after each number of answers."""
    run = named(run, truth)
    drawn = [one.path for one in asked(run, FIRST)[1]]
    run = taught_by(run, [Answer(path, name=truth[int(path)], by="drawn") for path in drawn]).run
    for count in range(0, ANSWERS[-1] + 1, STEP):
        if count:
            questions = [one.path for one in asked(run, STEP - STEP // 4)[0]]
            drawn = [one.path for one in asked(run, STEP)[1] if one.path not in questions][: STEP // 4]
            answers = [
                Answer(path, name=truth[int(path)], by="drawn" if path in drawn else "answer")
                for path in (*questions, *drawn)
            ]
            run = taught_by(run, answers).run
        if count in ANSWERS:
            now = float(right(run, truth).mean())
            quality = run.quality
            assert quality
            yield {
                "answers": count,
                "holds": float(quality["low"] <= round(now, 4) <= quality["high"]),
                "bias": quality["share"] - now,
                "length": quality["high"] - quality["low"],
                "drawn": quality["drawn"],
            }


def main() -> None:
    parser = parser_of(__doc__, seeds=(0, 1, 2, 3, 4))
    parser.add_argument("cache", type=Path)
    parser.add_argument("names", nargs="+")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name, truth, runs in runs_of_sets(arguments.cache, arguments.names, arguments.seeds):
        for run in runs:
            rows += [{"set": name, "seed": run.record.seed, **figures} for figures in estimates(run, truth)]
        holds = [mean(row["holds"] for row in rows if row["set"] == name and row["answers"] == n) for n in ANSWERS]
        print(name, len(truth), *(f"{share:.2f}" for share in holds), flush=True)
        save("estimate", {"runs": rows})


if __name__ == "__main__":
    main()
