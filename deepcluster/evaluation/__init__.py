"""Protocols that score features and clusters by labels, and their options. A protocol yields (name, figure).

Nothing here imports torch: the command line checks options before it does.
"""

from dataclasses import dataclass

from deepcluster.recipe import Options, option


@dataclass(frozen=True)
class ClusteringOptions(Options):
    """Options of the protocol ``clustering``."""

    shuffles: int = option(5, "Random orders of the labels, whose mean score is the chance level; 0: none.")


@dataclass(frozen=True)
class KnnOptions(Options):
    """Options of the protocol ``knn``."""

    neighbours: str = option("20,200", "Number of neighbours that vote; several numbers give a score each.")
    temperature: float = option(0.07, "A vote weighs exp(cosine / temperature).", low=1e-6, high=1e6)
    reduced: bool = option(True, "By the reduced features, by which the run places images; false: the network's own.")


@dataclass(frozen=True)
class LinearOptions(Options):
    """Options of the protocol ``linear``."""

    layers: str = option("", "Names of layers, for example conv3,conv5; empty: all.")
    epochs: int = option(90, "Passes over the images to learn from.", low=1, high=1e6)
    batch_size: int = option(256, "Images in an optimizer step.", low=1, high=1e6)
    maps: str = option(
        "normalised",
        "raw: pooled maps as they are, as published; normalised: every number at mean 0 and variance 1, and all of them"
        " at the scale that lr suits.",
        choices=("normalised", "raw"),
    )
    lr: float = option(0.01, "Learning rate; in iteration t it is lr / sqrt(1 + lr weight_decay t).")
    momentum: float = option(0.9, "Momentum of SGD.", high=0.9999)
    weight_decay: float = option(1e-7, "Weight decay of SGD.")
    image_size: int = option(0, "Side of the images, px; 0: that of the run.", high=8192)
    margin: float = option(256 / 224, "Side of the stored image over that of its crops.", low=1, high=2)
    ten_crops: bool = option(True, "Score by the mean of ten crops (corners and centre, mirrored or not), not one.")


PROTOCOL_OPTIONS: dict[str, type[Options]] = {
    "clustering": ClusteringOptions,
    "knn": KnnOptions,
    "linear": LinearOptions,
}
