"""Every option of a run, declared once: name, type, default, range or choices, and meaning. TOML in and out.

Checks, ``--set``, recipe files, the flags of ``deepcluster fit``, the parameters of the estimator and the reference
page all follow from these declarations.
"""

import difflib
import json
import math
import os
import tomllib
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

from deepcluster.errors import DiskError, UsageError
from deepcluster.nets.names import MODULE, NETWORKS, PUBLISHED
from deepcluster.runtime.bounded import check_file

AUTO = "auto"  # in place of a value: the recipe decides
ANY = "NAME"  # at the end of a choice: any name
MAX_NUMBER = 1e9  # of a number that has no other limit
MAX_RECIPE_BYTES = 1 << 20  # of a recipe file
FORMAT = ",.10g"  # 1,000,000 and not 1e+06


@dataclass(frozen=True)
class Option:
    """The declaration of an option."""

    default: bool | int | float | str  # its type is the option's
    help: str
    heading: str = ""  # of the list of options that it is in
    low: float = 0
    high: float = MAX_NUMBER
    choices: tuple[str, ...] = ()  # the texts allowed; NAME at the end of one stands for any name; empty: any text
    flag: bool = False  # the command line has a flag of this name besides ``--set``
    for_features: bool = False  # it counts for a fit of features, which neither reads images nor trains
    auto: bool = False  # ``auto`` may be given, which leaves the value to the recipe
    name: str = ""

    @property
    def values(self) -> str:
        """The values allowed, in words."""
        if isinstance(self.default, bool):
            return "true or false"
        if isinstance(self.default, str):
            return " or ".join(choice for choice in self.choices if choice != MODULE) or "text"
        if self.high < MAX_NUMBER:
            return f"{self.low:{FORMAT}} to {self.high:{FORMAT}}"
        return f"at least {self.low:{FORMAT}}"

    def read(self, value: Any) -> Any:
        """Convert a value, which may be text, to the option's type. UsageError if it is not allowed."""
        kind = type(self.default)
        typed: Any = None
        if kind is bool:
            truth = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
            typed = truth.get(str(value).lower())
        elif kind is str and isinstance(value, str | os.PathLike):
            typed = os.fspath(value)
        elif kind in (int, float) and isinstance(value, int | Real | str) and not isinstance(value, bool):
            with suppress(ValueError, OverflowError):
                number = float(value)
                typed = number if kind is float else int(number) if number == int(number) else None
        if typed is None:
            kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
            raise UsageError(f"{self.name}={value!r} is not {kinds[kind]}")
        self.check(typed)
        return typed

    def check(self, value: Any) -> None:
        """Raise UsageError if the value is out of range or not among the choices."""
        if self.choices and not any(_fits(value, choice) for choice in self.choices):
            near = difflib.get_close_matches(str(value), self.choices, n=1)
            if ":" not in str(value):  # a name without the prefix of its kind: resnet18 for timm:resnet18
                near += [choice.removesuffix(ANY) + str(value) for choice in self.choices if choice.endswith(ANY)]
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise UsageError(f"{self.name}={value!r}: choose {self.values}{hint}")
        if isinstance(value, int | float) and not (math.isfinite(value) and self.low <= value <= self.high):
            raise UsageError(f"{self.name}={value!r} must lie between {self.low:{FORMAT}} and {self.high:{FORMAT}}")


def _fits(text: str, choice: str) -> bool:
    prefix = choice.removesuffix(ANY)
    return text == choice if prefix == choice else text.startswith(prefix) and text != prefix


def option(default: bool | int | float | str, help: str, **declared: Any) -> Any:
    """Return a field of :class:`Recipe`; ``declared`` are other attributes of its :class:`Option`."""
    return field(default=default, metadata={"option": Option(default, help, **declared)})


_network = partial(option, heading="Network")
_images = partial(option, heading="Images")
_views = partial(option, heading="Views that training sees")
_alternation = partial(option, heading="Alternation")
_features = partial(option, heading="Features and their reduction")
_clustering = partial(option, heading="Clustering")
_head = partial(option, heading="Classifier and loss")
_learning = partial(option, heading="Learning")
_result = partial(option, heading="Result")


