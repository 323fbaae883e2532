"""More images for a run that has ended, assigned to its clusters without training."""

import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from deepcluster.clustering.blocks import nearest
from deepcluster.clustering.outliers import MIN_ROWS
from deepcluster.errors import UsageError
from deepcluster.groups.due import drift
from deepcluster.groups.graph import extended_layout
from deepcluster.images import Images, Source, find
from deepcluster.images.decode import Reason
from deepcluster.images.duplicates import near_duplicates
from deepcluster.images.own_features import read_features
from deepcluster.images.source import IDS, Origin, check_skipped, counted, nothing_readable
from deepcluster.images.store import read_once
from deepcluster.model import Model
from deepcluster.records import Identity
from deepcluster.report.pictures import THUMBNAIL, extended_sheet, not_on_sheet, on_sheet
from deepcluster.runs import page as drawn
from deepcluster.runs.change import Change, carry_out
from deepcluster.runs.images import (
    duplicate_rows,
    images_at_hand,
    named_as_in_run,
    pictures_of,
    row_digests,
    with_picture,
)
from deepcluster.runs.run import Rows, Run
from deepcluster.runtime.console import Display, Several
from deepcluster.runtime.devices import CPU
from deepcluster.runtime.log import warn
from deepcluster.storage import run_folder
from deepcluster.storage.content import FILES, IMAGES_READ
from deepcluster.storage.state import scratch_of


@dataclass(frozen=True)
class Update:
    """The outcome of :func:`update`. ``residual_rank`` to ``strangers`` are of all images added since the fit."""

    added: int  # images that are in the run now
    known: int  # images that it had already, by path (files) or content
    skipped: Sequence[Mapping[str, str]]  # path and reason of files that cannot be used
    outliers: int = 0  # added images that fit nowhere
    residual_rank: float | None = field(default=None, compare=False)
    shift: float = field(default=0.0, compare=False)
    reason: str | None = None  # why a new fit is due
    strangers: Sequence[str] = field(default=(), compare=False)  # absolute paths of outliers, strangest first
    model: Identity = field(default=Identity(), compare=False)
    preview: Mapping[str, Any] = field(default_factory=dict, compare=False)  # ``Made.to_json``

    @property
    def due(self) -> bool:
        """True if a new fit is due."""
        return self.reason is not None


