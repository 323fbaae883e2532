"""A model that takes no training, and the means to damage it on purpose."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from deepcluster.clustering.outliers import Outliers
from deepcluster.clustering.whitening import Whitening
from deepcluster.groups.cut import Cut
from deepcluster.model import Model
from deepcluster.nets.network import build
from deepcluster.runtime.plain_files import json_sha256, sha256
from deepcluster.storage import model_files as models
from deepcluster.storage.run_folder import LockedFolder
from deepcluster.storage.state import scratch_of

SIZE = 16


def tiny_model(names: tuple[str, ...] = ("", "b"), **annotations: Any) -> Model:
    """Random weights, 4 dimensions, a centroid for each of the groups and one more."""
    network = build("compact", image_size=SIZE, seed=3)
    random = torch.Generator().manual_seed(5)
    width = network.feature_dim
    projection = torch.randn(width, 4, generator=random)
    groups = torch.tensor([*range(len(names)), 0])
    return Model(
        network=network.eval(),
        reduction=Whitening(torch.zeros(width), projection),
        fine_centroids=torch.randn(5, 4, generator=random),
        cut=Cut(torch.randn(len(groups), 4, generator=random), groups),
        outliers=Outliers(torch.zeros(2, width), torch.zeros(2, width, 1), torch.inf),  # of too few images to tell
        names=names,
        image_size=SIZE,
        store_size=SIZE,
        batch_size=8,
        **annotations,
    )


RECORD = {"schema_version": 1, "images": "tiny", "location": "python:paths", "seed": 0}


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


FILES = {"weights": "model.safetensors", "groups": "groups.safetensors"}


def sign(folder: Path, config: dict[str, Any]) -> None:
    """Write a config with the digests that belong to it: what somebody does who means to deceive."""
    config = {key: value for key, value in config.items() if key != "config_sha256"}
    config |= {f"{name}_sha256": sha256(folder / file) for name, file in FILES.items()}
    config |= {"config_sha256": json_sha256(config)}
    (folder / "config.json").write_text(json.dumps(config))


def change_config(folder: Path, **changes: Any) -> None:
    sign(folder, json.loads((folder / "config.json").read_text()) | changes)


def change_tensors(folder: Path, file: str = "model.safetensors", **changes: Any) -> None:
    """Replace or add tensors, by values or functions of them, or texts of the groups; the digests are made to fit.

    Names have __ where tensors have a dot.
    """
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    tensors = {name: value.clone() for name, value in load_file(folder / file).items()}
    if "about" in tensors:
        texts = {name: changes.pop(name) for name in changes.keys() - tensors.keys()}
        text = json.dumps(json.loads(tensors["about"].numpy().tobytes()) | texts)
        tensors["about"] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    tensors |= {name: value(tensors[name]) if callable(value) else value for name, value in changes.items()}
    save_file(tensors, folder / file)
    change_config(folder)


def write_weights(folder: Path, content: bytes, file: str = "model.safetensors") -> None:
    (folder / file).write_bytes(content)
    change_config(folder)


def safetensors_bytes(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def flipped(content: bytes, position: int, bit: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :]
