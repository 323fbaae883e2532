"""The options of a run: frozen, typed, with named presets, read from and written to TOML."""

import difflib
import json
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from deepcluster.errors import DataError, UsageError
from deepcluster.nets.sizes import PAPER_NETWORKS, only_size


@dataclass(frozen=True)
class Recipe:
    """All that shapes a result but the images, the seed and the number of groups. The defaults are recipe ``v1``."""

    # Network. weights: a file, "timm" for timm's published ones, or "" for a random start.
    backbone: str = "alexnet"
    # frozen_statistics: batch normalisation keeps the mean and variance that it came with.
    weights: str = ""
    frozen_statistics: bool = False
    sobel: bool = True
    # Images. margin: side of the stored image over side of the view; the view is its centre, training crops all of it.
    image_size: int = 224
    margin: float = 256 / 224
    # Alternation. It stops early once 1 - NMI to the previous round is at most tolerance for patience rounds in a row.
    # heads: clusterings learnt together, each into head_growth times as many clusters as the one before.
    pseudo_labels: int = 10_000
    heads: int = 1
    head_growth: float = 1.0
    rounds: int = 500
    epochs: int = 1
    tolerance: float = 0.0
    patience: int = 3
    # Features: "pass" computes them anew each round, "memory" takes those that training saw.
    features: str = "pass"
    # Reduction and clustering. whitening: 1 whitens, 0 is plain PCA, between them leading directions weigh more.
    # reduce: in the rounds too, and not only for the result. kmeans_levels: 2 is k-means into coarse clusters and again
    # inside each, for 10,000 pseudo-labels and more.
    dims: int = 256
    whitening: float = 1.0
    reduce: bool = True
    spherical: bool = False
    # clustering in the rounds: "kmeans", or "pic" (the paper's other one), which finds the number of clusters itself.
    clustering: str = "kmeans"
    kmeans_iterations: int = 20
    kmeans_levels: int = 1
    # kmeans_start: a "random" sample in each round, or the "previous" clusters. Either way what has changed since the
    # previous round is told by a k-means from the previous clusters.
    kmeans_start: str = "random"
    # Empty clusters: "split" a large one, put it on a "sample", or as "faiss" does, which may leave some empty.
    empty: str = "split"
    # renumber: the head's rows are those clusters that are not empty, in order; the released code's, for the record.
    renumber: bool = False
    # What the groups are cut from: the neighbours of an image by the "final" features; by those before or after the
    # rounds, whichever give the "clearer" groups; or by those of all "rounds", the network as it was given counting as
    # much as all others. Then it is also kept, where its neighbours know better.
    neighbours: str = "final"
    # Head: a new linear one each round, or with a temperature above 0 the clusters' means, on an MLP where
    # projection_dim is not 0.
    temperature: float = 0.0
    projection_hidden: int = 0
    projection_dim: int = 0
    # As far as the clusters are not those of the round before, every image counts as a cluster of its own: the
    # temperature of that loss, 0 for none.
    instance_temperature: float = 0.0
    # Learning. sampling: "uniform" over clusters, "official" (the released code's, which is not) or "none".
    sampling: str = "uniform"
    batch_size: int = 256
    # schedule of lr: "constant", or "cosine" to 0 over the rounds, after a rise over the first warmup rounds. head_lr:
    # constant; 0 means as lr.
    lr: float = 0.05
    head_lr: float = 0.0
    schedule: str = "constant"
    warmup: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 1e-5
    precision: str = "fp32"
    # Training views; see images/augment.py. views of view_size px (0: image_size), and small_views of small_size px
    # whose crops are smaller.
    views: int = 1
    view_size: int = 0
    crop_min: float = 0.08
    crop_max: float = 1.0
    stretch: float = 4 / 3
    flip: float = 0.5
    rotation: float = 0.0
    colour: float = 0.0
    grey: float = 0.0
    small_views: int = 0
    small_size: int = 96
    small_crop_min: float = 0.05
    small_crop_max: float = 0.14

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and least <= value <= most):
                raise UsageError(f"{name}={value!r} must lie between {least:g} and {most:g}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"{name}={getattr(self, name)!r}: choose {' or '.join(choices)}")
        for kind in ("crop", "small_crop"):
            least, most = getattr(self, f"{kind}_min"), getattr(self, f"{kind}_max")
            if least > most:
                raise UsageError(f"{kind}_min={least:g} is larger than {kind}_max={most:g}")
        if 0 < self.view_size < _RANGES["image_size"][0]:
            raise UsageError(f"view_size={self.view_size} must be 0 (as image_size) or at least 8")
        if self.instance_temperature and self.views < 2:
            raise UsageError(
                f"instance_temperature={self.instance_temperature:g} is for two views of an image: views={self.views}"
            )
        if self.clustering == "pic" and self.heads > 1:
            raise UsageError(f"clustering=pic finds one clustering: heads={self.heads} would all learn the same")
        if self.kmeans_start == "previous" and (self.clustering != "kmeans" or self.kmeans_levels > 1):
            raise UsageError(
                "kmeans_start=previous is for k-means in one level:"
                f" clustering={self.clustering}, kmeans_levels={self.kmeans_levels}"
            )
        if self.renumber and self.temperature:
            raise UsageError(
                f"renumber is for a new linear head: temperature={self.temperature:g} puts the clusters' means there"
            )
        if (self.projection_hidden > 0) != (self.projection_dim > 0):
            raise UsageError(
                f"projection_hidden={self.projection_hidden}, projection_dim={self.projection_dim}: set both or neither"
            )

    @property
    def clusters(self) -> tuple[int, ...]:
        """The number of clusters of each clustering."""
        return tuple(round(self.pseudo_labels * self.head_growth**i) for i in range(self.heads))

    @property
    def store_size(self) -> int:
        """Side of the stored images, px."""
        return round(self.image_size * self.margin)


_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (8, 4096), "margin": (1, 2),
    "pseudo_labels": (1, 10**9), "heads": (1, 100), "head_growth": (1, 10), "rounds": (0, 10**6), "epochs": (1, 10**4),
    "tolerance": (0, 1), "patience": (1, 10**6),
    "dims": (1, 10**5), "whitening": (0, 1), "kmeans_iterations": (1, 10**4), "kmeans_levels": (1, 2),
    "temperature": (0, 100), "projection_hidden": (0, 10**5), "projection_dim": (0, 10**5),
    "instance_temperature": (0, 100),
    "batch_size": (1, 10**6), "lr": (0, 100), "head_lr": (0, 100), "warmup": (0, 10**6),
    "momentum": (0, 0.9999), "weight_decay": (0, 1),
    "crop_min": (0.001, 10), "crop_max": (0.001, 10), "stretch": (1, 10), "flip": (0, 1), "rotation": (0, 180),
    "colour": (0, 1), "grey": (0, 1), "views": (1, 100), "view_size": (0, 4096),
    "small_views": (0, 100), "small_size": (8, 4096), "small_crop_min": (0.001, 10), "small_crop_max": (0.001, 10),
}  # fmt: skip
_CHOICES = {
    "features": ("pass", "memory"),
    "clustering": ("kmeans", "pic"),
    "empty": ("split", "sample", "faiss"),
    "kmeans_start": ("random", "previous"),
    "neighbours": ("final", "clearer", "rounds"),
    "sampling": ("uniform", "official", "none"),
    "schedule": ("constant", "cosine"),
    "precision": ("auto", "probe", "fp32", "bf16"),
}
_TYPES = {field.name: type(field.default) for field in fields(Recipe)}


