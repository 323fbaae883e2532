"""Runs without a fit: a model with random weights, a run as a value, and run folders; and the means to damage them."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from deepcluster.clustering.outliers import Outliers
from deepcluster.clustering.whitening import Whitening
from deepcluster.groups.cut import Cut
from deepcluster.model import Model, Said
from deepcluster.nets.network import build
from deepcluster.records import Identity
from deepcluster.runs.run import Rows, Run, read_run, write_features
from deepcluster.runs.views import refresh
from deepcluster.runtime.bounded import json_sha256, sha256
from deepcluster.storage import clusters_file
from deepcluster.storage import model_files as models
from deepcluster.storage.clusters_file import Made, encoded
from deepcluster.storage.content import CLUSTERS, FILES, IMAGES, Facts, RunRecord, Table
from deepcluster.storage.images_table import REJECTED, ImagesTable
from deepcluster.storage.lock import scratch_of
from deepcluster.storage.run_folder import LockedFolder
from tests.helpers.drawings import write_image

SIZE = 16
WIDTH = 128  # of the features
RUN_ID = "tiny"
RECORD = {"schema_version": 1, "run": RUN_ID, "images": "tiny", "base": "/nowhere", "seed": 0}


def tiny_model(names: tuple[str, ...] = ("", "b"), dims: int = 4, **changes: Any) -> Model:
    """Random weights, a centroid for each of the clusters and one more; ``changes``: Of the model."""
    network = build("compact", image_size=SIZE, seed=3)
    random = torch.Generator().manual_seed(5)
    width = network.feature_dim
    projection = torch.randn(width, dims, generator=random)
    clusters = torch.tensor([*range(len(names)), 0])
    values: dict[str, Any] = {
        "network": network.eval(),
        "reduction": Whitening(torch.zeros(width), projection),
        "fine_centroids": torch.randn(5, dims, generator=random),
        "cut": Cut(torch.randn(len(clusters), dims, generator=random), clusters),
        "outliers": Outliers(torch.zeros(2, width), torch.zeros(2, width, 1), torch.inf),  # of too few images to tell
        "identity": Identity(run=RUN_ID, cut=RUN_ID),
        "image_size": SIZE,
        "store_size": SIZE,
        "batch_size": 8,
    }
    return Model(names=names, **values | changes)


def images_of(
    paths: Sequence[str], *, added: int = 0, digests: Sequence[str] = (), rejected: Collection[int] = ()
) -> ImagesTable:
    """The table of usable images, of which the last ones came by an update, which rejected some."""
    cells = dict.fromkeys(FILES[IMAGES].columns, [""] * len(paths))
    cells |= {"path": [*paths], "status": ["ok"] * len(paths), "sha256": [*digests] or [""] * len(paths)}
    cells |= {"reason": [REJECTED if row in rejected else "" for row in range(len(paths))]}
    cells |= {"added": [""] * (len(paths) - added) + ["later"] * added}
    return ImagesTable(Table.of_columns(cells))


def run_of(
    model: Model,
    reduced: Tensor,
    paths: Sequence[str] = (),
    *,
    added: int = 0,
    digests: Sequence[str] = (),
    rejected: Collection[int] = (),
    seed: int = 0,
) -> Run:
    """A run of rows with these features; their paths are numbers, if no others are given."""
    images = images_of(paths or [*map(str, range(len(reduced)))], added=added, digests=digests, rejected=rejected)
    rows = Rows(images, reduced, reduced[: images.fitted], reduced.new_zeros(len(reduced)))
    return Run(RunRecord.from_json(RECORD | {"seed": seed}), Facts(), model, rows)


# ---- run folders ----------------------------------------------------------------------------------------------------


def writable(path: Path) -> LockedFolder:
    """A run folder to write into, as if it were locked."""
    scratch_of(path).mkdir(parents=True, exist_ok=True)
    return LockedFolder(path)


def tiny_run(folder: Path, **changes: Any) -> Path:
    """A folder that has what ``predict`` needs of a run."""
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(RECORD))
    models.save(tiny_model(**changes), folder / "model")
    return folder


def save_run(run: Run, folder: Path) -> Path:
    """Write a run into a folder: its truths, and its views but for the page."""
    files = writable(folder)
    files.write_record(run.record)
    models.save(run.model, folder / "model")
    files.write(CLUSTERS, encoded(run.model, run.facts, Made()))
    files.write_rows(IMAGES, run.rows.images.rows)
    files.write_rows("history.csv", [])
    write_features(files, run.rows)
    refresh(files, read_run(files), page=False)
    return folder


def hand_run(
    folder: Path,
    location: str,
    clusters: Mapping[str, int],
    *,
    names: Mapping[int, str] | None = None,
    junk: Sequence[int] = (),
    skipped: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    by: Mapping[str, str] | None = None,
) -> Path:
    """Write a finished run that puts each path into a cluster; every second image is an outlier.

    ``location``: The folder of the images, ``python:array``, or ``-`` for files by their paths from here.
    """
    names, labels, by = names or {}, labels or {}, by or {}
    of_folder = Path(location).is_absolute()
    about = {"base": location if of_folder else str(Path.cwd()), "of_folder": of_folder, "images": location}
    count = max(clusters.values()) + 3  # more, for tests that change the table
    model = tiny_model(
        tuple(names.get(number, "") for number in range(count)),
        dims=count,
        junk=(*junk,),
        fine_centroids=torch.eye(count),
        outliers=Outliers(torch.zeros(2, WIDTH), torch.zeros(2, WIDTH, 1), 0.5),
    )
    rows = [
        {"path": path, "cluster": cluster, "is_outlier": i % 2, "label": labels.get(path, ""), "by": by.get(path, "")}
        for i, (path, cluster) in enumerate(clusters.items())
    ]
    rows += [{"path": path, "status": "skipped"} for path in skipped]
    record = RunRecord.from_json(RECORD | about | {"rounds": 0, "status": "done"})
    return save_run(_run_of_table(record, model, rows), folder)


def write_clusters(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Let a run by hand, its truths and its views, say what these rows of clusters.csv say."""
    run = read_run(LockedFolder(folder), takes_images=True)
    save_run(_run_of_table(run.record, run.model, rows), folder)


