import re
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepcluster.clustering.kmeans import kmeans
from deepcluster.errors import UsageError
from deepcluster.fitting.plan import RunStart
from deepcluster.groups.cut import as_clusters, cut_features
from deepcluster.groups.graph import Layouts
from deepcluster.recipes import build
from deepcluster.recipes.auto import ImageFacts, Plan
from deepcluster.recipes.options import Recipe, to_toml
from deepcluster.recipes.presets import PRESETS, read_request, resolve
from deepcluster.runs.recut import recut
from deepcluster.seeding import derive
from deepcluster.storage import model_files as models
from tests.helpers.runs import rows

RECIPES = Path(__file__).parents[2] / "examples/recipes"
PHOTOS = ImageFacts(count=50_000, short_side=32, grey=False, n_clusters=10)
GREY = replace(PHOTOS, short_side=8, count=1797, grey=True)
LARGE = replace(PHOTOS, short_side=300)
IMAGENET = replace(PHOTOS, count=1_281_167, short_side=400)
LITE = "timm:tf_efficientnet_lite0"
RESNET = {"weights": "w.safetensors", "backbone": "timm:resnet18"}  # pretrained


def plan_of(recipe: str, options: Mapping[str, Any], facts: ImageFacts) -> Plan:
    return resolve(read_request(options, recipe), facts)


# The paper, section 4 and its code; the paper's step 4 moves an empty cluster beside another one.
PAPER = {
    "weights": "", "frozen_statistics": False, "average": 1.0,
    "features": "pass", "reduce": True, "whitening": 1.0, "root": False, "within_image": 0.0,
    "class_probabilities": 0.0,
    "kmeans_iterations": 20,
    "spherical": False, "empty": "sample", "heads": 1, "grouping": "kmeans",
    "temperature": 0.0, "projection_hidden": 0, "projection_dim": 0, "instance_temperature": 0.0, "renumber": False,
    "sampling": "uniform", "lr": 0.05, "schedule": "constant", "warmup": 0.0, "momentum": 0.9, "weight_decay": 1e-5,
    "views": 1, "view_size": 0, "crop_min": 0.08, "crop_max": 1.0, "stretch": 4 / 3, "flip": 0.5, "rotation": 0.0,
    "colour": 0.0, "grey": 0.0, "small_views": 0, "precision": "fp32", "patience": 3,
}  # fmt: skip
V1 = PAPER | {
    "backbone": "alexnet", "sobel": True, "image_size": 224, "store_size": 256, "pseudo_labels": 10_000,
    "rounds": 500, "epochs": 1, "dims": 256, "batch_size": 256, "empty": "split",
}  # fmt: skip
V2 = {
    "backbone": "timm:resnet50", "image_size": 224, "clusters": (3000, 3000, 3000), "rounds": 400, "root": False,
    "features": "memory", "spherical": True, "reduce": False, "kmeans_iterations": 10,
    "views": 2, "view_size": 160, "crop_min": 0.08, "crop_max": 1,
    "small_views": 4, "small_size": 96,
    "temperature": 0.1, "projection_hidden": 2048, "projection_dim": 128, "instance_temperature": 0,
    "lr": 0.3, "batch_size": 256,  # 4.8 for 4,096
    "schedule": "cosine", "warmup": 10, "weight_decay": 1e-6, "sampling": "none",
}  # fmt: skip
RELEASED = {
    "rounds": 200, "sobel": False, "sampling": "official", "empty": "faiss", "renumber": True, "patience": 10**6,
}  # fmt: skip
PUBLISHED = {  # the paper, the defaults of the released code, and the scripts of DeepCluster-v2
    "v1": V1,
    "v1-official": V1 | RELEASED,
    "v2": V2,
    RECIPES / "v2-400-2x224.toml": V2 | {"view_size": 224, "small_views": 0},
    RECIPES / "v2-800.toml": V2 | {"rounds": 800, "view_size": 224, "small_views": 6, "crop_min": 0.14},
}


@pytest.mark.parametrize("name", PUBLISHED, ids=lambda name: Path(name).stem)
def test_the_published_runs(name):
    recipe = plan_of(str(name), {}, IMAGENET).recipe
    assert {option: getattr(recipe, option) for option in PUBLISHED[name]} == PUBLISHED[name]


