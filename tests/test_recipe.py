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

IMAGENET = replace(PHOTOS, count=1_281_167, short_side=400)


def test_v1_is_the_paper():
    recipe = resolve("v1", {}, replace(PHOTOS, count=1_281_167)).recipe
    assert (recipe.backbone, recipe.sobel, recipe.image_size, recipe.store_size) == ("alexnet", True, 224, 256)
    assert (recipe.pseudo_labels, recipe.rounds, recipe.epochs, recipe.dims) == (10_000, 500, 1, 256)
    assert (recipe.lr, recipe.momentum, recipe.weight_decay, recipe.batch_size) == (0.05, 0.9, 1e-5, 256)
    assert (recipe.schedule, recipe.kmeans_iterations, recipe.empty) == ("constant", 20, "split")
    assert (recipe.grouping, recipe.whitening, recipe.precision, recipe.average) == ("kmeans", 1, "fp32", 1)
    assert (recipe.crop_min, recipe.crop_max, recipe.flip, recipe.colour) == (0.08, 1, 0.5, 0)
    assert recipe.sampling == "uniform"


def test_v1_official_is_the_released_code_by_its_defaults():
    paper, released = (resolve(name, {}, IMAGENET).recipe for name in ("v1", "v1-official"))
    assert (released.rounds, released.sobel, released.sampling) == (200, False, "official")
    assert (released.empty, released.renumber) == ("faiss", True)
    assert released.patience > released.rounds  # it never ends early
    changed = ("rounds", "sobel", "sampling", "empty", "renumber", "patience")
    assert replace(released, **{name: getattr(paper, name) for name in changed}) == paper
    assert resolve("v1-official", {"sobel": "true"}, IMAGENET).recipe.sobel


def test_v1_on_few_images_lowers_the_number_of_clusters_and_says_so():
    plan = resolve("v1", {}, replace(PHOTOS, count=300))
    assert plan.recipe.pseudo_labels == 15
    assert any("10000" in reason and "300" in reason for reason in plan.reasons)


def test_v2_is_the_published_run():
    recipe = resolve("v2", {}, replace(PHOTOS, count=1_281_167, short_side=400)).recipe
    assert (recipe.backbone, recipe.image_size) == ("timm:resnet50", 224)
    assert (recipe.clusters, recipe.rounds) == ((3000, 3000, 3000), 400)
    assert (recipe.views, recipe.view_size, recipe.small_views, recipe.small_size) == (2, 160, 4, 96)
    assert (recipe.crop_min, recipe.crop_max, recipe.small_crop_min, recipe.small_crop_max) == (0.08, 1, 0.05, 0.14)
    assert (recipe.temperature, recipe.projection_hidden, recipe.projection_dim) == (0.1, 2048, 128)
    assert (recipe.features, recipe.spherical, recipe.reduce, recipe.kmeans_iterations) == ("memory", True, False, 10)
    assert recipe.lr == pytest.approx(4.8 * recipe.batch_size / 4096)
    assert (recipe.schedule, recipe.warmup, recipe.weight_decay, recipe.sampling) == ("cosine", 10, 1e-6, "none")
    assert recipe.instance_temperature == 0


