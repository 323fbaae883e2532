"""The model that places new images: config.json, model.safetensors and clusters.safetensors, nothing that runs code.

Other clusters for the same network change clusters.safetensors alone. The files are not trusted: their
SHA-256 finds damage, and every value is checked before a network is built from it, because a file that somebody wrote
on purpose has the right digests.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

import deepcluster
from deepcluster.clustering.outliers import Outliers
from deepcluster.clustering.whitening import ClassProbabilities, Preparation, Whitening
from deepcluster.errors import DeepClusterError
from deepcluster.groups.graph import Layouts
from deepcluster.model import Model
from deepcluster.nets.names import MODULE, NO_NETWORK
from deepcluster.nets.network import Absent, Network, build, copy_of_module, no_network
from deepcluster.nets.timm import channels_last
from deepcluster.nets.weights import shapes_only
from deepcluster.runtime.bounded import is_run, json_sha256
from deepcluster.storage import clusters_file
from deepcluster.storage.clusters_file import Header, Made
from deepcluster.storage.content import SCHEMA_VERSIONS, Facts
from deepcluster.storage.files import changing, write_tensors, write_whole
from deepcluster.storage.model_config import (
    CLUSTERS,
    CONFIG,
    WEIGHTS,
    Config,
    as_model_errors,
    identity_of,
    model_file,
    read_config,
)
from deepcluster.storage.run_folder import LockedFolder, RunFolder, open_run
from deepcluster.storage.tensors import check_tensors, read_tensors

MAX_CONSTANTS = 200_000_000  # bytes
# The tensors beside the network's; see check_tensors.
SHAPES: dict[str, tuple[int | str, ...]] = {
    "reduction.mean": ("prepared",),
    "reduction.projection": ("prepared", "dims"),
    "fine_centroids": ("fine", "dims"),
    "outliers.means": (2, "features"),
    "outliers.directions": (2, "features", "directions"),
    "outliers.limit": (),
}
# More, if class probabilities are features.
CLASSES_SHAPES: dict[str, tuple[int | str, ...]] = {
    "classes.weight": ("classes", "features"),
    "classes.bias": ("classes",),
    "classes.scale": (),
}


# ---- writing --------------------------------------------------------------------------------------------------------


def save(model: Model, folder: Path) -> None:
    """Write the files of a model into ``folder``."""
    with changing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    text = _config(model, write_tensors(folder / WEIGHTS, _tensors(model)))
    facts = Facts(model.identity.cut or "", model.identity.n_clusters)
    content = clusters_file.encoded(model, facts, Made())
    write_whole(folder / CLUSTERS, lambda file: file.write(content), binary=True)
    write_whole(folder / CONFIG, lambda file: file.write(text))


def save_in_run(model: Model, folder: LockedFolder) -> None:
    """Write the parts of the model of a run that are never changed: network and reduction."""
    folder.write(f"model/{CONFIG}", _config(model, folder.write_tensors(f"model/{WEIGHTS}", _tensors(model))))


def _tensors(model: Model) -> dict[str, Tensor]:
    classes = model.reduction.prepare.classes
    return {
        **{f"body.{name}": value for name, value in model.network.body.state_dict().items()},
        "reduction.mean": model.reduction.mean,
        "reduction.projection": model.reduction.projection,
        "fine_centroids": model.fine_centroids,
        "outliers.means": model.outliers.means,
        "outliers.directions": model.outliers.directions,
        "outliers.limit": torch.tensor(model.outliers.limit),
        **({f"classes.{name}": torch.as_tensor(value) for name, value in vars(classes).items()} if classes else {}),
    }


def _config(model: Model, weights_sha256: str) -> str:
    config = {
        "schema_version": SCHEMA_VERSIONS[-1],
        "architecture": model.network.architecture,
        "image_size": model.image_size,
        "store_size": model.store_size,
        "batch_size": model.batch_size,
        "root": model.reduction.prepare.root,
        "weights_sha256": weights_sha256,
        "run": model.identity.run,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": deepcluster.__version__,
    }
    config["config_sha256"] = json_sha256(config)
    return json.dumps(config, indent=2) + "\n"


# ---- reading --------------------------------------------------------------------------------------------------------


def load(folder: str | Path, device: torch.device | None = None, *, backbone: nn.Module | None = None) -> Model:
    """Read a model from ``folder``, or from ``folder``/model.

    It takes memory in proportion to the files. ModelError names the file that is missing, damaged or does not fit.

    Args:
        folder: A run folder, or the folder of a model.
        device: Device of the network; None: the CPU.
        backbone: The network, if it was a module of your own; its weights come from the file. Without it the
            model takes no images.

    Examples:
        >>> dc = DeepCluster(n_clusters=2).fit(load_digits().data[:30])
        >>> load(dc.save("digits")).transform(load_digits().data[:1]).shape
        torch.Size([1, 29])
    """
    folder = Path(folder)
    if is_run(folder):
        return read_model(partial(model_file, open_run(folder)), device, backbone)[0]
    folder = folder / "model" if (folder / "model").is_dir() else folder
    return read_model(folder.joinpath, device, backbone)[0]


def read_model(
    path_of: Callable[[str], Path],
    device: torch.device | None = None,
    backbone: nn.Module | None = None,
    *,
    takes_images: bool = True,
) -> tuple[Model, Header]:
    """Read a model as :func:`load` does, from the path of each file, and the header of its clusters.

    ``takes_images``: False checks its weights, and loads none.
    """
    reading = partial(
        as_model_errors,
        way_out="restore it from a copy" if backbone is None else "give the module that it was fitted with",
    )
    config = read_config(path_of(CONFIG))
    with reading(path_of(WEIGHTS)):
        every = read_tensors(path_of(WEIGHTS), config.weights_sha256)
        body = {name.removeprefix("body."): value for name, value in every.items() if name.startswith("body.")}
        tensors = {name: value for name, value in every.items() if not name.startswith("body.")}
        has_classes = not CLASSES_SHAPES.keys().isdisjoint(tensors)
        check_tensors(tensors, SHAPES | CLASSES_SHAPES if has_classes else SHAPES, {})
        feature_dim, dims = tensors["outliers.means"].shape[1], tensors["reduction.projection"].shape[1]
        classes = ClassProbabilities(*(tensors[name] for name in CLASSES_SHAPES)) if has_classes else None
        prepare = Preparation(config.root, classes)
        if len(tensors["reduction.mean"]) != prepare.width(feature_dim):
            raise ValueError(f"reduction.mean is not of {feature_dim} features and the class probabilities")
    with reading(path_of(CLUSTERS)):
        header, cut, annotations = clusters_file.read_clusters(path_of(CLUSTERS), dims)
        if header.run != (config.run or ""):
            raise ValueError(f"of run {header.run}, and {CONFIG} is of run {config.run}: these are two runs")
    with reading(path_of(CONFIG)):
        shapes = _shapes(config, body, feature_dim, backbone)
    with reading(path_of(WEIGHTS)):
        expected = shapes.body.state_dict()
        axes = {name: tuple(value.shape) for name, value in expected.items()}
        check_tensors(body, axes, {name: value.dtype for name, value in expected.items()})
        # Before the first look at the mapped numbers: they and the memory of building are not needed together.
        stays = not takes_images or config.architecture.name in (MODULE, NO_NETWORK)
        network = shapes if stays else build(**asdict(config.architecture))
        if network.feature_dim != feature_dim:
            raise ValueError(f"features of {feature_dim} numbers, and the network gives {network.feature_dim}")
        _check_numbers(every)
    if takes_images:
        _fill(network, body, device)
    limit = float(tensors["outliers.limit"])
    model = Model(
        network=network,
        reduction=Whitening(tensors["reduction.mean"], tensors["reduction.projection"], prepare),
        fine_centroids=tensors["fine_centroids"],
        outliers=Outliers(tensors["outliers.means"], tensors["outliers.directions"], limit, Preparation(config.root)),
        image_size=config.image_size,
        store_size=config.store_size,
        batch_size=config.batch_size,
        identity=identity_of(config, header),
        cut=cut,
        **vars(annotations),
    )
    return model, header


def _fill(network: Network, body: Mapping[str, Tensor], device: torch.device | None) -> None:
    """Load the weights into a network, and move it to the device. An absent module takes no weights."""
    if not isinstance(network.body, Absent):
        network.body.load_state_dict(body)
    channels_last(network.eval().to(device or torch.device("cpu")))


def _check_numbers(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError if a number is not finite, but for the limit of outliers, which must not be negative."""
    for name, value in tensors.items():
        # Without a limit, which needs some images, nothing is an outlier.
        good = (part >= 0 if name == "outliers.limit" else part.isfinite() for part in value.flatten().split(1 << 20))
        if not all(part.all() for part in good):
            raise ValueError(f"{name} has numbers that are not finite or, as a limit, negative")


