"""What does a run on a folder cost, and how good is it? Any `deepcluster fit` over seeds: time, memory, metrics.

    python benchmarks/folders.py NAME IMAGES [--seeds 0 1 2] -- -k 10 --recipe auto --rounds 3 ...

Class folders are the labels, for scoring only.
"""

import argparse
import sys

from common import METRICS, fit, save, spread


def main() -> None:
    own, _, passed = " ".join(sys.argv[1:]).partition(" -- ")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="results/NAME.json is written")
    parser.add_argument("images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args(own.split())
    runs = [
        fit(options.images, [*passed.split(), "--labels", "folders", "--seed", str(seed)]) for seed in options.seeds
    ]
    print(f"{options.name}: {runs[0]['images']:,} images, {runs[0]['rounds']} rounds; seeds {options.seeds}")
    for title, prefix in (("at the start", "baseline_"), ("at the end", "")):
        print(
            f"  {title:14}"
            + "  ".join(f"{name.upper()} {spread([run[prefix + name] for run in runs])}" for name in METRICS)
        )
    print(
        f"  seconds {spread([run['seconds'] for run in runs])}"
        f"  peak MB {spread([run['peak_memory_mb'] for run in runs])}"
    )
    print(f"  by phase {runs[0]['seconds_by_phase']}")
    save(options.name, {"seeds": options.seeds, "arguments": passed, "runs": runs})


main()
