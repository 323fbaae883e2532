"""From a recipe to the objects of the alternation."""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from deepcluster.algorithm import Group, Keep, Progress, alternate, forgotten, unheard
from deepcluster.clustering.pic import pic
from deepcluster.images.augment import Augmentation
from deepcluster.images.sampling import each_once, official_draws, uniform_over_clusters
from deepcluster.learning.pseudo_labels import Step
from deepcluster.nets.backbone import Network, build
from deepcluster.nets.memory_format import channels_last
from deepcluster.recipe import Recipe
from deepcluster.records import Round, State
from deepcluster.runtime.devices import choose_precision
from deepcluster.runtime.processes import ALONE, Processes


def rounds_of(
    network: Network,
    images: Tensor,
    recipe: Recipe,
    lr: Step,
    seed: int,
    *,
    state: State | None = None,
    keep: Keep = forgotten,
    progress: Progress = unheard,
    processes: Processes = ALONE,
) -> Iterator[Round]:
    """The alternation with the options of a recipe."""
    total = sum(processes.every(len(images)))
    return alternate(
        network,
        images,
        clusters=[min(k, total) for k in recipe.clusters],
        rounds=recipe.rounds,
        seed=seed,
        size=recipe.image_size,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        lr=lr,
        head_lr=recipe.head_lr or None,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        dims=recipe.dims if recipe.reduce else None,
        whitening=recipe.whitening,
        iterations=recipe.kmeans_iterations,
        empty=recipe.empty,
        spherical=recipe.spherical,
        levels=recipe.kmeans_levels,
        kmeans_start=recipe.kmeans_start,
        group=GROUPS[recipe.clustering],
        renumber=recipe.renumber,
        temperature=recipe.temperature or None,
        features=recipe.features,
        views=views_of(recipe),
        instance_temperature=recipe.instance_temperature or None,
        sample=SAMPLERS[recipe.sampling],
        tolerance=recipe.tolerance,
        patience=recipe.patience,
        dtype=choose_precision(recipe.precision, next(network.parameters()).device),
        state=state,
        keep=keep,
        progress=progress,
        processes=processes,
    )  # fmt: skip


GROUPS: dict[str, Group | None] = {"kmeans": None, "pic": pic}
SAMPLERS = {"uniform": uniform_over_clusters, "official": official_draws, "none": each_once}


def views_of(recipe: Recipe) -> tuple[Augmentation, ...]:
    whole = Augmentation(
        crop=(recipe.crop_min, recipe.crop_max), stretch=recipe.stretch, flip=recipe.flip, rotation=recipe.rotation,
        colour=recipe.colour, grey=recipe.grey, size=recipe.view_size,
    )  # fmt: skip
    small = replace(whole, crop=(recipe.small_crop_min, recipe.small_crop_max), size=recipe.small_size)
    return (whole,) * recipe.views + (small,) * recipe.small_views


class Steps:
    """The step at a time in rounds: a linear rise, then constant or half a cosine wave from ``lr`` to 0.

    ``rounds`` is how many there will be. Where a time limit makes them fewer, rise and fall keep their share.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.rounds = recipe.rounds

    def __call__(self, time: float) -> float:
        recipe, share = self.recipe, time / self.rounds
        rising = min(1.0, share * recipe.rounds / recipe.warmup) if recipe.warmup else 1.0
        falling = 0.5 * (1 + math.cos(math.pi * min(1.0, share))) if recipe.schedule == "cosine" else 1.0
        return recipe.lr * rising * falling


def network_of(recipe: Recipe, seed: int, device: torch.device) -> Network:
    network = build(
        recipe.backbone, image_size=recipe.image_size, sobel=recipe.sobel, weights=recipe.weights or None,
        projection=(recipe.projection_hidden, recipe.projection_dim) if recipe.projection_dim else None, seed=seed,
    )  # fmt: skip
    network.frozen_statistics = recipe.frozen_statistics
    return channels_last(network.to(device))
