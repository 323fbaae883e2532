"""A finished run made by hand: what the exports of images read of one, and the state of the originals."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from deepcluster.clustering.outliers import Outliers
from deepcluster.groups.cut import Cut
from deepcluster.model import Said
from deepcluster.runs.run import read_run
from deepcluster.runs.views import refresh
from deepcluster.storage import model_files as models
from deepcluster.storage.clusters_file import encoded, header_of
from deepcluster.storage.content import CLUSTERS, FILES, IMAGES
from tests.helpers.runs import change_record, record
from tests.helpers.tiny import WIDTH, tiny_run, writable


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
    """A finished run that puts each path into a cluster; every second image is an outlier.

    ``location``: The folder of the images, ``python:array``, or ``-`` for files by their paths from here.
    """
    names, labels, by = names or {}, labels or {}, by or {}
    count = max(clusters.values()) + 3  # more, for tests that change the table
    tiny_run(
        run,
        names=tuple(names.get(number, "") for number in range(count)),
        dims=count,
        junk=(*junk,),
        fine_centroids=torch.eye(count),
        outliers=Outliers(torch.zeros(2, WIDTH), torch.zeros(2, WIDTH, 1), 0.5),
    )
    folder = writable(run)
    of_folder = Path(location).is_absolute()
    base = location if of_folder else str(Path.cwd())
    change_record(run, base=base, of_folder=of_folder, images=location, rounds=0, status="done")
    folder.write_rows("history.csv", [])
    rows = [
        {"path": path, "cluster": cluster, "is_outlier": i % 2, "label": labels.get(path, ""), "by": by.get(path, "")}
        for i, (path, cluster) in enumerate(clusters.items())
    ]
    write_clusters(run, [*rows, *({"path": path, "status": "skipped"} for path in skipped)])
    return run


def write_clusters(run: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Let the truths of a run by hand, and its views, say what these rows of clusters.csv say."""
    folder = writable(run)
    used = [row for row in rows if row.get("status") != "skipped"]
    in_memory = record(run)["images"].startswith("python:")
    images = [
        {"status": "ok", "reason": "", "label": "", "source": "", "sha256": "", "added": "", **row}
        | {"member": row["path"] if in_memory else ""}
        for row in rows
    ]
    folder.write_rows(IMAGES, [{name: row[name] for name in FILES[IMAGES].columns} for row in images])
    numbers = torch.tensor([int(row["cluster"]) for row in used])
    model = models.load(run)
    places = torch.eye(len(model.names))  # of the centroids: images are at the centroid of their cluster
    folder.write_blocks("features.npy", (len(used), len(places)), [places[numbers]])
    residuals = np.array([[float(row["is_outlier"])] for row in used], np.float32)
    folder.write_blocks("residuals.npy", residuals.shape, [residuals])
    said = [
        Said(i, row["by"], int(row["cluster"]) if row["by"] == "drawn" else -1)
        for i, row in enumerate(used)
        if row.get("by")
    ]
    model = replace(model, cut=Cut(places[numbers.unique()], numbers.unique()), said=tuple(said))
    header = header_of(folder.file(CLUSTERS))
    folder.write(CLUSTERS, encoded(model, header.facts, header.made))
    refresh(folder, read_run(folder), page=False)


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
