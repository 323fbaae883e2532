"""The recipes by name, those as published among them, and checks of options.

Nothing here imports torch, except for a timm network or a file of weights.
"""

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from deepcluster.errors import DataError, ModelError, UsageError
from deepcluster.nets.names import MODULE, PAPER_NETWORKS, PUBLISHED, backbone_of, takes_one_size
from deepcluster.recipes.auto import (
    WHITENING,
    ImageFacts,
    OptionValue,
    OptionValues,
    Plan,
    auto,
    because,
    classic,
    fine_clusters,
    image_size_for,
    margin_for,
)
from deepcluster.recipes.options import AUTO, Recipe, read_options, read_toml
from deepcluster.texts import plural


@dataclass(frozen=True)
class RecipeRequest:
    """The recipe that a user asks for, before the images are known."""

    base: str = AUTO  # the preset, by its name in ``PRESETS``
    file_options: dict[str, OptionValue] = field(default_factory=dict)  # of a recipe file
    options: dict[str, OptionValue] = field(default_factory=dict)  # given beside it, which win

    @property
    def all_options(self) -> dict[str, Any]:
        return {**self.file_options, **self.options}

    def without(self, name: str) -> "RecipeRequest":
        """Return the request without an option."""
        given = self.file_options, self.options
        return RecipeRequest(self.base, *({key: values[key] for key in values if key != name} for values in given))


def check_clusters(n_clusters: int | None, count: int) -> None:
    """Raise an error if ``count`` images cannot have ``n_clusters`` clusters."""
    if n_clusters is None:
        return
    if n_clusters < 1:
        raise UsageError(f"{n_clusters} clusters: give a whole number of at least 1, or auto")
    if n_clusters > count:
        raise DataError(f"{n_clusters} clusters are more than the {plural(count, 'image')}: give at most {count}")


def check_weights(options: OptionValues) -> None:
    """Raise ModelError if the option ``weights`` names no file."""
    weights = options.get("weights", "")
    if weights not in ("", "timm", "none") and not os.path.exists(weights):  # noqa: PTH110 (the name may be too long)
        raise ModelError(f"{weights}: there is no such weights file; or give timm or none")


def resolve(request: RecipeRequest, facts: ImageFacts) -> Plan:
    """Resolve a recipe for these images. UsageError if the options do not fit together.

    DataError if the requested ``pseudo_labels`` exceed the number of images; a number from a preset or file is lowered.
    """
    named = request.all_options
    options = spelt_out(named)
    from_weights = _of_weights(options)
    options = {**from_weights, **options}
    reasons = because("given", **options) | because(f"the network of {options.get('weights')}", **from_weights)
    if (backbone := named.get("backbone")) in PUBLISHED:
        of_network = {"backbone", "weights"} - ({"weights"} & named.keys())
        reasons |= {name: (options[name], str(backbone)) for name in of_network}
    plan = PRESETS[request.base](options, facts).changed(reasons)
    fine = plan.recipe.pseudo_labels
    if fine > facts.count:
        if "pseudo_labels" in request.options:
            raise DataError(f"--pseudo-labels {fine} is more than the {facts.count} images: give fewer")
        why = f"the recipe's {fine:,} is more than the {facts.count:,} images"
        plan = plan.changed(because(why, pseudo_labels=fine_clusters(facts)))
    plan = _for_fixed_size(plan, options)
    if plan.recipe.features == "memory" and plan.recipe.within_image:
        raise UsageError("features=memory and within_image exclude each other: set features=pass, or within_image=0")
    return plan


def read_request(options: OptionValues, recipe: str = AUTO) -> RecipeRequest:
    """Read options, which may be texts, and the recipe they change: a name in ``PRESETS``, or a TOML file.

    Raises UsageError if the recipe, an option or a value is unknown, or the file is wrong.
    """
    base, file_options = read_toml(recipe) if recipe.endswith(".toml") else (recipe, {})
    if base not in PRESETS and base != recipe:
        raise UsageError(f"{recipe}: base = {base!r} is not a recipe: choose {' or '.join(PRESETS)}")
    if base not in PRESETS:
        near = difflib.get_close_matches(base, PRESETS, n=1) or list(PRESETS)
        raise UsageError(f"no recipe is called {base!r}: did you mean {' or '.join(near)}, or a file ending in .toml?")
    return RecipeRequest(base, file_options, read_options(options))


def spelt_out(options: OptionValues) -> dict[str, Any]:
    """Return the options with timm's name for a published network, and the weights that belong to it."""
    options = dict(options)
    if options.get("weights") == "none":
        options["weights"] = ""
    if options.get("backbone") in PUBLISHED:
        options = {"weights": "timm", **options, "backbone": backbone_of(options["backbone"])}
    if options.get("backbone") == MODULE:
        options = {"weights": MODULE, **options}
    return options


def _of_weights(options: OptionValues) -> dict[str, Any]:
    """Return the published network whose layers a file of weights has, unless a backbone is given."""
    if options.get("weights", "") in ("", "timm", MODULE) or "backbone" in options:
        return {}
    from deepcluster.nets.timm import published_network  # imports torch
    from deepcluster.nets.weights import read_weights

    name = published_network(read_weights(options["weights"]))
    return {"backbone": backbone_of(name)} if name else {}


