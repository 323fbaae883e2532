"""The options of every protocol. Nothing here imports torch: the command line checks them before it does."""

from dataclasses import dataclass

from deepcluster.errors import UsageError
from deepcluster.recipe import Options, option


@dataclass(frozen=True)
class ClusteringOptions(Options):
    """Options of the protocol ``clustering``."""

    shuffles: int = option(5, "Random orders of the labels, whose mean score is the chance level; 0: none.")


@dataclass(frozen=True)
class KnnOptions(Options):
    """Options of the protocol ``knn``."""

    neighbours: str = option("20,200", "How many neighbours vote: one or more numbers.")
    temperature: float = option(0.07, "A vote weighs exp(cosine / temperature).", low=1e-6, high=1e6)


@dataclass(frozen=True)
class LinearOptions(Options):
    """Options of the protocol ``linear``."""

    layers: str = option("", "Names of layers, for example conv3,conv5; empty: all.", flag=True)
    epochs: int = option(90, "Passes over the images to learn from.", low=1, high=1e6, flag=True)
    batch_size: int = option(256, "Images in an optimizer step.", low=1, high=1e6, flag=True)
    maps: str = option(
        "normalised",
        "raw: pooled maps as they are, as published; normalised: each number at mean 0 and variance 1, and all of them"
        " at the scale that lr suits.",
        choices=("normalised", "raw"),
    )
    lr: float = option(0.01, "Learning rate; of iteration t it is lr / sqrt(1 + lr weight_decay t).")
    momentum: float = option(0.9, "Momentum of SGD.", high=0.9999)
    weight_decay: float = option(1e-7, "Weight decay of SGD.")
    image_size: int = option(0, "Side of the images, px; 0: that of the run.", high=8192, flag=True)
    margin: float = option(256 / 224, "Side of the stored image over that of its crops.", low=1, high=2)
    ten_crops: bool = option(True, "Score by the mean of ten crops (corners and centre, mirrored or not), not one.")


@dataclass(frozen=True)
class FewLabelsOptions(Options):
    """Options of the protocol ``few``."""

    shares: str = option("0.01,0.1", "Shares of the labelled images to learn from.")
    epochs: int = option(20, "Passes over the images to learn from.", low=1, high=1e6, flag=True)
    batch_size: int = option(256, "Images in an optimizer step.", low=1, high=1e6, flag=True)
    lr: str = option("0.02,0.01", "Learning rate of the body for 256 images: one for each share, or one for all.")
    head_lr: str = option("5,0.2", "Learning rate of the classifier, likewise.")
    momentum: float = option(0.9, "Momentum of SGD.", high=0.9999)
    weight_decay: float = option(0.0, "Weight decay of SGD.")


@dataclass(frozen=True)
class RetrievalOptions(Options):
    """Options of the protocol ``retrieval``."""

    image_size: int = option(1024, "The longer side of an image, px.", low=1, high=8192, flag=True)
    levels: int = option(3, "Levels of the regions of R-MAC.", low=1, high=100)
    dims: int = option(512, "Dimensions after the whitening.", low=1, high=1e6)
    crop: bool = option(True, "The query is the box in its image; false: the whole image.")


@dataclass(frozen=True)
class Voc07Options(Options):
    """Options of the protocol ``voc07``."""

    split: str = option("trainval", "trainval: scored on test; train: on val.", choices=("trainval", "train"))
    layers: str = option(
        "top",
        "top: train fc6 to fc8 of AlexNet and VGG-16 anew, of other networks a new classifier; all: every layer.",
        choices=("top", "all"),
        flag=True,
    )
    train_batchnorm: bool = option(False, "Train scale and shift of batch normalisation too.")
    iterations: int = option(80_000, "Optimizer steps.", low=1)
    batch_size: int = option(16, "Images in an optimizer step.", low=1, high=1e6, flag=True)
    lr: float = option(0.003, "Learning rate at first.")
    step_size: int = option(5000, "The learning rate is halved every so many iterations.", low=1)
    momentum: float = option(0.9, "Momentum of SGD.", high=0.9999)
    weight_decay: float = option(1e-6, "Weight decay of SGD.")
    crop_min: float = option(0.1, "Smallest area of a square crop, as a share of the image.", low=1e-6, high=1)
    crop_max: float = option(0.5, "Largest area of a square crop.", low=1e-6, high=1)
    crops: int = option(10, "Random crops whose logits are summed for a score.", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop_min > self.crop_max:
            raise UsageError(f"crop_min={self.crop_min:g} is larger than crop_max={self.crop_max:g}")


PROTOCOL_OPTIONS: dict[str, type[Options]] = {
    "clustering": ClusteringOptions,
    "knn": KnnOptions,
    "linear": LinearOptions,
    "few": FewLabelsOptions,
    "retrieval": RetrievalOptions,
    "voc07": Voc07Options,
}