DEPARTURES = {  # what has a reason, and figures of what was published
    "v1": ("margin patience empty", ""),
    "v1-official": ("margin sobel rounds sampling renumber", "500"),
    "v2": ("batch_size lr optimizer schedule colour features empty", "4096 4.8 LARC 0.0048 8 GPUs"),
    RECIPES / "v2-800.toml": ("batch_size optimizer", "4096 LARC"),
}


def test_departures_from_what_was_published_are_named():
    """Unless they are undone, or nobody takes the run for the published one."""
    for name, (options, figures) in DEPARTURES.items():
        plan = plan_of(str(name), {}, IMAGENET)
        assert plan.reasons.keys() >= {*options.split()}, name
        assert all(figure in " ".join(plan.by_reason()) for figure in figures.split()), name
    assert plan_of("v1", {"patience": 9}, IMAGENET).reasons["patience"] == "given"
    other = plan_of("v2", {"backbone": "compact", "image_size": 32}, PHOTOS)
    assert not any("LARC" in reason for reason in other.reasons.values())


def test_too_many_clusters_of_a_recipe_are_lowered(tmp_path):
    (tmp_path / "mine.toml").write_text(to_toml(Recipe()))
    for name in ("v1", str(tmp_path / "mine.toml")):
        plan = plan_of(name, {}, replace(PHOTOS, count=300))
        assert plan.recipe == replace(Recipe(), pseudo_labels=15)
        assert re.search("10,000 .*300 ", plan.reasons["pseudo_labels"])


# ---- to fit the images ----------------------------------------------------------------------------------------------


