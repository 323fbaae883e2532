"""The model that places new images: config.json and model.safetensors, nothing that could run code.

The two files are not trusted: their SHA-256 finds damage, and every value is checked before a network is built from it,
because a file that somebody wrote on purpose has the right digests.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from deepcluster.clustering.outliers import Outliers
from deepcluster.clustering.whitening import Whitening
from deepcluster.errors import DeepClusterError, DiskError, ModelError, OutOfMemoryError, first_line
from deepcluster.groups.cut import Cut
from deepcluster.images.source import is_run
from deepcluster.model import Model, check_batch_fits
from deepcluster.nets.network import Network, absent_module, build, copy_of_module, no_network
from deepcluster.nets.shapes import shapes_only
from deepcluster.nets.sizes import FEATURES, MODULE
from deepcluster.nets.timm import channels_last
from deepcluster.storage.files import write_tensors, write_whole
from deepcluster.storage.run_folder import LockedFolder, RunFolder, read_state
from deepcluster.storage.safe_read import json_sha256, read_json, read_tensors

SCHEMA_VERSION = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
# Every key of config.json and of the architecture in it, with its type.
SIZES = {"image_size": int, "store_size": int, "batch_size": int}
DIGESTS = {"weights_sha256": str, "config_sha256": str}
TYPES = {"schema_version": int, "architecture": dict, **SIZES, "names": list, "junk": list, "root": bool, **DIGESTS}
ARCHITECTURE = {"name": str, "image_size": int, "sobel": bool}
# timm's other names (hf-hub:USER/NAME, local-dir:PATH) would download, or read another file.
TIMM = "timm:[A-Za-z0-9_.]+"
BACKBONE = re.compile(rf"compact|alexnet|vgg16|{TIMM}")
MOST_CONSTANTS = 200_000_000  # bytes


def save(model: Model, folder: Path) -> None:
    """Write ``folder``/config.json and model.safetensors. DiskError where ``folder`` is a link that leads elsewhere."""
    if folder.is_symlink():
        raise DiskError(f"{folder} is a symbolic link, and nothing is written where it leads: remove it")
    folder.mkdir(parents=True, exist_ok=True)
    digest = write_tensors(folder / WEIGHTS, _tensors(model))
    text = _config(model, digest)
    write_whole(folder / CONFIG, lambda file: file.write(text))


def save_in_run(model: Model, run: LockedFolder) -> None:
    """Write the model of a run."""
    digest = run.write_tensors(f"model/{WEIGHTS}", _tensors(model))
    run.write_text(f"model/{CONFIG}", _config(model, digest))


def _tensors(model: Model) -> dict[str, Tensor]:
    return {
        **{f"body.{name}": value for name, value in model.network.body.state_dict().items()},
        "reduction.mean": model.reduction.mean,
        "reduction.projection": model.reduction.projection,
        "fine_centroids": model.fine_centroids,
        "groups.centroids": model.groups.centroids,
        "groups.groups": model.groups.groups,
        "outliers.means": model.outliers.means,
        "outliers.directions": model.outliers.directions,
        "outliers.limit": torch.tensor(model.outliers.limit),
    }


def _config(model: Model, weights_sha256: str) -> str:
    config = {
        "schema_version": SCHEMA_VERSION,
        "architecture": model.network.architecture,
        "image_size": model.image_size,
        "store_size": model.store_size,
        "batch_size": model.batch_size,
        "names": list(model.names),
        "junk": list(model.junk),
        "root": model.reduction.root,
        "weights_sha256": weights_sha256,
    }
    config["config_sha256"] = json_sha256(config)
    return json.dumps(config, indent=2) + "\n"


def load(folder: str | Path, device: torch.device | None = None, *, backbone: nn.Module | None = None) -> Model:
    """Read a model from ``folder``, or from ``folder``/model.

    It takes memory in proportion to the files. ModelError names the file that is missing, damaged or does not fit.

    Args:
        folder: A run folder, or the folder of a model.
        device: Where its network goes; None: the CPU.
        backbone: The network, where it was a module of your own; its weights are those of the file. Without it the
            model takes no images.
    """
    folder = Path(folder)
    if is_run(folder):
        return read_state(folder, lambda run: load_of_run(run, device, backbone))
    folder = folder / "model" if (folder / "model").is_dir() else folder
    return _load(folder, folder / CONFIG, folder / WEIGHTS, device, backbone)


def load_of_run(run: RunFolder, device: torch.device | None = None, backbone: nn.Module | None = None) -> Model:
    """Read the model of a run, as :func:`load` does."""
    if not run.has(f"model/{CONFIG}") and (status := run.read_record().status) != "done":
        raise ModelError(f"{run.path} has no model yet (its status is {status}): go on with `deepcluster fit --resume`")
    return _load(run.path / "model", run.file(f"model/{CONFIG}"), run.file(f"model/{WEIGHTS}"), device, backbone)


def _load(
    folder: Path, config_path: Path, weights_path: Path, device: torch.device | None, backbone: nn.Module | None
) -> Model:
    path = config_path
    try:
        config = _read_config(path)
        path = weights_path
        tensors = read_tensors(path, config["weights_sha256"])
        feature_dim = _claimed_feature_dim(tensors)
        path = config_path
        name, size = config["architecture"]["name"], config["image_size"]
        is_absent = name == MODULE and backbone is None
        if backbone is not None:
            if name != MODULE:
                raise ValueError(f"its network is {name}, and is built without a backbone")
            shapes = copy_of_module(backbone, image_size=size)
        elif is_absent:
            shapes = absent_module(_of_body(tensors), feature_dim, size)
        elif name == FEATURES:
            shapes = no_network(feature_dim)
        else:
            with shapes_only():
                shapes = build(**config["architecture"], feature_dim=feature_dim)
        _check_constants(shapes)
        if not is_absent:
            check_batch_fits(shapes, size)
        path = weights_path
        _check_shapes(tensors, shapes, len(config["names"]))
        # Before the first look at the mapped numbers, so that these and what building takes are not in memory together.
        network = shapes if name in (MODULE, FEATURES) else build(**config["architecture"])
        if network.feature_dim != shapes.feature_dim:
            raise ValueError(f"features of {shapes.feature_dim} numbers, and the network gives {network.feature_dim}")
        _check_values(tensors, len(config["names"]))
    except FileNotFoundError:
        if not Path(folder).exists():
            raise ModelError(f"{folder}: there is no such folder") from None
        raise ModelError(f"{folder} is not a model: {path.name} is missing") from None
    except OutOfMemoryError:
        raise
    except (OSError, ValueError, DeepClusterError, SafetensorError) as error:
        way_out = "take a copy of it" if backbone is None else "give the module that it was fitted with"
        raise ModelError(f"{path} cannot be used ({first_line(error)}): fit again, or {way_out}") from None
    if not is_absent:
        network.body.load_state_dict(_of_body(tensors))
    channels_last(network.eval().to(device or torch.device("cpu")))
    root = config.get("root", False)
    return Model(
        network=network,
        reduction=Whitening(tensors["reduction.mean"], tensors["reduction.projection"], root),
        fine_centroids=tensors["fine_centroids"],
        groups=Cut(tensors["groups.centroids"], tensors["groups.groups"]),
        outliers=Outliers(
            tensors["outliers.means"], tensors["outliers.directions"], float(tensors["outliers.limit"]), root
        ),
        names=tuple(config["names"]),
        image_size=config["image_size"],
        store_size=config["store_size"],
        batch_size=config["batch_size"],
        junk=tuple(config.get("junk", ())),
    )


def _of_body(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("body."): value for name, value in tensors.items() if name.startswith("body.")}


def _read_config(path: Path) -> dict[str, Any]:
    """config.json, every value of its type and in its range. Raises OSError, or ValueError with the reason."""
    config = read_json(path)
    if not isinstance(config, dict) or config.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"not a model of version {SCHEMA_VERSION}")
    _check_types(config, TYPES)
    content = {key: value for key, value in config.items() if key != "config_sha256"}
    if config["config_sha256"] != json_sha256(content):
        raise ValueError("changed since it was written")
    architecture, names = config["architecture"], config["names"]
    _check_types(architecture, ARCHITECTURE)
    if architecture["name"] not in (FEATURES, MODULE) and not BACKBONE.fullmatch(architecture["name"]):
        raise ValueError(f"no backbone that a model may have: {architecture['name'][:80]!a}")
    sizes = [config[name] for name in SIZES]
    if not (1 <= sizes[0] <= sizes[1] <= 8192 and 1 <= sizes[2] <= 1 << 20):
        shown = (str(size)[:12] for size in sizes)
        raise ValueError("image_size {}, store_size {} or batch_size {} is out of range".format(*shown))
    if architecture["image_size"] != config["image_size"]:
        raise ValueError(f"image_size {config['image_size']}, and another one in its architecture")
    if not names or not all(isinstance(name, str) and _can_be_written(name) for name in names):
        raise ValueError("names are not texts, one for each cluster")
    if not all(type(number) is int and 0 <= number < len(names) for number in config["junk"]):
        raise ValueError("junk are not numbers of clusters")
    return config


def _check_types(table: Mapping[str, Any], types: Mapping[str, type]) -> None:
    """Exactly these keys, and values of exactly these types (a bool is no int)."""
    for key in types:
        if key not in table:
            raise ValueError(f"{key} is missing")
        if type(table[key]) is not types[key]:
            raise ValueError(f"{key} is not of type {types[key].__name__}")
    if unknown := sorted(table.keys() - types.keys()):
        raise ValueError(f"unknown key {unknown[0][:80]!a}")


def _can_be_written(name: str) -> bool:
    try:
        name.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _claimed_feature_dim(tensors: Mapping[str, Tensor]) -> int:
    mean = tensors.get("reduction.mean")
    if mean is None or mean.dim() != 1 or not len(mean):
        raise ValueError("reduction.mean is missing or has another shape")
    return len(mean)


def _check_constants(shapes: Network) -> None:
    """The tables that a network keeps beside its weights, such as the masks of windows, grow with the image size."""
    weights = sum(value.numel() * value.element_size() for value in shapes.body.state_dict().values())
    beside = sum(value.numel() * value.element_size() for value in shapes.buffers())
    if beside > weights + MOST_CONSTANTS:
        raise ValueError(f"a network with {beside / 1e6:,.0f} MB of constants at this image_size")


def _check_shapes(tensors: Mapping[str, Tensor], shapes: Network, count: int) -> None:
    """Exactly the tensors of the network ``shapes`` and of ``count`` groups, in shapes that agree."""
    axes_of = {"reduction.projection": 2, "groups.groups": 1, "fine_centroids": 2, "outliers.directions": 3}
    for name, axes in axes_of.items():
        if name not in tensors or tensors[name].dim() != axes or not tensors[name].numel():
            raise ValueError(f"{name} is missing or has another shape")
    dims, centroids = tensors["reduction.projection"].shape[1], len(tensors["groups.groups"])
    expected = {f"body.{name}": (value.dtype, value.shape) for name, value in shapes.body.state_dict().items()}
    expected |= {
        "reduction.mean": (torch.float32, (shapes.feature_dim,)),
        "reduction.projection": (torch.float32, (shapes.feature_dim, dims)),
        "fine_centroids": (torch.float32, (len(tensors["fine_centroids"]), dims)),
        "groups.centroids": (torch.float32, (centroids, dims)),
        "groups.groups": (torch.int64, (centroids,)),
        "outliers.means": (torch.float32, (2, shapes.feature_dim)),
        "outliers.directions": (torch.float32, (2, shapes.feature_dim, tensors["outliers.directions"].shape[2])),
        "outliers.limit": (torch.float32, ()),
    }
    for name, (dtype, shape) in expected.items():
        if name not in tensors:
            raise ValueError(f"{name} is missing")
        found = tensors[name]
        if (found.dtype, found.shape) != (dtype, shape):
            raise ValueError(f"{name} is {found.dtype} {tuple(found.shape)} instead of {dtype} {tuple(shape)}")
    if unknown := sorted(tensors.keys() - expected.keys()):
        raise ValueError(f"unknown tensor {unknown[0][:80]!a}")


def _check_values(tensors: Mapping[str, Tensor], count: int) -> None:
    """Finite numbers, and centroids of ``count`` groups (those that were merged into others have none)."""
    for name, value in tensors.items():
        parts = value.flatten().split(1 << 20)
        # Without a limit, which needs some images, nothing is an outlier.
        fine = (part >= 0 if name == "outliers.limit" else torch.isfinite(part) for part in parts)
        if not all(each.all() for each in fine):
            raise ValueError(f"{name} has numbers that are not finite or, as a limit, negative")
    groups = tensors["groups.groups"]
    if groups.min() < 0 or groups.max() != count - 1:
        raise ValueError(f"groups.groups are not the numbers of {count} clusters")
