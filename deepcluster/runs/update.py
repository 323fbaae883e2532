"""Add images to a finished run, in its clusters, without training."""

import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from deepcluster.clustering.blocks import nearest
from deepcluster.clustering.outliers import MIN_ROWS
from deepcluster.errors import UsageError
from deepcluster.groups.due import drift
from deepcluster.images import Images, Source, find
from deepcluster.images.decode import Reason
from deepcluster.images.duplicates import near_duplicates
from deepcluster.images.own_features import read_features
from deepcluster.images.source import check_skipped, nothing_readable, skipped_in_words
from deepcluster.images.store import read_once
from deepcluster.model import Model
from deepcluster.records import Identity
from deepcluster.runs.change import Change, carry_out
from deepcluster.runs.images import (
    duplicate_rows,
    images_at_hand,
    named_as_in_run,
    pictures_of,
    row_digests,
    with_picture,
)
from deepcluster.runs.run import Rows, Run, write_features
from deepcluster.runtime.console import Display, Several
from deepcluster.runtime.devices import CPU
from deepcluster.storage import run_folder
from deepcluster.storage.content import IMAGES, Row, Table
from deepcluster.storage.images_table import REJECTED, ImagesTable, image_rows, origin_of, skipped_rows
from deepcluster.storage.lock import scratch_of


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

    @property
    def known(self) -> int:
        """Number of images that the run had already."""
        return self.tried - len(self.failed) - len(self.source.paths)

    @property
    def skipped(self) -> list[Mapping[str, str]]:
        """Path and reason of the files that cannot be used."""
        return [{"path": path, "reason": why} for path, why in (*self.source.skipped, *self.failed)]


def update(
    run: Path,
    images: Images,
    display: Display | None = None,
    *,
    device: torch.device = CPU,
    max_skipped: int | None = None,
    reject: bool = False,
    dry_run: bool = False,
) -> Update:
    """Add images to a run. Clusters keep their numbers, names and edits, and its other images their rows.

    ``images``: As for ``find``, or an empty folder; features for a run of features. ``max_skipped``: Number of unusable
    files above which nothing is added (None: any). ``reject``: New outliers get no cluster. ``dry_run``: Nothing is
    added.

    Raises UsageError if the run is not finished, DataError if no file can be used or too many cannot.
    """
    display = Several(display)
    read: list[_New] = []

    def change_of(folder: run_folder.RunFolder, before: Run) -> Change:
        status = before.record.status
        if status != "done":
            raise UsageError(f"{run} is not finished (its status is {status}): go on with its fit and --resume")
        before.model.network.to(device)
        read.append(new := _read(folder, before, images, Path(scratch or scratch_of(run)), display))
        added = len(new.source.paths)
        if (new.tried or new.skipped) and not (new.known or added):
            raise nothing_readable(new.source.location, new.tried, new.failed)
        check_skipped(new.skipped, max_skipped)
        display.say("Images", _counts_text(new))
        return _updated(before, new, reject=reject)

    with TemporaryDirectory(prefix="deepcluster-") if dry_run else nullcontext("") as scratch:
        made = carry_out(run, change_of, display, dry_run=dry_run, takes_images=True)
    model = made.before.model
    rows = made.change.run.rows
    cluster = made.change.run.placement.cluster
    added = len(read[0].source.paths)
    drifted = drift(cluster.numpy(), rows.residuals.numpy(), rows.fitted, model.outliers.limit)
    residuals = rows.residuals[rows.fitted :]
    outliers = residuals > model.outliers.limit
    later = rows.images.used.at(range(rows.fitted, len(rows.paths)))
    base = Path(made.change.run.record.base)
    strangest_first = residuals.argsort(descending=True, stable=True).tolist()
    done = Update(
        added,
        read[0].known,
        read[0].skipped,
        int(outliers[len(outliers) - added :].sum()),
        **drifted.entries,
        strangers=[_place(later[i], base) for i in strangest_first[: int(outliers.sum())]],
        model=model.identity,
        preview=made.to_json(),
    )
    if added:
        display.say("Placed", _placed_text(done, model, run, reject=reject))
    return done


def _counts_text(new: _New) -> str:
    added = len(new.source.paths)
    counts = [f"{added:,} added" if added else "nothing new" if new.tried else "no files"]
    if new.known:
        counts.append(f"{new.known:,} in the run already")
    if new.skipped:
        words = skipped_in_words((*new.source.skipped, *new.failed))
        counts.append(f"{len(new.skipped):,} skipped: {words}")
    return ", ".join(counts)


def _place(row: Row, base: Path) -> str:
    """Return the absolute path of an image, or its number or id in the run if it has no path."""
    place = origin_of(row, base)
    if not place.source or row["path"].isdecimal():
        return row["path"]
    return f"{place.source}/{place.member}".removesuffix("/")


