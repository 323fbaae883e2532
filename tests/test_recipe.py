import tomllib
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from deepcluster.errors import DataError, UsageError
from deepcluster.presets import Facts, Plan, resolve
from deepcluster.recipe import Recipe, to_toml

RECIPES = Path(__file__).parent.parent / "examples/recipes"
PHOTOS = Facts(count=50_000, short_side=32, grey=False, n_clusters=10, device="cpu")
GREY = replace(PHOTOS, short_side=8, count=1797, grey=True)
LARGE = replace(PHOTOS, short_side=300)
IMAGENET = replace(PHOTOS, count=1_281_167, short_side=400)
LITE = "timm:tf_efficientnet_lite0"
RESNET = {"weights": "w.safetensors", "backbone": "timm:resnet18"}  # pretrained

# ---- as published ---------------------------------------------------------------------------------------------------

V1 = {
    "backbone": "alexnet", "sobel": True, "image_size": 224, "store_size": 256, "pseudo_labels": 10_000,
    "rounds": 500, "epochs": 1, "dims": 256, "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-5, "batch_size": 256,
    "schedule": "constant", "kmeans_iterations": 20, "kmeans_start": "random", "empty": "split",
    "sampling": "uniform", "grouping": "kmeans", "whitening": 1, "precision": "fp32", "average": 1, "root": False,
    "crop_min": 0.08, "crop_max": 1, "flip": 0.5, "colour": 0,
}  # fmt: skip
V2 = {
    "backbone": "timm:resnet50", "image_size": 224, "clusters": (3000, 3000, 3000), "rounds": 400, "root": False,
    "features": "memory", "spherical": True, "reduce": False, "kmeans_iterations": 10, "kmeans_start": "random",
    "views": 2, "view_size": 160, "crop_min": 0.08, "crop_max": 1,
    "small_views": 4, "small_size": 96, "small_crop_min": 0.05, "small_crop_max": 0.14,
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
    recipe = resolve(str(name), {}, IMAGENET).recipe
    assert {option: getattr(recipe, option) for option in PUBLISHED[name]} == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("v1", ["whole image", "always all rounds", "some may", "number of rounds"]),
        ("v1-official", ["main.sh", "the paper has 500", "does not balance", "numbered anew", "number of rounds"]),
        ("v2", ["4096", "4.8", "LARC", "0.0048", "hue", "taking turns", "training mode", "old centroid", "8 GPUs"]),
        (RECIPES / "v2-800.toml", ["4096", "LARC"]),
    ],
)
def test_departures_from_what_was_published_are_named(name, published):
    text = "\n".join(resolve(str(name), {}, IMAGENET).by_reason())
    assert all(words in text for words in published)


def test_a_departure_that_was_undone_is_not_named():
    assert resolve("v1", {"patience": 9}, IMAGENET).reasons["patience"] == "given"
    other = resolve("v2", {"backbone": "compact", "image_size": 32}, PHOTOS)
    assert not any("LARC" in reason for reason in other.reasons.values())  # nobody takes that for the published run


def test_too_many_clusters_are_lowered_but_not_those_given(tmp_path):
    (tmp_path / "mine.toml").write_text(to_toml(Recipe()))
    for name in ("v1", str(tmp_path / "mine.toml")):
        plan = resolve(name, {}, replace(PHOTOS, count=300))
        assert plan.recipe == replace(Recipe(), pseudo_labels=15)
        assert plan.reasons["pseudo_labels"] == "the recipe's 10,000 is more than the 300 images"
    with pytest.raises(DataError, match=r"60000 .* 50000"):
        resolve("auto", {"pseudo_labels": "60000"}, PHOTOS)


def test_v2_with_another_network_keeps_the_proportions():
    plan = resolve("v2", {"backbone": "compact", "image_size": "56"}, replace(PHOTOS, count=20_000))
    assert (plan.recipe.view_size, plan.recipe.small_size, plan.recipe.store_size) == (40, 24, 56)
    assert plan.recipe.pseudo_labels == 1000 and "3000" in plan.reasons["pseudo_labels"]
    recipe = resolve("v2", {"backbone": "alexnet"}, PHOTOS).recipe
    assert (recipe.image_size, recipe.view_size, recipe.small_views) == (224, 224, 0)  # it takes no other


