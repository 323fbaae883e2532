"""Weights as the authors of DeepCluster published them.

Two layouts, recognised by the names of the tensors, with or without the ``module`` of parallel training:

- DeepCluster (2018), AlexNet and VGG-16: ``features.N``, ``classifier.N``, ``top_layer`` (the classifier of the
  pseudo-labels), ``sobel.0`` and ``sobel.1``. The numbers are those of ``paper.py``.
- DeepCluster-v2 (2020), ResNet-50: torchvision's names, ``projection_head`` and ``prototypes``.

Written from descriptions of the files: the published ones are CC BY-NC, and none is part of this package.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from deepcluster.errors import ModelError
from deepcluster.nets.paper import FEATURE_DIM
from deepcluster.nets.weights import read_state

RESNET = "timm:resnet50"  # has torchvision's names and forward pass
TRAINING_HEADS = ("projection_head", "prototypes")
NUMBERED = re.compile(r"(features|classifier)\.\d+\.\w+")


@dataclass(frozen=True)
class OfficialWeights:
    """Weights of a published layout, by the names of our networks.

    Attributes:
        release: Which of the two.
        backbone: The ``name`` for ``build`` that makes their network.
        sobel: The ``sobel`` for ``build``.
        state: All tensors of the body.
        head: Weight (K x 4096) and bias (K) of the classifier of K pseudo-labels; None if the file has none.
        dropped: Names in the file that have no place in the network.
    """

    release: str
    backbone: str
    sobel: bool
    state: Mapping[str, Tensor]
    head: tuple[Tensor, Tensor] | None
    dropped: tuple[str, ...]

    @property
    def text(self) -> str:
        """Return a description in one line."""
        net = self.backbone.removeprefix("timm:") + (" behind a Sobel filter" if self.sobel else "")
        head = f", with the classifier of {len(self.head[1]):,} pseudo-labels" if self.head else ""
        modules = dict.fromkeys(name.removeprefix("module.").split(".")[0] for name in self.dropped)
        return f"{self.release}, {net}{head}" + (f"; left out: {', '.join(modules)}" if modules else "")


def read_official(path: str | Path) -> OfficialWeights:
    """Read the weights in a file of one of the two layouts; by ``torch.load`` without code, or from ``.safetensors``.

    A network that they go into (``network.from_official``, ``network.build``) checks that they are complete.

    Raises:
        ModelError: The file is missing or damaged, has code in it, or has none of these layouts.
    """
    official = recognised(read_state(path), path)
    if official is None:
        raise ModelError(
            f"{path}: has none of the published layouts (DeepCluster, DeepCluster-v2): "
            "give it as --weights with the --backbone that it is for"
        )
    return official


def recognised(state: Mapping[str, Tensor], path: str | Path) -> OfficialWeights | None:
    """Return the tensors of a file by our names; None if it has none of the two layouts.

    Raises:
        ModelError: Two tensors have the same name, or the classifier of the pseudo-labels is malformed.
    """
    plain = {name: ".".join(part for part in name.split(".") if part != "module") for name in state}
    names = set(plain.values())
    if any(name.startswith(f"{head}.") for head in TRAINING_HEADS for name in names) and "conv1.weight" in names:
        release = "DeepCluster-v2"
    elif _of_2018(set(state), names):
        release = "DeepCluster"
    else:
        return None
    tensors: dict[str, Tensor] = {}
    for name, short in plain.items():
        if tensors.setdefault(short, state[name]) is not state[name]:
            raise ModelError(f"{path}: has {short} twice, the second time as {name}")
    if release == "DeepCluster-v2":
        dropped = tuple(name for name, short in plain.items() if short.split(".")[0] in TRAINING_HEADS)
        body = {name: value for name, value in tensors.items() if name.split(".")[0] not in TRAINING_HEADS}
        return OfficialWeights(release, RESNET, False, body, None, dropped)
    alexnet = bool({"classifier.1.weight", "classifier.4.weight"} & tensors.keys())
    backbone = "alexnet" if alexnet else "vgg16"
    head = _head(tensors, path)
    body = {name: value for name, value in tensors.items() if not name.startswith("top_layer.")}
    return OfficialWeights(release, backbone, any(name.startswith("sobel.") for name in body), body, head, ())


def _of_2018(raw: set[str], names: set[str]) -> bool:
    """Recognise AlexNet or VGG-16 of 2018 by the names as they are in the file (``raw``) and without ``module``.

    Signs are layers that no other network has, or nothing but numbered layers. (``classifier.6`` is torchvision's.)
    """
    if not any(name.startswith("features.") for name in names):
        return False
    sure = any(name.startswith("top_layer.") for name in names) or "sobel.0.weight" in names
    parallel = any(name.startswith(("features.module.", "module.features.module.")) for name in raw)
    numbered = all(NUMBERED.fullmatch(name) for name in names)
    torchvision = any(name.startswith("classifier.6.") for name in names)
    return sure or ((parallel or numbered) and not torchvision)


def _head(tensors: Mapping[str, Tensor], path: str | Path) -> tuple[Tensor, Tensor] | None:
    top = {name.removeprefix("top_layer."): value for name, value in tensors.items() if name.startswith("top_layer.")}
    if not top:
        return None
    clusters = top["bias"].numel() if "bias" in top else 0
    shapes = {name: tuple(value.shape) for name, value in top.items()}
    if not clusters or shapes != {"weight": (clusters, FEATURE_DIM), "bias": (clusters,)}:
        told = ", ".join(f"top_layer.{name} {shape}" for name, shape in shapes.items())
        raise ModelError(
            f"{path}: has {told}, not a classifier of K pseudo-labels (K x {FEATURE_DIM}, and K): is it damaged?"
        )
    return top["weight"], top["bias"]
