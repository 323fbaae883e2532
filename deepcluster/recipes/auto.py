"""The rules of ``auto`` and ``classic``: from facts about the images to a value for every option, with its reason."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from deepcluster.errors import UsageError
from deepcluster.nets.names import EMBEDDED, MODULE, PAPER_NETWORKS, PUBLISHED
from deepcluster.recipes.options import Recipe
from deepcluster.texts import plural

IMAGES_PER_ROUND = 5000  # at least, if a network is trained from random weights
TOTAL_IMAGES = 5_000_000  # at most, over all rounds
PASSES = 90  # over the images, over all rounds
MANY_IMAGES = 10_000  # fewer take smaller batches, and fewer rounds and fine clusters in recipe classic
# Below, training by `classic` made the nearest neighbours worse in 2 of 5 sets, from 400 on in none (see the log).
FEW_IMAGES = 400
MAX_EPOCHS = 50  # in a round: a handful of images would get thousands of epochs of one optimizer step
# px. A published network is the better start for images of 28 px (the smallest measured above 8 px) and more
# (benchmarks/log).
MIN_PUBLISHED_SIDE = 28
PUBLISHED_SIZE = 224  # px, of the images that published networks are made for
WHITENING = 0.25  # chosen by leaving one set out (benchmarks/log)
# Networks whose features are means of the output of a ReLU. Only EfficientNet-Lite was measured.
RECTIFIED = "timm:tf_efficientnet_lite"
# Chosen in benchmarks/log, Class probabilities.
CERTAINTIES = (0.3, 0.5)  # of a network that does not know the kinds of a collection, and of one that does
CLASSES_SCALE = 0.7  # of the class probabilities, if the network knows the kinds
MIN_WITHIN_IMAGE = 0.1  # weight of the differences within images

OptionValue = bool | int | float | str
OptionValues = Mapping[str, Any]  # options from the user or a recipe file
Choices = dict[str, tuple[Any, str]]  # option: its value, and why


@dataclass(frozen=True)
class ImageFacts:
    """Facts about the images that decide ``auto``'s choices: never labels or the name of a data set."""

    count: int  # of the images
    short_side: int  # median of their shorter sides, px
    grey: bool  # they have no colours
    n_clusters: int | None  # requested; None: the program chooses
    published: str = ""  # the network that a run may start from, by its name in ``PUBLISHED``; empty: none
    certainty: float | None = None  # mean over the images of the network's largest class probability; None: not known

    @property
    def suits_published(self) -> bool:
        """True if the images are large enough to start from a published network."""
        return self.short_side >= MIN_PUBLISHED_SIDE


@dataclass(frozen=True)
class Plan:
    """A recipe with every option resolved, and the reason of every chosen or changed value."""

    recipe: Recipe
    reasons: Mapping[str, str]  # by option, or by another property in which the recipe departs from a published one

    def changed(self, choices: Choices) -> "Plan":
        """Return the plan with other values, and their reasons after the present ones."""
        recipe = replace(self.recipe, **{name: value for name, (value, _) in choices.items()})
        reasons = {name: why for name, why in self.reasons.items() if name not in choices}
        return Plan(recipe, reasons | {name: why for name, (_, why) in choices.items()})

    def by_reason(self) -> list[str]:
        """Return a line per reason, after all options and values that it is for."""
        options: dict[str, list[str]] = {}
        for name, reason in self.reasons.items():
            value = getattr(self.recipe, name, "")
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            options.setdefault(reason, []).append(f"{name} {shown}".strip())
        return [f"{', '.join(names)}: {reason}" for reason, names in options.items()]

    @property
    def network(self) -> str:
        """The network and its weights, in words."""
        recipe = self.recipe
        published = next((entry for entry in PUBLISHED.values() if entry.backbone == recipe.backbone), None)
        if published is None or recipe.weights != "timm":
            start = "with given weights" if recipe.weights else "trained from nothing on these images"
            return f"{recipe.backbone}, {start}"
        larger = "; deepcluster fetch downloads a larger one" if published.name == EMBEDDED else ""
        return f"{published.title}, trained on photographs{larger}"

    def in_short(self, n_clusters: int | None) -> str:
        """Return the training and the number of clusters in words; ``n_clusters`` as in :class:`ImageFacts`."""
        recipe = self.recipe
        work = "adapted" if recipe.weights else "trained"
        most = "1 round" if recipe.rounds == 1 else f"at most {recipe.rounds} rounds"
        rounds = f"{work} in {most}" if recipe.rounds else "used as it is"
        clusters = "as many clusters as the images suggest" if n_clusters is None else plural(n_clusters, "cluster")
        return f"network {rounds} at {recipe.image_size} px, then {clusters}"