@pytest.mark.parametrize(
    ("name", "rounds", "large", "small", "crops"),
    [  # the scripts of its authors
        ("v2", 400, (2, 160), (4, 96), (0.08, 1, 0.05, 0.14)),
        (RECIPES / "v2-400-2x224.toml", 400, (2, 224), (0, 96), (0.08, 1, 0.05, 0.14)),
        (RECIPES / "v2-800.toml", 800, (2, 224), (6, 96), (0.14, 1, 0.05, 0.14)),
    ],
)
def test_the_published_runs_of_v2(name, rounds, large, small, crops):
    recipe = resolve(str(name), {}, IMAGENET).recipe
    assert recipe.rounds == rounds
    assert (recipe.views, recipe.view_size or recipe.image_size) == large
    assert (recipe.small_views, recipe.small_size) == small
    assert (recipe.crop_min, recipe.crop_max, recipe.small_crop_min, recipe.small_crop_max) == crops
    changed = {"rounds": 400, "view_size": 160, "small_views": 4, "crop_min": 0.08}
    assert replace(recipe, **changed) == resolve("v2", {}, IMAGENET).recipe


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("v1", ["whole image", "always all rounds", "some may"]),
        ("v1-official", ["whole image", "main.sh", "the paper has 500", "does not balance", "numbered anew"]),
        ("v2", ["4096", "4.8", "LARC", "0.0048", "hue", "taking turns", "training mode", "old centroid", "8 GPUs"]),
        (RECIPES / "v2-800.toml", ["4096", "LARC"]),
    ],
)
def test_departures_from_what_was_published_are_named(name, published):
    plan = resolve(str(name), {}, IMAGENET)
    text = "\n".join(plan.reasons)
    assert all(each in text for each in published)
    assert all(": " in reason for reason in plan.reasons)
    values = {line.partition(": ")[0].partition(" ")[::2] for line in plan.reasons}
    for option, value in values:
        if option in asdict(plan.recipe):
            of = getattr(plan.recipe, option)
            assert value == (f"{of:.4g}" if isinstance(of, float) else str(of)), option


def test_a_departure_that_was_undone_is_not_named():
    assert not any(line.startswith("patience") for line in resolve("v1", {"patience": 9}, IMAGENET).reasons[:-1])
    other = resolve("v2", {"backbone": "compact", "image_size": 32}, PHOTOS)
    assert not any("LARC" in line for line in other.reasons)  # nobody takes that for the published run


def test_v2_with_another_network_keeps_the_proportions():
    plan = resolve("v2", {"backbone": "compact", "image_size": "56"}, replace(PHOTOS, count=20_000))
    assert (plan.recipe.view_size, plan.recipe.small_size, plan.recipe.store_size) == (40, 24, 56)
    assert plan.recipe.pseudo_labels == 1000
    assert any("1000" in reason and "3000" in reason for reason in plan.reasons)


def test_clusters_of_several_heads():
    assert Recipe(pseudo_labels=50, heads=3, head_growth=2.0).clusters == (50, 100, 200)
    assert Recipe().clusters == (10_000,)


def test_given_options_win_and_are_named():
    plan = resolve("auto", {"rounds": "3", "dims": 64, "empty": "sample", "sampling": "none"}, PHOTOS)
    assert (plan.recipe.rounds, plan.recipe.dims, plan.recipe.empty, plan.recipe.sampling) == (3, 64, "sample", "none")
    assert "rounds 3: given" in plan.reasons
    assert sum(reason.startswith("rounds ") for reason in plan.reasons) == 1


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (PHOTOS, {"backbone": "compact", "image_size": 32, "pseudo_labels": 50, "epochs": 1, "flip": 0.5}),
        (replace(PHOTOS, short_side=8, count=1797, grey=True), {"image_size": 16, "epochs": 3, "flip": 0.0}),
        (replace(PHOTOS, short_side=300), {"image_size": 64}),
        (replace(PHOTOS, short_side=300, device="cuda"), {"image_size": 96}),
        (replace(PHOTOS, count=12, n_clusters=5), {"pseudo_labels": 5}),
        (replace(PHOTOS, count=3, n_clusters=None), {"pseudo_labels": 3}),
        (PHOTOS, {"view_size": 24, "views": 2, "clusters": (50, 100, 200), "grey": 0.2}),
        (replace(PHOTOS, short_side=8, grey=True), {"view_size": 16, "colour": 0.0}),
    ],
)
def test_auto_follows_the_facts(facts, expected):
    recipe = resolve("auto", {}, facts).recipe
    assert {name: getattr(recipe, name) for name in expected} == expected


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
GREY = replace(PHOTOS, short_side=8, count=1797, grey=True)


