"""Networks that others have trained, by names that say what they are for, and how their files get onto this machine.

Files lie in the cache of the Hugging Face Hub, which other programs share. Nothing here imports torch for a network of
``PUBLISHED``, and only :func:`fetch` touches the network.
"""

import hashlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from deepcluster.errors import DeepClusterError, DeepClusterWarning, DiskError, ModelError, UsageError, first_line
from deepcluster.nets.sizes import PLUS, timm_config

TIMM = "timm:"
FILE = "model.safetensors"
ANSWER_SECONDS = 4.0  # in which the Hub must answer, so that a missing connection is reported within 5
_SHA256 = 64  # hexadecimal digits


@dataclass(frozen=True)
class Published:
    """A network with weights that may be used by anybody, for anything.

    Attributes:
        name: Of ``--backbone``.
        network: timm's name, with the tag of the weights; of two networks that work side by side with a + between.
        title: The network's usual name.
        megabytes: Of its file or files.
        licence: Of the weights.
        trained_on: What it has learnt from.
    """

    name: str
    network: str
    title: str
    megabytes: int
    licence: str
    trained_on: str

    @property
    def parts(self) -> list[str]:
        return self.network.split(PLUS)

    @property
    def backbone(self) -> str:
        return PLUS.join(TIMM + part for part in self.parts)

    @property
    def description(self) -> str:
        source = f"from huggingface.co (timm, {' and '.join(self.parts)})"  # no path: texts with one are not wrapped
        return f"{self.title}, {self.megabytes} MB, {self.licence}, {source}, {self.trained_on}"


# By preference (docs/decisions.md, "Photographs by default").
PUBLISHED = {
    published.name: published
    for published in (
        Published(
            "photos",
            "convnext_tiny.fb_in22k",
            "ConvNeXt-T",
            178,
            "Apache-2.0",
            "trained on photographs with the labels of 22,000 nouns (ImageNet-22k)",
        ),
        Published(
            "photos-ssl",
            "vit_small_patch14_dinov2.lvd142m",
            "DINOv2 ViT-S",
            88,
            "Apache-2.0",
            "trained on 142 million photographs without labels",
        ),
        Published(
            "photos-small",
            "tf_efficientnet_lite0.in1k",
            "EfficientNet-Lite0",
            19,
            "Apache-2.0",
            "trained on photographs with the labels of 1,000 nouns (ImageNet-1k)",
        ),
        Published(
            "photos-pair",
            "tf_efficientnet_lite0.in1k+tf_efficientnet_lite2.in1k",
            "EfficientNet-Lite0 and Lite2",
            44,
            "Apache-2.0",
            "trained on photographs with the labels of 1,000 nouns (ImageNet-1k)",
        ),
    )
}

Progress = Callable[[str, int, int], None]  # phase, megabytes done, megabytes in all


def parts_of(name: str) -> list[str]:
    """The networks, one file each, that ``name`` stands for."""
    return PUBLISHED[name].parts if name in PUBLISHED else [name]


def is_here(name: str) -> bool:
    """Whether all files of a network are on this machine."""
    return all(cached(part) is not None for part in parts_of(name))


def cached(name: str) -> Path | None:
    """The file of a network's weights on this machine; None where it has none, or a damaged one, of which it warns.

    Args:
        name: One of ``PUBLISHED`` that has one file, or a name of timm, with or without ``timm:``.
    """
    path = _in_cache(name)
    if path is None or not (why := _damage(path)):
        return path
    warnings.warn(
        f"{path}: {why}, so it is not used: deepcluster fetch {_given(name)} repeats the download",
        DeepClusterWarning,
        stacklevel=2,
    )
    return None


def fetch(name: str, progress: Progress | None = None) -> Path:
    """:func:`cached`, or else the file as the Hub sends it, in the cache. A damaged file is replaced.

    Raises:
        UsageError: timm publishes no weights of this name.
        ModelError: The Hub does not answer, does not have the file, or what arrives is damaged.
        DiskError: The cache cannot be written.
    """
    path = _in_cache(name)
    damaged = path is not None and bool(_damage(path))
    if path is not None and not damaged:
        return path
    repository = _repository(name)
    if repository is None:
        raise UsageError(f"timm publishes no weights for {name}: give a file: --weights FILE")
    try:
        size = _ask_hub(repository)
        if path is not None:
            path.unlink(missing_ok=True)  # the Hub's client keeps a file that is there, whatever it holds
        path = _download(repository, size, progress, again=damaged)
        if _damage(path):  # what a proxy or a disk may do; once more, as from nothing
            path.unlink(missing_ok=True)
            path = _download(repository, size, progress, again=True)
        why = _damage(path)
    except DeepClusterError:
        raise
    except Exception as error:  # the libraries that download raise many kinds
        raise _explained(error, name, repository) from error
    if why:
        raise ModelError(
            f"the weights of {_given(name)} arrive damaged ({path}: {why}): try again later, or another connection"
        )
    return path


