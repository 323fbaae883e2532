"""config.json of a model: network, sizes, digests and identity, read without torch because a monitor asks often."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from safetensors import SafetensorError

from deepcluster.errors import DeepClusterError, ModelError, OutOfMemoryError, first_line, other_version
from deepcluster.nets.names import MODULE, NETWORKS, NO_NETWORK
from deepcluster.records import Identity
from deepcluster.runtime.bounded import check_file, json_sha256, read_json, sha256, shaped
from deepcluster.storage.clusters_file import Header, header_of
from deepcluster.storage.content import SCHEMA_VERSIONS
from deepcluster.storage.run_folder import RunFolder
from deepcluster.storage.tensors import MAX_TENSORS

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
ABOUT = ("run", "date", "version", "config_sha256")  # keys that say where a model comes from
CLUSTERS = "clusters.safetensors"
# timm's other names (hf-hub:USER/NAME, local-dir:PATH) would download, or read another file.
TIMM = "timm:[A-Za-z0-9_.]+"
BACKBONE = re.compile("|".join((*NETWORKS, TIMM)))


@dataclass(frozen=True)
class Architecture:
    """The arguments from which :func:`build` makes the network."""

    name: str
    image_size: int
    sobel: bool


@dataclass(frozen=True)
class Config:
    """config.json."""

    schema_version: int
    architecture: Architecture
    image_size: Annotated[int, range(1, 8193)]
    store_size: Annotated[int, range(1, 8193)]
    batch_size: Annotated[int, range(1, (1 << 20) + 1)]
    root: bool
    weights_sha256: str
    run: str | None  # identifier of the run
    date: str | None  # time at which it was written, UTC
    version: str | None  # of this package
    config_sha256: str

    @property
    def core(self) -> dict[str, Any]:
        """Return all that places images: equal networks and reductions have the same."""
        return {name: value for name, value in asdict(self).items() if name not in ABOUT}


@contextmanager
def as_model_errors(path: Path, way_out: str = "restore it from a copy") -> Iterator[None]:
    """Turn an error while reading a file of a model into a ModelError that names the file."""
    try:
        yield
    except FileNotFoundError:
        if not path.parent.exists():
            raise ModelError(f"{path.parent}: there is no such folder") from None
        raise ModelError(f"{path.parent} is not a model: {path.name} is missing") from None
    except OutOfMemoryError:
        raise
    except (OSError, ValueError, DeepClusterError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be used ({first_line(error)}): fit again, or {way_out}") from None


def model_file(run: RunFolder, name: str) -> Path:
    """Return the path of a file of the model of a run. ModelError explains a run that has no result yet."""
    if not run.has(f"model/{CONFIG}") and (status := run.read_record().status) != "done":
        raise ModelError(f"{run.path} has no model yet (its status is {status}): go on with `deepcluster fit --resume`")
    return run.file(f"model/{name}")


def read_summary(run: RunFolder) -> Identity:
    """Read the identity of a run's model, or raise ModelError."""
    config = read_config(model_file(run, CONFIG))
    with as_model_errors(path := model_file(run, CLUSTERS)):
        header = header_of(path)
    with as_model_errors(path := model_file(run, WEIGHTS)):
        check_file(path, MAX_TENSORS)
        if config.weights_sha256 != sha256(path):
            raise ValueError("changed since it was written, by its SHA-256")
    return identity_of(config, header)


def identity_of(config: Config, header: Header) -> Identity:
    """Return the identity of a model. Its digest is of all that places an image, so equal models have the same."""
    digest = json_sha256([config.core, header.names, header.junk, header.cut_sha256])
    facts = header.facts
    date = header.made.at or config.date
    return Identity(config.run, facts.cut, header.clusters, facts.cut_k, date, config.version, digest)


def read_config(path: Path) -> Config:
    """Read config.json, or raise ModelError."""
    with as_model_errors(path):
        table = shaped(read_json(path), dict, CONFIG)
        version = shaped(table.get("schema_version"), int, "schema_version")
    if text := other_version(version, SCHEMA_VERSIONS):
        raise ModelError(f"{path} {text}")
    with as_model_errors(path):
        config: Config = shaped(table, Config, CONFIG)
        if config.config_sha256 != json_sha256({key: value for key, value in table.items() if key != "config_sha256"}):
            raise ValueError("changed since it was written")
        name = config.architecture.name
        if name not in (NO_NETWORK, MODULE) and not BACKBONE.fullmatch(name):
            raise ValueError(f"no backbone that a model may have: {name[:80]!a}")
        if config.image_size > config.store_size:
            raise ValueError(f"image_size {config.image_size} is larger than store_size {config.store_size}")
        if config.architecture.image_size != config.image_size:
            raise ValueError(f"image_size {config.image_size}, and another one in its architecture")
    return config