@dataclass(frozen=True)
class Facts:
    """What ``auto`` may look at: number, short side (px, median) and greyness of the images, groups wanted, device.

    The labels are not among them, nor is any name.
    """

    count: int
    short_side: int
    grey: bool
    n_clusters: int | None
    device: str


@dataclass(frozen=True)
class Plan:
    """A recipe with every option resolved, and the reasons, one a line, for what was chosen or changed."""

    recipe: Recipe
    reasons: tuple[str, ...]

    def by_reason(self) -> list[str]:
        """The same, with what has one reason on one line."""
        alike: dict[str, list[str]] = {}
        for line in self.reasons:
            what, _, why = line.partition(": ")
            alike.setdefault(why, []).append(what)
        return [f"{', '.join(what)}: {why}" for why, what in alike.items()]


def resolve(base: str, given: Mapping[str, Any], facts: Facts) -> Plan:
    """The recipe called ``base`` (``auto``, ``v1`` or a TOML file) for these images, with the options ``given``.

    Raises UsageError on an unknown recipe, option or value; DataError where ``pseudo_labels`` was given and exceeds the
    number of images (that of a preset or a file is lowered, with a reason).
    """
    base, from_file = (base, {}) if base in PRESETS else _from_toml(base)
    options = check_options({**from_file, **given})
    weights = _for_weights(base, options)
    options = {**weights, **options}
    plan = PRESETS[base](options, facts)
    recipe = replace(plan.recipe, **options)
    reasons = [reason for reason in plan.reasons if reason.split(" ")[0] not in options]
    given_by = dict.fromkeys(options, "given") | dict.fromkeys(weights, f"the network of {options.get('weights')}")
    reasons += [f"{name} {value}: {given_by[name]}" for name, value in options.items()]
    if recipe.pseudo_labels > facts.count:
        if "pseudo_labels" in given:
            raise DataError(
                f"--pseudo-labels {recipe.pseudo_labels} is more than the {facts.count} images: give at most that"
            )
        fitting = _fine_clusters(facts)
        reasons.append(
            f"pseudo_labels {fitting}: the recipe's {recipe.pseudo_labels} is more than the {facts.count} images"
        )
        recipe = replace(recipe, pseudo_labels=fitting)
    return _for_one_size(Plan(recipe, tuple(reasons)), options)


