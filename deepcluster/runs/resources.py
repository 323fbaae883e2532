"""Estimates of the memory that a run takes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepcluster.errors import OutOfMemoryError
from deepcluster.groups.neighbour_graph import SAMPLE
from deepcluster.images.store import MEMORY_BUDGET
from deepcluster.learning.pseudo_labels import number_of_parts
from deepcluster.nets.backbone import Network
from deepcluster.recipe import Recipe
from deepcluster.report.sprite import MAX_PICTURES
from deepcluster.runs.build import loss_of
from deepcluster.runtime.devices import holds_rows
from deepcluster.runtime.memory import CERTAIN
from deepcluster.runtime.memory import available as available

# Measured (docs/decisions.md): Python, torch and what the result takes beside its features; the memory that a training
# step keeps for backward, as a multiple of all layer outputs.
BASE = 500e6
KEPT = 1.5
# Bytes that tables and report of the result take: for each image, and for each of those that are in the page
# (benchmarks/result_phase.py).
TABLES, PAGE = 300.0, 6e3


@dataclass(frozen=True)
class Memory:
    """Estimated bytes.

    images: The stored pixels, where they are in memory.
    features: Those of the rounds and of the result.
    training: The network and one training step.
    tables: Of the result.
    decoding: Over before there are features.
    on_gpu: What a GPU takes of it: the network, and the features where it holds them.
    """

    images: float
    features: float
    training: float
    tables: float
    decoding: float = 0.0
    on_gpu: float = 0.0

    @property
    def total(self) -> float:
        """Without what is on a GPU alone. The features come back from there."""
        training = 0.0 if self.on_gpu else self.training
        return BASE + self.images + max(self.decoding, self.features + training) + self.tables

    @property
    def text(self) -> str:
        training = "" if self.on_gpu else f" training {self.training / 1e9:.2f},"
        beside = f", and about {self.on_gpu / 1e9:.1f} GB on the GPU" if self.on_gpu else ""
        return (
            f"about {self.total / 1e9:.1f} GB (images {self.images / 1e9:.2f}, features {self.features / 1e9:.2f},"
            f"{training} tables {self.tables / 1e9:.2f}; or, before, decoding {self.decoding / 1e9:.2f}){beside}"
        )


def memory(
    network: Network,
    recipe: Recipe,
    count: int,
    processes: int = 1,
    decoding: float = 0.0,
    device: torch.device | None = None,
) -> Memory:
    """The estimate of the main rank's memory, which has the tables of all.

    Args:
        network: It sees one image of each size of view.
        recipe: Sizes and numbers.
        count: Images in all.
        processes: Ranks that share them.
        decoding: Bytes that decoding takes, by the preview.
        device: Where the network will be (None: where it is).
    """
    total, count = count, -(-count // processes)
    batch = -(-min(recipe.batch_size, total) // processes)
    images = count * 3 * recipe.store_size**2
    sizes = [recipe.view_size or recipe.image_size] * recipe.views + [recipe.small_size] * recipe.small_views
    by_size = {size: _outputs(network, size) for size in set(sizes)}
    outputs = sum(by_size[size] for size in sizes)
    pixels = sum(size**2 for size in sizes)
    device = device or next(network.parameters()).device
    parts = number_of_parts(network, batch, pixels, loss_of(recipe), processes) if device.type == "cpu" else 1
    at_once = -(-batch // parts)
    weights = sum(parameter.numel() for parameter in network.parameters())
    heads = sum(recipe.clusters) * network.embedding_dim
    # The features, those of the result, and both reduced; of several ranks' those that the main rank decides by.
    dims = min(recipe.dims or 256, network.feature_dim)
    sample = min(total, SAMPLE) if processes > 1 else 0
    features = 4 * (count * (max(network.embedding_dim, network.feature_dim) + 2 * dims) + sample * dims)
    tables = TABLES * total + PAGE * min(total, MAX_PICTURES)
    training = 4 * (3 * (weights + heads) + KEPT * outputs * at_once)
    on_gpu = 0.0
    if device.type == "cuda":
        width = max(network.embedding_dim, network.feature_dim) + dims
        on_gpu = BASE + training + (4 * count * width if holds_rows(device, count, width) else 0)
    return Memory(images if images <= MEMORY_BUDGET else 0, features, training, tables, decoding, on_gpu)


def _outputs(network: Network, size: int) -> int:
    """The size of all layer outputs for one image of ``size`` px, in numbers.

    Each once: a layer that works in place, or an identity, of which transformers are full, hands on what it is given.
    """
    outputs: dict[int, Tensor] = {}  # by address; kept, so that none is used twice

    def add(layer: nn.Module, given: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs.setdefault(output.data_ptr(), output)

    hooks = [layer.register_forward_hook(add) for layer in network.modules() if not list(layer.children())]
    training = network.training
    network.eval()  # batch normalisation learns nothing from it
    try:
        with torch.no_grad():
            network.embed(network.features(torch.zeros(1, 3, size, size, device=network.mean.device)))
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return sum(output.numel() for output in outputs.values())


def check(needed: Memory, free: float, recipe: Recipe) -> None:
    """OutOfMemoryError where a run cannot fit."""
    if CERTAIN * needed.total > free:
        raise OutOfMemoryError(f"the run needs {needed.text}, and {free / 1e9:.1f} GB are free: {_smaller(recipe)}")


def check_gpu(needed: Memory, free: float, recipe: Recipe, device: torch.device) -> None:
    """OutOfMemoryError where a run cannot fit on a GPU, of which ``free`` bytes are free."""
    if CERTAIN * needed.on_gpu > free:
        raise OutOfMemoryError(
            f"the run needs about {needed.on_gpu / 1e9:.1f} GB on {device}, and {free / 1e9:.1f} GB are free there:"
            f" {_smaller(recipe)}"
        )


def _smaller(recipe: Recipe) -> str:
    return f"try --batch-size {max(1, recipe.batch_size // 4)} (it is {recipe.batch_size}), or a smaller --image-size"
