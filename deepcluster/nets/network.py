"""Network: the contract that every backbone meets, the names that build one, and modules that the user gives."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from deepcluster.errors import ModelError, UsageError
from deepcluster.nets import hub, paper, small
from deepcluster.nets.names import MODULE, NO_NETWORK, PAPER_NETWORKS, TIMM
from deepcluster.nets.paper import reset_linear
from deepcluster.nets.timm import checked_size, in_layout_of, timm_body, unknown_backbone
from deepcluster.nets.weights import HEADS, classifier_of, load_body, read_weights
from deepcluster.seeding import generator, lent_global

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class FrozenClassifier(nn.Module):
    """Logits x . w_k / temperature of embeddings x at length 1. The weights (K x D) do not learn."""

    def __init__(self, weight: Tensor, temperature: float):
        super().__init__()
        self.temperature = temperature
        self.weight: Tensor
        self.register_buffer("weight", weight.float())

    def forward(self, embeddings: Tensor) -> Tensor:
        # Always in float32: at a temperature of 0.1 the three digits of bfloat16 mean an error of 0.04 in a logit.
        with torch.autocast(embeddings.device.type, enabled=False):
            return F.linear(F.normalize(embeddings.float(), dim=1), self.weight) / self.temperature


class Network(nn.Module):
    """A backbone without its last layer (step 1), and the head on top of it for one round.

    ``features`` maps B x 3 x S x S images in [0, 1] to B x ``feature_dim`` features. ``embed`` maps these to the
    rows clustered during training: the features themselves, or their projection (DeepCluster-v2). ``classify`` maps
    embeddings to B x K logits by the head; ``forward`` does all three.

    Args:
        activation: Module between the features and a linear head that learns. Centroids are means of embeddings, of
            which a ReLU would cut off a part.
        projection: Module from features to ``embedding_dim`` embeddings; default: the features themselves.
        mean, std: Of the colours; part of the network, so that nobody can forget the normalisation or do it twice.
        architecture: The arguments of ``build`` that make this network again; empty for a custom body.

    Examples:
        >>> network = build("compact", image_size=32)
        >>> network.new_head(10, torch.Generator())
        >>> network(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    head: nn.Linear | FrozenClassifier | None
    #: Batch normalisation keeps its mean and variance in training, for a network that was pretrained on more images
    #: than it is adapted to.
    frozen_statistics: bool
    #: The classifier that came with the weights, weight (K x ``feature_dim``) and bias (K); no part of the network.
    classifier: tuple[Tensor, Tensor] | None

    def __init__(
        self,
        body: nn.Module,
        feature_dim: int,
        *,
        activation: nn.Module | None = None,
        projection: nn.Module | None = None,
        embedding_dim: int | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        architecture: Mapping[str, str | int | bool] | None = None,
    ):
        super().__init__()
        self.body = body
        self.feature_dim = feature_dim
        self.activation = activation or nn.Identity()
        self.projection = projection or nn.Identity()
        self.embedding_dim = embedding_dim or feature_dim
        self.head = None
        self.architecture = dict(architecture or {})
        self.frozen_statistics = False
        self.classifier = None
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen_statistics:
            for module in self.body.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        features: Tensor = self.body((images - self.mean) / self.std)
        return features.float() if features.dtype == torch.float64 else features

    def embed(self, features: Tensor) -> Tensor:
        embeddings: Tensor = self.projection(features)
        return embeddings

    def classify(self, embeddings: Tensor) -> Tensor:
        if self.head is None:
            raise RuntimeError("the network has no head yet: call new_head(clusters, generator) first")
        on_features = isinstance(self.head, nn.Linear) and isinstance(self.projection, nn.Identity)
        logits: Tensor = self.head(self.activation(embeddings) if on_features else embeddings)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.embed(self.features(images)))

    def new_head(self, clusters: int, generator: torch.Generator) -> None:
        """Put a fresh linear classifier with ``clusters`` outputs on top."""
        self.head = reset_linear(self.embedding_dim, clusters, generator).to(self.mean.device)

    def centroid_head(self, centroids: Tensor, temperature: float) -> None:
        """Put the directions of K x ``embedding_dim`` ``centroids`` on top, which do not learn (DeepCluster-v2)."""
        directions = F.normalize(centroids.float(), dim=1)
        self.head = FrozenClassifier(directions, temperature).to(self.mean.device)

    def with_projection(self, widths: tuple[int, int] | None, seed: int) -> Self:
        """Put an MLP of these hidden and output ``widths`` behind the features, unless they are None.

        Training clusters its outputs (DeepCluster-v2, after SimCLR).
        """
        if widths:
            with lent_global(seed, "projection"):
                first, last = nn.Linear(self.feature_dim, widths[0]), nn.Linear(*widths)
            random = generator(seed, "projection")
            for layer in (first, last):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear", generator=random)
                nn.init.zeros_(layer.bias)
            self.projection = nn.Sequential(first, nn.BatchNorm1d(widths[0]), nn.ReLU(inplace=True), last)
            self.embedding_dim = widths[1]
        return self

    def body_parameters(self) -> Iterator[nn.Parameter]:
        """Return the trained parameters below the head."""
        parts = (self.body, self.projection)
        return (parameter for part in parts for parameter in part.parameters() if parameter.requires_grad)