def _placed_text(done: Update, model: Model, run: Path, *, reject: bool) -> str:
    if model.outliers.limit == torch.inf:
        text = f"Placed in the present clusters; with fewer than {MIN_ROWS} images in the fit no outlier is recognised"
    elif done.outliers:
        stay = " and stay without one" if reject else ""
        text = f"{done.outliers:,} of {done.added:,} fit into no cluster{stay} (see Problems in the report)"
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
    base = Path(run.record.base)
    used = rows.images.used
    features, source = read_features(images) if model.of_features else (None, find(images, may_be_empty=True))
    source = named_as_in_run(source, base)
    # A file is known by its place, whatever its name; the content of an array or a shard may have changed.
    present = {origin_of(row, base) for row in used}
    fresh = [i for i in range(len(source.paths)) if not source.items.of_files or source.origin(i) not in present]
    known = {*used.column("sha256")}
    usable = source.rows(fresh)
    failed = tuple[tuple[str, Reason], ...]()
    if features is not None:
        values = features[fresh]
    else:
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
    return _New(named, *measured, pictures, digests, failed, len(source.paths))


def _free_names(source: Source, digests: Sequence[str], rows: Rows) -> tuple[str, ...]:
    """Return names that the run lacks: numbers continue, and a path that it has gets the image's digest."""
    taken = {*rows.paths, *rows.images.skipped}
    in_memory = bool(source.paths) and source.origin(0) == ("", source.paths[0])
    if in_memory and source.paths[0].isdecimal():
        begin = 1 + max((int(path) for path in taken if path.isdecimal()), default=-1)
        return tuple(str(begin + i) for i in range(len(source.paths)))
    present = {*rows.paths}
    pairs = zip(source.paths, digests, strict=True)
    return tuple(f"{path} ({digest[:8]})" if path in present else path for path, digest in pairs)


# ---- the run with these images ---------------------------------------------------------------------------------------


def _updated(run: Run, new: _New, *, reject: bool) -> Change:
    """Return the change that adds the new images behind the others, and the files that cannot be used."""
    rows = run.rows
    now = datetime.now(UTC).isoformat(timespec="seconds")
    before = rows.images.skipped
    skipped = [(row["path"], row["reason"]) for row in new.skipped if before.get(row["path"]) != row["reason"]]
    added = image_rows(new.source, new.source.labels, new.digests, Path(run.record.base), now)
    if reject:
        outliers = (new.residuals > run.model.outliers.limit).tolist()
        added = ({**row, "reason": REJECTED * is_one} for row, is_one in zip(added, outliers, strict=True))
    more = [*added, *skipped_rows(skipped, now)]
    if not more:
        return Change(run)
    every = replace(
        rows,
        images=ImagesTable(Table.of([*rows.images.rows, *more])),
        reduced=torch.cat([rows.reduced, new.reduced]),
        residuals=torch.cat([rows.residuals, new.residuals]),
    )
    return Change(replace(run, rows=every), write=partial(_write, new, rows, every, Path(run.record.base)))


def _with_duplicates(folder: run_folder.LockedFolder, rows: Rows, new: _New, base: Path) -> list[Mapping[str, object]]:
    """Return the rows of duplicates.csv with the new images.

    They are compared with one another, and with their nearest in feature space: copies have nearly the same features.
    """
    table: list[Mapping[str, object]] = [*folder.read_rows("duplicates.csv")]
    set_of = {str(row["path"]): int(str(row["set"])) for row in table}
    free = 1 + max(set_of.values(), default=-1)
    most_alike = {rows.paths[row] for row in nearest(new.reduced, 1, rows.reduced)[1].flatten().tolist()}
    alike_rows = [row for row, path in enumerate(rows.paths) if path in most_alike]
    old = images_at_hand(ImagesTable(rows.images.used.at(alike_rows)), base)
    paths: list[str] = []
    pictured = [] if new.images is None else with_picture(new.images)
    images = [] if new.images is None else [new.images[pictured]]
    if old and old.paths and images:
        store = read_once(old, images[0].shape[-1], none_is_fine=True)
        paths, images = [old.paths[i] for i in store.usable], [store.images, *images]
    fresh = len(paths)
    paths += [new.source.paths[row] for row in pictured]
    for alike in near_duplicates(images):
        if any(row >= fresh for row, _ in alike):
            known = [set_of[paths[row]] for row, _ in alike if paths[row] in set_of]
            number, free = (known[0], free) if known else (free, free + 1)
            outside = [(row, distance) for row, distance in alike if paths[row] not in set_of]
            table += duplicate_rows([outside], paths, number)
    return table


def _write(new: _New, rows: Rows, every: Rows, base: Path, folder: run_folder.LockedFolder) -> None:
    """Write the images of an update, ``rows`` before and ``every`` after; images.csv, which lists them, comes last."""
    if new.source.paths:
        write_features(folder, every)
        if folder.has("duplicates.csv") and new.images is not None:
            folder.write_rows("duplicates.csv", _with_duplicates(folder, rows, new, base))
    folder.write_rows(IMAGES, every.images.rows)