def backbone_of(name: str) -> str:
    """The backbone that ``name`` stands for where it is one of ``PUBLISHED``; else ``name``."""
    return PUBLISHED[name].backbone if name in PUBLISHED else name


def _given(name: str) -> str:
    """What the command line calls a network: one of ``PUBLISHED`` where it has it."""
    short = backbone_of(name).removeprefix(TIMM)
    return next((one.name for one in PUBLISHED.values() if one.network == short), TIMM + short)


def _repository(name: str) -> str | None:
    """Where the Hub keeps the weights of a network; None where it does not."""
    short = backbone_of(name).removeprefix(TIMM)
    if any(short in one.parts for one in PUBLISHED.values()):
        return f"timm/{short}"
    config = timm_config(short)
    return (config and config.hf_hub_id) or None


def _in_cache(name: str) -> Path | None:
    repository = _repository(name)
    if repository is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    try:
        path = try_to_load_from_cache(repository, FILE)
    except OSError:  # a cache that may not be read
        return None
    return Path(path) if isinstance(path, str) else None


def _damage(path: Path) -> str:
    """Why a file of the cache is not what the Hub has; empty where nothing speaks against it.

    The cache names a large file by the SHA-256 of its content, and has a link to it. A copy, or a cache on a disk
    without links, has no such name: there the file must be as long as its own header says.
    """
    from safetensors import safe_open

    try:
        if path.is_symlink() and len(digest := path.readlink().name) == _SHA256:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    return "damaged (its SHA-256 is another one)"
        else:
            with safe_open(path, framework="numpy"):
                pass
    except Exception as error:  # safetensors has errors of its own
        return f"damaged ({first_line(error)})"
    return ""


def _ask_hub(repository: str) -> int:
    """The size of the file, bytes, by the Hub (0: it does not say). An error if it does not answer in time.

    In a thread, because looking up a name in the DNS has no time limit.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    seconds = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or ANSWER_SECONDS)
    answers: SimpleQueue[int | Exception] = SimpleQueue()

    def ask() -> None:
        try:
            answers.put(get_hf_file_metadata(hf_hub_url(repository, FILE), timeout=seconds).size or 0)
        except Exception as error:
            answers.put(error)

    Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except Empty:
        answer = TimeoutError(f"no answer within {seconds:g} s")
    if isinstance(answer, Exception):
        raise answer
    return answer


def _download(repository: str, size: int, progress: Progress | None, *, again: bool) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Bar(tqdm):
        """Hands on the progress of a download instead of drawing it."""

        most = 0

        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **{**options, "disable": progress is None})  # type: ignore[no-untyped-call]

        def display(self, *_: object, **__: object) -> None:
            Bar.most = max(Bar.most, int(self.n))  # some downloads have a second bar
            if progress:
                progress("weights", Bar.most // 10**6, max(size, Bar.most) // 10**6)

    return Path(hf_hub_download(repository, FILE, force_download=again, tqdm_class=Bar))


def _explained(error: Exception, name: str, repository: str) -> DeepClusterError:
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    given = _given(name)
    by_hand = f"fetch {FILE} from https://huggingface.co/{repository} on another machine, and give it: --weights FILE"
    if isinstance(error, OfflineModeIsEnabled):
        return ModelError(
            f"the weights of {given} are not on this machine, and HF_HUB_OFFLINE forbids to fetch them: unset it where"
            f" there is a connection, or {by_hand}"
        )
    if isinstance(error, OSError) and error.errno and not isinstance(error, HfHubHTTPError | ConnectionError):
        return DiskError(
            f"the weights of {given} cannot be kept in {error.filename or 'the cache'} ({error.strerror}): set HF_HOME"
            " to a folder that can be written and has room"
        )
    return ModelError(
        f"the weights of {given} could not be fetched ({first_line(error)}): is there no connection? Try again, or"
        f" {by_hand}"
    )