@dataclass(frozen=True)
class _New:
    """Images that the run does not have."""

    source: Source  # with the files that the source itself has skipped
    reduced: Tensor  # features, n x d
    residuals: Tensor  # n
    images: Tensor | None  # pixels; None if there are no files
    digests: Sequence[str]  # of their pixels or features
    failed: Sequence[tuple[str, Reason]]  # (path, reason) of the files that cannot be read
    tried: int  # images asked for, known ones included
    present: Source | None  # images of the run that are still at hand

    @property
    def known(self) -> int:
        """Number of images that the run had already."""
        return self.tried - len(self.failed) - len(self.source.paths)

    @property
    def skipped(self) -> list[Mapping[str, str]]:
        """Path and reason of the files that cannot be used."""
        return [{"path": path, "reason": why} for path, why in (*self.source.skipped, *self.failed)]

    @cached_property
    def table(self) -> list[Mapping[str, str]]:
        """The rows of added.csv."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        labels = self.source.labels or [""] * len(self.source.paths)
        rows = (
            (path, label, *self.source.origin(i), self.digests[i], now)
            for i, (path, label) in enumerate(zip(self.source.paths, labels, strict=True))
        )
        return [dict(zip(FILES["added.csv"].columns, row, strict=True)) for row in rows]


def update(
    run: Path,
    images: Images,
    display: Display | None = None,
    *,
    device: torch.device = CPU,
    max_skipped: int | None = None,
    dry_run: bool = False,
) -> Update:
    """Add images to a run. Clusters keep their numbers, names and edits, and its other images their rows.

    ``images``: As for ``find``, or an empty folder; features for a run of features. ``max_skipped``: Number of unusable
    files above which nothing is added (None: any). ``dry_run``: Nothing is added.

    Raises UsageError if the run is not finished, DataError if no file can be used or too many cannot.
    """
    display = Several(display)
    read: list[_New] = []

    def change_of(folder: run_folder.RunFolder, state: Run) -> Change:
        status = state.record.status
        if status != "done":
            raise UsageError(f"{run} is not finished (its status is {status}): go on with its fit and --resume")
        state.model.network.to(device)
        read.append(new := _read(folder, state, images, Path(scratch or scratch_of(run)), display))
        added = len(new.source.paths)
        if (new.tried or new.skipped) and not (new.known or added):
            raise nothing_readable(new.source.location, new.tried, new.failed)
        check_skipped(new.skipped, max_skipped)
        display.say("Images", _counts_text(new))
        before = {row["path"]: row["reason"] for row in folder.read_rows("skipped.csv")}
        reasons = before | {row["path"]: row["reason"] for row in new.skipped}
        reasons = {path: why for path, why in reasons.items() if path not in {*new.source.paths}}
        return _with_added(state, new, reasons) if added or reasons != before else Change(state, state.placement)

    with TemporaryDirectory(prefix="deepcluster-") if dry_run else nullcontext("") as scratch:
        made = carry_out(run, change_of, display, dry_run=dry_run, takes_images=True)
    model = made.before.model
    rows = made.change.run.rows
    cluster = made.change.placement.cluster
    added = len(read[0].source.paths)
    drifted = drift(cluster.numpy(), rows.residuals.numpy(), rows.fitted, model.outliers.limit)
    residuals = rows.residuals[rows.fitted :]
    outliers = residuals > model.outliers.limit
    every = run_folder.RunFolder(run).read_added() + read[0].table * dry_run
    strangest_first = residuals.argsort(descending=True, stable=True).tolist()
    done = Update(
        added,
        read[0].known,
        read[0].skipped,
        int(outliers[len(outliers) - added :].sum()),
        **drifted.entries,
        strangers=[_place(every[i]) for i in strangest_first[: int(outliers.sum())]],
        model=model.identity,
        preview=made.to_json(),
    )
    if added:
        display.say("Placed", _placed_text(done, model, run))
    return done


def _counts_text(new: _New) -> str:
    added = len(new.source.paths)
    counts = [f"{added:,} added" if added else "nothing new" if new.tried else "no files"]
    if new.known:
        counts.append(f"{new.known:,} in the run already")
    if new.skipped:
        kinds = counted((*new.source.skipped, *new.failed))
        counts.append(f"{len(new.skipped):,} skipped: {kinds}")
    return ", ".join(counts)


def _place(added: Mapping[str, str]) -> str:
    """Return the absolute path of an added image, or its number or id in the run if it has no path."""
    if added["path"].isdecimal() or added["source"] == IDS:
        return added["path"]
    return f"{added['source']}/{added['member']}".removesuffix("/")


def _placed_text(done: Update, model: Model, run: Path) -> str:
    if model.outliers.limit == torch.inf:
        text = f"Placed in the present clusters; with fewer than {MIN_ROWS} images in the fit no outlier is recognised"
    elif done.outliers:
        text = f"{done.outliers:,} of {done.added:,} fit into no cluster (see Problems in the report)"
    else:
        text = f"All {done.added:,} fit into the present clusters"
    if not done.due:
        return f"{text}. No new fit is needed"
    command = f"deepcluster fit {'FILE --features ' * model.of_features}--like {shlex.quote(str(run))}"
    return f"{text}. A new fit is due: {done.reason}. Fit all images anew, with the same names: {command}"


# ---- which images are new -------------------------------------------------------------------------------------------


def _read(folder: run_folder.RunFolder, run: Run, images: Images, scratch: Path, display: Display) -> _New:
    """Read and measure the images that the run does not have. ``scratch``: A folder for too many of them."""
    model, rows = run.model, run.rows
    at_hand = images_at_hand(folder, None, rows.paths)
    features, source = read_features(images) if model.of_features else (None, find(images, may_be_empty=True))
    source = named_as_in_run(source, run.record.location)
    added = folder.read_added()
    # A file is known by its place, whatever its name; the content of an array or a shard may have changed.
    present = {Origin(row["source"], row["member"]) for row in added}
    present |= {at_hand.origin(i) for i in range(len(at_hand.paths))} if at_hand else set()
    fresh = [i for i in range(len(source.paths)) if not source.items.of_files or source.origin(i) not in present]
    known = {row["sha256"] for row in added}
    if folder.has(IMAGES_READ):
        known |= {row["sha256"] for row in folder.read_rows(IMAGES_READ)}
    else:
        warn(f"{folder.path / IMAGES_READ} is gone: images that the run has are known by their paths alone")
    usable = source.rows(fresh)
    failed = tuple[tuple[str, Reason], ...]()
    if features is not None:
        values = features[fresh]
    else:
        model.check_room()
        progress = partial(display.progress, "reading")
        store = read_once(usable, model.store_size, folder=scratch, none_is_fine=True, progress=progress)
        usable = usable.rows(store.usable)
        failed = store.skipped
        # Channels-last, as in memory, because indexing images would copy pixel by pixel, 10 times as slowly.
        values = store.images.permute(0, 2, 3, 1)
    digests = row_digests(values)
    first = {digest: i for i, digest in reversed([*enumerate(digests)])}  # of equal images the first is added
    distinct = sorted(i for digest, i in first.items() if digest not in known)
    usable = usable.rows(distinct)
    digests = [digests[i] for i in distinct]
    if len(distinct) < len(values):
        values = values.index_select(0, torch.tensor(distinct, dtype=torch.int64))
    values = values.permute(0, 3, 1, 2) if features is None else values
    nothing = torch.empty(0, rows.reduced.shape[1]), torch.empty(0)
    measured = model.measure(values, display.progress) if distinct else nothing
    named = replace(usable, paths=_free_names(usable, digests, rows), skipped=source.skipped)
    pictures = values if features is None else pictures_of(usable)
    return _New(named, *measured, pictures, digests, failed, len(source.paths), at_hand)


def _free_names(source: Source, digests: Sequence[str], rows: Rows) -> tuple[str, ...]:
    """Return names that the run does not have: numbers go on, and a path that it has gets the image's digest."""
    taken = {*rows.paths, *(path for path, _ in rows.skipped)}
    if not source.items.of_files and source.location.startswith("python:") and source.location != IDS:
        begin = 1 + max((int(path) for path in taken if path.isdecimal()), default=-1)
        return tuple(str(begin + i) for i in range(len(source.paths)))
    present = {*rows.paths}
    pairs = zip(source.paths, digests, strict=True)
    return tuple(f"{path} ({digest[:8]})" if path in present else path for path, digest in pairs)


