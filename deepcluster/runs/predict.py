"""New images through the model of a run."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TextIO

import torch
from torch import Tensor

from deepcluster.images import Images, Source, find, find_in_parts
from deepcluster.images.given_features import read_features
from deepcluster.images.source import nothing_readable
from deepcluster.images.store import check_alike, read_once
from deepcluster.model import Model
from deepcluster.runtime.console import Display, Silent
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import ALONE, Processes


@dataclass(frozen=True)
class Prediction:
    """Some of the images of a source: the usable ones with their reduced features and their residuals, and (path,
    reason) of the others."""

    paths: tuple[str, ...]
    reduced: Tensor
    residuals: Tensor
    skipped: tuple[tuple[str, str], ...]


def predict(
    model: Model,
    images: Images,
    *,
    display: Display | None = None,
    stdin: TextIO | None = None,
    processes: Processes = ALONE,
) -> Iterator[Prediction]:
    """Run images through a model, a batch at a time: what comes is handed on before the next batch is read.

    Several ``processes`` take the batches in turn; the first of them yields all, in order, and the others nothing.
    Raises ``DataError`` at the end where none was usable, and before the first where the processes see other images.
    """
    if model.of_features:
        if processes.is_main:
            given = read_features(images)  # type: ignore[arg-type]
            yield Prediction(given.source.paths, *model.measure_features(given.features), ())
        return
    model.check_room()
    display = display or Silent()
    tried = used = 0
    reasons: list[tuple[str, str]] = []
    location = ""
    for parts in _by_turns(_parts(images, model.batch_size, stdin, processes), processes.world_size):
        own = _predict(model, parts[processes.rank]) if processes.rank < len(parts) else None
        for source, found in zip(parts, _at_first(own, processes), strict=False):
            tried, used, location = tried + len(source.paths), used + len(found.paths), source.location
            reasons += found.skipped[: 3 - len(reasons)]
            display.progress("images", tried, tried)
            yield found
    if processes.is_main and not used:
        raise nothing_readable(location, tried, reasons)


def _parts(images: Images, count: int, stdin: TextIO | None, processes: Processes) -> Iterator[Source]:
    if processes.alone:
        return find_in_parts(images, count, stdin=stdin)
    source = find(images)
    check_alike(source, processes)
    return source.parts(count)


def _by_turns(parts: Iterator[Source], count: int) -> Iterator[list[Source]]:
    while turn := list(islice(parts, count)):
        yield turn


def _at_first(own: Prediction | None, processes: Processes) -> list[Prediction]:
    """The predictions of all processes for the first of them, in their order."""
    if processes.alone:
        return [own] if own else []
    own = own or Prediction((), torch.empty(0), torch.empty(0), ())
    partition = Partition.of(processes, len(own.paths))
    reduced, residuals = partition.gather(own.reduced), partition.gather(own.residuals)
    told: list[Any] = processes.gather_json([[*own.paths], [*own.skipped]])
    if not processes.is_main:
        return []
    return [
        Prediction(tuple(paths), rows, outside, tuple((path, reason) for path, reason in skipped))
        for (paths, skipped), rows, outside in zip(
            told, reduced.split(partition.sizes), residuals.split(partition.sizes), strict=True
        )
    ]


def _predict(model: Model, source: Source) -> Prediction:
    # In memory, as the network would take far more than its batch.
    store = read_once(source, model.store_size, memory_budget=sys.maxsize, none_is_fine=True)
    nothing = torch.empty(0, model.reduction.projection.shape[1])
    reduced, residuals = model.measure(store.images) if store.kept else (nothing, torch.empty(0))
    return Prediction(tuple(source.paths[i] for i in store.kept), reduced, residuals, store.skipped)
