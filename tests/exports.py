"""A finished run made by hand: what the exports of images read of one, and the state of the originals."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deepcluster.storage import model_files as models
from deepcluster.storage.run_folder import rows_sha256
from tests.helpers.runs import change_record
from tests.tiny import RECORD, tiny_model, writable


def colour(i: int) -> tuple[int, int, int]:
    return (i * 37 % 256, i * 91 % 256, i % 256)


def write_image(file: Path, i: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("xb") as stream:
        Image.new("RGB", (4 + i % 3, 4), colour(i)).save(stream, "PNG")


def hand_run(
    run: Path,
    location: str,
    clusters: Mapping[str, int],
    *,
    names: Mapping[int, str] | None = None,
    junk: Sequence[int] = (),
    skipped: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    by: Mapping[str, str] | None = None,
) -> Path:
    """A run on the images of ``location`` that put each path into a cluster."""
    run.mkdir()
    names, labels, by = names or {}, labels or {}, by or {}
    rows = [
        {
            "path": path, "status": "ok", "cluster": cluster, "name": names.get(cluster, ""), "by": by.get(path, ""),
            "fine_cluster": cluster,
            "distance": f"{i / 7:.6f}", "margin": "0.250000", "is_outlier": i % 2, "label": labels.get(path, ""),
        }
        for i, (path, cluster) in enumerate(clusters.items())
    ]  # fmt: skip
    (run / "run.json").write_text(json.dumps(RECORD | {"location": location, "rounds": 0, "status": "done"}))
    write_clusters(run, [*rows, *({"path": path, "status": "skipped"} for path in skipped)])
    count = max(clusters.values()) + 3  # more, for tests that change the table
    models.save(tiny_model(tuple(names.get(number, "") for number in range(count)), junk=(*junk,)), run / "model")
    return run


def write_clusters(run: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    writable(run).write_rows("clusters.csv", rows)
    change_record(run, rows_sha256=rows_sha256(rows))


def photos_run(folder: Path, clusters: Mapping[str, int], **about: Any) -> Path:
    """:func:`hand_run` on images that are made in ``photos``, one for each path."""
    for i, path in enumerate(clusters):
        write_image(folder / "photos" / path, i)
    return hand_run(folder / "run", str(folder / "photos"), clusters, **about)


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())


def state(folder: Path) -> list[tuple[object, ...]]:
    """All that must stay as it is of the originals: names, inodes, times, rights, targets of links, content."""
    entries: list[tuple[object, ...]] = []
    for path in sorted([folder, *folder.rglob("*")], key=os.fsencode):
        status = path.lstat()
        content = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        entries.append((os.fsencode(path), status.st_ino, status.st_mode, status.st_mtime_ns, content))
    return entries


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))