def build(
    name: str,
    *,
    image_size: int,
    sobel: bool = False,
    weights: str | None = None,
    projection: tuple[int, int] | None = None,
    seed: int = 0,
    feature_dim: int | None = None,
) -> Network:
    """Build a network by its name, on the CPU and without a head. ``build(**network.architecture)`` builds it again.

    Args:
        name: ``compact``, ``alexnet``, ``vgg16`` or ``timm:NAME`` with any name that timm knows.
        image_size: Side of its images, px.
        sobel: Put the fixed Sobel filter before ``alexnet`` or ``vgg16``.
        weights: A file with a ``state_dict`` of the network, or ``"timm"`` for timm's, which may be downloaded. None:
            random weights.
        projection: Hidden and output width of an MLP between features and head, for training only.
        seed: Seed of the random weights.
        feature_dim: If known, it saves the trial that measures it.

    Raises:
        UsageError: There is no such network, or not with these options.
        ModelError: The weights cannot be read or fetched, or do not fit the network.

    Examples:
        >>> build("compact", image_size=32).features(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 128])
    """
    if name == MODULE:
        raise UsageError("the backbone is a module of your own: give it in Python, DeepCluster(backbone=module)")
    if sobel and name not in PAPER_NETWORKS:
        raise UsageError(f"sobel is for the backbones alexnet and vgg16, not for {name}: leave it out")
    if weights == "timm":
        if not name.startswith(TIMM):
            raise UsageError(f"--weights timm is for backbones called timm:NAME, not for {name}: give a file instead")
        weights = str(hub.fetch(name))
    # Before the network is built, which may take seconds.
    state = None if weights is None else read_weights(weights)
    # Lent, because layers draw initial values of their own before the generator's replace them.
    with lent_global(seed, "network"):
        body, options, layout = _new_body(name, image_size, sobel, generator(seed, "network"))
    if state is not None:
        load_body(body, state, path=str(weights), name=name, **layout)
    widths = dict.fromkeys(PAPER_NETWORKS, paper.FEATURE_DIM) | dict.fromkeys(small.LITE0_NAMES, small.LITE0_DIM)
    network = Network(
        body,
        widths.get(name, feature_dim) or _width(trial(body, name, image_size), name),
        architecture={"name": name, "image_size": image_size, "sobel": sobel},
        **options,
    )
    network.classifier = classifier_of(state or {}, layout["heads"], network.feature_dim)
    return network.with_projection(projection, seed)


