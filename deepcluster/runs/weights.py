"""The published network that a run starts from."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from deepcluster.errors import DeepClusterWarning, ModelError
from deepcluster.images.run_folders import is_run
from deepcluster.nets.published import PUBLISHED, fetch, local_file
from deepcluster.presets import Facts, options_of
from deepcluster.recipe import AUTO, read_toml
from deepcluster.runs.job import Request
from deepcluster.runtime.console import Display
from deepcluster.runtime.processes import ALONE, Processes


def choose(request: Request, facts: Facts, have: Callable[[str], object] = local_file) -> str:
    """Choose the published network (in ``PUBLISHED``) that a run starts from; empty: none. Nothing is downloaded.

    Args:
        request: Its ``published`` is the network that the run to be resumed has started from.
        facts: About the images.
        have: Whether a published network is on this machine.
    """
    base, options = options_of(request.recipe, request.options or {})
    weights, backbone = options.get("weights"), options.get("backbone")
    if weights not in (None, "timm") or (backbone is not None and backbone not in PUBLISHED):
        return ""  # a file, random weights, or a network without published weights
    if backbone or request.published:
        return str(backbone or request.published)
    if weights is None and (request.published == "" or base != AUTO or not facts.suits_published):
        return ""
    best = next(filter(have, PUBLISHED), "")
    return best or (next(iter(PUBLISHED)) if weights == "timm" else "")


def is_download(request: Request) -> bool:
    """Return whether a published network may be downloaded: ``--weights timm`` says so."""
    return options_of(request.recipe, request.options or {})[1].get("weights") == "timm"


def settle(request: Request, facts: Facts, *, display: Display, processes: Processes = ALONE) -> Request:
    """Return the request with the published network that the run starts from, downloaded if the user asked for that.

    Raises:
        ModelError: The named network is not on this machine, or its download failed.
    """
    options = options_of(request.recipe, request.options or {})[1]
    backbone = options.get("backbone", "")
    if backbone.startswith("timm:") and "weights" not in options and not request.resume and processes.is_main:
        warnings.warn(
            f"{backbone} starts untrained. Add --weights timm for its published weights (usually better), or --weights"
            " none to hide this warning.",
            DeepClusterWarning,
            stacklevel=2,
        )

    def have(name: str) -> bool:
        return all(processes.all_gather_json(bool(local_file(name))))

    name = choose(request, facts, have)
    if name and not have(name):
        processes.broadcast_json(lambda: str(_obtained(name, is_download(request), display)))
    return replace(request, published=name)


def _obtained(name: str, download: bool, display: Display) -> Path:
    network = PUBLISHED[name]
    if not download:
        raise ModelError(
            f"{name} ({network.title}, {network.megabytes} MB) has not been downloaded yet: deepcluster fetch {name};"
            " or start from nothing: --weights none"
        )
    display.say("Weights", f"downloading {name}: {network.description}")
    return fetch(name, display.progress)


def recorded(out: Path | None) -> str | None:
    """Return the published network that the run at ``out`` started from; empty: none; None: it has not started yet."""
    if out is None or not is_run(out) or not (out / "recipe.toml").is_file():
        return None
    _, recipe = read_toml(out / "recipe.toml")
    names = {one.backbone: one.name for one in PUBLISHED.values()}
    return names.get(str(recipe.get("backbone")), "") if recipe.get("weights") == "timm" else ""
