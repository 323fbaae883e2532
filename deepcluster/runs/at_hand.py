"""The images of a run: their names in it, and the files that are still at hand."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from PIL import Image

from deepcluster.errors import DataError, DeepClusterError
from deepcluster.images import Source, find
from deepcluster.images.decode import Undecodable, pillow_limits
from deepcluster.images.files import from_files
from deepcluster.images.named import cache_folder
from deepcluster.images.source import joined, real
from deepcluster.report.sections import Picture
from deepcluster.storage.run_folder import RunFolder


def images_at_hand(
    folder: RunFolder, images: Source | None = None, fitted: Sequence[str] | None = None
) -> Source | None:
    """Return the images of a run that are still at hand, by their paths in the run; None if there are none.

    Args:
        folder: The run.
        images: The images of the fit at another place, under the same paths.
        fitted: The paths of the usable images of the fit, if they are known.
    """
    location, added = folder.read_record().location, folder.read_added()
    if fitted is None:
        paths = [*folder.read_clusters().where("status", "ok").column("path")]
        fitted = paths[: len(paths) - len(added)]
    source = images or _at_location(location, fitted)
    row_of = {path: row for row, path in enumerate(source.paths)} if source else {}
    parts = [source.rows([row_of[path] for path in fitted if path in row_of])] if source else []
    parts += _added(added, source, row_of, real(location))
    if not any(part.paths for part in parts):
        return None
    return joined(parts, *((source.name, source.location) if source else ("images", location)))


def _added(
    added: Sequence[Mapping[str, str]], fitted: Source | None, row_of: Mapping[str, int], home: str
) -> Iterator[Source]:
    """Yield the images of updates: those below the location of the fit, ``home``, by path, others by origin."""
    near, files, held = [], [], defaultdict(list)
    for row in added:
        if row["path"] in row_of and Path(row["source"]).is_relative_to(home):
            near.append(row)
        elif row["member"]:
            held[row["source"]].append(row)
        elif Path(row["source"]).is_absolute() and os.path.isfile(row["source"]):  # noqa: PTH113 (is_file may raise)
            files.append(row)
    if fitted:
        yield _chosen(fitted, {row_of[row["path"]]: row for row in near})
    if files:
        listed = from_files([(row["path"], Path(row["source"])) for row in files], "images", "python:paths")
        yield _chosen(listed, dict(enumerate(files)))
    for place, rows in held.items():
        if source := _at_location(place):
            number = {source.origin(i).member: i for i in range(len(source.paths))}
            yield _chosen(source, {number[row["member"]]: row for row in rows if row["member"] in number})


def _chosen(source: Source, rows: Mapping[int, Mapping[str, str]]) -> Source:
    """Return images of a source by number, with the paths and labels of their rows in added.csv."""
    paths, labels = (tuple(row[column] for row in rows.values()) for column in ("path", "label"))
    return replace(source.rows([*rows]), paths=paths, labels=labels)


def folder_of(location: str) -> Path | None:
    """Return the folder that the paths of a run's images are relative to, if any."""
    place = Path(location)
    return place if place.is_absolute() and place.is_dir() else None


def name_in_run(file: Path, base: Path | None) -> str:
    """Return the path of a file in a run on the images in ``base``: relative to it if that is near, else absolute."""
    if base is None or file.anchor != base.anchor:
        return file.as_posix()
    near = Path(os.path.relpath(file, base))
    if near.parts[:1] != ("..",):
        return near.as_posix()
    # Not where that would name all folders, or lead elsewhere as the folder is a link.
    shared = len(Path(os.path.commonpath([file, base])).parts) > 1 and os.path.realpath(base) == str(base)
    return near.as_posix() if shared else file.as_posix()


def named_as_in_run(source: Source, location: str) -> Source:
    """Name images as in a run on ``location``: relative to its folder if that is near, else absolute.

    A file of a list has no label: the folder that holds it may be no class.
    """
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


def _at_location(location: str, paths: Sequence[str] = ()) -> Source | None:
    """Return the images at a location on this machine; nothing is downloaded.

    A list that came on standard input or from Python is gone: ``paths`` are its paths in the table.
    """
    scheme, _, name = location.partition(":")
    cached = scheme == "torchvision" and name.isidentifier() and cache_folder(name).is_dir()
    with suppress(DeepClusterError, OSError):
        if paths and location in ("-", "python:paths"):
            return find(paths)
        return find(location) if cached or scheme == "sklearn" or Path(location).is_absolute() else None
    return None


def pictures(source: Source | None, size: int) -> Picture:
    """Return a function from a path to its image, of at least ``size`` px if possible; None if it cannot be read."""
    index = {path: i for i, path in enumerate(source.paths)} if source else {}

    def picture(path: str) -> Image.Image | None:
        if source is None or path not in index:
            return None
        try:
            with pillow_limits():
                return source.read(index[path], size)
        except (Undecodable, DataError, OSError):
            return None

    return picture