# ---- the next state of the run --------------------------------------------------------------------------------------


def _with_added(run: Run, new: _New, reasons: Mapping[str, str]) -> Change:
    """Return the change that adds the new images behind the others. ``reasons``: For all skipped files, by path."""
    rows = run.rows
    paths = new.source.paths
    every = replace(
        rows,
        paths=[*rows.paths, *paths],
        labels=None if rows.labels is None else [*rows.labels, *[""] * len(paths)],
        skipped=sorted(reasons.items(), key=lambda pair: os.fsencode(pair[0])),
        reduced=torch.cat([rows.reduced, new.reduced]),
        residuals=torch.cat([rows.residuals, new.residuals]),
        added=rows.added + len(paths),
    )
    record = replace(run.record, images_count=len(every.paths), skipped_count=len(every.skipped))
    after = Run(record, run.model, every)
    return Change(after, after.placement, write=partial(_write, new, rows, every))


def _with_duplicates(folder: run_folder.LockedFolder, rows: Rows, new: _New) -> list[Mapping[str, object]]:
    """Return the rows of duplicates.csv with the new images, compared with one another and the run's most alike ones.

    An image is compared with its nearest in feature space, because copies have nearly the same features.
    """
    table: list[Mapping[str, object]] = [*folder.read_rows("duplicates.csv")]
    set_of = {str(row["path"]): int(str(row["group"])) for row in table}
    free = 1 + max(set_of.values(), default=-1)
    most_alike = {rows.paths[row] for row in nearest(new.reduced, 1, rows.reduced)[1].flatten().tolist()}
    old = new.present and new.present.rows([i for i, path in enumerate(new.present.paths) if path in most_alike])
    paths: list[str] = []
    there = [] if new.images is None else with_picture(new.images)
    images = [] if new.images is None else [new.images[there]]
    if old and old.paths and images:
        store = read_once(old, images[0].shape[-1], none_is_fine=True)
        paths, images = [old.paths[i] for i in store.usable], [store.images, *images]
    fresh = len(paths)
    paths += [new.source.paths[row] for row in there]
    for alike in near_duplicates(images):
        if any(row >= fresh for row, _ in alike):
            known = [set_of[paths[row]] for row, _ in alike if paths[row] in set_of]
            number, free = (known[0], free) if known else (free, free + 1)
            outside = [(row, distance) for row, distance in alike if paths[row] not in set_of]
            table += duplicate_rows([outside], paths, number)
    return table


def _write(new: _New, rows: Rows, every: Rows, folder: run_folder.NextState) -> None:
    """Write the files of a run that only an update changes. ``rows``, ``every``: The images before and after.

    Near-duplicates, sheet and map get the new images if the run has these.
    """
    folder.write_rows("skipped.csv", [{"path": path, "reason": why} for path, why in every.skipped])
    if not new.source.paths:
        return
    folder.write_rows("added.csv", [*folder.read_added(), *new.table])
    if folder.has("duplicates.csv") and new.images is not None:
        folder.write_rows("duplicates.csv", _with_duplicates(folder, rows, new))
    if sheet := drawn.read_sheet(folder):
        grey = torch.full((1, 3, THUMBNAIL, THUMBNAIL), 128, dtype=torch.uint8)
        pictures = grey.expand(len(new.source.paths), -1, -1, -1) if new.images is None else new.images
        row_of = {rows.paths[row]: row for row in not_on_sheet(len(rows.paths), len(every.paths))}
        again: dict[int, Tensor] = {}
        if new.present and (there := [i for i, path in enumerate(new.present.paths) if path in row_of]):
            hidden = new.present.rows(there)
            store = read_once(hidden, THUMBNAIL, none_is_fine=True)
            again = {row_of[hidden.paths[i]]: image for i, image in zip(store.usable, store.images, strict=True)}
        with folder.as_disk_errors(drawn.SHEET):
            folder.write(drawn.SHEET, extended_sheet(sheet, len(rows.paths), pictures, again))
    if (positions := drawn.read_map(folder, len(rows.paths))) is not None:
        longer = extended_layout(positions, on_sheet(len(rows.paths)), on_sheet(len(every.paths)), every.reduced)
        folder.write_blocks(drawn.MAP, longer.shape, [longer])