MANY = replace(LARGE, count=200_000)
GENTLE = {"rounds": 0, "lr": 0.001, "temperature": 0.07, "average": 0.4, "whitening": 0.0, "within_image": 1.0}
GENTLE |= {"dims": 256, "frozen_statistics": True}
RESOLVED = [  # recipe, options, facts of the images, and what the recipe has then
    ("auto", {}, PHOTOS, {"backbone": "compact", "image_size": 32, "pseudo_labels": 50, "epochs": 1, "flip": 0.5}),
    ("auto", {}, PHOTOS, {"view_size": 24, "views": 2, "clusters": (50, 100, 200), "grey": 0.2}),
    ("auto", {}, GREY, {"image_size": 16, "view_size": 16, "epochs": 3, "flip": 0.0, "colour": 0.0}),
    ("auto", {}, LARGE, {"image_size": 64}),
    ("auto", {}, replace(PHOTOS, count=12, n_clusters=5), {"pseudo_labels": 5}),
    ("auto", {}, replace(PHOTOS, count=3, n_clusters=None), {"pseudo_labels": 3}),
    # a pretrained network is used as it is, and adapted gently if rounds are given
    *(("auto", RESNET, replace(PHOTOS, count=count), GENTLE) for count in (50, 90_000)),
    ("auto", RESNET | {"rounds": 1}, PHOTOS, GENTLE | {"rounds": 1}),
    ("auto", {"backbone": "timm:resnet18"}, PHOTOS, {"average": 1, "whitening": 0.25, "lr": 0.25, "rounds": 90}),
    ("auto", {"backbone": "timm:resnet18"}, PHOTOS, {"within_image": 0.0}),
    # a handful of images is not seen thousands of times
    *((base, weights, replace(PHOTOS, count=3, n_clusters=2), {"epochs": 50})
      for base in ("auto", "classic") for weights in ({}, RESNET)),
    *((base, weights, replace(PHOTOS, count=100, n_clusters=2), {"epochs": 20 if weights else 50})
      for base in ("auto", "classic") for weights in ({}, RESNET)),
    # few labels are learnt of few images, but one per cluster
    *(("classic", {}, replace(PHOTOS, count=count, n_clusters=clusters), {"pseudo_labels": fine})
      for count, clusters, fine in ((9_999, None, 20), (9_999, 2, 10), (9_999, 30, 30), (60, 3, 3),
                                    (10_000, None, 100), (10_000, 200, 200))),
    # the paper's networks have one size, and a filter in the paper's recipe
    ("auto", {"backbone": "vgg16", "weights": "w.pth"}, PHOTOS,
     {"image_size": 224, "view_size": 224, "within_image": 0.0, "whitening": 0.25}),
    ("auto", {"backbone": "vgg16", "weights": "w.pth", "whitening": 0.5}, PHOTOS, {"whitening": 0.5}),
    # without the scaling there is whitening
    ("auto", RESNET | {"within_image": 0.0}, PHOTOS, {"within_image": 0.0, "whitening": 0.25}),
    ("auto", RESNET | {"within_image": 2.0}, PHOTOS, {"within_image": 2.0, "whitening": 0.0}),
    # a network that is sure of its classes
    *(("auto", {"backbone": "photos-small", **options}, replace(LARGE, certainty=certainty),
       {"class_probabilities": scale, "within_image": weight})
      for certainty, scale, weight, options in (
          (None, 0, 1, {}), (0.3, 0, 1, {}), (0.35, 0.17, 0.75, {}), (0.6, 0.7, 0.1, {}),
          (0.6, 0.7, 0, {"within_image": 0.0}), (0.6, 0.2, 0.1, {"class_probabilities": 0.2}),
          (0.6, 0, 1, {"class_probabilities": 0.0}))),
    ("auto", RESNET, replace(PHOTOS, certainty=0.6), {"class_probabilities": 0, "within_image": 1}),
    ("classic", {"backbone": "vgg16"}, PHOTOS, {"sobel": True}),
    ("v1-official", {"sobel": "true"}, PHOTOS, {"sobel": True}),
    ("v2", {"backbone": "alexnet"}, PHOTOS, {"image_size": 224, "view_size": 224, "small_views": 0}),
    # the proportions of v2 stay with another network
    ("v2", {"backbone": "compact", "image_size": "56"}, replace(PHOTOS, count=20_000),
     {"view_size": 40, "small_size": 24, "store_size": 56, "pseudo_labels": 1000}),
    # square roots of features that are never negative
    ("auto", {"backbone": "photos-small"}, PHOTOS, {"root": True}),
    ("auto", {"backbone": LITE, "weights": "w.safetensors"}, PHOTOS, {"root": True}),
    ("auto", {"backbone": "photos-small", "root": "false"}, PHOTOS, {"root": False}),
    ("auto", {"backbone": LITE}, PHOTOS, {"root": False}),  # from nothing
    ("classic", {"backbone": "photos-small"}, PHOTOS, {"root": False}),
    # values as text, and the numbers of several clusterings
    ("auto", {"rounds": "3", "dims": 64, "empty": "sample"}, PHOTOS, {"rounds": 3, "dims": 64, "empty": "sample"}),
    ("v1", {"pseudo_labels": 50, "heads": 3, "head_growth": 2.0}, PHOTOS, {"clusters": (50, 100, 200)}),
    # images are enlarged for a published network
    *(("auto", {"backbone": LITE, "weights": "timm"} | options, facts, {"image_size": size, "view_size": view})
      for options, facts, size, view in (
          ({}, replace(MANY, short_side=28), 224, 112), ({}, replace(MANY, short_side=27), 64, 48),
          ({"image_size": 128}, MANY, 128, 96), ({"image_size": 384}, MANY, 384, 192),
          ({"weights": "none"}, MANY, 144, 108),
      )),
    ("auto", {"backbone": "photos"}, MANY, {"image_size": 224, "root": False}),
    ("classic", {"backbone": "photos-small"}, MANY, {"image_size": 224}),
]  # fmt: skip


@pytest.mark.parametrize(("base", "options", "facts", "expected"), RESOLVED)
def test_a_recipe_follows_the_facts_and_the_options(base, options, facts, expected):
    plan = plan_of(base, options, facts)
    assert {name: getattr(plan.recipe, name) for name in expected} == expected
    assert all(plan.reasons[name] == "given" for name in options if name not in ("backbone", "weights", "image_size"))
    named = {"backbone", "image_size", "pseudo_labels", "epochs", "rounds", "lr"}
    assert base != "auto" or named <= plan.reasons.keys()


SIZES = {"backbone", "sobel", "image_size", "margin", "dims", "pseudo_labels", "batch_size", "rounds", "epochs"}
UNUSED = {"head_growth"}
LEARNING = {"lr": 0.1, "schedule": "cosine", "weight_decay": 5e-4, "precision": "auto"}  # not the paper's
VIEWS = {"view_size", "crop_min", "crop_max", "stretch", "flip", "rotation", "colour", "grey"}


