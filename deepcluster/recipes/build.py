"""From a recipe to the objects of the alternation."""

import inspect
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from deepcluster.algorithm import alternate
from deepcluster.clustering import ClusteringStep, KMeans, Reduction
from deepcluster.errors import UsageError
from deepcluster.groups.cut import KMEANS_STARTS, Cut, as_clusters, cut_features
from deepcluster.groups.graph import Layouts
from deepcluster.images.views import Augmentation
from deepcluster.learning import heads
from deepcluster.learning.draws import each_once, official_draws, uniform_over_clusters
from deepcluster.learning.heads import Loss
from deepcluster.learning.training import Learning, OptimizerOf, network_precision
from deepcluster.nets.names import MODULE
from deepcluster.nets.network import Network, build, copy_of_module
from deepcluster.nets.timm import channels_last
from deepcluster.recipes.options import Recipe
from deepcluster.records import Clustering, Round, State
from deepcluster.runtime.compute import MAX_PASS_BATCH, Compute, Progress, ignore_progress
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import ALONE
from deepcluster.seeding import derive

SAMPLERS = {"uniform": uniform_over_clusters, "official": official_draws, "none": each_once}
# Steps, with the number of their positional arguments and the names of the others.
CALLS = (("clustering", 3, ("seed", "round")), ("loss", 3, ()), ("optimizer", 1, ()))
MAX_IN_CUT = 1000  # clusters: k-means with more takes too long for several starts
SMALL_CROP = (0.05, 0.14)  # share of the image in a small view, as in DeepCluster-v2
OWN = "own "  # before the name of a step of the user's
Settings = TypeVar("Settings", Reduction, KMeans, Augmentation, Learning)


@dataclass(frozen=True)
class Steps:
    """The user's own steps; None: as the recipe says."""

    clustering: ClusteringStep | None = None  # step 4
    loss: Loss | None = None  # of step 5, as in :class:`Learning`, like the optimizer
    optimizer: OptimizerOf | None = None

    def __post_init__(self) -> None:
        if not (self.loss is None or isinstance(self.loss, Loss)):
            raise UsageError(f"loss={self.loss!r} has no sums_images or cluster_weight: see docs/change-a-step.md")
        for name, count, named in CALLS:
            step = getattr(self, name)
            try:
                with suppress(ValueError):  # a builtin does not tell its arguments
                    if step is not None:
                        inspect.signature(step).bind(*range(count), **dict.fromkeys(named))
            except TypeError as error:
                raise UsageError(f"{name}={step!r}: {error}; see docs/change-a-step.md") from None

    @property
    def names(self) -> dict[str, str]:
        """Return the names of the user's own steps, as run.json has them."""
        steps = {field.name: getattr(self, field.name) for field in fields(self)}
        return {OWN + name: _step_name(step) for name, step in steps.items() if step is not None}


def _step_name(step: Any) -> str:
    """Return the qualified name of a function or class; of an object also its ``repr``, without addresses."""
    kind = step if hasattr(step, "__qualname__") else type(step)
    name = f"{kind.__module__}.{kind.__qualname__}"
    values = " ".join(re.sub(" at 0x[0-9a-fA-F]+", "", repr(step)).split())
    return name if kind is step or values == f"<{name} object>" else f"{name}: {values}"


def rounds_of(
    network: Network,
    images: Tensor,
    recipe: Recipe,
    seed: int,
    *,
    rounds: int | None = None,
    steps: Steps = Steps(),
    state: State = State(),
    compute: Compute | None = None,
) -> Iterator[Round]:
    """Alternate with the options of a recipe (or for fewer ``rounds``), and with the user's own steps."""
    compute = compute or compute_of(network, recipe, Partition.of(ALONE, len(images)))
    reduction = reduction_of(recipe, network.embedding_dim, network.classifier)
    return alternate(
        network,
        images,
        clusters=[min(k, compute.partition.total) for k in recipe.clusters],
        rounds=recipe.rounds if rounds is None else rounds,
        seed=seed,
        reduction=reduction if recipe.reduce else replace(reduction, dims=None),
        clustering=kmeans_of(recipe) if steps.clustering is None else steps.clustering,
        learning=learning_of(recipe, steps),
        tolerance=recipe.tolerance,
        patience=recipe.patience,
        state=state,
        compute=compute,
    )


def compute_of(
    network: Network, recipe: Recipe, partition: Partition, progress: Progress = ignore_progress, float32: bool = False
) -> Compute:
    """Return the settings of the passes of the rounds, or of a result, which are in float32."""
    device = network.mean.device
    dtype = torch.float32 if float32 else network_precision(network, device, recipe.precision)
    return Compute(partition, device, recipe.image_size, min(recipe.batch_size, MAX_PASS_BATCH), dtype, progress)


