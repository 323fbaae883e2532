"""The published network that a run starts from."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from deepcluster.errors import DeepClusterWarning, ModelError
from deepcluster.images.run_folders import is_run
from deepcluster.nets.published import PUBLISHED, fetch, local_file
from deepcluster.presets import Facts, options_of
from deepcluster.recipe import AUTO, read_toml
from deepcluster.runs.job import Request
from deepcluster.runtime.display import Display
from deepcluster.runtime.processes import ALONE, Processes


@dataclass(frozen=True)
class Start:
    """The published network that a run starts from.

    Attributes:
        name: In ``PUBLISHED``; empty: none.
        missing: It is not on this machine.
        download: It may be downloaded: ``--weights timm`` says so.
    """

    name: str = ""
    missing: bool = False
    download: bool = False


def choose(request: Request, facts: Facts, have: Callable[[str], object] = local_file) -> Start:
    """Choose the published network for a run. Nothing is downloaded.

    Args:
        request: Its ``published`` is the network that the run to be resumed has started from.
        facts: About the images.
        have: Whether a published network is on this machine.
    """
    base, options = options_of(request.recipe, request.options or {})
    weights, backbone = options.get("weights"), options.get("backbone")
    if weights not in (None, "timm") or (backbone is not None and backbone not in PUBLISHED):
        return Start()
    name = backbone or request.published
    if not name and weights is None and (request.published == "" or base != AUTO or not facts.suits_published):
        return Start()
    name = name or next(filter(have, PUBLISHED), "")
    if not name and weights == "timm":
        name = next(iter(PUBLISHED))
    return Start(name, bool(name) and not have(name), weights == "timm")


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
    start = choose(request, facts, lambda name: all(processes.all_gather_json(bool(local_file(name)))))
    if start.missing:
        processes.broadcast_json(lambda: str(_obtained(start, display)))
    return replace(request, published=start.name)


def _obtained(start: Start, display: Display) -> Path:
    network = PUBLISHED[start.name]
    if not start.download:
        raise ModelError(
            f"{start.name} ({network.title}, {network.megabytes} MB) has not been downloaded yet: deepcluster fetch"
            f" {start.name}; or start from nothing: --weights none"
        )
    display.say("Weights", f"downloading {start.name}: {network.description}")
    return fetch(start.name, display.progress)


def recorded(out: Path | None) -> str | None:
    """Return the published network that the run at ``out`` started from; empty: none; None: it has not started yet."""
    if out is None or not is_run(out) or not (out / "recipe.toml").is_file():
        return None
    _, recipe = read_toml(out / "recipe.toml")
    names = {one.backbone: one.name for one in PUBLISHED.values()}
    return names.get(str(recipe.get("backbone")), "") if recipe.get("weights") == "timm" else ""