# ---- to fit the images ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (PHOTOS, {"backbone": "compact", "image_size": 32, "pseudo_labels": 50, "epochs": 1, "flip": 0.5}),
        (PHOTOS, {"view_size": 24, "views": 2, "clusters": (50, 100, 200), "grey": 0.2}),
        (GREY, {"image_size": 16, "view_size": 16, "epochs": 3, "flip": 0.0, "colour": 0.0}),
        (LARGE, {"image_size": 64}),
        (replace(LARGE, device="cuda"), {"image_size": 96}),
        (replace(PHOTOS, count=12, n_clusters=5), {"pseudo_labels": 5}),
        (replace(PHOTOS, count=3, n_clusters=None), {"pseudo_labels": 3}),
    ],
)
def test_auto_follows_the_facts(facts, expected):
    plan = resolve("auto", {}, facts)
    assert {name: getattr(plan.recipe, name) for name in expected} == expected
    assert {"backbone", "image_size", "pseudo_labels", "epochs", "rounds", "lr"} <= plan.reasons.keys()


# The paper, section 4 and its code; the paper's step 4 moves an empty cluster beside another one.
PAPER = {
    "weights": "", "frozen_statistics": False, "average": 1.0,
    "features": "pass", "reduce": True, "whitening": 1.0, "root": False,
    "clustering": "kmeans", "kmeans_iterations": 20, "kmeans_start": "random",
    "spherical": False, "empty": "sample", "heads": 1, "grouping": "kmeans",
    "temperature": 0.0, "projection_hidden": 0, "projection_dim": 0, "instance_temperature": 0.0, "renumber": False,
    "sampling": "uniform", "lr": 0.05, "schedule": "constant", "warmup": 0.0, "momentum": 0.9, "weight_decay": 1e-5,
    "views": 1, "view_size": 0, "crop_min": 0.08, "crop_max": 1.0, "stretch": 4 / 3, "flip": 0.5, "rotation": 0.0,
    "colour": 0.0, "grey": 0.0, "small_views": 0, "precision": "fp32", "patience": 3,
}  # fmt: skip
SIZES = {"backbone", "sobel", "image_size", "margin", "dims", "pseudo_labels", "batch_size", "rounds", "epochs"}
UNUSED = {"head_growth", "small_size", "small_crop_min", "small_crop_max"}


@pytest.mark.parametrize("facts", [PHOTOS, GREY, replace(LARGE, count=500, published="photos")])
def test_classic_is_the_paper_at_the_size_of_the_images(facts):
    plan = resolve("classic", {}, facts)
    options, chosen = asdict(plan.recipe), asdict(resolve("auto", {"weights": "none"}, facts).recipe)
    assert PAPER.keys() | SIZES | UNUSED | {"tolerance"} == options.keys()
    assert {name: options[name] for name in PAPER} == PAPER | ({"flip": 0.0} if facts.grey else {})
    assert ("flip" in plan.reasons) == facts.grey and plan.reasons["tolerance"].startswith("settled")
    assert (options["tolerance"], options["dims"], options["sobel"]) == (0.1, 0, False)
    for name in ("backbone", "image_size", "margin", "pseudo_labels", "epochs", "batch_size"):
        assert options[name] == chosen[name]


@pytest.mark.parametrize("named", [{"backbone": "photos-small"}, RESNET])
def test_classic_with_pretrained_weights_is_the_same_at_a_lower_learning_rate(named):
    plan = resolve("classic", named, PHOTOS)
    options = asdict(plan.recipe)
    assert options.pop("weights")
    changed = {name for name in PAPER.keys() - {"weights"} if options[name] != PAPER[name]}
    assert changed == {"lr"} and options["lr"] == 0.001 and "lr" in plan.reasons
    assert plan.recipe.rounds > plan.recipe.patience + 1  # else assignments could never settle