def test_every_option_of_classic_is_the_papers_or_fits_the_images():
    assert PAPER.keys() | SIZES | UNUSED | {"tolerance"} == asdict(Recipe()).keys()


@pytest.mark.parametrize("facts", [PHOTOS, GREY, replace(PHOTOS, short_side=300, count=500, published="photos")])
def test_classic_is_the_paper_at_the_size_of_the_images(facts):
    plan = resolve("classic", {}, facts)
    options, chosen = asdict(plan.recipe), asdict(resolve("auto", {"weights": "none"}, facts).recipe)
    expected = PAPER | ({"flip": 0.0} if facts.grey else {})
    assert {name: options[name] for name in PAPER} == expected
    assert any(line.startswith("flip 0: the images are grey") for line in plan.reasons) == facts.grey
    assert any(line.startswith("tolerance 0.1: settled") for line in plan.reasons)
    assert (options["tolerance"], options["dims"], options["sobel"]) == (0.1, 0, False)
    for name in ("backbone", "image_size", "margin", "pseudo_labels", "epochs", "batch_size"):
        assert options[name] == chosen[name]


@pytest.mark.parametrize("named", [{"backbone": "photos-small"}, {"weights": "w.pth", "backbone": "timm:resnet18"}])
def test_classic_with_pretrained_weights_is_the_same_at_a_lower_learning_rate(named):
    plan = resolve("classic", named, PHOTOS)
    options = asdict(plan.recipe)
    assert options.pop("weights")
    changed = {name for name in PAPER.keys() - {"weights"} if options[name] != PAPER[name]}
    assert changed == {"lr"} and options["lr"] < PAPER["lr"]
    assert any(line.startswith("lr 0.001: ") for line in plan.reasons)
    assert plan.recipe.rounds > plan.recipe.patience + 1  # else assignments could never settle


@pytest.mark.parametrize("backbone", ["alexnet", "vgg16"])
def test_classic_filters_images_for_the_papers_networks(backbone):
    assert resolve("classic", {"backbone": backbone}, PHOTOS).recipe.sobel


@pytest.mark.parametrize("base", ["v1", "v1-official", "v2"])
def test_published_recipes_start_k_means_anew_and_say_what_ends_them(base):
    plan = resolve(base, {}, PHOTOS)
    assert plan.recipe.kmeans_start == "random"
    assert any(each.startswith("kmeans_start random") and "number of rounds" in each for each in plan.reasons)


def test_previous_clusters_are_a_start_of_k_means_alone():
    assert Recipe(kmeans_start="previous").kmeans_start == "previous"
    with pytest.raises(UsageError, match="kmeans_start=previous is for k-means, and clustering=pic"):
        Recipe(kmeans_start="previous", clustering="pic")
    with pytest.raises(UsageError, match="kmeans_start='last': choose random or previous"):
        Recipe(kmeans_start="last")


def test_auto_gives_a_reason_for_what_it_chose():
    plan = resolve("auto", {}, PHOTOS)
    named = {reason.split(" ")[0] for reason in plan.reasons}
    assert {"backbone", "image_size", "pseudo_labels", "epochs", "rounds", "lr"} <= named
    assert all(": " in reason for reason in plan.reasons)


def test_a_network_with_weights_is_changed_gently():
    gentle = resolve("auto", {"weights": "w.safetensors", "backbone": "timm:resnet18"}, PHOTOS).recipe
    untrained = resolve("auto", {"backbone": "timm:resnet18"}, PHOTOS).recipe
    assert gentle.lr < untrained.lr
    assert (gentle.average, gentle.whitening, gentle.dims) == (0.4, 0.25, 256)
    assert (untrained.average, untrained.whitening) == (1, 0.25)