def _new_body(
    name: str, image_size: int, sobel: bool, random: torch.Generator
) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """Return a body, the options of its ``Network``, and the options of ``load_body`` for its weights."""
    if name == "compact":
        return small.Compact(image_size, random), {}, {"heads": HEADS}
    if name in PAPER_NETWORKS:
        if image_size != paper.IMAGE_SIZE:
            raise paper.wrong_size(name, image_size)
        make = {"alexnet": paper.alexnet, "vgg16": paper.vgg16}[name]
        # The features end before the last ReLU, and the head starts after it.
        return make(sobel=sobel, generator=random), {"activation": nn.ReLU()}, {"heads": HEADS}
    if not name.startswith(TIMM):
        raise unknown_backbone(name)
    if name in small.LITE0_NAMES:
        body: nn.Module = small.Lite0(random)
        config: dict[str, Any] = small.LITE0_CONFIG
    else:
        body, config = timm_body(name, image_size)
    # The last layers (head.fc, or head.l and head_dist.l, or none) by their top-level modules, because a normalisation
    # in one (head.bn) is dropped too; also the last layers of EfficientNet-Lite0's own code and of DeepCluster-v2.
    last = config["classifier"] or ()
    last = (last,) if isinstance(last, str) else last
    heads = (*(layer.split(".")[0] for layer in last), "_fc", "projection_head", "prototypes")
    layout = {"heads": heads, "convert": partial(in_layout_of, body)}
    return body, {"mean": config["mean"], "std": config["std"]}, layout


def as_network(body: nn.Module, image_size: int) -> Network:
    """Return the network around any module that gives features, N x D, or maps, of which it takes the means.

    Its images are normalised as ImageNet's are: for another mean and deviation make the ``Network`` yourself, which is
    returned as it is.
    """
    if isinstance(body, Network):
        return body
    name = type(body).__name__
    if next(body.parameters(), None) is None:
        raise UsageError(f"{name} has no weights, so nothing in it can learn")
    features = trial(body, name, image_size, count=2)
    if isinstance(features, Tensor) and features.dim() == 4:
        body = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten()).train(body.training)
        features = features[:, :, 0, 0]
    return Network(body, _width(features, name, count=2)).to(_device(body)).train(body.training)


def copy_of_module(
    module: nn.Module, *, image_size: int, projection: tuple[int, int] | None = None, seed: int = 0
) -> Network:
    """Return a network as of :func:`build`, around a copy of a module with its weights."""
    network = as_network(copy.deepcopy(module), image_size)
    network.architecture = {"name": MODULE, "image_size": image_size, "sobel": False}
    return network.with_projection(projection, seed)


def _width(features: object, name: str, count: int = 1) -> int:
    if isinstance(features, Tensor):
        if features.dim() == 2 and len(features) == count and features.is_floating_point():
            return features.shape[1]
        features = f"{features.dtype} {tuple(features.shape)}"
    raise UsageError(f"{name} does not give a vector of floats for each of {count} images, but {features}")


def trial(body: nn.Module, name: str, image_size: int, count: int = 1, advice: str = "") -> object:
    """Return the features of ``count`` images; a size that does not fit is an error before any work is done.

    ``advice``: More for the error, see :func:`checked_size`.

    timm's ``num_features`` cannot be trusted: it is 576 for a MobileNetV3 that gives 1024 features.
    """
    training = body.training
    body.eval()
    with checked_size(name, image_size, advice), torch.no_grad():
        features = body(torch.zeros(count, 3, image_size, image_size, device=_device(body)))
    body.train(training)
    return features


def _device(body: nn.Module) -> torch.device:
    return next(body.parameters(), torch.empty(0)).device


def no_network(feature_dim: int) -> Network:
    """Return a network without weights, which no image goes through."""
    return Network(nn.Identity(), feature_dim, architecture={"name": NO_NETWORK, "image_size": 1, "sobel": False})


class Absent(nn.Module):
    """Weights of a module that was not passed again. They can be saved, as after a recut; images need the module."""

    def __init__(self, weights: Mapping[str, Tensor]):
        super().__init__()
        self.weights = dict(weights)
        self.nothing = nn.Parameter(torch.empty(0))  # callers ask every network for the device of its parameters

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination |= {prefix + name: value for name, value in self.weights.items()}

    def forward(self, *images: Tensor) -> Tensor:
        """Raise ModelError."""
        raise ModelError(
            "the network of this model is a module of your own, of which it has the weights alone: give the module in"
            " Python, DeepCluster.load(path, backbone=module)"
        )