@pytest.mark.parametrize(("count", "device"), [(50, "cpu"), (90_000, "cpu"), (90_000, "cuda")])
def test_a_pretrained_network_is_adapted_gently_for_one_round(count, device):
    facts = replace(PHOTOS, count=count, device=device)
    gentle = resolve("auto", RESNET, facts).recipe
    untrained = resolve("auto", {"backbone": "timm:resnet18"}, facts).recipe
    assert gentle.rounds == 1 < untrained.rounds and gentle.lr < untrained.lr
    assert (gentle.average, gentle.whitening, gentle.dims) == (0.4, 0.25, 256)
    assert (untrained.average, untrained.whitening) == (1, 0.25)


@pytest.mark.parametrize("base", ["auto", "classic"])
@pytest.mark.parametrize("weights", [{}, RESNET])
def test_a_handful_of_images_is_not_seen_thousands_of_times(base, weights):
    few, many = (resolve(base, weights, replace(PHOTOS, count=count, n_clusters=2)).recipe for count in (3, 100))
    assert few.epochs == 50 and many.epochs == (20 if weights else 50)


@pytest.mark.parametrize(
    ("base", "options", "expected"),
    [
        # the paper's networks have one size, and a filter in the paper's recipe
        ("auto", {"backbone": "alexnet"}, {"image_size": 224, "view_size": 224}),
        ("auto", {"backbone": "vgg16", "weights": "w.pth"}, {"image_size": 224, "view_size": 224}),
        ("classic", {"backbone": "alexnet"}, {"sobel": True}),
        ("classic", {"backbone": "vgg16"}, {"sobel": True}),
        ("v1-official", {"sobel": "true"}, {"sobel": True}),
        # square roots of features that are never negative
        ("auto", {"backbone": "photos-small"}, {"root": True}),
        ("auto", {"backbone": LITE, "weights": "w.safetensors"}, {"root": True}),
        ("auto", {"backbone": "photos-small", "root": "false"}, {"root": False}),
        ("auto", {"backbone": LITE}, {"root": False}),  # from nothing
        ("auto", {"backbone": "photos"}, {"root": False}),
        ("classic", {"backbone": "photos-small"}, {"root": False}),
        # values as text, and the numbers of several clusterings
        ("auto", {"rounds": "3", "dims": 64, "empty": "sample"}, {"rounds": 3, "dims": 64, "empty": "sample"}),
        ("v1", {"pseudo_labels": 50, "heads": 3, "head_growth": 2.0}, {"clusters": (50, 100, 200)}),
    ],
)
def test_recipes_for_other_networks_and_options(base, options, expected):
    plan = resolve(base, options, PHOTOS)
    assert {name: getattr(plan.recipe, name) for name in expected} == expected
    assert all(plan.reasons[name] == "given" for name in options if name not in ("backbone", "weights"))


@pytest.mark.parametrize(
    ("changes", "options", "sizes"),
    [
        ({"count": 5000}, {"weights": "timm"}, (224, 112)),
        ({"count": 5001}, {"weights": "timm"}, (144, 108)),
        ({"count": 5000, "short_side": 28}, {"weights": "timm"}, (224, 112)),
        ({"count": 5001, "short_side": 28}, {"weights": "timm"}, (144, 108)),
        ({"count": 5000, "short_side": 27}, {"weights": "timm"}, (64, 48)),
        ({"count": 5001, "device": "cuda"}, {"weights": "timm"}, (224, 168)),
        ({"count": 5000}, {"weights": "none"}, (144, 108)),
        ({"count": 5000}, {"weights": "timm", "image_size": 128}, (128, 96)),
        ({"count": 5000}, {"weights": "timm", "image_size": 384}, (384, 192)),
    ],
)
def test_images_are_enlarged_for_a_published_network(changes, options, sizes):
    recipe = resolve("auto", {"backbone": LITE, **options}, replace(LARGE, **changes)).recipe
    assert (recipe.image_size, recipe.view_size) == sizes