@dataclass(frozen=True)
class Recipe:
    """Every option that determines a result, besides images, seed and number of clusters. The defaults are ``v1``'s."""

    backbone: str = _network(
        "alexnet",
        "The convnet; photos, photos-ssl and photos-small are published ones with their weights; module is your own"
        " (in Python).",
        choices=(*NETWORKS, *PUBLISHED, MODULE, "timm:NAME"),
        flag=True,
    )
    weights: str = _network(
        "",
        "Pretrained weights: a file; timm (timm's own, downloaded if needed); none or empty (random); auto (the best"
        " published network on this machine, in recipe auto).",
        flag=True,
        auto=True,
    )
    frozen_statistics: bool = _network(False, "Batch normalisation keeps its initial mean and variance.")
    sobel: bool = _network(True, "The network sees Sobel-filtered grey images instead of colours.")

    image_size: int = _images(224, "Side of the images that the network sees, px.", low=8, high=4096, flag=True)
    margin: float = _images(
        256 / 224, "Side of the stored image over image_size; training crops all of it.", low=1, high=2
    )

    views: int = _views(1, "Random views of each image.", low=1, high=100)
    view_size: int = _views(0, "Side of a view, px; 0: image_size.", high=4096)
    crop_min: float = _views(0.08, "Smallest area of a crop, as a share of the image.", low=0.001, high=10)
    crop_max: float = _views(1.0, "Largest area of a crop; above 1 it reaches beyond the image.", low=0.001, high=10)
    stretch: float = _views(4 / 3, "Largest ratio of the sides of a crop.", low=1, high=10)
    flip: float = _views(0.5, "Probability of a mirrored view.", high=1)
    rotation: float = _views(0.0, "Largest rotation to either side, degrees.", high=180)
    colour: float = _views(0.0, "Strength of random brightness, contrast and saturation.", high=1)
    grey: float = _views(0.0, "Probability of a view without colour.", high=1)
    small_views: int = _views(0, "Number of additional small views (3/7 of image_size), as in v2.", high=100)

    rounds: int = _alternation(500, "Maximum number of rounds; 0: cluster the initial features.", high=10**6, flag=True)
    epochs: int = _alternation(1, "Passes over the images in a round.", low=1, high=10**4, flag=True)
    tolerance: float = _alternation(0.0, "A round has settled if 1 - NMI to the round before is at most this.", high=1)
    patience: int = _alternation(3, "Stop after this many settled rounds in a row.", low=1, high=10**6)

    features: str = _features(
        "pass",
        "pass: computed by a pass over the images each round; memory: kept from training.",
        choices=("pass", "memory"),
    )
    reduce: bool = _features(True, "Reduce the features in every round, not only for the result.")
    dims: int = _features(
        256, "Principal components kept; 0: a sixteenth of the features, 32 to 256.", high=10**5, for_features=True
    )
    whitening: float = _features(
        1.0, "1: whitening; 0: plain PCA; between: leading directions weigh more.", high=1, for_features=True
    )
    root: bool = _features(False, "Reduce signed square roots of the features, scaled to length 1.", for_features=True)
    within_image: float = _features(
        0.0,
        "Weight of the differences between images and their centre crops: features shrink along these before PCA.",
        high=10**6,
    )
    class_probabilities: float = _features(
        0.0, "Length of the square roots of the network's class probabilities, as features beside its own.", high=100
    )

    pseudo_labels: int = _clustering(
        10_000, "Number of fine clusters trained on, or auto.", low=1, flag=True, auto=True, for_features=True
    )
    heads: int = _clustering(1, "Number of clusterings learnt at once.", low=1, high=100)
    head_growth: float = _clustering(
        1.0, "Ratio of the number of clusters of a clustering to that of the previous one.", low=1, high=10
    )
    kmeans_iterations: int = _clustering(20, "Iterations of k-means.", low=1, high=10**4, for_features=True)
    spherical: bool = _clustering(False, "Centroids have length 1.", for_features=True)
    empty: str = _clustering(
        "split",
        "New centroid of an empty cluster: beside a large cluster's, on a random image, or as in faiss.",
        choices=("split", "sample", "faiss"),
        flag=True,
        for_features=True,
    )

    temperature: float = _head(
        0.0,
        "0: a new linear classifier each round; above 0: the cluster means are its weights, at this temperature.",
        high=100,
    )
    projection_hidden: int = _head(0, "Hidden units of an MLP below the cluster means; 0: none.", high=10**5)
    projection_dim: int = _head(0, "Outputs of that MLP; 0: none.", high=10**5)
    instance_temperature: float = _head(
        0.0, "Temperature of a loss that tells single images apart while clusters change; 0: none.", high=100
    )
    renumber: bool = _head(False, "Renumber the occupied clusters, as the released code did.")

    sampling: str = _learning(
        "uniform",
        "Draw images uniformly over clusters, as the released code does, or each once.",
        choices=("uniform", "official", "none"),
    )
    batch_size: int = _learning(256, "Images in an optimizer step.", low=1, high=10**6, flag=True)
    lr: float = _learning(0.05, "Learning rate.", high=100, flag=True)
    schedule: str = _learning(
        "constant",
        "Course of the learning rate; cosine ends at 0. That of a linear head is constant.",
        choices=("constant", "cosine"),
    )
    warmup: float = _learning(0.0, "Rounds over which the learning rate rises to lr.", high=10**6)
    momentum: float = _learning(0.9, "Momentum of SGD.", high=0.9999)
    weight_decay: float = _learning(1e-5, "Weight decay of SGD.", high=1)
    precision: str = _learning(
        "fp32",
        "Number type of the network's products; auto: bf16 if the processor supports it.",
        choices=("auto", "fp32", "bf16"),
        flag=True,
    )

    grouping: str = _result(
        "kmeans",
        "Clusters by k-means of the features, or of a layout of their neighbour graph.",
        choices=("kmeans", "layout"),
        for_features=True,
    )
    average: float = _result(
        1.0,
        "Share of the last round's weights in the result; the rest are those before that round.",
        high=1,
    )

    def __post_init__(self) -> None:
        for name, option in DECLARED.items():
            option.check(getattr(self, name))
        if self.crop_min > self.crop_max:
            raise UsageError(f"crop_min={self.crop_min:g} is larger than crop_max={self.crop_max:g}")
        smallest = DECLARED["image_size"].low
        if 0 < self.view_size < smallest:
            raise UsageError(f"view_size={self.view_size} must be 0 (as image_size) or at least {smallest:g}")
        if self.instance_temperature and self.views < 2:
            raise UsageError(f"instance_temperature={self.instance_temperature:g} needs two views: views={self.views}")
        if self.renumber and self.temperature:
            raise UsageError("renumber is for a new linear head: set temperature=0")
        hidden, dim = self.projection_hidden, self.projection_dim
        if (hidden > 0) != (dim > 0):
            raise UsageError(f"projection_hidden={hidden}, projection_dim={dim}: set both or neither")

    @property
    def clusters(self) -> tuple[int, ...]:
        """Numbers of clusters, one for every clustering."""
        return tuple(round(self.pseudo_labels * self.head_growth**i) for i in range(self.heads))

    @property
    def small_size(self) -> int:
        """Side of a small view, px."""
        return max(8, round(self.image_size * 96 / 224))

    @property
    def store_size(self) -> int:
        """Side of the stored images, px."""
        return round(self.image_size * self.margin)


