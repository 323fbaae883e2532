"""The files of a run that are still at hand, and the digests by which it recognises its images."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from deepcluster.errors import DataError, DeepClusterError
from deepcluster.images import Source, find
from deepcluster.images.decode import Reason
from deepcluster.images.files import absolute, files_in, from_files
from deepcluster.images.named import cache_folder
from deepcluster.images.source import IDS, LINK, SOME_FILES, joined, real
from deepcluster.images.store import Store, read_once
from deepcluster.report.pictures import GREY_LEVEL
from deepcluster.runtime.log import warn
from deepcluster.storage import run_folder
from deepcluster.storage.content import IMAGES_READ

PICTURE_SIDE = 48  # px


def duplicate_rows(
    sets: Iterable[Iterable[tuple[int, float]]], paths: Sequence[str], first: int = 0
) -> Iterator[dict[str, object]]:
    """Yield the rows of duplicates.csv for sets of (row, distance); ``first``: the number of the first set."""
    for number, members in enumerate(sets, first):
        for row, distance in members:
            yield {"group": number, "path": paths[row], "distance": f"{distance:.4f}"}


# ---- their digests, by which a run recognises them -----------------------------------------------------------------


def pixel_digests(store: Store) -> list[str]:
    """Return the SHA-256 of the pixels of every stored image."""
    return row_digests(store.images.permute(0, 2, 3, 1))


def row_digests(rows: Tensor) -> list[str]:
    """Return the SHA-256 of every row: of features, or of images with the colours last."""
    return [hashlib.sha256(row.tobytes()).hexdigest() for row in rows.numpy()]


def fingerprint(images: Mapping[str, str]) -> str:
    """Return the SHA-256 over the paths and pixels of a run, by their :func:`pixel_digests`."""
    digest = hashlib.sha256()
    for path, pixels in images.items():
        digest.update(path.encode(errors="surrogateescape") + b"\0" + pixels.encode())
    return digest.hexdigest()


# ---- the files that are still at hand ------------------------------------------------------------------------------


def images_at_hand(
    folder: run_folder.RunFolder, images: Source | None = None, used: Sequence[str] | None = None
) -> Source | None:
    """Return the images of a run that are still at hand, by their paths in the run; None if there are none.

    ``images``: The images of the fit at another place, under the same paths. ``used``: The paths of the usable images,
    if they are known.
    """
    location = folder.read_record().location
    added = folder.read_added()
    if used is None:
        used = [*folder.read_clusters().where("status", "ok").column("path")]
    fitted = used[: len(used) - len(added)]
    source = images or _at_location(location, fitted)
    row_of = {path: row for row, path in enumerate(source.paths)} if source else {}
    parts = [source.rows(sorted(row_of[path] for path in fitted if path in row_of))] if source else []
    parts += _added_images(added, source, row_of, real(location))
    if not any(part.paths for part in parts):
        return None
    return joined(parts, *((source.name, source.location) if source else ("images", location)))


def images_of(run: Path) -> Source:
    """Return the images of a run for another fit, updates included, by their paths in the run.

    With updates they are some of the files in a folder. A file that has changed between fit and update comes once.
    Skipped files that still exist are tried again; those that were never opened stay skipped.

    Raises DataError if none is at hand, or if there are updates and an image is no file.
    """

    def read(folder: run_folder.RunFolder) -> tuple[str, list[str], list[str], dict[str, Reason], Source | None]:
        added = [row["path"] for row in folder.read_added()]
        # An unfinished run may have no clusters yet.
        fitted = [row["path"] for row in folder.read_rows(IMAGES_READ)]
        rows = folder.read_rows("skipped.csv")
        skipped = {row["path"]: LINK if row["reason"] == LINK else Reason(row["reason"]) for row in rows}
        tried = [path for path, reason in skipped.items() if reason != LINK]
        source = images_at_hand(folder, None, [*fitted, *tried, *added])
        return folder.read_record().location, fitted, added, skipped, source

    location, fitted, added, skipped, source = run_folder.read_state(run, read)
    used = {*fitted, *added}
    here = {*(source.paths if source else ())}
    if source is None or not used & here or (added and None in map(source.file, range(len(source.paths)))):
        raise DataError(f"the images of {run} cannot be found again from {location}: name all of them as IMAGES")
    if gone := len(used - here):
        warn(f"{gone:,} of the {len(used):,} images of {run} are no longer there, and are left out")
    base = folder_of(location) or (Path(location).parent if Path(location).is_absolute() else Path.cwd())
    is_there = os.path.lexists if source.items.of_files else bool  # a member of a shard has no path of its own
    rest = {path: why for path, why in skipped.items() if path not in here and is_there(base / path)}
    if not added:
        return replace(source, skipped=tuple(rest.items()))
    files = {path for path, why in rest.items() if why != LINK and os.path.isfile(base / path)}  # noqa: PTH113
    reasons = {path: None if path in files else why for path, why in rest.items()}
    names: dict[Path, str] = {}
    for path, file in zip(source.paths, map(absolute, source.files()), strict=True):
        names.setdefault(file, path if absolute(base / path) == file else name_in_run(file, base))
    return files_in(base, reasons | dict.fromkeys(names.values()), f"{str(base).rstrip('/')}{SOME_FILES}")


def _added_images(
    added: Sequence[Mapping[str, str]], fitted: Source | None, row_of: Mapping[str, int], home: str
) -> Iterator[Source]:
    """Yield the images of updates: those below the location of the fit, ``home``, by path, others by origin."""
    near = []
    files = []
    held = defaultdict(list)
    for row in added:
        if row["path"] in row_of and Path(row["source"]).is_relative_to(home):
            near.append(row)
        elif row["member"]:
            held[row["source"]].append(row)
        elif os.path.isfile(row["source"]):  # noqa: PTH113 (is_file may raise)
            files.append(row)
    if fitted:
        yield _chosen(fitted, {row_of[row["path"]]: row for row in near})
    if files:
        listed = from_files([(row["path"], Path(row["source"])) for row in files], "images", "python:paths")
        yield _chosen(listed, dict(enumerate(files)))
    for path, rows in held.items():
        if source := _at_location(path):
            number = {source.origin(i).member: i for i in range(len(source.paths))}
            yield _chosen(source, {number[row["member"]]: row for row in rows if row["member"] in number})


def _chosen(source: Source, rows: Mapping[int, Mapping[str, str]]) -> Source:
    """Return images of a source by number, with the paths and labels of their rows in added.csv."""
    paths, labels = (tuple(row[column] for row in rows.values()) for column in ("path", "label"))
    return replace(source.rows([*rows]), paths=paths, labels=labels)


def folder_of(location: str) -> Path | None:
    """Return the folder that the paths of a run's images are relative to, if any."""
    path = Path(location)
    return path if path.is_absolute() and path.is_dir() else None