@pytest.mark.parametrize(
    ("facts", "fine", "batch_size", "rounds"),
    [(PHOTOS, 100, 64, 90), (GREY, 10, 32, 8), (replace(LARGE, count=500, published="photos"), 10, 32, 8)],
)
def test_classic_is_the_paper_at_the_size_of_the_images(facts, fine, batch_size, rounds):
    plan = plan_of("classic", {}, facts)
    options, auto = asdict(plan.recipe), asdict(plan_of("auto", {"weights": "none"}, facts).recipe)
    assert PAPER.keys() | SIZES | UNUSED | {"tolerance"} == options.keys()
    departures = {name for name in PAPER if options[name] != PAPER[name]}
    assert LEARNING.keys() <= departures <= plan.reasons.keys() & (LEARNING.keys() | VIEWS)
    assert {name: options[name] for name in LEARNING} == LEARNING
    assert (options["tolerance"], options["dims"], options["sobel"]) == (0.1, 0, False)
    assert (options["pseudo_labels"], options["batch_size"], options["rounds"]) == (fine, batch_size, rounds)
    for name in {"backbone", "image_size", "margin", "epochs", *VIEWS} - (set() if facts.grey else {"crop_min"}):
        assert options[name] == auto[name]


def test_unusable_files_change_the_plan_but_no_size_that_was_read(tmp_path):
    """The recipe file is read once: it may be gone when the images have been read."""
    (file := tmp_path / "mine.toml").write_text("lr = 0.125\n")
    request = read_request({}, str(file))
    file.unlink()
    facts = replace(LARGE, count=5051, published="photos-small", n_clusters=None)
    first, second = plan_of("auto", {}, facts).recipe, plan_of("auto", {}, replace(facts, count=50)).recipe
    assert first.pseudo_labels > 50 >= second.pseudo_labels
    start = RunStart("run", Plan(first, {}), request, None, facts)
    sure = {"class_probabilities": 0.7, "within_image": 0.1}  # by the certainty, which is known now
    assert start.plan_if(count=50, certainty=0.6).recipe == replace(second, **sure, lr=0.125)
    assert start.plan_if(certainty=1.0).recipe == replace(first, **sure, lr=0.125)


@pytest.mark.parametrize("base", PRESETS)
@pytest.mark.parametrize("options", [{}, RESNET, {"backbone": "photos-small"}, {"backbone": "alexnet", "weights": ""}])
def test_no_size_depends_on_the_number_of_images(base, options):
    recipes = [plan_of(base, options, replace(LARGE, count=count)).recipe for count in (20, 9_999, 200_000)]
    assert len({(recipe.image_size, recipe.store_size, recipe.view_size, recipe.small_size) for recipe in recipes}) == 1


@pytest.mark.parametrize("named", [{"backbone": "photos-small"}, RESNET])
def test_classic_with_pretrained_weights_is_the_same_at_a_lower_learning_rate(named):
    plan = plan_of("classic", named, PHOTOS)
    options = asdict(plan.recipe)
    assert options.pop("weights")
    changed = {name for name in PAPER.keys() - {"weights"} if options[name] != PAPER[name]}
    assert changed == {"lr"} and options["lr"] == 0.001 and "lr" in plan.reasons
    assert plan.recipe.rounds > plan.recipe.patience + 1  # else assignments could never settle


