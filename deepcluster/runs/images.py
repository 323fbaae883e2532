"""Locate the images of a run again, and recognise them by digests."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from deepcluster.errors import DataError, DeepClusterError
from deepcluster.images import Source, find
from deepcluster.images.arrays import cache_folder
from deepcluster.images.decode import Reason
from deepcluster.images.files import from_files
from deepcluster.images.source import BESIDE, LINK, joined
from deepcluster.images.store import Store, read_once
from deepcluster.report.pictures import GREY_LEVEL
from deepcluster.runtime.log import warn
from deepcluster.storage import run_folder
from deepcluster.storage.content import Row
from deepcluster.storage.images_table import ImagesTable

PICTURE_SIDE = 48  # px
NEVER_OPENED = {reason: reason for reason in (LINK, BESIDE)}


def duplicate_rows(
    sets: Iterable[Iterable[tuple[int, float]]], paths: Sequence[str], first: int = 0
) -> Iterator[dict[str, object]]:
    """Yield the rows of duplicates.csv for sets of (row, distance); ``first``: the number of the first set."""
    for number, members in enumerate(sets, first):
        for row, distance in members:
            yield {"set": number, "path": paths[row], "distance": f"{distance:.4f}"}


def pixel_digests(store: Store) -> list[str]:
    """Return the SHA-256 of the pixels of every stored image."""
    return row_digests(store.images.permute(0, 2, 3, 1))


def row_digests(rows: Tensor) -> list[str]:
    """Return the SHA-256 of every row: of features, or of images with the colours last."""
    return [hashlib.sha256(row.tobytes()).hexdigest() for row in rows.numpy()]


def images_at_hand(images: ImagesTable, base: Path, *, skipped: bool = False) -> Source | None:
    """Return the usable images of a run that still exist, by their paths in the run; None if none does.

    Args:
        images: The content of images.csv.
        base: The folder from which relative places start: the run's own, or another one with the same files.
        skipped: Include skipped files that exist, to try them again, but not those that were never opened.
    """
    rows = [*images.used]
    if skipped:
        tried = (path for path, reason in images.skipped.items() if reason not in NEVER_OPENED)
        rows += [{"path": path, "source": "", "member": ""} for path in tried]
    files: dict[str, Path] = {}
    held: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["member"]:
            held[row["source"]].append(row)
        elif os.path.isfile(file := base / (row["source"] or row["path"])):  # noqa: PTH113 (is_file may raise)
            files[row["path"]] = file
    # A label of an update is one below the folder of the update, and not of the run's base.
    label_of = {row["path"]: row["label"] for row in images.used if row["label"] or row["added"]}
    parts = [from_files([*files.items()], "images", str(base))] if files else []
    for holder, inside in held.items():
        parts += _held(holder if ":" in holder and not Path(holder).is_absolute() else str(base / holder), inside)
    if not parts:
        return None
    whole = joined(parts, base.name or "images", str(base))
    source_labels = whole.labels or [""] * len(whole.paths)
    labels = tuple(label_of.get(path, label) for path, label in zip(whole.paths, source_labels, strict=True))
    return replace(whole, labels=labels if any(labels) else None)


def _held(holder: str, rows: Sequence[Row]) -> Iterator[Source]:
    """Yield the images in an archive, an array or a data set of a library. Nothing is downloaded."""
    scheme, _, name = holder.partition(":")
    cached = scheme == "torchvision" and name.isidentifier() and cache_folder(name).is_dir()
    if not (cached or scheme == "sklearn" or os.path.isfile(holder)):  # noqa: PTH113
        return
    with suppress(DeepClusterError, OSError):
        source = find(holder)
        number = {source.origin(i).member: i for i in range(len(source.paths))}
        present = [row for row in rows if row["member"] in number]
        if present:
            chosen = source.rows([number[row["member"]] for row in present])
            yield replace(chosen, paths=tuple(row["path"] for row in present))


def images_of(run: Path) -> Source:
    """Return the images of a run for another fit, updates included, by their paths in the run.

    A file that has changed between fit and update comes once. Skipped files that still exist are tried again; links,
    folders, devices, and files in and beside archives stay skipped.

    Raises DataError if none is at hand.
    """
    folder = run_folder.open_run(run)
    record = folder.read_record()
    base = Path(record.base)
    images = folder.read_images()
    source = images_at_hand(images, base, skipped=True)
    used = {*images.used.column("path")}
    present = {*(source.paths if source else ())}
    if source is None or not used & present:
        raise DataError(f"the images of {run} cannot be found again in {base}: name all of them as IMAGES")
    if gone := len(used - present):
        warn(f"{gone:,} of the {len(used):,} images of {run} are no longer there, and are left out")
    first: dict[tuple[str, str], int] = {}
    for i in range(len(source.paths)):
        first.setdefault(source.origin(i), i)
    once = source if len(first) == len(source.paths) else source.rows(sorted(first.values()))
    left = [(path, why) for path, why in images.skipped.items() if path not in present and _exists(base / path)]
    skipped = tuple((path, NEVER_OPENED.get(Reason(why), Reason(why))) for path, why in left)
    return replace(once, skipped=skipped, of_folder=record.of_folder)


def _exists(path: Path) -> bool:
    """Tell if there is an entry at a path, or an archive that may hold it."""
    return os.path.lexists(path) or any(map(os.path.isfile, path.parents))


def name_in_run(file: Path, base: Path) -> str:
    """Return the path of a file in a run with this ``base``: relative to it if that is near, else absolute."""
    if file.anchor != base.anchor:
        return file.as_posix()
    near = Path(os.path.relpath(file, base))
    if near.parts[:1] != ("..",):
        return near.as_posix()
    # Not if that would name all folders, or lead elsewhere because the folder is a link.
    shared = len(Path(os.path.commonpath([file, base])).parts) > 1 and os.path.realpath(base) == str(base)
    return near.as_posix() if shared else file.as_posix()


def named_as_in_run(source: Source, base: Path) -> Source:
    """Name images as in a run with this ``base``. A file of a list has no label: its folder may be no class."""

    def name(i: int) -> str:
        if file := source.file(i):
            return name_in_run(file, base)
        holder, member = source.origin(i)
        if not Path(holder).is_absolute():
            return source.paths[i]
        return f"{name_in_run(Path(holder), base)}{'#' if member.isdecimal() else '/'}{member}"

    return replace(
        source,
        paths=tuple(map(name, range(len(source.paths)))),
        labels=source.labels if source.of_folder or not source.items.of_files else None,
        skipped=tuple((name_in_run(source.base / path, base), reason) for path, reason in source.skipped),
    )


def with_picture(pictures: Tensor) -> list[int]:
    """Return the rows of :func:`pictures_of` that have an image."""
    return (pictures != GREY_LEVEL).flatten(1).any(1).nonzero().squeeze(1).tolist()


def pictures_of(source: Source) -> Tensor | None:
    """Return small pictures of all rows (uint8, N x 3 x S x S), grey without an image; None if there is no image."""
    if not source.items.of_files:
        return None
    store = read_once(source, PICTURE_SIDE, none_is_fine=True)
    if not store.usable:
        return None
    shape = (len(source.paths), PICTURE_SIDE, PICTURE_SIDE, 3)
    images = torch.full(shape, GREY_LEVEL, dtype=torch.uint8).permute(0, 3, 1, 2)
    images[torch.tensor(store.usable)] = store.images
    return images