def _for_fixed_size(plan: Plan, options: OptionValues) -> Plan:
    """Return the plan with views of the size of the images if the network takes one size alone, as transformers do."""
    recipe = plan.recipe
    if not takes_one_size(recipe.backbone):
        return plan
    size = recipe.image_size
    why = f"{recipe.backbone} takes images of one size"
    suited = {"view_size": recipe.view_size and size, "small_views": 0, "within_image": 0.0}
    changed = {name: value for name, value in suited.items() if getattr(recipe, name) != value}
    for name in changed:
        if name in options:
            raise UsageError(f"{name}={options[name]}: {why}, {size} px: leave it out")
    if "within_image" in changed and "whitening" not in options:
        changed["whitening"] = WHITENING
    return plan.changed(because(why, **changed))


# ---- as published ---------------------------------------------------------------------------------------------------


def v1(options: OptionValues, facts: ImageFacts) -> Plan:
    """The paper: AlexNet on Sobel-filtered 224 px images, 10,000 clusters, 500 rounds, a constant learning rate."""
    backbone = options.get("backbone", "alexnet")
    if backbone not in PAPER_NETWORKS:
        return Plan(Recipe(sobel=False), {"sobel": f"{backbone} takes colours; the paper used alexnet and vgg16"})
    settled = "the run stops if nothing at all changes in so many rounds; published: always all rounds"
    repaired = "no cluster stays empty; published: some may after the last assignment"
    return Plan(Recipe(), {**_DEPARTURES_V1, "patience": settled, "empty": repaired})


def v1_official(options: OptionValues, facts: ImageFacts) -> Plan:
    """The released code of 2018 with its defaults, including its sampling and its numbering of clusters."""
    recipe = Recipe(sobel=False, rounds=200, sampling="official", empty="faiss", renumber=True, patience=10**6)
    return Plan(
        recipe,
        {
            **_DEPARTURES_V1,
            "sobel": "the default of the released code; its main.sh and all released weights have it on",
            "rounds": "the default of the released code; the paper has 500",
            "sampling": "image numbers taken for positions in a list sorted by cluster, which does not balance",
            "renumber": "occupied clusters are numbered anew for the classifier, and saved by their old numbers",
        },
    )


_DEPARTURES_V1 = {
    "margin": "training crops are of the stored 256 px square; published: of the whole image",
    "dims": "directions with less than 1e-6 of the largest variance are left out; published: kept",
}


def v2(options: OptionValues, facts: ImageFacts) -> Plan:
    """DeepCluster-v2: cluster means as classifiers, several clusterings, remembered features, many views, a projection.

    The authors' 400-epoch run with views of 2 x 160 and 4 x 96 px, but with batches of 256 images, the learning rate in
    proportion, and plain SGD instead of LARC. Another network than ResNet-50 gets its own image size, and views in the
    same proportion. Their two other runs are recipe files in ``examples/recipes``.
    """
    backbone = options.get("backbone", "timm:resnet50")
    size, why_size = (224, "as published") if "backbone" not in options else image_size_for(backbone, facts)
    size = options.get("image_size", size)
    clusters = max(1, min(3000, facts.count // 20))
    recipe = Recipe(
        backbone=backbone,
        sobel=False,
        image_size=size,
        margin=margin_for(size),
        pseudo_labels=clusters,
        heads=3,
        rounds=400,
        features="memory",
        whitening=0.5,
        reduce=False,
        spherical=True,
        kmeans_iterations=10,
        temperature=0.1,
        projection_hidden=2048,
        projection_dim=128,
        sampling="none",
        lr=0.3,
        schedule="cosine",
        warmup=10.0,
        weight_decay=1e-6,
        crop_min=0.08,
        colour=0.8,
        grey=0.2,
        views=2,
        view_size=max(8, round(size * 160 / 224)),
        small_views=4,
    )
    reasons = {"image_size": why_size}
    if clusters < 3000:
        reasons["pseudo_labels"] = "of at least 20 images; published: 3000"
    # With another network it is clearly not the published run.
    return Plan(recipe, {**reasons, **(_DEPARTURES_V2 if "backbone" not in options else {})})


_DEPARTURES_V2 = {
    "margin": "views are of the stored 256 px square; published: of the whole image",
    "batch_size": "published: 4096, on 64 GPUs",
    "lr": "in proportion to the batch; published: 4.8",
    "optimizer": "SGD; published: SGD with LARC (trust 0.001)",
    "schedule": "rises from 0 and falls to 0; published: from 0.3 and to 0.0048, with an lr of 4.8",
    "colour": "brightness, contrast and saturation of every view; published: of 80 %, with hue (0.2) and blur (50 %)",
    "features": "the mean of both views; published: one of them, and the clusterings take turns",
    "first features": "of the fixed views in evaluation mode; published: of random ones in training mode",
    "empty": "no cluster stays empty; published: an empty one keeps its old centroid",
    "batch normalisation": "over the batch of a process; published: over the batches of 8 GPUs",
}


PRESETS: dict[str, Callable[[OptionValues, ImageFacts], Plan]] = {
    "auto": auto,
    "classic": classic,
    "v1": v1,
    "v1-official": v1_official,
    "v2": v2,
}
