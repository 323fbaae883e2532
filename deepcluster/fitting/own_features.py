"""A run of features that the user computed: steps 3, 4 and 7, without a network."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepcluster.auto import WHITENING, Plan
from deepcluster.errors import UsageError
from deepcluster.fitting.plan import Begun, ImagesRead, Job, Request, check_not_inside, free_path, names_of
from deepcluster.images import Source
from deepcluster.images.duplicates import near_duplicates
from deepcluster.images.source import IDS
from deepcluster.images.store import Store
from deepcluster.nets.names import NO_NETWORK
from deepcluster.presets import check_groups
from deepcluster.recipe import AUTO, Recipe, to_toml
from deepcluster.report.pictures import sprite_sheet, tiny_pictures
from deepcluster.runs.images import duplicate_rows, pictures_of, row_digests, with_picture
from deepcluster.runs.page import SHEET
from deepcluster.runtime.console import Display
from deepcluster.runtime.partition import Partition
from deepcluster.texts import one_line

# The options of a recipe that concern features; the others are for images or for training.
FEATURES_OPTIONS = {
    *("dims", "whitening", "root", "pseudo_labels", "empty", "kmeans_iterations", "spherical", "grouping"),
}


def begin_features(data: Any, width: int, source: Source, request: Request, display: Display) -> Begun:
    """Decide the folder and the recipe of a run of features of ``width`` numbers, as :func:`begin` does for images."""
    check_groups(request.n_clusters, len(source.paths))
    recipe = _features_recipe(request, source)
    out = free_path(source, request)
    if request.overwrite and isinstance(data, str | Path):
        check_not_inside([Path(data).absolute()], out)
    if source.location == IDS:
        display.say("Pictures", f"none: no path leads to a file; the first is {one_line(source.paths[0])}")
    plan = Plan(recipe, {"features": f"{width:,} numbers a row, which came from elsewhere"})
    return Begun(str(out), "new", plan, None, *names_of(request))


def _features_recipe(request: Request, source: Source) -> Recipe:
    """Return the reduction and fine clusters of ``auto`` for a pretrained network (docs/decisions.md)."""
    options = request.recipe.all_options
    others = ["recipe"] * (request.recipe.base != AUTO) + ["resume"] * request.resume
    others += [*options, *request.steps.names]
    if others := [name for name in others if name not in FEATURES_OPTIONS]:
        raise UsageError(
            f"{', '.join(others)}: for images only, because features train no network. Leave this out, or pass images"
            f" (rows of pixels: X.reshape(-1, H, W)). Options for features: {', '.join(sorted(FEATURES_OPTIONS))}"
        )
    count = len(source.paths)
    clusters = min(max(5 * (request.n_clusters or 0), count // 100, 2), max(1, count // 20))
    chosen: dict[str, Any] = {"whitening": WHITENING, "pseudo_labels": clusters, "rounds": 0, "grouping": "embedding"}
    chosen |= options
    return Recipe(**{**chosen, "pseudo_labels": max(1, min(chosen["pseudo_labels"], count))})


def read_given(job: Job, begun: Begun, features: Tensor) -> tuple[ImagesRead, dict[str, Any]]:
    """Settle the beginning of a run of features, as :func:`_read` does for images. A collective."""
    source = job.source
    recipe = begun.plan.recipe
    total = len(source.paths)
    settings = (line for line in to_toml(recipe).splitlines() if line.partition(" ")[0] in FEATURES_OPTIONS)
    pictures = pictures_of(source) if job.processes.is_main else None
    no_images = torch.empty(0, 3, 1, 1, dtype=torch.uint8)
    store = Store(no_images, tuple(range(total)), (), Partition.of(job.processes, len(job.processes.part(total))))
    digests = dict(zip(source.paths, row_digests(features), strict=True))
    beginning: dict[str, Any] = {
        "recipe.toml": "\n".join(settings) + "\n",
        "skipped.csv": [],
        "history.csv": [],
    }
    if pictures is not None:
        beginning[SHEET] = sprite_sheet(tiny_pictures(pictures, 0, total))
        there = with_picture(pictures)
        alike = near_duplicates(pictures[there])
        beginning["duplicates.csv"] = [*duplicate_rows(alike, [source.paths[row] for row in there])]
    return ImagesRead(store, recipe, digests, beginning), {"backbone": NO_NETWORK, "reasons": begun.plan.reasons}