def by_name(kind: type[Settings], recipe: Recipe, prefix: str = "", **others: Any) -> Settings:
    """Return the settings of a ``kind``: its fields are the recipe's options of the same name behind ``prefix``.

    ``others``: Fields that are no options, or have another name or form.
    """
    names = [field.name for field in fields(kind) if field.name not in others]
    return kind(**{name: getattr(recipe, prefix + name) for name in names}, **others)


def reduction_of(recipe: Recipe, width: int, classifier: tuple[Tensor, Tensor] | None = None) -> Reduction:
    """Return the reduction of features of ``width`` numbers, of a network that came with this ``classifier``."""
    return by_name(Reduction, recipe, dims=recipe.dims or min(256, max(32, width // 16)), classifier=classifier)


def kmeans_of(recipe: Recipe) -> KMeans:
    return by_name(KMeans, recipe, "kmeans_", spherical=recipe.spherical, empty=recipe.empty)


def kmeans_of_result(recipe: Recipe) -> KMeans:
    kmeans = replace(kmeans_of(recipe), spherical=False)
    return replace(kmeans, empty="split") if kmeans.empty == "faiss" else kmeans  # faiss may leave some empty


def cut_sample(reduced: Tensor, fine: Clustering, n_clusters: int, seed: int, recipe: Recipe, layouts: Layouts) -> Cut:
    """Cut the features of a sample. Very many clusters may be the ``fine`` ones, of a single start of k-means."""
    in_cut = n_clusters <= MAX_IN_CUT
    if len(fine.centroids) == n_clusters and not in_cut:
        return as_clusters(fine)
    if recipe.grouping != "kmeans":
        return cut_features(reduced, n_clusters, seed=derive(seed, "groups"), layouts=layouts)
    kmeans = kmeans_of_result(recipe)
    starts = (derive(seed, "groups", start) for start in range(KMEANS_STARTS if in_cut else 1))
    clusterings = (kmeans.once(reduced, n_clusters, seed=start) for start in starts)
    return as_clusters(min(clusterings, key=lambda clustering: clustering.inertia))


def learning_of(recipe: Recipe, steps: Steps) -> Learning:
    large = by_name(Augmentation, recipe, crop=(recipe.crop_min, recipe.crop_max), size=recipe.view_size)
    small = replace(large, crop=SMALL_CROP, size=recipe.small_size)
    temperature = recipe.instance_temperature
    loss: Loss = heads.WithInstances(temperature) if temperature else heads.CrossEntropy()
    return by_name(
        Learning,
        recipe,
        lr=partial(learning_rate, recipe),
        head_lr=recipe.lr,
        views=(large,) * recipe.views + (small,) * recipe.small_views,
        sample=SAMPLERS[recipe.sampling],
        head=heads.CentroidHead(recipe.temperature) if recipe.temperature else heads.new_linear_head,
        loss=loss if steps.loss is None else steps.loss,
        optimizer=steps.optimizer,
        reuse_features=recipe.features == "memory",
    )


def learning_rate(recipe: Recipe, time: float) -> float:
    """Return the learning rate at a ``time`` in rounds: a linear rise, then constant or half a cosine wave to 0."""
    share = time / recipe.rounds
    # Not `time`: its last bit may differ, and then a run has other bits than with earlier versions.
    rising = min(1.0, share * recipe.rounds / recipe.warmup) if recipe.warmup else 1.0
    falling = 0.5 * (1 + math.cos(math.pi * min(1.0, share))) if recipe.schedule == "cosine" else 1.0
    return recipe.lr * rising * falling


def network_of(recipe: Recipe, seed: int, device: torch.device, module: nn.Module | None = None) -> Network:
    """Build the network (step 1); ``module``: one of the user's in place of a name."""
    projection = (recipe.projection_hidden, recipe.projection_dim) if recipe.projection_dim else None
    if module is None:
        network = build(
            recipe.backbone,
            image_size=recipe.image_size,
            sobel=recipe.sobel,
            weights=recipe.weights or None,
            projection=projection,
            seed=seed,
        )
    else:
        if recipe.weights not in ("", MODULE) or recipe.sobel:
            what = "sobel" if recipe.sobel else f"--weights {recipe.weights}"
            raise UsageError(f"{what} is for backbones that have a name: put it into the module itself")
        network = copy_of_module(module, image_size=recipe.image_size, projection=projection, seed=seed)
    network.frozen_statistics = recipe.frozen_statistics
    if recipe.class_probabilities and (network.classifier is None or recipe.projection_dim):
        raise UsageError(f"class_probabilities: {recipe.backbone} has no classifier of its features: leave it out")
    return channels_last(network.to(device))
