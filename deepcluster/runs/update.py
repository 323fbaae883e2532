"""More images for a run that has ended: placed by its model in its clusters, and nothing is trained."""

import itertools
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from deepcluster.clustering.outliers import MIN_ROWS
from deepcluster.errors import DeepClusterWarning, UsageError
from deepcluster.groups.drift import drift
from deepcluster.groups.embedding import between
from deepcluster.images import Images, Source, find
from deepcluster.images.duplicates import near_duplicates
from deepcluster.images.given_features import GivenFeatures, read_features
from deepcluster.images.skipped import counted
from deepcluster.images.source import Origin, nothing_readable
from deepcluster.images.store import gather, read_once
from deepcluster.model import Model
from deepcluster.report.sprite import extended, not_on_sheet, on_sheet
from deepcluster.report.thumbnails import THUMBNAIL
from deepcluster.runs.own_features import pictures_of
from deepcluster.runs.report import folder_of, found_again, name_in_run, rewrite_report
from deepcluster.runs.results import Rows, figures_at_start, read_run, write_features, write_groups
from deepcluster.runs.resume import COLUMNS, IMAGES_READ, row_digests
from deepcluster.runtime.console import Display, Silent
from deepcluster.runtime.devices import CPU
from deepcluster.runtime.partition import Partition
from deepcluster.storage import report_files as drawn
from deepcluster.storage import run_folder as files
from deepcluster.storage.csv_rows import round_to
from deepcluster.storage.run_folder import LockedFolder, RunFolder
from deepcluster.storage.run_record import RunRecord
from deepcluster.storage.table import Table

Failures = Sequence[tuple[str, str]]  # (path, reason)


@dataclass(frozen=True)
class Update:
    """What :func:`update` did.

    Attributes:
        added: Images that are in the run now.
        known: Images that it had already, by path (files) or content.
        skipped: Files that cannot be used.
        outliers: Added images that fit nowhere.
        residual_rank, shift: Of all images added since the fit, see :class:`~deepcluster.groups.drift.Drift`.
        due: A new fit is due.
        reason: Why it is due; None if it is not.
    """

    added: int
    known: int
    skipped: int
    outliers: int = 0
    residual_rank: float | None = field(default=None, compare=False)
    shift: float = field(default=0.0, compare=False)
    due: bool = False
    reason: str | None = None


@dataclass(frozen=True)
class _New:
    """Images that the run does not have, called as in the run: their features, pixels (None: there are no files) and
    digests."""

    source: Source
    reduced: Tensor
    residuals: Tensor
    images: Tensor | None
    digests: Sequence[str]


def update(
    run: Path,
    images: Images | GivenFeatures,
    display: Display | None = None,
    *,
    device: torch.device = CPU,
    stdin: TextIO | None = None,
) -> Update:
    """Add images to a run. Clusters keep their numbers, names and edits, and its other images their rows.

    Args:
        run: The run folder.
        images: What to add, as for ``find``; features for a run of features.
        display: Shows what was done.
        device: Where the network computes.
        stdin: Where the paths come from if ``images`` is "-".

    Raises:
        UsageError: The run is not finished.
        DataError: None of the images can be used.
    """
    files.open_run(run)
    display = display or Silent()
    with files.locked(run) as folder:
        record, model, rows = read_run(folder)
        if record.status != "done":
            raise UsageError(f"{run} is not finished (its status is {record.status}): go on with its fit and --resume")
        if model.of_features:
            given = images if isinstance(images, GivenFeatures) else read_features(images)  # type: ignore[arg-type]
            source, features = given.source, given.features
        else:
            source, features = find(images, stdin=stdin), None  # type: ignore[arg-type]
        source = _called_as(source, record.location)
        # A file is known by its place, whatever it is called; of an array or a shard the content may be another now.
        present = _origins(folder) if source.file else set()
        fresh = [i for i in range(len(source.paths)) if source.origin(i) not in present]
        if not folder.has(IMAGES_READ):
            warnings.warn(
                f"{run / IMAGES_READ} is gone: images that the run has are known by their paths alone",
                DeepClusterWarning,
                stacklevel=2,
            )
        if features is not None:
            new, failed = _of_features(model, source.rows(fresh), features[fresh], _digests(folder))
        else:
            model.network.to(device)
            new, failed = _of_images(model, source.rows(fresh), _digests(folder), folder, display)
        new = replace(new, source=replace(new.source, paths=_free_names(new.source, rows)))
        skipped = (*source.skipped, *failed)
        added = len(new.source.paths)
        known = len(source.paths) - len(failed) - added
        if not (known or added):
            raise nothing_readable(source.location, len(source.paths), failed)
        done = Update(added, known, len(skipped))
        display.say(
            "Images",
            f"{done.added:,} added, {done.known:,} in the run already, {done.skipped:,} skipped"
            f"{f': {counted(reason for _, reason in skipped)}' if skipped else ''}",
        )
        before = {row["path"]: row["reason"] for row in folder.read_rows("skipped.csv", files.SKIPPED)}
        reasons = {**before, **dict(skipped)}
        for path in new.source.paths:
            reasons.pop(path, None)
        if added or reasons != before:
            with folder.next_state() as staged:
                _write(staged, record, model, rows, new, reasons)
        done = _judged(done, folder, model)
        if added:
            display.say("Placed", _placed_text(done, model))
    return done


