"""clusters.safetensors, the one file of a run that changes: so a change is one rename.

Its tensors are the cut (``centroids``, ``cluster_of``) and what a person ``said`` (a row each: image, word, cluster).
The JSON text ``about`` in its header has the names, the marks, the facts about the clusters, and the change that made
them: a history needs headers alone. ``sha256`` beside it finds damage.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from deepcluster.runtime.bounded import check_file, parse_json, shaped
from deepcluster.storage.content import Facts
from deepcluster.storage.tensors import MAX_TENSORS, check_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from deepcluster.groups.cut import Cut
    from deepcluster.model import Annotations, Model


@dataclass(frozen=True)
class Made:
    """The change that made a state."""

    number: int = 0  # of the state; 0: of the fit
    text: str = ""  # the change in words
    row: int = 0  # of an image that shows it
    moved: int = 0  # number of images that it moved
    at: str = ""  # time, UTC


@dataclass(frozen=True)
class Header:
    """The header of the file: everything but the tensors."""

    run: str  # identifier of the run
    made: Made
    names: tuple[str, ...]
    junk: tuple[int, ...]
    facts: Facts
    clusters: int  # their number
    cut_sha256: str  # of the cut


def encoded(model: "Model", facts: Facts, made: Made) -> bytes:
    """Return the bytes of the file for the clusters of a model."""
    import torch

    from deepcluster.model import WORDS

    cut = model.cut
    tensors = {"centroids": cut.centroids.contiguous(), "cluster_of": cut.cluster_of.contiguous()}
    clusters = len(cut.cluster_of.unique())
    header = Header(model.identity.run or "", made, model.names, model.junk, facts, clusters, _digest("", tensors))
    if model.said:
        numbers = [(said.row, WORDS.index(said.by), said.cluster) for said in model.said]
        tensors["said"] = torch.tensor(numbers, dtype=torch.int64)
    return _bytes(header, tensors)


def _bytes(header: Header, tensors: "Mapping[str, Tensor]") -> bytes:
    from safetensors.torch import save

    about = json.dumps(asdict(header))
    return save(dict(tensors), {"about": about, "sha256": _digest(about, tensors)})


def with_made(path: Path, made: Made) -> bytes:
    """Return the bytes of a file with another change in its header."""
    header, tensors = _read(path)
    return _bytes(replace(header, made=made), tensors)


def header_of(path: Path) -> Header:
    """Read the header alone. Raises an error with the reason if the file is damaged."""
    return _header(_metadata(path))


def digest_of(path: Path) -> str:
    """Return the digest in the header, which differs for any two states. Raises an error as :func:`header_of`."""
    return _metadata(path)["sha256"]


def _metadata(path: Path) -> Mapping[str, str]:
    check_file(path, MAX_TENSORS)
    with safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


def read_clusters(path: Path, dims: int | None = None) -> "tuple[Header, Cut, Annotations]":
    """Read the file and check it; ``dims``: Of the centroids (None: any). Raises an error with the reason."""
    import torch

    from deepcluster.groups.cut import Cut
    from deepcluster.model import WORDS, Annotations, Said

    header, tensors = _read(path)
    said = tensors.pop("said", torch.empty(0, 3, dtype=torch.int64))
    shapes = {"centroids": ("count", "dims"), "cluster_of": ("count",)}
    check_tensors(tensors, shapes, {"cluster_of": torch.int64}, **({} if dims is None else {"dims": dims}))
    centroids, cluster_of = tensors["centroids"], tensors["cluster_of"]
    if not torch.isfinite(centroids).all():
        raise ValueError("its centroids are not finite numbers")
    numbers = range(len(header.names))
    if cluster_of.min() < 0 or cluster_of.max() >= len(numbers):
        raise ValueError(f"its clusters are not numbers of {len(numbers)} clusters")
    if said.dtype != torch.int64 or said.shape[1:] != (3,) or (said[:, :2] < 0).any():
        raise ValueError("its table of answers is damaged")
    rows = said.tolist()
    if any(word >= len(WORDS) or cluster not in (-1, *numbers) for _, word, cluster in rows):
        raise ValueError(f"its answers are not about {len(numbers)} clusters")
    spoken = tuple(Said(row, WORDS[word], cluster) for row, word, cluster in rows)
    return header, Cut(centroids, cluster_of), Annotations(names=header.names, junk=header.junk, said=spoken)


def _read(path: Path) -> "tuple[Header, dict[str, Tensor]]":
    check_file(path, MAX_TENSORS)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        header = _header(metadata)
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
    if metadata.get("sha256") != _digest(metadata["about"], tensors):
        raise ValueError("changed since it was written, by its SHA-256")
    return header, tensors


def _header(metadata: Mapping[str, str]) -> Header:
    return shaped(parse_json(metadata.get("about", "").encode()), Header, "about")  # type: ignore[no-any-return]


def _digest(about: str, tensors: "Mapping[str, Tensor]") -> str:
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