def _run_of_table(record: RunRecord, model: Model, rows: Sequence[Mapping[str, Any]]) -> Run:
    """Return the run of a table, whose images are at the centroids of their clusters."""
    used = [row for row in rows if row.get("status") != "skipped"]
    table = [{"status": "ok", **row, "member": row["path"] * record.images.startswith("python:")} for row in rows]
    cells = {name: [row.get(name, "") for row in table] for name in FILES[IMAGES].columns}
    numbers = torch.tensor([int(row["cluster"]) for row in used])
    said = (
        Said(i, row["by"], int(row["cluster"]) if row["by"] == "drawn" else -1)
        for i, row in enumerate(used)
        if row.get("by")
    )
    places = torch.eye(len(model.names))
    model = replace(model, cut=Cut(places[numbers.unique()], numbers.unique()), said=(*said,))
    residuals = torch.tensor([float(row["is_outlier"]) for row in used])
    return Run(
        record, Facts(), model, Rows(ImagesTable(Table.of_columns(cells)), places[numbers], places[numbers], residuals)
    )


def photos_run(folder: Path, clusters: Mapping[str, int], **about: Any) -> Path:
    """:func:`hand_run` on images that are made in ``photos``, one for each path."""
    for i, path in enumerate(clusters):
        write_image(folder / "photos" / path, i)
    return hand_run(folder / "run", str(folder / "photos"), clusters, **about)


# ---- damage ---------------------------------------------------------------------------------------------------------


def sign(folder: Path, config: dict[str, Any]) -> None:
    """Write a config with the digests that belong to it: what somebody does who means to deceive."""
    config = {key: value for key, value in config.items() if key != "config_sha256"}
    config |= {"weights_sha256": sha256(folder / models.WEIGHTS)}
    config |= {"config_sha256": json_sha256(config)}
    (folder / "config.json").write_text(json.dumps(config))


def change_config(folder: Path, **changes: Any) -> None:
    sign(folder, json.loads((folder / "config.json").read_text()) | changes)


def change_tensors(folder: Path, file: str = models.WEIGHTS, **changes: Any) -> None:
    """Replace, add or remove (None) tensors, by values or functions of them, or texts of the clusters; digests fit.

    Names have __ where tensors have a dot.
    """
    with safe_open(folder / file, "pt") as stored:
        metadata = stored.metadata()
        tensors = {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118 (no mapping)
    for name, value in changes.items():
        key = name.replace("__", ".")
        if callable(value):
            tensors[key] = value(tensors[key])
        elif torch.is_tensor(value):
            tensors[key] = value
        elif value is None:
            del tensors[key]
    texts = {name: value for name, value in changes.items() if isinstance(value, str | list)}
    if metadata:
        about = json.dumps(json.loads(metadata["about"]) | texts)
        metadata = {"about": about, "sha256": clusters_file._digest(about, tensors)}
    save_file(tensors, folder / file, metadata)
    change_config(folder)


def write_weights(folder: Path, content: bytes, file: str = models.WEIGHTS) -> None:
    (folder / file).write_bytes(content)
    change_config(folder)


def safetensors_bytes(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def flipped(content: bytes, position: int, bit: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :]