@pytest.mark.parametrize("base", ["auto", "v1", "v2"])
def test_a_network_of_one_size_gets_images_and_views_of_it(base):
    plan = resolve(base, {"backbone": "timm:vit_tiny_patch16_224", "image_size": 100}, LARGE)
    assert plan.recipe.image_size == 96
    assert plan.recipe.view_size in (0, 96) and not plan.recipe.small_views
    assert plan.reasons["image_size"] == "the nearest to 100 that timm:vit_tiny_patch16_224 takes"
    with pytest.raises(UsageError, match=r"view_size=60.*one size, 96 px"):
        resolve(base, {"backbone": "timm:vit_tiny_patch16_224", "image_size": 96, "view_size": 60}, PHOTOS)


@pytest.mark.parametrize(("sobel", "base"), [(True, "auto"), (False, "auto"), (True, "v1-official"), (False, "v1")])
def test_weights_in_a_published_layout_choose_their_network(tmp_path, sobel, base):
    names = ["features.module.0.weight", "classifier.1.weight", "classifier.4.weight"]
    names += ["sobel.0.weight", "sobel.1.weight"] if sobel else []
    path = str(tmp_path / "weights.pth")
    torch.save({"state_dict": {name: torch.zeros(1) for name in names}}, path)
    plan = resolve(base, {"weights": path}, PHOTOS)
    assert (plan.recipe.backbone, plan.recipe.sobel) == ("alexnet", sobel)
    assert plan.reasons["sobel"] == f"the network of {path}"
    assert not resolve("auto", {"weights": path, "backbone": "alexnet"}, PHOTOS).recipe.sobel  # as was named


# ---- options and files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"round": "3"}, "did you mean rounds"),
        ({"views": 1}, "needs two views: views=1"),
        ({"projection_dim": 0}, "set both or neither"),
        ({"small_crop_min": 0.5}, "small_crop_min=0.5 is larger than small_crop_max=0.14"),
        ({"crop_min": "2"}, "crop_max"),
        ({"view_size": 5}, "view_size=5 must be 0"),
        ({"clustering": "pic"}, "clustering=pic gives one clustering"),
        ({"kmeans_start": "previous", "clustering": "pic", "heads": 1}, "kmeans_start=previous is for k-means"),
        ({"renumber": "true"}, "for a new linear head: temperature=0.1"),
        ({"rounds": "many"}, "whole number"),
        ({"lr": "fast"}, "a number"),
        ({"lr": "nan"}, "between"),
        ({"sobel": "maybe"}, "true or false"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UsageError, match=message):
        resolve("auto", options, PHOTOS)


def test_toml_round_trip(tmp_path):
    recipe = resolve("auto", {**RESNET, "weights": 'odd "name".pt', "lr": 1e-7}, PHOTOS).recipe
    assert tomllib.loads(to_toml(recipe)) == asdict(recipe)
    file = tmp_path / "mine.toml"
    file.write_text(to_toml(recipe))
    assert resolve(str(file), {}, PHOTOS).recipe == recipe
    file.write_text('base = "v1"\nrounds = 7\n')
    assert resolve(str(file), {"lr": 0.01}, PHOTOS).recipe == replace(Recipe(), rounds=7, lr=0.01)


@pytest.mark.parametrize(
    ("text", "message"), [("rounds = ", "cannot be read"), ('base = "v9"', "v9"), ("roundz = 3", "did you mean rounds")]
)
def test_bad_recipe_files(tmp_path, text, message):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        resolve(str(file), {}, PHOTOS)
    for name in ("v2x", "none.toml"):
        with pytest.raises(UsageError, match=name):
            resolve(name, {}, PHOTOS)


def test_a_reason_stands_on_one_line():
    plan = Plan(Recipe(lr=1), {"lr": "new: as said", "rounds": "given", "heads": "new: as said", "optimizer": "SGD"})
    assert plan.by_reason() == ["lr 1, heads 1: new: as said", "rounds 500: given", "optimizer: SGD"]
