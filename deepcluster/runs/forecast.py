"""What a run is about to do, why, and how long it takes: a few lines for a person, before it begins."""

from collections.abc import Iterator

import torch

from deepcluster.images import Source
from deepcluster.nets.backbone import Network
from deepcluster.presets import Plan
from deepcluster.runs import time_limit
from deepcluster.runs.resources import Memory


def forecast(
    plan: Plan,
    n_clusters: int | None,
    source: Source,
    network: Network,
    needed: Memory,
    device: torch.device,
    *,
    ranks: int = 1,
    timed: bool = True,
) -> Iterator[tuple[str, str]]:
    """(heading, text) of each line.

    Args:
        plan: What is done.
        n_clusters: As in ``Facts``.
        source: The images.
        network: As it is before the run.
        needed: Estimated memory.
        device: Where the network will be.
        ranks: The processes that share the images.
        timed: Also how long it takes, by a pass over a few of the images.
    """
    yield "Network", plan.network
    yield "Plan", plan.in_short(n_clusters)
    on_gpu = f", {needed.on_gpu / 1e9:.1f} GB on {device}" if needed.on_gpu else f" on {device}"
    memory = f"{needed.total / 1e9:.1f} GB of memory{on_gpu}"
    if not timed:
        yield "Memory", memory
        return
    pace, count = time_limit.measured(source, network, plan.recipe).shared(ranks), len(source.paths)
    first = time_limit.first_result(pace, count)
    whole = first + plan.recipe.rounds * time_limit.round_cost(pace, count, plan.recipe)
    early = f", the first groups after {in_words(first)}" if whole > 1.5 * first else ""
    yield "Time", f"about {in_words(whole)}{early}; {memory}"


def in_words(seconds: float) -> str:
    """``40 s``, ``12 min``, ``1.5 h``."""
    unit, name = next(
        (unit, name) for unit, name in ((3600, "h"), (60, "min"), (1, "s")) if seconds >= 1.5 * unit or unit == 1
    )
    return f"{seconds / unit:.{0 if seconds >= 10 * unit or unit == 1 else 1}f} {name}"