def _shapes(config: Config, body: Mapping[str, Tensor], feature_dim: int, backbone: nn.Module | None) -> Network:
    """Return the network without the memory for its weights, if it is not a module that exists already.

    Raises ValueError or a DeepClusterError if no such network exists, or building it would take too much memory.
    """
    name = config.architecture.name
    size = config.image_size
    if backbone is not None and name != MODULE:
        raise ValueError(f"its network is {name}, and is built without a backbone")
    if name == NO_NETWORK:
        return no_network(feature_dim)
    if name == MODULE and backbone is None:
        return Network(Absent(body), feature_dim, architecture=asdict(config.architecture))
    if backbone is not None:
        shapes = copy_of_module(backbone, image_size=size)
    else:
        with shapes_only():
            shapes = build(**asdict(config.architecture), feature_dim=feature_dim)
    # The tables that a network keeps beside its weights, such as the masks of windows, grow with the image size.
    weights = sum(value.nbytes for value in shapes.body.state_dict().values())
    beside = sum(value.nbytes for value in shapes.buffers())
    if beside > weights + MAX_CONSTANTS:
        raise ValueError(f"a network with {beside / 1e6:,.0f} MB of constants at this image_size")
    return shapes


LAYOUTS_FILE = "layouts.safetensors"


def read_layouts(folder: RunFolder) -> Layouts:
    """Return the graphs and layouts of a run; none if it has no such file or a damaged one: they are made again."""
    with suppress(OSError, ValueError, SafetensorError, DeepClusterError):
        return Layouts({digest: part.clone() for digest, part in read_tensors(folder.file(LAYOUTS_FILE)).items()})
    return Layouts()