@pytest.mark.parametrize("backbone", ["alexnet", "vgg16"])
@pytest.mark.parametrize("weights", [{}, {"weights": "checkpoint.pth.tar"}])
def test_auto_gives_the_papers_networks_views_that_they_can_take(backbone, weights):
    recipe = resolve("auto", {"backbone": backbone, **weights}, PHOTOS).recipe
    assert (recipe.image_size, recipe.view_size) == (224, 224)


@pytest.mark.parametrize(("count", "device"), [(50, "cpu"), (90_000, "cpu"), (90_000, "cuda")])
def test_a_pretrained_network_is_adapted_for_one_round(count, device):
    facts = replace(PHOTOS, count=count, device=device)
    assert resolve("auto", {"weights": "w.safetensors", "backbone": "timm:resnet18"}, facts).recipe.rounds == 1


@pytest.mark.parametrize("base", ["auto", "classic"])
@pytest.mark.parametrize("weights", [{}, {"weights": "w.safetensors", "backbone": "timm:resnet18"}])
def test_a_handful_of_images_is_not_seen_thousands_of_times(base, weights):
    few, many = (resolve(base, weights, replace(PHOTOS, count=count, n_clusters=2)).recipe for count in (3, 100))
    assert few.epochs == 50 and many.epochs == (20 if weights else 50)


LITE = "timm:tf_efficientnet_lite0"


@pytest.mark.parametrize(
    ("name", "options", "root"),
    [
        ("auto", {"backbone": "photos-small"}, True),
        ("auto", {"backbone": LITE, "weights": "w.safetensors"}, True),
        ("auto", {"backbone": "photos-small", "root": "false"}, False),
        ("auto", {"backbone": LITE}, False),  # from nothing
        ("auto", {"backbone": "photos"}, False),
        ("auto", {"backbone": "compact"}, False),
        ("classic", {"backbone": "photos-small"}, False),
        ("v1", {}, False),
        ("v2", {}, False),
    ],
)
def test_auto_takes_square_roots_of_features_that_are_never_negative(name, options, root):
    assert resolve(name, options, PHOTOS).recipe.root == root


