"""What a fit is asked for, and what is known of it before anything is written."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deepcluster.images import Source
from deepcluster.images.preview import Preview
from deepcluster.images.store import Store
from deepcluster.presets import Facts, Plan, check_groups, resolve
from deepcluster.recipe import Recipe
from deepcluster.runtime.console import Display, Silent
from deepcluster.runtime.devices import choose_device
from deepcluster.runtime.processes import Processes


@dataclass(frozen=True)
class Request:
    """What the user asked for, beside the images."""

    out: Path | None = None
    n_clusters: int | None = None  # None: chosen from the final features
    recipe: str = "auto"
    options: Mapping[str, Any] | None = None
    device: str = "auto"
    deterministic: bool = False
    seed: int = 0
    time_limit: float | None = None  # seconds
    begun: float | None = None  # when the command began, by time.perf_counter(): its imports take seconds
    labels: str | None = None
    overwrite: bool = False
    resume: bool = False
    verbose: bool = False  # every choice with its reason, instead of a line about all
    log: str = ""  # where the rounds go beside the display: tensorboard
    report: bool = True  # False: nobody looks before the end, and map and report are made when they are asked for
    command: str = ""
    module: nn.Module | None = None  # the network, where the backbone is one of the user's
    published: str | None = None  # what photographs may start from (weights.py); None: not settled


class Clock:
    """Seconds of a run: since its start, and since the last lap."""

    def __init__(self, begun: float | None = None) -> None:
        self._last = time.perf_counter()
        self._start = self._last if begun is None else begun

    def add(self, seconds: float) -> None:
        """Count time that the run took before it was interrupted."""
        self._start -= seconds

    def elapsed(self) -> float:
        return time.perf_counter() - self._start

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


@dataclass(frozen=True)
class Job:
    """A fit of the images of ``source``.

    labels: True labels in the order of the source, for metrics only.
    """

    request: Request
    source: Source
    seen: Preview
    labels: Sequence[str] | None
    device: torch.device
    display: Display
    processes: Processes
    clock: Clock

    def plan(self, usable: int | None = None) -> Plan:
        """The recipe, where ``usable`` of the images can be used (None: all)."""
        return plan(self.source, self.seen, self.request, usable)

    @property
    def shows(self) -> bool:
        """Whether somebody sees what this rank displays."""
        return not isinstance(self.display, Silent) and not getattr(self.display, "quiet", False)

    def truth(self, kept: Sequence[int]) -> list[str] | None:
        """The true labels of the images that are ``kept``, in this order; None where none of them has one."""
        labels = [self.labels[i] for i in kept] if self.labels is not None else []
        return labels if any(labels) else None


@dataclass(frozen=True)
class ImagesRead:
    """The images as they were read, the recipe that they settled, and the digest of each image by its path."""

    store: Store
    recipe: Recipe
    digests: Mapping[str, str]


def plan(source: Source, seen: Preview, request: Request, usable: int | None = None) -> Plan:
    """The resolved recipe for these images, of which ``usable`` can be used (None: all)."""
    facts = facts_of(source, seen, request, usable)
    check_groups(request.n_clusters, facts.count)
    return resolve(request.recipe, request.options or {}, facts)


def facts_of(source: Source, seen: Preview, request: Request, usable: int | None = None) -> Facts:
    """What a recipe may look at."""
    count = len(source.paths) if usable is None else usable
    device = choose_device(request.device).type
    return Facts(count, seen.short_side, seen.grey, request.n_clusters, device, request.published or "")
