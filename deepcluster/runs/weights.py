"""Which published network a run starts from, and the user's consent before it is fetched."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from deepcluster.errors import DeepClusterWarning, ModelError
from deepcluster.images.run_folders import is_run
from deepcluster.nets.published import PUBLISHED, fetch, is_here, parts_of
from deepcluster.presets import TO_FIT, Facts, options_of
from deepcluster.recipe import read_toml
from deepcluster.runs.job import Request
from deepcluster.runtime.display import Display
from deepcluster.runtime.processes import ALONE, Processes

Ask = Callable[[str], bool | None]  # a question for yes or no; None: there is nobody to ask
FIRST = next(iter(PUBLISHED))


def nobody(question: str) -> None:
    """There is nobody to ask."""


@dataclass(frozen=True)
class Start:
    """The published network that a run starts from.

    Attributes:
        name: In ``PUBLISHED``; empty: none.
        here: Whether it is on this machine.
        wanted: Whether the run makes no sense without it.
        agreed: Whether the user has agreed already that it is fetched.
    """

    name: str = ""
    here: bool = True
    wanted: bool = False
    agreed: bool = False


def choose(request: Request, facts: Facts, have: Callable[[str], object] = is_here) -> Start:
    """What a run would start from. Nothing is asked or fetched.

    Args:
        request: Its ``published`` is what the run that is resumed has started from.
        facts: About the images.
        have: Whether a published network is on this machine.
    """
    base, options = options_of(request.recipe, request.options or {})
    then = request.published
    if "weights" in options:
        if options["weights"] != "timm" or options.get("backbone", FIRST) not in PUBLISHED:
            return Start()
        name = options.get("backbone") or then or next(filter(have, PUBLISHED), FIRST)
        return Start(name, bool(have(name)), wanted=True, agreed=True)
    if "backbone" in options:
        name = options["backbone"]
        return Start(name, bool(have(name)), wanted=True) if name in PUBLISHED else Start()
    if then:
        return Start(then, bool(have(then)), wanted=True)
    if then == "" or base not in TO_FIT or not facts.photographs:
        return Start()
    name = next(filter(have, PUBLISHED), "")
    return Start(name or FIRST, bool(name))


def settle(
    request: Request, facts: Facts, *, display: Display, ask: Ask = nobody, processes: Processes = ALONE
) -> Request:
    """The request with the published network that the run starts from, which is fetched where the user agrees.

    Raises:
        ModelError: The run makes no sense without a network that is not here, and nobody agreed; or a download failed.
    """
    options = options_of(request.recipe, request.options or {})[1]
    backbone = options.get("backbone", "")
    if backbone.startswith("timm:") and "weights" not in options and not request.resume and processes.is_main:
        warnings.warn(
            f"{backbone} begins with random weights: weights timm takes those that timm has, which are mostly better,"
            " and weights none keeps this quiet",
            DeepClusterWarning,
            stacklevel=2,
        )
    start = choose(request, facts, lambda name: all(processes.all_gather_json(is_here(name))))
    if start.here:
        return replace(request, published=start.name)
    agreed = processes.broadcast_json(lambda: _fetched(start, display, ask))
    return replace(request, published=start.name if agreed else "")


def _fetched(start: Start, display: Display, ask: Ask) -> bool:
    network = PUBLISHED[start.name]
    if start.agreed:
        display.say("Weights", f"fetching {start.name}: {network.description}")
        fetch(start.name, display.progress)
        return True
    without = "the command ends" if start.wanted else f"{_WITHOUT}; a smaller one is fetched by {_SMALL}"
    answer = ask(
        f"{'' if start.wanted else _BETTER}{start.name} is not on this machine: {network.description}. It is fetched"
        f" once, for this and all later runs. Without it {without}. Fetch it now?"
    )
    if answer:
        try:
            for part in parts_of(start.name):
                fetch(part, display.progress)
        except ModelError as error:
            raise ModelError(f"{error}; --weights none goes on without it") from error
        return True
    if start.wanted:
        raise ModelError(
            f"the weights of {start.name} are not on this machine: `deepcluster fetch {start.name}` fetches them"
            f" ({network.description}); --weights none starts from random ones"
        )
    if answer is None:
        warnings.warn(
            f"{_BETTER}none is on this machine, so {_WITHOUT}. `deepcluster fetch` fetches {start.name} once, for all"
            f" later runs ({network.description}); weights none keeps this quiet",
            DeepClusterWarning,
            stacklevel=2,
        )
    return False


_BETTER = "Images of this size are grouped better by a published network; "
_WITHOUT = "a small network is trained on these images alone, and the groups are worse"
_SMALL = f"deepcluster fetch photos-small ({PUBLISHED['photos-small'].megabytes} MB)"


def recorded(out: Path | None) -> str | None:
    """The published network that the run at ``out`` has started from; empty: none; None: it has not started yet."""
    if out is None or not is_run(out) or not (out / "recipe.toml").is_file():
        return None
    _, recipe = read_toml(out / "recipe.toml")
    names = {one.backbone: one.name for one in PUBLISHED.values()}
    return names.get(str(recipe.get("backbone")), "") if recipe.get("weights") == "timm" else ""
