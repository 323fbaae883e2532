"""Weights as the authors of DeepCluster published them, and as their programs read them.

Three layouts, told by the names of the tensors, with or without the ``module`` that parallel training puts into them:

- DeepCluster (2018), AlexNet and VGG-16: ``features.N``, ``classifier.N``, ``top_layer`` (the classifier of the
  pseudo-labels), ``sobel.0`` and ``sobel.1``. The numbers are those of ``paper.py``.
- DeepCluster-v2 (2020), ResNet-50: torchvision's names, ``projection_head`` and ``prototypes``.
- DeeperCluster (2019), VGG-16: ``body.features.N``, ``body.classifier.N``.

Written from descriptions of the files: the published ones are CC BY-NC, and none is part of this package.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepcluster.errors import ModelError
from deepcluster.nets.paper import FEATURE_DIM, PaperNet, sobel_filter
from deepcluster.nets.weights import named_tensors, read_checkpoint, read_state

RESNET = "timm:resnet50"  # has torchvision's names, and its forward pass
TRAINING_HEADS = ("projection_head", "prototypes")
NUMBERED = re.compile(r"(features|classifier)\.\d+\.\w+")


@dataclass(frozen=True)
class OfficialWeights:
    """Weights of a published layout, by the names of our networks.

    release: who published such files; ``backbone`` and ``sobel``: the network that ``build`` makes for them; state: all
    of its body; head: weight (K x 4096) and bias (K) of the classifier of K pseudo-labels, None where the file has
    none; dropped: the names in the file of what has no place in the network.
    """

    release: str
    backbone: str
    sobel: bool
    state: Mapping[str, Tensor]
    head: tuple[Tensor, Tensor] | None
    dropped: tuple[str, ...]

    @property
    def clusters(self) -> int | None:
        """The number K of pseudo-labels of the last round, where the file has their classifier."""
        return None if self.head is None else len(self.head[1])

    @property
    def text(self) -> str:
        """What it is, in a line."""
        net = self.backbone.removeprefix("timm:") + (" behind a Sobel filter" if self.sobel else "")
        head = f", with the classifier of {self.clusters:,} pseudo-labels" if self.head else ""
        modules = dict.fromkeys(re.sub(r"^(module\.|body\.)+", "", name).split(".")[0] for name in self.dropped)
        return f"{self.release}, {net}{head}" + (f"; left out: {', '.join(modules)}" if modules else "")


def read_official(path: str | Path) -> OfficialWeights:
    """The weights in a file of one of the three layouts; by ``torch.load`` without code, or from ``.safetensors``.

    Whether they are complete is seen when they go into a network (``backbone.from_official``, ``backbone.build``).

    Raises:
        ModelError: the file is missing, damaged, has code in it, or has none of these layouts.
    """
    found = recognised(named_tensors(read_checkpoint(path), path), path)
    if found is None:
        raise ModelError(
            f"{path}: is of none of the published layouts (DeepCluster, DeepCluster-v2, DeeperCluster): "
            "give it as --weights with the --backbone that it is for"
        )
    return found


def official_network(path: str | Path) -> tuple[str, bool, str] | None:
    """Backbone, Sobel filter and release of a file of one of the three layouts; None where it is of none, or missing.

    Raises:
        ModelError: the file is damaged, or has code in it.
    """
    path = Path(path)
    if not path.is_file():
        return None
    status = path.stat()
    return _network(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _network(path: Path, changed: int, size: int) -> tuple[str, bool, str] | None:
    found = recognised(read_state(path), path)
    return (found.backbone, found.sobel, found.release) if found else None


def recognised(state: Mapping[str, Tensor], path: str | Path) -> OfficialWeights | None:
    """The tensors of a file by our names; None where the file has none of the three layouts.

    Raises:
        ModelError: two tensors have one name, or the classifier of the pseudo-labels is not one.
    """
    plain = {name: ".".join(part for part in name.split(".") if part != "module") for name in state}
    names = set(plain.values())
    if any(name.startswith(f"{head}.") for head in TRAINING_HEADS for name in names) and "conv1.weight" in names:
        release, inner = "DeepCluster-v2", ""
    elif any(name.startswith("body.features.") for name in names):
        release, inner = "DeeperCluster", "body."
    elif _of_2018(set(state), names):
        release, inner = "DeepCluster", ""
    else:
        return None
    found: dict[str, Tensor] = {}
    for name, short in plain.items():
        if found.setdefault(short.removeprefix(inner), state[name]) is not state[name]:
            raise ModelError(f"{path}: has {short.removeprefix(inner)} twice, the second time as {name}")
    if release == "DeepCluster-v2":
        dropped = tuple(name for name, short in plain.items() if short.split(".")[0] in TRAINING_HEADS)
        kept = {name: value for name, value in found.items() if name.split(".")[0] not in TRAINING_HEADS}
        return OfficialWeights(release, RESNET, False, kept, None, dropped)
    alexnet = bool({"classifier.1.weight", "classifier.4.weight"} & found.keys())
    backbone = "alexnet" if alexnet else "vgg16"
    if release == "DeeperCluster":
        # Its filter is no part of what was trained, and its programs drop it when they read a file, too.
        dropped = tuple(name for name, short in plain.items() if "sobel" in short.split("."))
        kept = {name: value for name, value in found.items() if "sobel" not in name.split(".")}
        kept |= {f"sobel.{name}": value for name, value in sobel_filter().state_dict().items()}
        return OfficialWeights(release, backbone, True, kept, None, dropped)
    head = _head(found, path)
    kept = {name: value for name, value in found.items() if not name.startswith("top_layer.")}
    return OfficialWeights(release, backbone, any(name.startswith("sobel.") for name in kept), kept, head, ())


def _of_2018(given: set[str], names: set[str]) -> bool:
    """Signs that no other network has, or nothing but numbered layers as in the two networks (``classifier.6`` is
    torchvision's)."""
    if not any(name.startswith("features.") for name in names):
        return False
    sure = any(name.startswith("top_layer.") for name in names) or "sobel.0.weight" in names
    parallel = any(name.startswith(("features.module.", "module.features.module.")) for name in given)
    numbered = all(NUMBERED.fullmatch(name) for name in names)
    torchvision = any(name.startswith("classifier.6.") for name in names)
    return sure or ((parallel or numbered) and not torchvision)


def _head(found: Mapping[str, Tensor], path: str | Path) -> tuple[Tensor, Tensor] | None:
    top = {name.removeprefix("top_layer."): value for name, value in found.items() if name.startswith("top_layer.")}
    if not top:
        return None
    clusters = top["bias"].numel() if "bias" in top else 0
    shapes = {name: tuple(value.shape) for name, value in top.items()}
    if not clusters or shapes != {"weight": (clusters, FEATURE_DIM), "bias": (clusters,)}:
        told = ", ".join(f"top_layer.{name} {shape}" for name, shape in shapes.items())
        raise ModelError(
            f"{path}: has {told}, which is no classifier of K pseudo-labels (K x {FEATURE_DIM}, and K): is it damaged?"
        )
    return top["weight"], top["bias"]


def official_checkpoint(body: PaperNet, head: nn.Linear | None = None, *, epoch: int = 0) -> dict[str, Any]:
    """``body`` (AlexNet or VGG-16) and the classifier ``head`` as a checkpoint of the release of 2018, on the CPU.

    ``epoch``, ``arch``, ``state_dict`` and ``optimizer``, which has the paper's options and no momentum yet. The names
    are those of a network of which only ``features`` is trained in parallel, in the order of that network. Without
    ``num_batches_tracked``, which PyTorch had not yet then and does not miss today.
    """
    parts = {"features.module": body.features, "classifier": body.classifier, "top_layer": head, "sobel": body.sobel}
    state = OrderedDict(
        (f"{name}.{key}", value.detach().cpu().contiguous())
        for name, part in parts.items() if part is not None
        for key, value in part.state_dict().items() if not key.endswith("num_batches_tracked")
    )  # fmt: skip
    trained = sum(parameter.requires_grad for parameter in body.parameters())
    group = {
        "lr": 0.05, "momentum": 0.9, "dampening": 0, "weight_decay": 1e-5, "nesterov": False,
        "params": list(range(trained)),
    }  # fmt: skip
    optimizer = {"state": {}, "param_groups": [group]}
    # Dropout before the first linear layer: AlexNet.
    arch = "alexnet" if isinstance(body.classifier[0], nn.Dropout) else "vgg16"
    return {"epoch": epoch, "arch": arch, "state_dict": state, "optimizer": optimizer}


def save_official(checkpoint: Mapping[str, Any], file: Any) -> None:
    """Write a checkpoint as PyTorch did before its zip archives (protocol 2), which all versions since 0.4 read."""
    torch.save(dict(checkpoint), file, pickle_protocol=2, _use_new_zipfile_serialization=False)
