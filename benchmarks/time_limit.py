"""Is a time limit kept, and how soon are the first groups there?

    python benchmarks/time_limit.py IMAGES --weights FILE [--counts 200 3000 17000] [--limits 180 480]

IMAGES is a folder of photographs. Each run is of so many of them, evenly chosen; where there are too few, each is taken
again under other names. Figures (seconds from the start of the process): the first groups, the end, and the end as a
share of the limit, which must be at most 1.1. Results go to results/time_limit.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import save

SUFFIXES = (".jpg", ".jpeg", ".png")


def copies(images: Path, count: int, folder: Path) -> None:
    """``count`` links to the images."""
    paths = sorted(path.resolve() for path in images.rglob("*") if path.suffix.lower() in SUFFIXES)
    for i in range(count):
        path = paths[i % len(paths)] if count > len(paths) else paths[i * len(paths) // count]
        name = folder / f"{i:06}{path.suffix}"
        try:
            os.link(path, name)
        except OSError:  # another disk
            name.write_bytes(path.read_bytes())


def run(folder: Path, out: Path, limit: int, options: list[str]) -> dict[str, Any]:
    """A run with a limit: when its first line on a result came, and when it ended."""
    words = [sys.executable, "-u", "-m", "deepcluster", "fit", str(folder), "-k", "5", "-o", str(out), *options]
    begin, first = time.perf_counter(), None
    with subprocess.Popen(
        [*words, "--time-limit", f"{limit}s"], stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"}
    ) as process:
        assert process.stdout
        for line in process.stdout:
            print(f"{time.perf_counter() - begin:7.1f}  {line}", end="", flush=True)
            if line.startswith("First"):
                first = time.perf_counter() - begin
    seconds = time.perf_counter() - begin
    record = json.loads((out / "run.json").read_text())
    return {
        "limit": limit,
        "exit_code": process.returncode,
        "first_groups": first,
        "seconds": round(seconds, 1),
        "share_of_limit": round(seconds / limit, 3),
        "images_used": record["images_count"],
        "rounds": record["rounds"],
        "seconds_by_phase": record["seconds_by_phase"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--backbone", default="timm:tf_efficientnet_lite0")
    parser.add_argument("--counts", type=int, nargs="+", default=[200, 3000, 17_000])
    parser.add_argument("--limits", type=int, nargs="+", default=[180, 480])
    arguments = parser.parse_args()
    options = ["--backbone", arguments.backbone, "--weights", arguments.weights]
    results = []
    for count in arguments.counts:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "photos"
            folder.mkdir()
            copies(arguments.images, count, folder)
            for limit in arguments.limits:
                results.append({"images": count, **run(folder, Path(place) / f"run{limit}", limit, options)})
                print(json.dumps(results[-1]))
    save("time_limit", {"runs": results})


if __name__ == "__main__":
    main()
