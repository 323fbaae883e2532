"""A model that takes no training, and the means to damage it on purpose."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from deepcluster.clustering.outliers import Outliers
from deepcluster.clustering.whitening import Whitening
from deepcluster.groups.cut import Cut
from deepcluster.model import Model
from deepcluster.nets.network import build
from deepcluster.records import Identity
from deepcluster.runtime.bounded import json_sha256, sha256
from deepcluster.storage import clusters_file
from deepcluster.storage import model_files as models
from deepcluster.storage.lock import scratch_of
from deepcluster.storage.run_folder import LockedFolder

SIZE = 16
WIDTH = 128  # of the features


RUN_ID = "tiny"


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


RECORD = {"schema_version": 1, "run": RUN_ID, "images": "tiny", "base": "/nowhere", "seed": 0}


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
