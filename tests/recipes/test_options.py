"""Every option is declared once, and what is declared is what the command line, the pages and the engine know."""

import json
import re
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import SGD

from deepcluster import DeepCluster
from deepcluster.clustering import KMeans
from deepcluster.commands.cli import run_command
from deepcluster.errors import UsageError
from deepcluster.fitting.plan import FEATURES_OPTIONS
from deepcluster.learning import CentroidHead, CrossEntropy, WithInstances
from deepcluster.learning.draws import each_once
from deepcluster.recipes import build, flags
from deepcluster.recipes.options import DECLARED, Option, Recipe, read_options
from deepcluster.recipes.presets import RecipeRequest
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import ALONE
from tests.helpers.pages import ROOT, text_of
from tests.helpers.tiny import RECORD


def other_value(option: Option) -> Any:
    """A value that an option may have and that is not its default."""
    default = option.default
    if isinstance(default, bool):
        return not default
    if isinstance(default, str):
        return next((choice for choice in option.choices if choice != default), "other")
    step = 1 if isinstance(default, int) else 0.0625
    return default + step if default + step <= option.high else default - step


class Asked(Exception):
    """A command or a fit that goes no further than the request that it makes."""


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The request of a command line or of an estimator's fit, which go no further. Photos, weights and a run exist."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "run"):
        (tmp_path / name).mkdir()
    for name in (*(f"photos/{i}.png" for i in range(7)), other_value(DECLARED["weights"])):
        (tmp_path / name).write_bytes(b"0")
    (tmp_path / "run/run.json").write_text(json.dumps(RECORD))

    def stop(_, request, *__, **___):
        raise Asked(request)

    monkeypatch.setattr("deepcluster.fitting.fit.fit", stop)

    def request_of(*arguments, **parameters):
        with pytest.raises(Asked) as caught:
            run_command(["--debug", *arguments]) if arguments else DeepCluster(**parameters).fit("photos")
        return caught.value.args[0]

    return request_of


@pytest.mark.parametrize("name", DECLARED)
def test_every_option_reaches_the_engine(name, asked):
    option = DECLARED[name]
    value, flag = other_value(option), f"--{name.replace('_', '-')}"
    requests = [asked("fit", "photos", "--set", f"{name}={value}"), asked(options={name: value})]
    if option.flag:
        requests.append(asked("fit", "photos", flag, str(value)))
    else:
        assert run_command(["fit", "photos", flag, str(value)]) == 2
    if name in DeepCluster().get_params():
        requests.append(asked(**{name: value}))
    for request in requests:
        options = request.recipe.options
        assert options == {name: value} and type(options[name]) is type(option.default)


def test_options_that_were_not_given_are_left_to_the_recipe(asked):
    assert asked("fit", "photos").recipe == asked("fit", "photos", "--pseudo-labels", "auto").recipe == RecipeRequest()
    assert asked("fit", "photos", "--lr", "1", "--set", "lr=2").recipe.options == {"lr": 2}  # the last
    assert asked(pseudo_labels="auto").recipe == asked(pseudo_labels=None, lr=None).recipe == RecipeRequest()
    assert asked("fit", "photos", "--set", "sobel=true", "image-size=64").recipe.options == {
        "sobel": True,
        "image_size": 64,
    }


FLAGS = {
    "out": Path("new"), "n_clusters": 7, "labels": "folders", "recipe": RecipeRequest("v2"), "overwrite": True,
    "keep_checkpoints": True, "device": "cpu", "seed": 5, "deterministic": True, "verbose": True,
}  # fmt: skip


def test_every_other_flag_and_parameter_reaches_the_engine(asked, tmp_path):
    line = "fit photos -o new -k 7 --labels folders --recipe v2 --overwrite --device cpu --seed 5"
    request = asked(*line.split(), "--deterministic", "--verbose", "--keep-checkpoints")
    assert {name: getattr(request, name) for name in FLAGS} == FLAGS
    assert asked(*["fit", "photos", "-o", "run", "--resume"]).resume
    assert FLAGS.keys() | {"like", "resume", "features"} == vars(flags.FitFlags()).keys()

    others = {"n_clusters", "recipe", "options", "device", "random_state", "verbose"}
    steps = {"clustering": KMeans(), "loss": CrossEntropy(), "optimizer": SGD}
    assert {*DeepCluster().get_params()} - {*DECLARED} == others | steps.keys()
    assert vars(asked(**steps).steps) == steps and asked(**steps).recipe.options == {}
    request = asked(n_clusters=7, recipe="v2", device="cpu", random_state=5, weights=tmp_path, verbose=2)
    for name in ("n_clusters", "device", "seed", "verbose"):
        assert getattr(request, name) == FLAGS[name]
    assert request.recipe == RecipeRequest("v2", options={"weights": str(tmp_path)})
    assert [asked(device=device).device for device in (1, torch.device("cpu"))] == ["cuda:1", "cpu"]
    assert asked(random_state=np.int64(3)).seed == 3
    assert asked(random_state=None).seed != asked(random_state=None).seed
    first, second, third = (asked(random_state=np.random.RandomState(seed)).seed for seed in (1, 1, 2))
    assert first == second != third


