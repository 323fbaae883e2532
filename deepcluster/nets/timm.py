"""Networks of timm: built without their last layer, fed with files in their authors' layouts, channels last.

timm is imported inside the functions: that takes a second or more, and only these networks need it.
"""

import csv
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcluster.errors import UsageError, first_line
from deepcluster.nets.names import NETWORKS, PUBLISHED, TIMM, timm_config
from deepcluster.nets.weights import shapes_only

LAYER_ERRORS = (RuntimeError, ValueError, AssertionError)  # of layers, for too few or too many pixels
ROWS_AT_ONCE = 1024  # rows of 22,000 probabilities take 90 MB


def timm_body(name: str, image_size: int) -> tuple[nn.Module, dict[str, Any]]:
    """Return the timm network ``name`` (with its prefix) without its last layer, and timm's configuration of it.

    UsageError if timm has no such network, or not for this image size.
    """
    import timm

    timm_name = name.removeprefix(TIMM)
    # is_model ignores the tag; timm names such as hf-hub:USER/NAME, which download, are not models.
    if not timm.is_model(timm_name):
        raise unknown_backbone(name)
    try:
        config = timm.get_pretrained_cfg(timm_name)
    except RuntimeError as error:  # a tag (resnet18.TAG) that this model does not have
        raise unknown_backbone(name) from error
    # Transformers are made for one image size; convolutional networks have no such argument.
    options: dict[str, Any] = {"img_size": image_size} if config is not None and config.fixed_input_size else {}
    # timm takes the class token of ViT, DINO, DINOv2 and MAE, attention pooling of SigLIP, and averages if the authors
    # do, without class token and registers. Of DINOv3 it averages too, but its authors take the class token.
    options |= {"global_pool": "token"} if timm_name.startswith("vit_") and "dinov3" in timm_name else {}
    with checked_size(name, image_size, errors=Exception):
        model = timm.create_model(timm_name, num_classes=0, **options)  # noqa: TID251
    return model, cast(dict[str, Any], model.default_cfg)


def in_layout_of(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file by timm's names, with position tables resampled to the model's image size.

    timm's own function converts the files of the model's authors. A file that it cannot convert comes back as it is. A
    convolution of another size is not resampled: its file is for another network.

    The package with EfficientNet-Lite0 has the same modules in the same order under the names of its own code.
    """
    if "_conv_stem.weight" in state:
        theirs, timms = (dict.fromkeys(key.rpartition(".")[0] for key in keys) for keys in (state, model.state_dict()))
        names = dict(zip(theirs, timms, strict=False))  # the classifier comes last, and has no place in the model
        renamed = {key: (names.get(key.rpartition(".")[0]), key.rpartition(".")[2]) for key in state}
        return {f"{module}.{kind}": state[key] for key, (module, kind) in renamed.items() if module}
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return dict(state)
    try:
        converted = dict(convert(dict(state), model))
    except Exception:  # written for these authors' files, it fails at others in many ways
        return dict(state)
    unchanged = {value.data_ptr() for value in state.values()}
    for key, value in converted.items():
        if value.dim() == 4 and key.endswith(".weight") and value.data_ptr() not in unchanged:
            converted[key] = next((tensor for name, tensor in state.items() if name.endswith(key)), value)
    return converted


def published_network(state: Mapping[str, Tensor]) -> str | None:
    """Return the network of ``PUBLISHED`` whose layers a file of weights has; None if it has none of theirs.

    The names and shapes of the tensors decide, so a network that somebody has tuned further is recognised too.
    """
    import timm

    for published in PUBLISHED.values():
        with shapes_only():
            model = timm.create_model(published.network, num_classes=0)  # noqa: TID251
        shapes = {name: tensor.shape for name, tensor in in_layout_of(model, state).items()}
        if all(shapes.get(name) == tensor.shape for name, tensor in model.state_dict().items()):
            return published.name
    return None


def nouns(name: str, classifier: tuple[Tensor, Tensor] | None, features: Tensor) -> list[tuple[str, float]]:
    """Return the most probable noun of every image, and its probability, by the classifier of a published network.

    ``features`` (N x D): Of the network before any training. The list is empty for the backbone ``name`` of
    another network, or of one that learned without nouns.
    """
    synsets = {entry.backbone: entry.synsets for entry in PUBLISHED.values()}.get(name, "")
    if not synsets or classifier is None or not (words := _words(synsets)):
        return []
    tops = [F.linear(rows.float().cpu(), *classifier).softmax(1).max(1) for rows in features.split(ROWS_AT_ONCE)]
    return [(words[i], value) for top in tops for value, i in zip(*map(Tensor.tolist, top), strict=True)]


def _words(synsets: str) -> list[str]:
    """Return the nouns of the classes in a file of timm, or none if this version of timm has no such file.

    The files are read without an import of timm, which takes a second of a fit that needs nothing else of it.
    """
    folder = Path(str(distribution("timm").locate_file("timm/data/_info")))
    try:
        with (folder / "imagenet_synset_to_lemma.txt").open(encoding="utf-8", newline="") as file:
            lemmas = dict(csv.reader(file, delimiter="\t"))
        return [lemmas[synset].split(",")[0] for synset in (folder / synsets).read_text(encoding="utf-8").split()]
    except OSError:
        return []


@contextmanager
def checked_size(name: str, size: int, advice: str = "", errors: Any = LAYER_ERRORS) -> Iterator[None]:
    """Turn an error of the network ``name`` into a UsageError about the ``size``, unless memory is short."""
    try:
        yield
    except errors as error:
        if isinstance(error, UsageError) or "memory" in str(error):
            raise
        problem = f"{name} cannot take images of {size} x {size} pixels ({first_line(error)})"
        config = timm_config(name.removeprefix(TIMM)) if name.startswith(TIMM) else None
        own_size = size if config is None else int(config.input_size[-1])
        choice = "another --image-size" if own_size == size else f"--image-size {own_size}, timm's own"
        raise UsageError(f"{problem}: try {choice}{advice}") from error


def unknown_backbone(name: str) -> UsageError:
    import timm

    names = [*NETWORKS, *(TIMM + model for model in timm.list_models() + timm.list_pretrained())]
    near = [TIMM + name] if timm.is_model(name) else get_close_matches(name.lower(), names)
    hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() has the names that timm knows"
    return UsageError(f"there is no backbone {name}: it is {', '.join(NETWORKS)} or timm:NAME; {hint}")


Body = TypeVar("Body", bound=nn.Module)


def channels_last(network: Body) -> Body:
    """Put the network into channels-last order, except layers whose gradient would be wrong in that order.

    torch 2.13 on a CPU (oneDNN): in channels-last order the weight gradient of a strided 1 x 1 convolution on fewer
    than 16 channels writes beyond its memory, and the process dies ("double free or corruption") or computes with
    wrong values. RepVGG, MobileOne and FastViT begin with one. These layers take and give the default order.
    """
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and _is_corrupted(module):
            # Not contiguous(): a 1 x 1 kernel counts as contiguous in both orders, and nothing would change.
            module.weight.data = module.weight.data.clone(memory_format=torch.contiguous_format)
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    return network


def _is_corrupted(layer: nn.Conv2d) -> bool:
    # Tried: 2 to 15 channels crash with strides of 2 and 4, from 64 px on; more channels, groups, larger kernels never.
    return max(layer.kernel_size) == 1 and max(layer.stride) > 1 and layer.groups == 1 and layer.in_channels < 16