def _placed_text(done: Update, model: Model) -> str:
    if model.outliers.limit == torch.inf:
        text = f"Placed in the present clusters; with fewer than {MIN_ROWS} images in the fit no outlier can be told"
    elif done.outliers:
        text = f"{done.outliers:,} of {done.added:,} fit nowhere (is_outlier in clusters.csv)"
    else:
        text = f"All {done.added:,} fit into the present clusters"
    return f"{text}. " + (f"A new fit is due: {done.reason}" if done.due else "No new fit is needed")


def _called_as(source: Source, location: str) -> Source:
    """The source with its images called as in a run on ``location``: relative to the folder of the run's images where
    that is near, and absolute elsewhere. A file of a list has no label: the folder that holds it may be no class."""
    if source.location == location and Path(location).is_absolute():
        return source
    base, here = folder_of(location), Path(source.location)

    def name(i: int) -> str:
        if source.file and (file := source.file(i)):
            return name_in_run(file, base)
        place, member = source.origin(i)
        return f"{name_in_run(Path(place), base)}{'#' if member.isdecimal() else '/'}{member}"

    below = here if here.is_dir() else here.parent
    return replace(
        source.rows(range(len(source.paths))),
        paths=tuple(map(name, range(len(source.paths)))),
        labels=None if source.file and not here.is_dir() else source.labels,
        skipped=tuple((name_in_run(below / path, base), reason) for path, reason in source.skipped),
    )


def _free_names(source: Source, rows: Rows) -> tuple[str, ...]:
    """The new images as the run calls them: images from Python by the next numbers, and an image with a number behind
    its name if the run has the name already."""
    present = {*rows.paths}
    if source.file is None and source.location.startswith("python:"):
        taken = (*rows.paths, *(path for path, _ in rows.skipped))
        begin = max((int(path) for path in taken if path.isdecimal()), default=-1) + 1
        return tuple(str(begin + i) for i in range(len(source.paths)))
    names = []
    for path in source.paths:
        others = (f"{path} ({count})" for count in itertools.count(2))
        names.append(next(name for name in itertools.chain([path], others) if name not in present))
        present.add(names[-1])
    return tuple(names)


def _origins(folder: RunFolder) -> set[Origin]:
    """The origins of the run's images."""
    images = found_again(folder)
    at_hand = {images.origin(i) for i in range(len(images.paths))} if images else set()
    return at_hand | {Origin(row["source"], row["member"]) for row in folder.read_added()}


def _digests(folder: RunFolder) -> set[str]:
    """Of the images in the run, as far as it has them."""
    fitted = folder.read_rows(IMAGES_READ, COLUMNS) if folder.has(IMAGES_READ) else []
    return {row["sha256"] for row in [*fitted, *folder.read_added()]}


def _unknown(digests: Sequence[str], known: set[str]) -> list[int]:
    """The numbers of those that are not known, and of equal ones the first."""
    first: dict[str, int] = {}
    for i, digest in enumerate(digests):
        first.setdefault(digest, i)
    return [i for digest, i in first.items() if digest not in known]


def _of_features(model: Model, source: Source, features: Tensor, known: set[str]) -> tuple[_New, Failures]:
    digests = row_digests(features)
    kept = sorted(_unknown(digests, known))
    reduced, residuals = model.measure_features(features[kept])
    source = source.rows(kept)
    return _New(source, reduced, residuals, pictures_of(source), [digests[i] for i in kept]), ()


def _of_images(
    model: Model, source: Source, known: set[str], folder: LockedFolder, display: Display
) -> tuple[_New, Failures]:
    """The new images, and (path, reason) of those that cannot be used."""
    model.check_room()
    store = read_once(
        source,
        model.store_size,
        folder=folder.scratch,
        none_is_fine=True,
        progress=partial(display.progress, "reading"),
    )
    digests = row_digests(store.images.permute(0, 2, 3, 1))
    kept = sorted(_unknown(digests, known))
    images = store.images
    if len(kept) < len(images):
        images = gather(images, torch.tensor(kept, dtype=torch.int64))
    reduced, residuals = torch.empty(0, model.reduction.projection.shape[1]), torch.empty(0)
    if kept:
        reduced, residuals = model.measure(images, partial(display.progress, "features"))
    source = source.rows([store.kept[i] for i in kept])
    return _New(source, reduced, residuals, images, [digests[i] for i in kept]), store.skipped