def test_the_reference_lists_every_option(prints):
    printed = prints("recipes", "--options")
    for name, option in DECLARED.items():
        assert f"\n  {name} " in printed and option.help in printed


def test_the_ends_of_a_range_are_in_it_and_nothing_beyond():
    for name, option in DECLARED.items():
        assert option.help.endswith(".") and option.read(option.default) == option.default
        if isinstance(option.default, int | float) and not isinstance(option.default, bool):
            for end, step in ((option.low, -1), (option.high, 1)):
                assert read_options({name: str(end)}) == {name: end}
                with pytest.raises(UsageError, match=f"{name}="):
                    read_options({name: end + step})
        elif option.choices:
            with pytest.raises(UsageError, match=f"{name}='none of them'.*{option.choices[0]}"):
                read_options({name: "none of them"})


# ---- every option is seen at the step that uses it ------------------------------------------------------------------

CPU = torch.device("cpu")
WIDTH = 100  # of the features
# Options that reach a step in another form, or not every step: a value that is not the default, and what the steps get
# (a path into `steps`) for it. If the value needs others beside it, these come third.
OPTIONS: dict[str, tuple[Any, ...]] = {
    "backbone": ("compact", {"network.name": "compact"}),
    "image_size": (64, {"compute.size": 64, "network.image_size": 64}),
    "margin": (1.5, {"recipe.store_size": 336}),
    "pseudo_labels": (7, {"clusters": [7]}),
    "heads": (2, {"clusters": [5, 5]}, {"pseudo_labels": 5}),
    "head_growth": (2.0, {"clusters": [5, 10]}, {"heads": 2, "pseudo_labels": 5}),
    "batch_size": (64, {"compute.batch_size": 64, "learning.batch_size": 64}),  # passes have 256 images at most
    "features": ("memory", {"learning.reuse_features": True}),
    "reduce": (False, {"reduction.dims": None}),
    "spherical": (True, {"clustering.spherical": True}),
    "temperature": (0.3, {"learning.head": CentroidHead(0.3)}),
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
    "small_views": (3, {"small": 3, "small_view.size": 96, "small_view.crop": (0.05, 0.14)}),
}
# The result: test_algorithm, test_presets, test_groups; a network with a classifier: test_published.
ELSEWHERE = {"average", "grouping", "class_probabilities"}
# Every other option reaches whatever has a field of its name.
OWNERS = ("network", "learning", "compute", "reduction", "final_reduction", "clustering", "final_clustering", "view")


def steps(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the alternation, the network and the result get of a recipe."""
    given: dict[str, Any] = {}
    network = torch.nn.Linear(1, 1)
    network.embedding_dim = WIDTH
    network.classifier = None
    network.register_buffer("mean", torch.zeros(3))
    monkeypatch.setattr(build, "alternate", lambda network, images, **options: given.update(options))
    monkeypatch.setattr(build, "build", lambda name, **options: given.update(network=(name, options)) or network)
    monkeypatch.setattr(build, "channels_last", lambda network: network)
    build.rounds_of(network, torch.zeros(10**4, 0), recipe, 0)
    build.network_of(recipe, 0, CPU)
    views = given["learning"].views
    schedule = given["learning"].lr
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
    value, expected, *others = OPTIONS.get(name) or expectation(name, DECLARED[name], steps(Recipe(), monkeypatch))
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


def test_a_pass_takes_no_more_memory_for_large_batches_of_training():
    network, rows = SimpleNamespace(mean=torch.zeros(3)), Partition.of(ALONE, 9)
    sizes = [build.compute_of(network, Recipe(batch_size=size), rows).batch_size for size in (64, 10**6)]
    assert sizes == [64, 256]


def test_the_page_lists_the_options_for_features():
    line = re.search(r"(`pseudo_labels` and these `options` count.*?)\. ", text_of(ROOT / "docs/python.md"), re.DOTALL)
    assert line and {*re.findall(r"`(\w+)`", line[1])} - {"options"} == FEATURES_OPTIONS


def test_the_empty_clusters_of_faiss_are_for_the_rounds_alone():
    recipe = Recipe(empty="faiss")
    assert (build.kmeans_of(recipe).empty, build.kmeans_of_result(recipe).empty) == ("faiss", "split")
