"""Tools of the benchmark scripts: parse options, run the command as a user would, read images and files."""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # contenders and mistakes in options do not wait for torch
    from torch import Tensor

RESULTS = Path(__file__).parent / "results"
METRICS = ("acc", "nmi", "ami", "ari")
NEIGHBOURS, TEMPERATURE = 20, 0.1


def parser_of(description: str | None, seeds: Sequence[int] = ()) -> argparse.ArgumentParser:
    """Return the parser of a script that is described by its docstring; with ``--seeds`` if it has some by default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if seeds:
        parser.add_argument("--seeds", type=int, nargs="+", default=[*seeds])
    return parser


def fit(
    images: object, arguments: Sequence[str], run: Path, *, processes: int = 1, threads: int | None = None
) -> dict[str, Any]:
    """Run `deepcluster fit` in processes of its own; return its record, metrics and time (s, whole command)."""
    program = [sys.executable, "-m", "deepcluster"]
    if processes > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        program = [*launcher, "-m", "deepcluster"]
    command = [*program, "fit", str(images), "-o", str(run), "--overwrite", *arguments]
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    seconds = round(time.perf_counter() - begin, 1)
    metrics = run / "metrics.json"
    return {
        **json.loads((run / "run.json").read_text()),
        **(json.loads(metrics.read_text()) if metrics.exists() else {}),
        "seconds": seconds,
    }


def paths_of(images: str | Path, count: int | None = None) -> list[Path]:
    """Return the image files below a folder, or a random sample of ``count``, the same each time; sorted."""
    from deepcluster.images import find

    paths = sorted(path.resolve() for path in find(images).files())
    return sorted(paths[i] for i in np.random.default_rng(0).permutation(len(paths))[:count])


@lru_cache(2)  # images may be large
def labelled(images: str, size: int) -> tuple["Tensor", "Tensor", list[str]]:
    """Return the stored images (uint8, N x 3 x size x size), the class number of each (int64) and the classes."""
    import torch

    from deepcluster.images import find
    from deepcluster.images.store import read_once
    from deepcluster.images.true_labels import true_labels

    source = find(images)
    labels = true_labels("folders", source)
    store = read_once(source, size)
    classes, numbers = np.unique([labels[i] for i in store.usable], return_inverse=True)
    return store.images, torch.from_numpy(numbers), classes.tolist()


def vote_accuracy(rows: "Tensor", labels: "Tensor", queries: "Tensor", truth: "Tensor") -> float:
    """Return the accuracy of the weighted vote of the nearest rows of length 1; labels are numbers from 0."""
    from sklearn.neighbors import KNeighborsClassifier

    votes = KNeighborsClassifier(
        NEIGHBOURS, metric="cosine", algorithm="brute", weights=lambda far: np.exp(-far / TEMPERATURE)
    )
    return float(votes.fit(rows.numpy(), labels.numpy()).score(queries.numpy(), truth.numpy()))


def machine() -> dict[str, Any]:
    """Return the hardware and versions that a result was measured with."""
    import torch

    from deepcluster.runtime.devices import environment

    return {**environment(torch.device("cpu")), "date": time.strftime("%Y-%m-%d"), "host": platform.machine()}


def runs_of(name: str) -> list[dict[str, Any]]:
    """Return the runs in results/NAME.json; another comparison may add to them meanwhile."""
    file = RESULTS / f"{name}.json"
    return list(json.loads(file.read_text())["runs"]) if file.is_file() else []


def save(name: str, content: Mapping[str, Any]) -> None:
    """Write results/NAME.json: the figures with the machine they were measured on."""
    text = in_rows({"command": " ".join(["python", *sys.argv]), "machine": machine(), **content})
    # Drop the folders of this machine.
    (RESULTS / f"{name}.json").write_text(re.sub(r"(?<=[ \"])/[^ \"]*/", "", text) + "\n")


def in_rows(value: Any, indent: str = "") -> str:
    """Return JSON with each row, such as a run with its figures, on a line of its own."""
    named, levels = isinstance(value, dict), depth(value)
    parts = [*value.values()] if named else value
    if indent and (levels <= named or (named and levels == 2 and not all(map(depth, parts)))):  # small objects inside
        return json.dumps(value)
    names = [f"{json.dumps(str(name))}: " for name in value] if named else [""] * len(value)
    lines = [f"{indent} {name}{in_rows(part, indent + ' ')}" for name, part in zip(names, parts, strict=True)]
    return "\n".join(["{" if named else "[", ",\n".join(lines), f"{indent}{'}' if named else ']'}"])


def depth(value: Any) -> int:
    """Return how many objects lie inside each other."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return isinstance(value, dict) + max(map(depth, parts), default=0)