@pytest.mark.parametrize("base", ["auto", "v1", "v2"])
def test_a_network_of_one_size_gets_views_of_it(base):
    plan = plan_of(base, {"backbone": "timm:vit_tiny_patch16_224", "image_size": 96}, LARGE)
    assert plan.recipe.view_size in (0, 96) and not plan.recipe.small_views
    with pytest.raises(UsageError, match=r"view_size=60.* 96 px"):
        plan_of(base, {"backbone": "timm:vit_tiny_patch16_224", "image_size": 96, "view_size": 60}, PHOTOS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": 1}, "views=1"),
        ({"projection_dim": 0}, "projection_dim"),
        ({"crop_min": "2"}, "crop_max"),
        ({"view_size": 5}, "view_size=5 "),
        ({"renumber": "true"}, "temperature=0"),
        ({"features": "memory", "within_image": 1}, "features=pass"),
        ({"rounds": "many"}, "rounds='many'"),
        ({"sobel": "maybe"}, "sobel='maybe'"),
        ({5: 1}, "called 5"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(UsageError, match=message):
        plan_of("auto", options, PHOTOS)


def test_toml_round_trip(tmp_path):
    of_numpy = {"epochs": np.int64(2), "momentum": np.float32(0.5)}
    recipe = plan_of("auto", {**RESNET, **of_numpy, "weights": 'odd "name".pt', "lr": 1e-7}, PHOTOS).recipe
    assert tomllib.loads(to_toml(recipe)) == asdict(recipe)
    file = tmp_path / "mine.toml"
    file.write_text(to_toml(recipe))
    assert plan_of(str(file), {}, PHOTOS).recipe == recipe
    file.write_text('base = "v1"\nrounds = 7\n')
    assert plan_of(str(file), {"lr": 0.01}, PHOTOS).recipe == replace(Recipe(), rounds=7, lr=0.01)


@pytest.mark.parametrize(
    ("text", "message"),
    [("rounds = ", "mine.toml"), ('base = "v9"', "v9"), ('base = ["auto"]', "auto"), ("roundz = 3", "roundz.* rounds")],
)
def test_a_wrong_recipe_file_is_named(tmp_path, text, message):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        plan_of(str(file), {}, PHOTOS)
    with pytest.raises(UsageError, match=r"none\.toml"):
        plan_of("none.toml", {}, PHOTOS)


# ---- classic end to end: clusters by k-means, and k centroids are all that a new image needs -------------------------


def test_in_classic_each_image_is_in_the_cluster_of_the_nearest_of_k_means(fit_once, finished):
    """One more update moves no mean, as k-means has converged on so few images."""
    run = fit_once("--recipe", "classic")
    centroids, features = models.load(run).cut.centroids, torch.from_numpy(np.load(run / "features.npy"))
    table = rows(run / "clusters.csv")
    cluster, distance = (torch.tensor([float(row[name]) for row in table]) for name in ("cluster", "distance"))
    away = torch.cdist(features.double(), centroids.double())
    assert torch.equal(away.argmin(1), cluster.long())
    assert torch.allclose(away.min(1).values.float(), distance, atol=1e-4)
    means = torch.stack([features[cluster == number].mean(0) for number in range(3)])
    assert torch.allclose(means, centroids, atol=1e-5)
    # It alone says that images are few: both runs have 48 and no weights.
    assert [(folder / "log.txt").read_text().count(" Few: 48 images") for folder in (run, finished)] == [1, 0]


@pytest.mark.parametrize(("options", "centroids"), [(("--recipe", "classic"), 2), (("--labels", "folders"), 5)])
def test_recut_groups_as_the_recipe_of_the_run_says(fit_once, tmp_path, options, centroids):
    run = Path(shutil.copytree(fit_once(*options), tmp_path / "run"))
    recut(run, 2)
    groups = models.load(run).cut
    assert groups.count == 2 and len(groups.centroids) == centroids


KMEANS, LAYOUT = Recipe(grouping="kmeans"), Recipe(grouping="layout")
cut_sample = partial(build.cut_sample, layouts=Layouts())


@pytest.mark.parametrize("fine", [20, 9])
def test_the_best_of_several_starts_counts(fine):
    """Nine blobs: a single random start merges two of them more often than not, that of as many fine clusters, too."""
    middles = 5 * torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0)).repeat_interleave(30, 0)
    x = middles + 0.1 * torch.randn(270, 2, generator=torch.Generator().manual_seed(0))
    for seed in range(3):
        groups = cut_sample(x, kmeans(x, fine, seed=seed), 9, seed, KMEANS)
        nearest = torch.cdist(x, groups.centroids).argmin(1)
        assert torch.bincount(nearest).tolist() == [30] * 9


def test_the_option_and_the_number_decide(monkeypatch):
    """Very many groups, if as many as pseudo-labels, are the last clustering."""
    x = torch.nn.functional.normalize(torch.randn(100, 8, generator=torch.Generator().manual_seed(0)))
    fine = kmeans(x, 5)
    groups, expected = cut_sample(x, fine, 4, 0, LAYOUT), cut_features(x, 4, seed=derive(0, "groups"))
    assert torch.equal(groups.centroids, expected.centroids) and torch.equal(groups.cluster_of, expected.cluster_of)
    assert cut_sample(x, fine, 4, 0, KMEANS).cluster_of.tolist() == [0, 1, 2, 3]
    assert len(cut_sample(x, fine, 5, 0, LAYOUT).centroids) > 5
    monkeypatch.setattr(build, "MAX_IN_CUT", 4)  # very many
    for recipe in (KMEANS, LAYOUT):
        assert torch.equal(cut_sample(x, fine, 5, 0, recipe).centroids, as_clusters(fine).centroids)
    assert cut_sample(x, fine, 6, 0, replace(KMEANS, empty="faiss")).count == 6