def _write(
    folder: LockedFolder, record: RunRecord, model: Model, rows: Rows, new: _New, reasons: Mapping[str, str]
) -> None:
    """The next state of the run, with the new images behind the others, and the reasons why files are not used."""
    paths = new.source.paths
    now = datetime.now(UTC).isoformat(timespec="seconds")
    added: list[Mapping[str, Any]] = [*folder.read_added()]
    for i, (path, label) in enumerate(zip(paths, new.source.labels or [""] * len(paths), strict=True)):
        place, member = new.source.origin(i)
        columns = (path, label, place, member, new.digests[i], now)
        added.append(dict(zip(files.ADDED_COLUMNS, columns, strict=True)))
    every = Rows(
        paths=[*rows.paths, *paths],
        labels=None if rows.labels is None else [*rows.labels, *[""] * len(paths)],
        skipped=sorted(reasons.items(), key=lambda pair: os.fsencode(pair[0])),
        reduced=torch.cat([rows.reduced, new.reduced]),
        sample=rows.sample,
        partition=Partition.single(len(rows.paths) + len(paths)),
        residuals=torch.cat([rows.residuals, new.residuals]),
        added=len(added),
    )
    if paths:
        _draw(folder, rows, new, every)
        folder.write_rows(files.ADDED, files.ADDED_COLUMNS, added)
    folder.write_rows("skipped.csv", files.SKIPPED, [{"path": path, "reason": why} for path, why in every.skipped])
    write_features(folder, every)
    written = replace(record, images_count=len(every.paths), skipped_count=len(every.skipped))
    write_groups(folder, model, model.place(every.reduced), every, written, figures_at_start(folder))
    if folder.has("report.html"):
        rewrite_report(folder, None, (model, every))


def _draw(folder: LockedFolder, rows: Rows, new: _New, every: Rows) -> None:
    """Add the new images to near-duplicates, sheet and map, if the run has these."""
    source = found_again(folder)
    if folder.has("duplicates.csv") and new.images is not None:
        table = folder.read_rows("duplicates.csv", files.DUPLICATES)
        folder.write_rows("duplicates.csv", files.DUPLICATES, _with_alike(table, new, new.images))
    if sheet := drawn.read_sheet(folder):
        grey = torch.full((1, 3, THUMBNAIL, THUMBNAIL), 128, dtype=torch.uint8)
        pictures = grey.expand(len(new.source.paths), -1, -1, -1) if new.images is None else new.images
        asked = [(row, rows.paths[row]) for row in not_on_sheet(len(rows.paths), len(every.paths))]
        seen = dict(zip(*_read_again(source, [path for _, path in asked], THUMBNAIL), strict=True))
        again = {row: seen[path] for row, path in asked if path in seen}
        with folder.as_disk_errors(drawn.SHEET):
            folder.write_bytes(drawn.SHEET, extended(sheet, len(rows.paths), pictures, again))
    shown = on_sheet(len(rows.paths))
    if (places := drawn.read_map(folder, len(rows.paths), shown)) is not None:
        places = _extended(torch.from_numpy(places), torch.tensor(shown), every.reduced).numpy()
        folder.write_array(drawn.MAP, places)


def _read_again(source: Source | None, paths: Iterable[str], size: int) -> tuple[list[str], Tensor]:
    """The images of the run with these ``paths`` that are at hand, and their paths."""
    index = {path: i for i, path in enumerate(source.paths)} if source else {}
    there = [path for path in paths if path in index]
    if source is None or not there:
        return [], torch.empty(0, 3, size, size, dtype=torch.uint8)
    store = read_once(source.rows([index[path] for path in there]), size, none_is_fine=True)
    return [there[i] for i in store.kept], store.images


def _extended(places: Tensor, shown: Tensor, reduced: Tensor) -> Tensor:
    """The map with more images: those that were ``shown`` stay at their ``places``, others come between them."""
    rows = torch.tensor(on_sheet(len(reduced)))
    before = torch.full((len(reduced),), -1)
    before[shown] = torch.arange(len(shown))
    index = before[rows]
    extended = places[index.clamp_min(0)]
    others = index < 0
    if others.any():
        extended[others] = between(reduced[rows[others]], reduced[shown], places)
    return extended


def _with_alike(table: Sequence[Mapping[str, Any]], new: _New, images: Tensor) -> Sequence[Mapping[str, Any]]:
    """The rows of duplicates.csv, with those of new images that are nearly identical to each other."""
    groups = 1 + max((int(row["group"]) for row in table), default=-1)
    alike = [
        {"group": group, "path": new.source.paths[row], "distance": f"{distance:.4f}"}
        for group, members in enumerate(near_duplicates(images), groups)
        for row, distance in members
    ]
    return [*table, *alike]


def _judged(done: Update, folder: RunFolder, model: Model) -> Update:
    """With the outliers and the drift, by the tables as they are now."""
    used = Table.of(folder.read_clusters()).where("status", "ok")
    cluster = torch.tensor([int(number) for number in used.column("cluster")])
    residuals = torch.from_numpy(folder.read_array(files.RESIDUALS, len(used), 1)).squeeze(1)
    found = drift(cluster, residuals, len(used) - len(folder.read_added()), model.outliers.limit)
    rank = found.residual_rank
    return replace(
        done,
        outliers=int((residuals[len(used) - done.added :] > model.outliers.limit).sum()),
        residual_rank=None if rank is None else round_to(rank, 3),
        shift=round_to(found.shift, 3),
        due=found.reason is not None,
        reason=found.reason,
    )
