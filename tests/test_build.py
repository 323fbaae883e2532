"""Every option of a recipe is seen at the step that uses it."""

from dataclasses import fields
from functools import partial
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deepcluster.clustering import power_iteration
from deepcluster.images.views import each_once
from deepcluster.learning import CentroidHead, WithInstances
from deepcluster.recipe import Recipe
from deepcluster.runs import build

CPU = torch.device("cpu")
WIDTH = 100  # of the features
# An option: a value that is not the default, and what the steps get (a path into `steps`) for it. Where the value needs
# others beside it, these come third.
OPTIONS: dict[str, tuple[Any, ...]] = {
    "backbone": ("compact", {"network.name": "compact"}),
    "weights": ("w.pth", {"network.weights": "w.pth"}),
    "frozen_statistics": (True, {"network.frozen_statistics": True}),
    "sobel": (False, {"network.sobel": False}),
    "image_size": (64, {"place.size": 64, "network.image_size": 64}),
    "second_size": (96, {"network.second_size": 96}),
    "margin": (1.5, {"recipe.store_size": 336}),
    "pseudo_labels": (7, {"clusters": [7]}),
    "heads": (2, {"clusters": [5, 5]}, {"pseudo_labels": 5}),
    "head_growth": (2.0, {"clusters": [5, 10]}, {"heads": 2, "pseudo_labels": 5}),
    "rounds": (3, {"rounds": 3}),
    "epochs": (3, {"learning.epochs": 3}),
    "tolerance": (0.1, {"tolerance": 0.1}),
    "patience": (9, {"patience": 9}),
    "features": ("memory", {"learning.reuse_features": True}),
    "dims": (9, {"reduction.dims": 9, "final_reduction.dims": 9}),
    "whitening": (0.5, {"reduction.whitening": 0.5, "final_reduction.whitening": 0.5}),
    "root": (True, {"reduction.root": True, "final_reduction.root": True}),
    "reduce": (False, {"reduction.dims": None}),
    "spherical": (True, {"clustering.spherical": True}),
    "clustering": ("pic", {"clustering": power_iteration}),
    "kmeans_iterations": (9, {"clustering.iterations": 9, "final_clustering.iterations": 9}),
    "kmeans_start": ("previous", {"clustering.start": "previous"}),
    "empty": ("sample", {"clustering.empty": "sample", "final_clustering.empty": "sample"}),
    "renumber": (True, {"learning.renumber": True}),
    "temperature": (0.3, {"learning.head": CentroidHead(0.3)}),
    "projection_hidden": (6, {"network.projection": (6, 4)}, {"projection_dim": 4}),
    "projection_dim": (4, {"network.projection": (6, 4)}, {"projection_hidden": 6}),
    "instance_temperature": (0.2, {"learning.loss": WithInstances(0.2)}, {"views": 2}),
    "sampling": ("none", {"learning.sample": each_once}),
    "batch_size": (32, {"learning.batch_size": 32, "place.batch_size": 32}),
    "lr": (0.5, {"schedule.end": 0.5}),
    "schedule": ("cosine", {"schedule.end": 0.0}),
    "warmup": (100.0, {"schedule.start": 0.0}),
    "momentum": (0.5, {"learning.momentum": 0.5}),
    "weight_decay": (0.1, {"learning.weight_decay": 0.1}),
    "precision": ("bf16", {"place.dtype": torch.bfloat16}),
    "views": (2, {"large": 2}),
    "view_size": (48, {"view.size": 48}),
    "crop_min": (0.2, {"view.crop": (0.2, 1.0)}),
    "crop_max": (0.9, {"view.crop": (0.08, 0.9)}),
    "stretch": (1.5, {"view.stretch": 1.5}),
    "flip": (0.1, {"view.flip": 0.1}),
    "rotation": (10.0, {"view.rotation": 10.0}),
    "colour": (0.4, {"view.colour": 0.4}),
    "grey": (0.3, {"view.grey": 0.3}),
    "small_views": (3, {"small": 3}),
    "small_size": (40, {"small_view.size": 40}, {"small_views": 1}),
    "small_crop_min": (0.06, {"small_view.crop": (0.06, 0.14)}, {"small_views": 1}),
    "small_crop_max": (0.2, {"small_view.crop": (0.05, 0.2)}, {"small_views": 1}),
}
ELSEWHERE = {"average", "grouping", "guess"}  # the result: test_averaging, test_classic, test_groups


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


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_reaches_the_step_that_uses_it(option, monkeypatch):
    value, expected, *others = OPTIONS[option]
    beside = others[0] if others else {}
    given = steps(Recipe(**{option: value}, **beside), monkeypatch)
    # That it is not so without the option shows that this test would see it missing.
    default = steps(Recipe(**({} if option.startswith("projection") else beside)), monkeypatch)
    for path, right in expected.items():
        assert attrgetter(path)(given) == (pytest.approx(right) if isinstance(right, float) else right)
        assert attrgetter(path)(default) != right


def test_no_option_is_missing():
    assert set(OPTIONS) | ELSEWHERE == {field.name for field in fields(Recipe)}


@pytest.mark.parametrize(("width", "dims"), [(128, 32), (512, 32), (2048, 128), (4096, 256), (25088, 256)])
def test_dims_0_is_a_sixteenth_of_the_features(width, dims):
    assert build.reduction_of(Recipe(dims=0), width).dims == dims
    assert build.reduction_of(Recipe(), width).dims == 256


def test_the_empty_clusters_of_faiss_are_for_the_rounds_alone():
    recipe = Recipe(empty="faiss")
    assert (build.kmeans_of(recipe).empty, build.kmeans_of_result(recipe).empty) == ("faiss", "split")
