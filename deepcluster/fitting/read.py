"""Read the images of a run once, settle the plan for them, and pass them through the network."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from deepcluster.fitting.forecast import PassForecast
from deepcluster.fitting.like import former_rows
from deepcluster.fitting.plan import FEATURES_OPTIONS, with_precision
from deepcluster.fitting.values import Contents, Decided, ImagesRead, RunStart
from deepcluster.images import read_once
from deepcluster.images.duplicates import near_duplicates
from deepcluster.images.source import skipped_in_words
from deepcluster.images.store import Store
from deepcluster.learning.features import certainty_of, extract
from deepcluster.nets.network import Network
from deepcluster.nets.timm import nouns
from deepcluster.recipes.auto import RECTIFIED, Plan
from deepcluster.recipes.build import compute_of
from deepcluster.recipes.options import AUTO, Recipe, to_toml
from deepcluster.recipes.presets import check_clusters
from deepcluster.report.pictures import on_sheet, sprite_sheet, tiny_pictures
from deepcluster.runs.images import duplicate_rows, pictures_of, pixel_digests, row_digests, with_picture
from deepcluster.runs.page import SHEET
from deepcluster.runtime.console import Display
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import Processes
from deepcluster.runtime.tables import CsvRow
from deepcluster.storage.content import Row
from deepcluster.storage.lock import scratch_of
from deepcluster.texts import plural


def read_images(decided: Decided, network: Network, processes: Processes, display: Display) -> ImagesRead:
    """Read the images, and settle the plan for them. A collective."""
    if decided.features is None:
        images = _of_images(decided, network, processes, display)
    else:
        images = _of_features(decided, decided.features, processes)
    if former := decided.former:
        size = images.recipe.store_size
        rows = former_rows(former, decided.source, images.digests, size, display.progress)
        images = replace(images, former_rows=rows)
    return images


def _of_images(decided: Decided, network: Network, processes: Processes, display: Display) -> ImagesRead:
    start = decided.start
    source = decided.source
    progress = partial(display.progress, "reading")
    scratch = scratch_of(Path(start.out), processes.rank)
    store = read_once(source, start.plan.recipe.store_size, processes, folder=scratch, progress=progress)
    used = len(store.usable)
    skipped = store.skipped
    if skipped:
        display.say(
            "Images", f"{used:,} can be used, {len(skipped):,} skipped: {skipped_in_words(skipped)} (skipped.csv)"
        )
    plan, known = _plan_for(store, start, network, display)
    for line in plan.by_reason() if decided.request.verbose else ():
        display.say("Plan", line)
    of_all = chain.from_iterable(processes.all_gather_json(pixel_digests(store)))
    digests = dict(zip((source.paths[i] for i in store.usable), of_all, strict=True))
    display.progress("duplicates", 0, 0)
    alike = near_duplicates(store.images, store.partition)
    if alike:
        text = f"{sum(map(len, alike)):,} images in {plural(len(alike), 'set')} are nearly identical (duplicates.csv)"
        display.say("Alike", f"{text}; all are used")
    pictures = tiny_pictures(store.images, store.partition.local.start, used)
    pictures = Partition.of(processes, len(pictures)).gather(pictures)
    beginning: Contents = {
        "recipe.toml": to_toml(plan.recipe),
        "duplicates.csv": [*duplicate_rows(alike, [source.paths[i] for i in store.usable])],
        SHEET: sprite_sheet(pictures, used) if processes.is_main else b"",
    }
    return ImagesRead(decided, store, plan, digests, beginning, known)


def _of_features(decided: Decided, features: Tensor, processes: Processes) -> ImagesRead:
    """Return the images of features that the user computed, and their pictures if any exist."""
    plan = decided.start.plan
    source = decided.source
    total = len(source.paths)
    settings = (line for line in to_toml(plan.recipe).splitlines() if line.partition(" ")[0] in FEATURES_OPTIONS)
    pictures = pictures_of(source) if processes.is_main else None
    no_images = torch.empty(0, 3, 1, 1, dtype=torch.uint8)
    store = Store(no_images, tuple(range(total)), (), Partition.of(processes, len(processes.part(total))))
    digests = dict(zip(source.paths, row_digests(features), strict=True))
    beginning: dict[str, str | bytes | Sequence[CsvRow]] = {"recipe.toml": "\n".join(settings) + "\n"}
    if pictures is not None:
        beginning[SHEET] = sprite_sheet(tiny_pictures(pictures, 0, total), total)
        pictured = with_picture(pictures)
        alike = near_duplicates(pictures[pictured])
        beginning["duplicates.csv"] = [*duplicate_rows(alike, [source.paths[row] for row in pictured])]
    return ImagesRead(decided, store, plan, digests, beginning, features[store.partition.local])


def _plan_for(store: Store, start: RunStart, network: Network, display: Display) -> tuple[Plan, Tensor | None]:
    """Return the plan for the usable images, and their features if it took a pass over all of them. A collective."""
    plan = start.plan
    first_pass = None
    if facts := start.facts:
        certainty = None
        if start.requested.base == AUTO and plan.recipe.backbone.startswith(RECTIFIED):  # no other recipe asks
            if not plan.recipe.rounds:
                first_pass = pass_features(network, store, plan.recipe, display)
            compute = compute_of(network, plan.recipe, store.partition, float32=True)
            certainty = certainty_of(network, store.images, compute, first_pass)
        count = len(store.usable)
        if count != facts.count or certainty is not None:
            check_clusters(facts.n_clusters, count)
            # The sizes of the images, which are read already, depend on no number of images.
            plan = start.plan_if(count=count, certainty=certainty)
    return with_precision(plan, network), first_pass


def pass_features(network: Network, store: Store, recipe: Recipe, display: Display) -> Tensor:
    """Return this rank's features (float32, n x D) by the network as it is now, as a result has them."""
    progress = display.progress if recipe.rounds else PassForecast(display, recipe.image_size)
    return extract(network, store.images, compute_of(network, recipe, store.partition, progress, float32=True))


def knows_nouns(network: Network, recipe: Recipe) -> bool:
    """Return True if the network came with a classifier of nouns; training would change the features that it takes."""
    return recipe.weights == "timm" and network.classifier is not None


def nouns_of(network: Network, images: ImagesRead, features: Tensor) -> Sequence[Row]:
    """Return the content of nouns.csv by this rank's ``features`` before any training. A collective.

    It is of the images on the sheet; none if the network knows no nouns.
    """
    if not knows_nouns(network, images.recipe):
        return ()
    partition = images.store.partition
    rows = on_sheet(partition.total)
    seen = partition.index_select(features, torch.tensor(rows))
    named = zip(rows, nouns(images.recipe.backbone, network.classifier, seen), strict=False)
    return [{"path": images.paths[row], "noun": noun, "probability": f"{value:.4f}"} for row, (noun, value) in named]