def auto(options: OptionValues, facts: ImageFacts) -> Plan:
    """Options chosen by the number, size and colour of the images, and the given network and weights.

    Without weights: the parts of DeepCluster-v2, and SimCLR's loss as well, whose weight (1 - ``cluster_weight`` in
    history.csv) falls as the clusters settle.
    """
    choices, size, backbone, pretrained = _sized(options, facts)
    choices |= _adapting(size, facts, backbone, options) if pretrained else _from_scratch(size, facts)
    choices |= _views(facts, *((0.3, 0.1) if pretrained else (0.2, 0.2)))
    always = Recipe(
        sobel=False, whitening=WHITENING, schedule="cosine", tolerance=0.02, precision="auto", grouping="layout"
    )
    return Plan(always, {}).changed(choices)


def classic(options: OptionValues, facts: ImageFacts) -> Plan:
    """The seven steps of the paper, with settings at the size of the images. Weights are random unless named."""
    choices, size, backbone, pretrained = _sized({"weights": "", **options}, facts)
    choices |= {
        "dims": (0, "a sixteenth of the features, 32 to 256; paper: 256 of 4,096"),
        "empty": ("sample", "an empty cluster restarts at a random image"),
        "tolerance": (0.1, "settled: about one image in ten still changes its fine cluster"),
    }
    if backbone not in PAPER_NETWORKS:
        choices["sobel"] = (False, f"{backbone} takes colours; the paper used alexnet and vgg16")
    if pretrained:
        choices |= _length(facts, 2000, 5) | because(_GENTLE, lr=0.001)
        if facts.grey:
            choices["flip"] = (0.0, "the images are grey, and a mirrored letter or digit is another one")
    else:
        choices |= _learning_pseudo_labels(facts) | _views(facts, 0.3, 0.2) | {"view_size": _view_size(size)}
    return Plan(Recipe(), {}).changed(choices)


def _learning_pseudo_labels(facts: ImageFacts) -> Choices:
    """Return the choices with which a network without weights learns its pseudo-labels without memorising them.

    5,000 images in the paper's batches are 20 optimizer steps, after which the loss of a new head is still that of
    guessing; a round of the paper has 5,000 (benchmarks/log).
    """
    is_small = facts.count < MANY_IMAGES
    batch, fine = (32, 10) if is_small else (64, 100)
    why = "a new head needs many large steps, and few images allow few; paper: 256, .05, constant, .00001"
    choices = _length(facts) | because(why, batch_size=batch, lr=0.1, schedule="cosine", weight_decay=5e-4)
    if is_small:
        choices["rounds"] = (8, "more passes over so few images make the network memorise its pseudo-labels")
    return choices | {
        "pseudo_labels": (fine_clusters(facts, fine), f"{fine}, or as many as -k if that is more; paper: 10,000"),
        "precision": ("auto", "time; paper: fp32"),
    }


def _sized(options: OptionValues, facts: ImageFacts) -> tuple[Choices, int, str, bool]:
    """Return the network, sizes and numbers for the images; the image size; the network, and if it is pretrained."""
    network = _network(options, facts)
    backbone, weights = (options.get(name, network.get(name, ("", ""))[0]) for name in ("backbone", "weights"))
    size, why_size = image_size_for(backbone, facts, bool(weights))
    choices: Choices = {
        **network,
        "image_size": (size, why_size),
        "margin": (margin_for(size), "small images are kept whole" if size <= 64 else "room for crops"),
        "pseudo_labels": (fine_clusters(facts), "5 per cluster, or fewer so that each has 20 images"),
    }
    return choices, options.get("image_size", size), backbone, bool(weights)


def _network(options: OptionValues, facts: ImageFacts) -> Choices:
    """Return the network and its weights, unless a network is given."""
    if "backbone" in options:
        return {}
    weights = options.get("weights")
    if weights not in (None, "", "timm"):
        names = ", ".join(PUBLISHED)
        raise UsageError(f"{weights}: not the weights of {names}: name their network, as --backbone timm:resnet18")
    if weights == "timm" or (weights is None and facts.published and facts.suits_published):
        network = PUBLISHED[facts.published or next(iter(PUBLISHED))]
        why = f"the best network on this machine, {network.name}: {network.title}, {network.trained_on}"
        return {"backbone": (network.backbone, why), "weights": ("timm", why)}
    why = "a small network for training from nothing"
    if weights is None and facts.suits_published:
        why = "no published network is on this machine, so a small one is trained from nothing"
    return {"backbone": ("compact", why)}


def because(why: str, **values: Any) -> Choices:
    return {name: (value, why) for name, value in values.items()}


