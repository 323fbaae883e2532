"""Values between the parts of a fit: request, start, decisions, and the images as they were read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from deepcluster.fitting.like import Former
from deepcluster.images import Source
from deepcluster.images.store import Store
from deepcluster.recipes.auto import ImageFacts, Plan
from deepcluster.recipes.build import Steps
from deepcluster.recipes.flags import FitFlags
from deepcluster.recipes.options import Recipe
from deepcluster.recipes.presets import RecipeRequest, resolve
from deepcluster.runtime.tables import CsvRow
from deepcluster.storage.content import RunRecord, Table
from deepcluster.storage.images_table import ImagesTable, image_rows, skipped_rows

# Contents by the name of the file: a text, bytes, or rows.
Contents = Mapping[str, str | bytes | Sequence[CsvRow]]


@dataclass(frozen=True)
class Request(FitFlags):
    """The request of a user, without the images: the flags of ``fit``, with the recipe that was read."""

    recipe: RecipeRequest = field(default_factory=RecipeRequest)  # type: ignore[assignment]
    report: bool = True  # False: map and report on request only
    command: str = ""
    module: nn.Module | None = None  # the network, if the backbone is one of the user's
    steps: Steps = Steps()


@dataclass(frozen=True)
class RunStart:
    """The start of a run, as the main rank decides it."""

    out: str  # the run folder
    plan: Plan
    requested: RecipeRequest  # the recipe that the run began with
    record: RunRecord  # run.json at the start, without the machine
    facts: ImageFacts | None = None  # about the images of a new run
    is_resumed: bool = False
    is_finished: bool = False  # nothing is left to do

    def plan_if(self, **facts: Any) -> Plan:
        """Return the plan if a new run had these ``facts`` about its images; a resumed one keeps its plan."""
        return resolve(self.requested, replace(self.facts, **facts)) if self.facts else self.plan


@dataclass(frozen=True)
class Decided:
    """All that is decided about a run before its images are read."""

    request: Request
    start: RunStart
    source: Source
    features: Tensor | None  # of all images, if the user computed them (float32, N x D)
    labels: Sequence[str] | None  # true labels in the order of the source, for metrics only
    former: Former | None  # the run of ``--like``, on the main rank
    record: RunRecord  # run.json at the start
    device: torch.device


@dataclass(frozen=True)
class ImagesRead:
    """The images as they were read."""

    decided: Decided
    store: Store
    plan: Plan  # for these images
    digests: Mapping[str, str]  # of all images, by path
    beginning: Contents  # files of the run that depend on the images alone
    known: Tensor | None  # this rank's features if they need no pass: the user's, or those that no round changes
    former_rows: Tensor | None = None  # of all images in the run of ``--like`` (int64, N), as by :func:`former_rows`

    @property
    def recipe(self) -> Recipe:
        return self.plan.recipe

    @cached_property
    def table(self) -> ImagesTable:
        """The content of images.csv."""
        source = self.decided.source
        rows = image_rows(source.rows(self.store.usable), self.truth, [*self.digests.values()], source.base)
        return ImagesTable(Table.of([*rows, *skipped_rows(self.store.skipped)]))

    @cached_property
    def paths(self) -> list[str]:
        return [self.decided.source.paths[i] for i in self.store.usable]

    @cached_property
    def truth(self) -> list[str] | None:
        """True labels of the usable images, for metrics only; None if none of them has one."""
        labels = self.decided.labels or ()
        truth = [labels[i] for i in self.store.usable] if labels else []
        return truth if any(truth) else None
