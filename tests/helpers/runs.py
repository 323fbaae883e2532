"""Small runs: the options that make a fit quick, and what their folders hold."""

import csv
import json
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from deepcluster.runs.condition import made_current
from deepcluster.runs.predict import predict
from deepcluster.runs.run import read_run
from deepcluster.runtime.bounded import is_run
from deepcluster.runtime.console import Silent
from deepcluster.storage import model_files as models
from deepcluster.storage.model_config import read_summary
from deepcluster.storage.run_folder import RunFolder, are_current, open_run
from deepcluster.storage.swap import settle

LOCK = (".deepcluster", "lock")
# Files that a user may keep in a run folder, under names that are nearly those of a run.
BYSTANDERS = (
    "images-2024/a.jpg", "images-a1b2c3d4/x.png", ".images-1/c.jpg", "sorted/a.png", "notes.txt", ".notes.tmp",
    ".metrics.json.7.tmp", ".run.json.7.tmp", "clusters.csv.bak", "evaluation-mine.json", "run/run.json",
    "model/mine.txt", "model/weights.bin", "checkpoints/mine.json", "checkpoints/notes.md",
    "checkpoints/step100/opt.pt", ".deepcluster-export-7.tmp/x", ".deepcluster-0123456789abcdef/x",
    "checkpoints/1.json", "checkpoints/000001-12.json", "checkpoints/000001.json.bak", "checkpoints/graph.safetensors",
    "Clusters.csv", ".deepcluster/mine",
)  # fmt: skip
# Files that are the same bytes for the same images, options and seed.
SAME = (
    "clusters.csv",
    "cluster_summary.csv",
    "features.npy",
    "images.csv",
    "model/model.safetensors",
)
# A small run, and the same one from Python, for a ``Request``.
SMALL = {
    "-k": "3", "--rounds": "1", "--image-size": "16", "--epochs": "1", "--batch-size": "16", "--pseudo-labels": "6",
    "--seed": "5", "--precision": "fp32",
}  # fmt: skip
FIVE_CLUSTERS = ("-k", "5", "--rounds", "0", "--pseudo-labels", "12", "--labels", "folders")
OPTIONS = {"epochs": 1, "image_size": 16, "batch_size": 16, "pseudo_labels": 6, "precision": "fp32"}


def small_fit(*options: str) -> list[str]:
    """Options of a ``fit``, and those of a small run of one round that they do not set."""
    others = [word for option in SMALL.items() if option[0] not in options for word in option]
    return [*options, *others, "--quiet"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def record(run: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run / "run.json").read_text())
    return values


def result(run: Path) -> dict[str, Any]:
    """The facts about the result of a run."""
    values: dict[str, Any] = json.loads((run / "result.json").read_text())
    return values


def model_digest(run: Path) -> str:
    """The digest of the model, whatever run and time it is of."""
    return read_summary(RunFolder(run)).digest


def same_files(run: Path, *more: str) -> dict[str, bytes]:
    """Return the content of the files that depend on images, options and seed alone, and in ``more``."""
    return {name: (run / name).read_bytes() for name in (*SAME, *more)}


def assert_same_result(one: Path, other: Path, *more: str) -> None:
    assert same_files(one, *more) == same_files(other, *more)
    assert model_digest(one) == model_digest(other)
    assert (other / "report.html").stat().st_size > 10_000


def change_record(run: Path, **values: object) -> None:
    (run / "run.json").write_text(json.dumps(record(run) | values))


def contents(folder: Path) -> dict[str, bytes | Path]:
    """What is in each file below a folder, and where each link leads; a log has refused commands too."""
    return {
        path.relative_to(folder).as_posix(): path.readlink() if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
        if path.parts[-2:] != LOCK and path.name != "log.txt"
    }


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())


def originals(folder: Path) -> list[tuple[object, ...]]:
    """All that an export must leave as it is: names, inodes, times, rights, targets of links, content."""
    entries: list[tuple[object, ...]] = []
    for path in sorted([folder, *folder.rglob("*")], key=os.fsencode):
        status = path.lstat()
        content = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        entries.append((os.fsencode(path), status.st_ino, status.st_mode, status.st_mtime_ns, content))
    return entries


def without_page(run: Path) -> Path:
    for name in ("report.html", "map.npy"):
        (run / name).unlink()
    made_current(run)  # result.json lists the others
    return run


def bystanders(run: Path, *, write: bool = False) -> dict[str, bytes]:
    for name in BYSTANDERS if write else ():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(f"mine: {name}")
    return {name: (run / name).read_bytes() for name in BYSTANDERS}


def left_behind(run: Path) -> list[str]:
    """The hidden files and folders of a run, without its lock."""
    ours = [path for path in sorted(run.rglob("*")) if path.name != ".deepcluster" and path.parts[-2:] != LOCK]
    names = (path.relative_to(run).as_posix() for path in ours)
    return [name for name in names if "/." in f"/{name}"]


def state_of(run: Path) -> dict[str, object] | None:
    """A run that has ended, by all that must agree in it; None where there is none. Older views are made again."""
    settle(run)
    if not is_run(run) or RunFolder(run).read_record().status != "done":
        return None
    made_current(run)
    folder = open_run(run)
    assert are_current(folder)
    state = read_run(folder)
    model = state.model
    used = [row for row in folder.read_rows("clusters.csv") if row["status"] == "ok"]
    clusters = [int(row["cluster"]) for row in used]
    names = {row["cluster"]: row["name"] for row in used}
    summary = folder.read_rows("cluster_summary.csv")
    assert state.placement.cluster.tolist() == clusters, "predict and clusters.csv"
    sizes = {int(row["cluster"]): int(row["size"]) for row in summary if row["size"] != "0"}
    assert sizes == Counter(clusters)
    assert all(model.names[int(cluster)] == name for cluster, name in names.items())
    assert [row["by"] for row in used] == [model.placed.get(row, "") for row in range(len(used))]
    shown = result(run)
    assert shown["clusters"] == len(summary)
    assert "report.html" not in shown["views"] or shown["cut"] in folder.file("report.html").read_text()
    return {"clusters": len(summary), "names": names, "cut": shown["cut"], "seed": state.record.seed}


def predicted(run: Path, images: Any) -> SimpleNamespace:
    """Return the model and its predictions for all images of a source at once."""
    model = models.load(run)
    parts = list(predict(model, images))
    return SimpleNamespace(
        model=model,
        paths=[path for part in parts for path in part.paths],
        reduced=torch.cat([part.reduced for part in parts]),
        residuals=torch.cat([part.residuals for part in parts]),
    )


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, heading: str, text: str) -> None:
        self.lines.append(f"{heading}: {text}")
