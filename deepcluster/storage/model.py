"""The model that places new images: config.json and model.safetensors, nothing that could run code."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from safetensors.torch import save as as_bytes
from torch import Tensor

from deepcluster.clustering.cut import Cut, Placement, place
from deepcluster.clustering.whitening import Whitening
from deepcluster.errors import DeepClusterError, ModelError
from deepcluster.learning.features import extract
from deepcluster.nets.backbone import Network, build
from deepcluster.storage.run_folder import write_whole

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Model:
    """All that :meth:`place` needs: the network, the reduction, the fine centroids and the groups.

    store_size: side in px of the square images it takes; batch_size: images in one pass of the network (part of the
    model, because another size may round differently); outlier_distance (K): from where an image is an outlier of its
    group; names (K): what a person called the groups, "" where nobody did.
    """

    network: Network
    reduction: Whitening
    fine_centroids: Tensor
    groups: Cut
    outlier_distance: Tensor
    names: tuple[str, ...]
    image_size: int
    store_size: int
    batch_size: int

    def transform(self, images: Tensor, progress: Any = None) -> Tensor:
        """Reduced features (float32, N x d, rows of length 1) of uint8 images, N x 3 x store_size x store_size."""
        features = extract(self.network, images, size=self.image_size, batch_size=self.batch_size, progress=progress)
        return self.reduction(features)

    def place(self, reduced: Tensor) -> Placement:
        """The cluster of each row of :meth:`transform`."""
        return place(reduced, self.groups, self.fine_centroids)


def save(model: Model, folder: Path) -> None:
    """Write ``folder``/config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "schema_version": SCHEMA_VERSION,
        "architecture": model.network.architecture,
        "image_size": model.image_size,
        "store_size": model.store_size,
        "batch_size": model.batch_size,
        "names": list(model.names),
    }
    tensors = {f"body.{name}": value for name, value in model.network.body.state_dict().items()}
    tensors |= {
        "reduction.mean": model.reduction.mean,
        "reduction.projection": model.reduction.projection,
        "fine_centroids": model.fine_centroids,
        "groups.centroids": model.groups.centroids,
        "groups.groups": model.groups.groups,
        "outlier_distance": model.outlier_distance,
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    # Not safetensors' own writer: it makes files that only their owner can read.
    write_whole(folder / "model.safetensors", lambda file: file.write(as_bytes(tensors)), binary=True)
    write_whole(folder / "config.json", lambda file: file.write(json.dumps(config, indent=2) + "\n"))


def load(folder: str | Path, device: torch.device | None = None) -> Model:
    """Read a model from ``folder``, or from ``folder``/model. ModelError names what is missing or does not fit."""
    folder = Path(folder)
    folder = folder / "model" if (folder / "model").is_dir() else folder
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "model.safetensors")
    except FileNotFoundError as error:
        raise ModelError(
            f"{folder} is not a model: {Path(error.filename or 'model.safetensors').name} is missing"
        ) from None
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise ModelError(f"the model in {folder} is damaged ({error}): fit again, or take a copy of it") from None
    if not isinstance(config, dict) or config.get("schema_version") != SCHEMA_VERSION:
        raise ModelError(f"{folder}/config.json is not a model of version {SCHEMA_VERSION}")
    try:
        model = _assemble(config, tensors, device or torch.device("cpu"))
        _check(model)
    except DeepClusterError as error:
        raise ModelError(f"the model in {folder} cannot be used: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ModelError(f"the model in {folder} does not fit together: {type(error).__name__}: {error}") from None
    return model


def _assemble(config: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> Model:
    network = build(**config["architecture"])
    body = {name.removeprefix("body."): value for name, value in tensors.items() if name.startswith("body.")}
    network.body.load_state_dict(body)
    network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Model(
        network=network,
        reduction=Whitening(tensors["reduction.mean"], tensors["reduction.projection"]),
        fine_centroids=tensors["fine_centroids"],
        groups=Cut(tensors["groups.centroids"], tensors["groups.groups"]),
        outlier_distance=tensors["outlier_distance"],
        names=tuple(map(str, config["names"])),
        image_size=int(config["image_size"]),
        store_size=int(config["store_size"]),
        batch_size=int(config["batch_size"]),
    )


def _check(model: Model) -> None:
    """The shapes must agree with each other; what a file says is not believed."""
    features, dims = model.reduction.projection.shape
    groups, count = model.groups, len(model.names)
    agree = (
        model.reduction.mean.shape == (features,)
        and features == model.network.feature_dim
        and model.fine_centroids.shape[1:] == (dims,)
        and groups.centroids.shape == (len(groups.groups), dims)
        and model.outlier_distance.shape == (count,)
        and sorted(set(groups.groups.tolist())) == list(range(count))
        and 1 <= model.image_size <= model.store_size <= 8192
        and 1 <= model.batch_size <= 1 << 20
    )
    if not agree:
        raise ValueError("the shapes of its tensors disagree")
