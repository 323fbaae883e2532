"""Every option of a recipe is seen at the step that uses it."""

from dataclasses import fields
from functools import partial
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deepcluster.images.views import each_once
from deepcluster.learning import CentroidHead, WithInstances
from deepcluster.learning.heads import fitted_linear_head
from deepcluster.recipe import Option, Recipe, declared
from deepcluster.runs import build
from tests.test_options import other_value

CPU = torch.device("cpu")
WIDTH = 100  # of the features
# Options that reach a step in another form, or not every step: a value that is not the default, and what the steps get
# (a path into `steps`) for it. If the value needs others beside it, these come third.
OPTIONS: dict[str, tuple[Any, ...]] = {
    "backbone": ("compact", {"network.name": "compact"}),
    "image_size": (64, {"compute.size": 64, "network.image_size": 64}),
    "second_size": (96, {"network.second_size": 96}),
    "margin": (1.5, {"recipe.store_size": 336}),
    "pseudo_labels": (7, {"clusters": [7]}),
    "heads": (2, {"clusters": [5, 5]}, {"pseudo_labels": 5}),
    "head_growth": (2.0, {"clusters": [5, 10]}, {"heads": 2, "pseudo_labels": 5}),
    "features": ("memory", {"learning.reuse_features": True}),
    "reduce": (False, {"reduction.dims": None}),
    "spherical": (True, {"clustering.spherical": True}),
    "temperature": (0.3, {"learning.head": CentroidHead(0.3)}),
    "probe": (True, {"learning.head": fitted_linear_head}),
    "projection_hidden": (6, {"network.projection": (6, 4)}, {"projection_dim": 4}),
    "projection_dim": (4, {"network.projection": (6, 4)}, {"projection_hidden": 6}),
    "instance_temperature": (0.2, {"learning.loss": WithInstances(0.2)}, {"views": 2}),
    "sampling": ("none", {"learning.sample": each_once}),
    "lr": (0.5, {"schedule.end": 0.5, "learning.head_lr": 0.5}),
    "schedule": ("cosine", {"schedule.end": 0.0}),
    "warmup": (100.0, {"schedule.start": 0.0}),
    "precision": ("bf16", {"compute.dtype": torch.bfloat16}),
    "views": (2, {"large": 2}),
    "view_size": (48, {"view.size": 48}),
    "crop_min": (0.2, {"view.crop": (0.2, 1.0)}),
    "crop_max": (0.9, {"view.crop": (0.08, 0.9)}),
    "small_views": (3, {"small": 3}),
    "small_size": (40, {"small_view.size": 40}, {"small_views": 1}),
    "small_crop_min": (0.06, {"small_view.crop": (0.06, 0.14)}, {"small_views": 1}),
    "small_crop_max": (0.2, {"small_view.crop": (0.05, 0.2)}, {"small_views": 1}),
}
ELSEWHERE = {"average", "grouping", "guess"}  # the result: test_averaging, test_classic, test_groups
# Every other option reaches whatever has a field of its name.
OWNERS = ("network", "learning", "compute", "reduction", "final_reduction", "clustering", "final_clustering", "view")


def steps(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the alternation, the network and the result get of a recipe."""
    given: dict[str, Any] = {}
    network = torch.nn.Linear(1, 1)
    network.embedding_dim = WIDTH
    network.register_buffer("mean", torch.zeros(3))
    monkeypatch.setattr(build, "alternate", lambda network, images, **options: given.update(options))
    monkeypatch.setattr(build, "build", lambda name, **options: given.update(network=(name, options)) or network)
    monkeypatch.setattr(build, "channels_last", lambda network: network)
    schedule = partial(build.learning_rate, recipe, rounds=recipe.rounds)
    build.rounds_of(network, torch.zeros(10**4, 0), recipe, schedule, 0)
    build.network_of(recipe, 0, CPU)
    views = given["learning"].views
    name, options = given.pop("network")
    return SimpleNamespace(
        **given,
        recipe=recipe,
        final_reduction=build.reduction_of(recipe, WIDTH),
        final_clustering=build.kmeans_of_result(recipe),
        network=SimpleNamespace(name=name, frozen_statistics=network.frozen_statistics, **options),
        schedule=SimpleNamespace(start=schedule(0.0), end=schedule(float(recipe.rounds))),
        view=views[0],
        small_view=views[-1],
        large=len(views) - recipe.small_views,
        small=len(views) - recipe.views,
    )


def expectation(name: str, option: Option, default: SimpleNamespace) -> tuple[Any, ...]:
    value, field = other_value(option), name.removeprefix("kmeans_")
    owners = [f"{owner}." for owner in OWNERS if hasattr(getattr(default, owner), field)]
    return value, {f"{owner}{field}": value for owner in (owners or [""])}


@pytest.mark.parametrize("name", sorted({field.name for field in fields(Recipe)} - ELSEWHERE))
def test_an_option_reaches_the_steps_that_use_it(name, monkeypatch):
    value, expected, *others = OPTIONS.get(name) or expectation(
        name, declared(Recipe)[name], steps(Recipe(), monkeypatch)
    )
    beside = others[0] if others else {}
    given = steps(Recipe(**{name: value}, **beside), monkeypatch)
    # That it is not so without the option shows that this test would see it missing.
    default = steps(Recipe(**({} if name.startswith("projection") else beside)), monkeypatch)
    for path, right in expected.items():
        assert attrgetter(path)(given) == (pytest.approx(right) if isinstance(right, float) else right)
        assert attrgetter(path)(default) != right


@pytest.mark.parametrize(("width", "dims"), [(128, 32), (512, 32), (2048, 128), (4096, 256), (25088, 256)])
def test_dims_0_is_a_sixteenth_of_the_features(width, dims):
    assert build.reduction_of(Recipe(dims=0), width).dims == dims
    assert build.reduction_of(Recipe(), width).dims == 256


def test_the_empty_clusters_of_faiss_are_for_the_rounds_alone():
    recipe = Recipe(empty="faiss")
    assert (build.kmeans_of(recipe).empty, build.kmeans_of_result(recipe).empty) == ("faiss", "split")