def _adapting(size: int, facts: ImageFacts, backbone: str, options: OptionValues) -> Choices:
    """Return the choices for a pretrained network, which is used as it is; rounds that a user asks for are gentle."""
    choices = _length(facts, 2000, 1) | {
        "rounds": (0, "a round of training gains little on average, and loses on some collections"),
        **because(_GENTLE, frozen_statistics=True, lr=0.001, temperature=0.07),
        "view_size": _gentle_view(size),
        "average": (0.4, "the rest are the weights before training, which keep what the network knew"),
    }
    # A module of the user's may take images of one size only. Without the scaling, whitening stays.
    if backbone != MODULE and options.get("within_image") != 0:
        why = "how an image differs from its own centre crop says nothing about which image it is"
        choices |= because(why, within_image=1.0, whitening=0.0)
    rectified = backbone.startswith(RECTIFIED)
    low, high = CERTAINTIES
    sought = options.get("class_probabilities") != 0  # without these features, the scaling stays
    if rectified and sought and facts.certainty is not None and facts.certainty > low:
        sure = min(1.0, (facts.certainty - low) / (high - low))
        known = f"the network is sure of its classes here ({facts.certainty:.2f})"
        why = f"{known}: its class probabilities are features, too"
        choices["class_probabilities"] = (round(CLASSES_SCALE * sure, 2), why)
        if "within_image" in choices:
            weight = max(MIN_WITHIN_IMAGE, 1 - sure)
            choices["within_image"] = (round(weight, 2), f"{known}: its features need less scaling")
    if rectified:
        choices["root"] = (True, "no feature is negative, and roots of such features separate clusters better")
    return choices


def _from_scratch(size: int, facts: ImageFacts) -> Choices:
    """Return the choices for a network without weights: an image is a cluster of its own, too (docs/method.md)."""
    return {
        **_length(facts),
        **because(
            _UNTRAINED,
            lr=0.25,
            warmup=0.5,
            weight_decay=5e-4,
            instance_temperature=0.2,
            views=2,
            heads=3,
            head_growth=2.0,
            temperature=0.1,
            spherical=True,
            features="memory",
            reduce=False,
            projection_hidden=512,
            projection_dim=128,
        ),
        "view_size": _view_size(size),
        # Digits end at 1 - NMI = .08, MNIST's at .1, both with the learning rate near 0 (benchmarks/log).
        "tolerance": (0.1, "features of random views differ by nearly as much even if nothing changes"),
    }


def _views(facts: ImageFacts, crop_min: float, grey: float) -> Choices:
    """Return the random views that suit grey images, or photographs: these with this least crop and share of grey."""
    if not facts.grey:
        return because("the images have colours, as photographs do", crop_min=crop_min, colour=0.4, grey=grey)
    why = "the images are grey, so shapes count, and a mirrored shape is another one"
    return because(why, crop_min=0.5, crop_max=1.2, stretch=1.2, flip=0.0, rotation=15.0)


def _view_size(size: int) -> tuple[int, str]:
    if size < 32:
        return size, "images below 32 px have no pixels to spare"
    return 4 * round(size * 0.75 / 4), "crops enlarge their content: 3/4 of the side keeps its scale"


def _length(facts: ImageFacts, images: int = IMAGES_PER_ROUND, rounds: int = 0) -> Choices:
    """Return epochs in which so many images are seen, rounds (0: by ``PASSES``), and the images in a batch."""
    count = max(1, facts.count)
    epochs = min(MAX_EPOCHS, max(1, math.ceil(images / count)))
    most = max(10, round(min(PASSES * count, TOTAL_IMAGES) / (epochs * count)))
    why = f"{PASSES} passes over the images, but at most {TOTAL_IMAGES:,} images in all"
    return {
        "epochs": (epochs, f"{images:,} images in a round, in at most {MAX_EPOCHS} passes over {facts.count:,}"),
        "rounds": (rounds, "more rounds lose what a pretrained network knows") if rounds else (most, why),
        "batch_size": (64, _GENTLE) if rounds else (256 if count >= MANY_IMAGES else 128, f"for {count:,} images"),
    }


_GENTLE = "a pretrained network is changed gently"
_UNTRAINED = "a network trained from nothing"


def _gentle_view(size: int) -> tuple[int, str]:
    scaled = max(8, round(size * 0.75))
    quick = max(112, size // 2)
    if scaled > quick:
        return quick, f"half the side saves time; {scaled} px would keep the scale of the content"
    return scaled, "crops enlarge their content: 3/4 of the side keeps its scale, and is faster"


def margin_for(size: int) -> float:
    """Return 1 for small images, which are kept whole; others have room for crops."""
    return 1.0 if size <= 64 else 256 / 224


def fine_clusters(facts: ImageFacts, target: int = 0) -> int:
    """Return ``target`` (0: 5 per cluster wanted), fewer so that none is tiny, but at least one per cluster wanted."""
    clusters = facts.n_clusters or 20
    return max(1, min(facts.count, max(clusters, min(target or 5 * clusters, facts.count // 20))))


def image_size_for(backbone: str, facts: ImageFacts, pretrained: bool = False) -> tuple[int, str]:
    """Return the side of the images for a network, px, and the reason."""
    side = facts.short_side
    if backbone in PAPER_NETWORKS:
        return 224, f"the size that {backbone} takes"
    if backbone == "compact":
        return min(64, max(16, 8 * round(side / 8))), f"images of {side} px; 16 to 64"
    if pretrained and facts.suits_published:
        return PUBLISHED_SIZE, "the size that published networks are made for"
    return min(144, max(64, 16 * round(side / 16))), f"images of {side} px; 64 to 144"