def _for_weights(base: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The network and Sobel filter of weights in a published layout, as far as nobody named them."""
    if options.get("weights", "") in ("", "timm") or "backbone" in options:
        return {}
    from deepcluster.nets.official import official_network  # imports torch

    if (found := official_network(options["weights"])) is None:
        return {}
    backbone, sobel, _ = found
    chosen = {"sobel": sobel} if "sobel" not in options else {}
    return chosen if backbone == _BACKBONES.get(base) else {"backbone": backbone, **chosen}


_BACKBONES = {"v1": "alexnet", "v1-official": "alexnet"} | dict.fromkeys(
    ("v2", "v2-400-2x224", "v2-800"), "timm:resnet50"
)


def _for_one_size(plan: Plan, options: Mapping[str, Any]) -> Plan:
    """The plan with images and views of one size where the network takes no other, as transformers do."""
    recipe = plan.recipe
    size = only_size(recipe.backbone, recipe.image_size)
    if size is None:
        return plan
    why = f"{recipe.backbone} takes images of one size"
    changes: dict[str, tuple[Any, str]] = {}
    if size != recipe.image_size:
        changes["image_size"] = (size, f"the nearest to {recipe.image_size} that {recipe.backbone} takes")
    if (recipe.view_size or size) != size:
        changes["view_size"] = (size, why)
    if recipe.small_views and recipe.small_size != size:
        changes["small_views"] = (0, why)
    for name in changes:
        if name in options and name != "image_size":
            raise UsageError(f"{name}={options[name]}: {why}, {size} px: leave it out")
    kept = [reason for reason in plan.reasons if reason.split(" ")[0] not in changes]
    values = {name: value for name, (value, _) in changes.items()}
    return Plan(
        replace(recipe, **values),
        (*kept, *(f"{name} {value}: {reason}" for name, (value, reason) in changes.items())),
    )


def v1(options: Mapping[str, Any], facts: Facts) -> Plan:
    """The paper's settings: AlexNet on Sobel-filtered 224 px images, 10,000 clusters, 500 rounds, a constant step."""
    backbone = options.get("backbone", "alexnet")
    if backbone in PAPER_NETWORKS:
        recipe = Recipe()
        return Plan(recipe, (*_DEPARTURES_V1, f"patience {recipe.patience}: {_SETTLED}", f"empty split: {_REPAIRED}"))
    return Plan(Recipe(sobel=False), (f"sobel off: {backbone} takes colours; the paper used alexnet and vgg16",))


def v1_official(options: Mapping[str, Any], facts: Facts) -> Plan:
    """The released code of 2018 by its defaults, its sampling and numbering of clusters included: for the record."""
    recipe = Recipe(sobel=False, rounds=200, sampling="official", empty="faiss", renumber=True, patience=10**6)
    return Plan(
        recipe,
        (
            *_DEPARTURES_V1,
            "sobel False: the default of the released code; its main.sh and all released weights have it on",
            "rounds 200: the default of the released code; the paper has 500",
            "sampling official: image numbers taken for places in a list sorted by cluster, so it does not balance",
            "renumber True: clusters that are not empty are numbered anew for the head, and saved by their old numbers",
        ),
    )


_BY_NUMBER = "kmeans_start random: as published, from other images in each round, so a run ends by its number of rounds"
_DEPARTURES_V1 = (
    _BY_NUMBER,
    "margin 1.143: training crops are of the stored 256 px square, published: of the whole image",
    "k-means: all assignments but the last in bfloat16 where that is native, published: float32",
    "dims 256: directions with less than 1e-6 of the largest variance are left out, published: kept",
)
_SETTLED = "it ends before where nothing at all changes in so many rounds, published: always all rounds"
_REPAIRED = "no cluster stays empty, published: some may after the last assignment"


def v2(options: Mapping[str, Any], facts: Facts) -> Plan:
    """DeepCluster-v2: frozen means as classifiers, several clusterings, features from memory, many views, a projection.

    The 400-epoch run of its authors with views of 2 x 160 and 4 x 96 px, but for the batch (256 images, the step in
    proportion) and plain SGD in place of LARC. Another network than ResNet-50 gets its own image size, and views in the
    same proportion.
    """
    return _v2(options, facts, rounds=400, side=160, crop_min=0.08, small_views=4)


def v2_400_2x224(options: Mapping[str, Any], facts: Facts) -> Plan:
    """As v2, the 400-epoch run with two views of 224 px and no small ones."""
    return _v2(options, facts, rounds=400, side=224, crop_min=0.08, small_views=0)


def v2_800(options: Mapping[str, Any], facts: Facts) -> Plan:
    """As v2, the 800-epoch run with views of 2 x 224 and 6 x 96 px, the longest and best that was published."""
    return _v2(options, facts, rounds=800, side=224, crop_min=0.14, small_views=6)


def _v2(options: Mapping[str, Any], facts: Facts, *, rounds: int, side: int, crop_min: float, small_views: int) -> Plan:
    """side: of the two large views, px, for images of 224."""
    backbone = options.get("backbone", "timm:resnet50")
    size, why_size = (224, "as published") if "backbone" not in options else _image_size(backbone, facts)
    size = options.get("image_size", size)
    clusters = max(1, min(3000, facts.count // 20))
    recipe = Recipe(
        backbone=backbone, sobel=False, image_size=size, margin=1.0 if size <= 64 else 256 / 224,
        pseudo_labels=clusters, heads=3, rounds=rounds, features="memory", dims=256, whitening=0.5, reduce=False,
        spherical=True, kmeans_iterations=10, temperature=0.1, projection_hidden=2048, projection_dim=128,
        sampling="none", lr=0.3, schedule="cosine", warmup=10.0, weight_decay=1e-6, crop_min=crop_min, colour=0.8,
        grey=0.2, views=2, view_size=max(8, round(size * side / 224)), small_views=small_views,
        small_size=max(8, round(size * 96 / 224)),
    )  # fmt: skip
    reasons = [f"image_size {size}: {why_size}"]
    if clusters < 3000:
        reasons.append(f"pseudo_labels {clusters}: at least 20 images for each, where 3000 were published")
    # Of a run with another network nobody expects the published one.
    return Plan(recipe, (*reasons, *(_DEPARTURES_V2 if "backbone" not in options else ())))


_DEPARTURES_V2 = (
    _BY_NUMBER,
    "margin 1.143: views are of the stored 256 px square, published: of the whole image",
    "batch_size 256: published: 4096, on 64 GPUs",
    "lr 0.3: in proportion to the batch, published: 4.8",
    "optimizer: SGD, published: SGD with LARC (trust 0.001)",
    "schedule cosine: from and to 0, published: from 0.3 and to 0.0048, of 4.8",
    "colour 0.8: brightness, contrast and saturation of every view, published: of 80 %, with hue (0.2) and blur (50 %)",
    "features memory: of the mean of both views, published: of one of them, by turns of the clusterings",
    "first features: of the fixed views in evaluation mode, published: of random ones in training mode",
    "empty split: no cluster stays empty, published: an empty one keeps its old centroid",
    "batch normalisation: over the batch of a process, published: over those of 8 GPUs",
)


def auto(options: Mapping[str, Any], facts: Facts) -> Plan:
    """Chosen from the number, size and colour of the images, the network and weights given, and the device.

    Without weights DeepCluster-v2's parts, and beside its loss one that tells single images apart (SimCLR's), as far as
    the clusters are not those of the round before. ``cluster_weight`` in history.csv says how much of it is clusters.
    """
    return _fitting(options, facts, _adapting if options.get("weights") else _from_scratch)


def classic(options: Mapping[str, Any], facts: Facts) -> Plan:
    """The seven steps of the paper and nothing else, with a network, sizes and numbers that fit the images."""
    return _fitting(options, facts, _seven_gentle_steps if options.get("weights") else _seven_steps)


Choices = dict[str, tuple[Any, str]]  # option: its value, and why


def _fitting(options: Mapping[str, Any], facts: Facts, learning: Callable[[int, Facts], Choices]) -> Plan:
    """What fits the images, and how to learn from them by their stored size."""
    backbone = options.get("backbone", "compact")
    adapting = bool(options.get("weights"))
    if adapting and "backbone" not in options:
        raise UsageError("--weights needs the network that they are for: add --backbone, for example timm:resnet18")
    size, why_size = _image_size(backbone, facts)
    chosen: Choices = {
        "backbone": (backbone, "the network for small images, as none was given"),
        "image_size": (size, why_size),
        "margin": (1.0 if size <= 64 else 256 / 224, "small images are kept whole" if size <= 64 else "room for crops"),
        "pseudo_labels": (_fine_clusters(facts), _why_so_many(facts)),
    }
    own_size = options.get("image_size", size)
    chosen |= learning(own_size, facts)
    if facts.grey:
        why = "the images are grey: shapes count, and left is not right"
        chosen |= {
            "crop_min": (0.5, why), "crop_max": (1.2, why), "stretch": (1.2, why), "flip": (0.0, why),
            "rotation": (15.0, why),
        }  # fmt: skip
    elif adapting:
        why = "the images have colours: photographs"
        chosen |= {"crop_min": (0.3, why), "colour": (0.4, why), "grey": (0.1, why)}
    else:
        why = "the images have colours: photographs"
        chosen |= {"crop_min": (0.2, why), "colour": (0.4, why), "grey": (0.2, why)}
    # Measured in benchmarks/ and docs/decisions.md: half whitening for the cut.
    steady = {"sobel": False, "whitening": 0.5, "schedule": "cosine", "tolerance": 0.02, "precision": "auto"}
    values = {name: value for name, (value, _) in chosen.items()}
    return Plan(
        Recipe(**{**steady, **values}),
        tuple(f"{name} {value}: {why}" for name, (value, why) in chosen.items()),
    )


def _adapting(size: int, facts: Facts) -> Choices:
    """A pretrained network: few, gentle rounds on clusters' means, of which none can spoil the groups alone."""
    return _gentle(size, facts) | {
        "temperature": (0.07, "a pretrained network is changed gently"),
        "neighbours": ("rounds", "what it knew counts as much as what it learnt"),
    }


def _gentle(size: int, facts: Facts) -> Choices:
    """What every network that begins with weights is trained by."""
    why = "a pretrained network is changed gently"
    rounds = max(1, min(3, round(15_000 / max(1, facts.count)))) if facts.device == "cpu" else 3
    return {
        "rounds": (rounds, "a pretrained network needs few"),
        "epochs": (max(1, math.ceil(2000 / max(1, facts.count))), "at least 2000 views in a round"),
        "frozen_statistics": (True, why), "lr": (0.001, why), "batch_size": (64, why),
        "dims": (128, why),
        "view_size": (round(size * 0.75), "crops look larger: 3/4 of the side keeps their scale, and is faster"),
    }  # fmt: skip


def _from_scratch(size: int, facts: Facts) -> Choices:
    """Nothing is known yet: each image as a cluster of its own, beside clusters of several sizes (docs/method.md)."""
    why = "a network trained from nothing"
    return _untrained(size, facts, PASSES) | {
        "instance_temperature": (0.2, why), "views": (2, why),
        "heads": (3, why), "head_growth": (2.0, why), "temperature": (0.1, why), "spherical": (True, why),
        "features": ("memory", why), "reduce": (False, why),
        "projection_hidden": (512, why), "projection_dim": (128, why),
    }  # fmt: skip


def _seven_steps(size: int, facts: Facts) -> Choices:
    """A new linear classifier of one clustering of the whitened features of a pass."""
    return _untrained(size, facts, CLASSIC_PASSES) | _STEPS


def _seven_gentle_steps(size: int, facts: Facts) -> Choices:
    """The same for a pretrained network."""
    return _gentle(size, facts) | _STEPS | _GUARDED


_GUARDED: Choices = {"neighbours": ("clearer", "training may lose what the network had")}
_STEPS: Choices = {
    "tolerance": (0.05, "settled is where about one image in twenty still changes its fine cluster"),
    "views": (2, "two random views of an image tell more of its cluster than one"),
    "head_lr": (0.25, "a new classifier has one round to learn in, to the last"),
    "empty": ("sample", "as the paper's step 4 says"),
}


def _untrained(size: int, facts: Facts, passes: int) -> Choices:
    """What every network that begins with random weights is trained by."""
    why = "a network trained from nothing"
    count = max(1, facts.count)
    epochs = math.ceil(IMAGES_A_ROUND / count)
    rounds = max(10, round(min(passes * count, IMAGES_IN_ALL) / (epochs * count)))
    return {
        "epochs": (epochs, f"at least {IMAGES_A_ROUND} images in a round, of {facts.count}"),
        "rounds": (rounds, f"{passes} passes over the images, at most {IMAGES_IN_ALL} images in all"),
        "batch_size": (256 if count >= 10_000 else 128, f"{count} images"),
        "lr": (0.25, why), "warmup": (0.5, why), "weight_decay": (5e-4, why),
        "view_size": (
            (4 * round(size * 0.75 / 4), "crops look larger: 3/4 of the side keeps their scale")
            if size >= 32
            else (size, "images below 32 px have no pixels to spare")
        ),
        **_GUARDED,
    }  # fmt: skip


PRESETS = {
    "auto": auto, "classic": classic, "v1": v1, "v1-official": v1_official,
    "v2": v2, "v2-400-2x224": v2_400_2x224, "v2-800": v2_800,
}  # fmt: skip
IMAGES_A_ROUND = 5000
PASSES = 90
CLASSIC_PASSES = 30
IMAGES_IN_ALL = 5_000_000


def _fine_clusters(facts: Facts) -> int:
    """Several fine clusters for each group wanted, none of them tiny."""
    wanted = facts.n_clusters or 20
    return max(1, min(facts.count, max(wanted, min(5 * wanted, facts.count // 20))))


def _why_so_many(facts: Facts) -> str:
    if facts.count // 20 < (facts.n_clusters or 20):
        return "one for each group wanted, as the images are few"
    return "5 for each group wanted, and at least 20 images for each"


def _image_size(backbone: str, facts: Facts) -> tuple[int, str]:
    side = facts.short_side
    if backbone in PAPER_NETWORKS:
        return 224, f"what {backbone} takes"
    small = facts.device == "cpu"
    if backbone == "compact":
        return min(64 if small else 96, max(16, 8 * round(side / 8))), f"images of {side} px, 16 to 64 on a CPU"
    return min(144 if small else 224, max(64, 16 * round(side / 16))), f"images of {side} px, 64 to 144 on a CPU"


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by name, each turned into its type from text where needed. UsageError names the one that is wrong."""
    checked = {}
    for name, value in options.items():
        if name not in _TYPES:
            near = difflib.get_close_matches(name, _TYPES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the options are {', '.join(_TYPES)}"
            raise UsageError(f"no option is called {name!r}: {hint}")
        checked[name] = as_type(name, value, _TYPES[name])
    return checked


def as_type(name: str, value: Any, kind: type) -> Any:
    """The value of the option ``name`` as bool, int, float or str, from text where needed. UsageError if it is none."""
    if kind is bool:
        truth = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
        if str(value).lower() in truth:
            return truth[str(value).lower()]
    elif kind is str and isinstance(value, str):
        return value
    elif kind in (int, float) and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
            if kind is float:
                return number
            if number == int(number):
                return int(number)
        except (ValueError, OverflowError):
            pass
    kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    raise UsageError(f"{name}={value!r} is not {kinds[kind]}")


def to_toml(recipe: Recipe) -> str:
    """The options as TOML, one a line. (JSON's strings, numbers and booleans are valid TOML.)"""
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in asdict(recipe).items())


def options_of(path: Path) -> dict[str, Any]:
    """The options in a file that :func:`to_toml` wrote."""
    return check_options(_from_toml(str(path))[1])


def _from_toml(path: str) -> tuple[str, dict[str, Any]]:
    """The preset (key ``base``, default ``auto``) and the options of a recipe file."""
    if not path.endswith(".toml"):
        near = difflib.get_close_matches(path, PRESETS, n=1) or list(PRESETS)
        raise UsageError(f"no recipe is called {path!r}: did you mean {' or '.join(near)}, or a file ending in .toml?")
    try:
        options = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no recipe file {path}") from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not TOML, or not UTF-8
        raise UsageError(f"the recipe file {path} cannot be read: {error}") from None
    base = options.pop("base", "auto")
    if base not in PRESETS:
        raise UsageError(f"{path}: base = {base!r} is not a recipe: choose {' or '.join(PRESETS)}")
    return base, options