DECLARED = {field.name: replace(field.metadata["option"], name=field.name) for field in fields(Recipe)}  # by name


def read_options(requested: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the options that were requested to their types; those left to the recipe by ``auto`` are omitted.

    UsageError if an option is unknown, or its value not allowed.
    """
    values = {}
    for name, value in requested.items():
        if name not in DECLARED:
            near = difflib.get_close_matches(str(name), DECLARED, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the options are {', '.join(DECLARED)}"
            raise UsageError(f"no option is called {name!r}: {hint}")
        if not (DECLARED[name].auto and value == AUTO):
            values[name] = DECLARED[name].read(value)
    return values


AFTER_READING = "decided after reading the images"


# ---- TOML -----------------------------------------------------------------------------------------------------------


def to_toml(recipe: Recipe, undecided: Collection[str] = ()) -> str:
    """Return the options as TOML, one per line; a comment for ``undecided`` ones, so that ``auto`` decides them.

    JSON's strings, numbers and booleans are valid TOML.
    """
    lines = {name: f"{name} = {json.dumps(value)}" for name, value in asdict(recipe).items()}
    lines |= {name: f"# {name}: {AFTER_READING}" for name in undecided}
    return "".join(f"{line}\n" for line in lines.values())


def read_toml(path: str | Path) -> tuple[str, dict[str, Any]]:
    """Return the preset that a recipe file starts from (key ``base``, default ``auto``), and its options.

    UsageError if the file is missing or not TOML, or an option or its value is wrong; DiskError if it cannot be read.
    """
    try:
        check_file(Path(path), MAX_RECIPE_BYTES)
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no recipe file {path}") from None
    except OSError as error:
        raise DiskError(f"the recipe file {path} cannot be read ({error.strerror}): check it") from None
    except (ValueError, RecursionError) as error:  # ValueError: not TOML, or not UTF-8
        raise UsageError(f"the recipe file {path} cannot be read: {error}") from None
    base = str(content.pop("base", AUTO))
    return base, read_options(content)