def name_in_run(file: Path, base: Path | None) -> str:
    """Return the path of a file in a run on the images in ``base``: relative to it if that is near, else absolute."""
    if base is None or file.anchor != base.anchor:
        return file.as_posix()
    near = Path(os.path.relpath(file, base))
    if near.parts[:1] != ("..",):
        return near.as_posix()
    # Not if that would name all folders, or lead elsewhere because the folder is a link.
    shared = len(Path(os.path.commonpath([file, base])).parts) > 1 and os.path.realpath(base) == str(base)
    return near.as_posix() if shared else file.as_posix()


def named_as_in_run(source: Source, location: str) -> Source:
    """Name images as in a run on ``location``: relative to its folder if that is near, else absolute.

    A file of a list has no label: the folder that holds it may be no class.
    """
    if source.location == location and Path(location).is_absolute():
        return source
    base = folder_of(location)
    here = Path(source.location)

    def name(i: int) -> str:
        if file := source.file(i):
            return name_in_run(file, base)
        path, member = source.origin(i)
        if path == IDS:
            return member
        return f"{name_in_run(Path(path), base)}{'#' if member.isdecimal() else '/'}{member}"

    below = here if here.is_dir() else here.parent
    return replace(
        source,
        paths=tuple(map(name, range(len(source.paths)))),
        labels=None if source.items.of_files and not here.is_dir() else source.labels,
        skipped=tuple((name_in_run(below / path, base), reason) for path, reason in source.skipped),
    )


def _at_location(location: str, paths: Sequence[str] = ()) -> Source | None:
    """Return the images at a location on this machine; nothing is downloaded.

    ``paths``: The paths in the table, for some files in a folder, and a list from standard input or Python.
    """
    scheme, _, name = location.partition(":")
    cached = scheme == "torchvision" and name.isidentifier() and cache_folder(name).is_dir()
    with suppress(DeepClusterError, OSError):
        if paths and location in ("-", "python:paths"):
            return find([path for path in paths if not os.path.isdir(path)])  # noqa: PTH112 (all below it would come)
        if location.endswith(SOME_FILES) and (folder := folder_of(location)):
            there = (path for path in paths if os.path.isfile(folder / path))  # noqa: PTH113
            return files_in(folder, dict.fromkeys(there), location)
        return find(location) if cached or scheme == "sklearn" or Path(location).is_absolute() else None
    return None


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