@pytest.mark.parametrize(
    ("changes", "options", "sizes"),
    [
        ({"count": 5000}, {"weights": "timm"}, (224, 112)),
        ({"count": 5001}, {"weights": "timm"}, (144, 108)),
        ({"count": 5000, "short_side": 96}, {"weights": "timm"}, (224, 112)),
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
    facts = replace(PHOTOS, short_side=300, n_clusters=10)
    options = {"backbone": LITE, **options}
    recipe = resolve("auto", options, replace(facts, **changes)).recipe
    assert (recipe.image_size, recipe.view_size) == sizes


def test_more_pseudo_labels_than_images():
    with pytest.raises(DataError, match=r"60000 .* 50000"):
        resolve("auto", {"pseudo_labels": "60000"}, PHOTOS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"round": "3"}, "did you mean rounds"),
        ({"views": 1}, "for two views of an image: views=1"),
        ({"projection_dim": 0}, "set both or neither"),
        ({"small_crop_min": 0.5}, "small_crop_min=0.5 is larger than small_crop_max=0.14"),
        ({"sampling": "even"}, "uniform or official or none"),
        ({"rounds": "many"}, "whole number"),
        ({"rounds": "1.5"}, "whole number"),
        ({"lr": "fast"}, "a number"),
        ({"lr": "nan"}, "between"),
        ({"lr": "-1"}, "between"),
        ({"sobel": "maybe"}, "true or false"),
        ({"empty": "drop"}, "split or sample or faiss"),
        ({"renumber": "true"}, "for a new linear head: temperature=0.1"),
        ({"views": "101"}, "views=101 must lie between 1 and 100"),
        ({"crop_min": "2"}, "crop_max"),
        ({"rounds": True}, "whole number"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UsageError, match=message):
        resolve("auto", options, PHOTOS)


def test_toml_round_trip(tmp_path):
    recipe = resolve("auto", {"weights": 'odd "name".pt', "backbone": "timm:resnet18", "lr": 1e-7}, PHOTOS).recipe
    assert tomllib.loads(to_toml(recipe)) == asdict(recipe)
    file = tmp_path / "mine.toml"
    file.write_text(to_toml(recipe))
    assert resolve(str(file), {}, PHOTOS).recipe == recipe


def test_a_recipe_file_may_be_partial(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('base = "v1"\nrounds = 7\n')
    recipe = resolve(str(file), {"lr": 0.01}, PHOTOS).recipe
    assert recipe == replace(Recipe(), rounds=7, lr=0.01)


def test_a_recipe_file_made_for_more_images_is_lowered(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(to_toml(Recipe()))
    plan = resolve(str(file), {}, replace(PHOTOS, count=300))
    assert plan.recipe == replace(Recipe(), pseudo_labels=15)
    assert "10000" in plan.reasons[-1]


@pytest.mark.parametrize(
    ("text", "message"), [("rounds = ", "cannot be read"), ('base = "v9"', "v9"), ("roundz = 3", "did you mean rounds")]
)
def test_bad_recipe_files(tmp_path, text, message):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        resolve(str(file), {}, PHOTOS)


@pytest.mark.parametrize("name", ["v2x", "atuo", "none.toml"])
def test_unknown_recipes(name):
    with pytest.raises(UsageError, match=name):
        resolve(name, {}, PHOTOS)


def test_what_has_one_reason_stands_on_one_line():
    plan = Plan(Recipe(), ("lr 1: new: as said", "rounds 3: given", "heads 2: new: as said"))
    assert plan.by_reason() == ["lr 1, heads 2: new: as said", "rounds 3: given"]


@pytest.mark.parametrize("base", ["auto", "v1", "v2"])
def test_a_network_of_one_size_gets_images_and_views_of_it(base):
    plan = resolve(base, {"backbone": "timm:vit_tiny_patch16_224", "image_size": 100}, replace(PHOTOS, short_side=300))
    assert plan.recipe.image_size == 96
    assert plan.recipe.view_size in (0, 96)
    assert not plan.recipe.small_views
    assert [reason for reason in plan.reasons if reason.startswith("image_size")] == [
        "image_size 96: the nearest to 100 that timm:vit_tiny_patch16_224 takes"
    ]


def test_a_view_of_another_size_than_the_network_takes_is_refused():
    with pytest.raises(UsageError, match=r"view_size=60.*one size, 96 px"):
        resolve("auto", {"backbone": "timm:vit_tiny_patch16_224", "image_size": 96, "view_size": 60}, PHOTOS)


def test_v2_with_a_network_of_the_paper_has_views_that_it_takes():
    recipe = resolve("v2", {"backbone": "alexnet"}, PHOTOS).recipe
    assert (recipe.image_size, recipe.view_size, recipe.small_views) == (224, 224, 0)


@pytest.mark.parametrize(("sobel", "base"), [(True, "auto"), (False, "auto"), (True, "v1-official"), (False, "v1")])
def test_weights_in_a_published_layout_choose_their_network(tmp_path, sobel, base):
    names = ["features.module.0.weight", "classifier.1.weight", "classifier.4.weight"]
    names += ["sobel.0.weight", "sobel.1.weight"] if sobel else []
    path = str(tmp_path / "weights.pth")
    torch.save({"state_dict": {name: torch.zeros(1) for name in names}}, path)
    plan = resolve(base, {"weights": path}, PHOTOS)
    assert (plan.recipe.backbone, plan.recipe.sobel) == ("alexnet", sobel)
    assert f"sobel {sobel}: the network of {path}" in plan.reasons
    assert not resolve("auto", {"weights": path, "backbone": "alexnet"}, PHOTOS).recipe.sobel  # as was named
