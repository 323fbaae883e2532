"""The report page of a run."""

import os
import shlex
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from deepcluster.clustering.assignment import assigner
from deepcluster.clustering.nearest import nearest
from deepcluster.errors import DataError, DeepClusterError, DeepClusterWarning
from deepcluster.groups.cut import Cut
from deepcluster.groups.split import parts_of
from deepcluster.images import Source, find
from deepcluster.images.decode import Undecodable, one_line, pillow_limits
from deepcluster.images.files import from_files
from deepcluster.images.named import cache_folder
from deepcluster.images.source import joined, real
from deepcluster.model import Model
from deepcluster.nets.sizes import FEATURES
from deepcluster.report.page import RunData, render
from deepcluster.report.script_data import on_page
from deepcluster.report.sections import MEDOID, Picture
from deepcluster.report.sprite import on_sheet, pictures_on
from deepcluster.report.thumbnails import THUMBNAIL
from deepcluster.runs.results import MOST_IN_TREE, Rows, read_run, write_map, write_tree
from deepcluster.storage import report_files as drawn
from deepcluster.storage import run_folder as files
from deepcluster.storage.run_folder import LockedFolder, RunFolder
from deepcluster.storage.run_record import RunRecord
from deepcluster.storage.table import Table

ALIKE, ALIKE_IN_ALL = 8, 80_000  # most similar images of each, and of all together: 2 bytes each in the page


def report(run: Path, source: Source | None = None) -> Path:
    """Write report.html of a run again, with the pictures of ``source``, or where the images are still at hand."""
    files.open_run(run)
    with files.locked(run) as folder, folder.next_state() as staged:
        rewrite_report(staged, source)
    return run / "report.html"


@dataclass(frozen=True)
class Shown:
    """What the page is made of beside tables: the images on the sheet of tiny pictures (M), on the main rank.

    groups: The cut.
    reduced: Their features (M x d).
    nearest: The centroid of the cut that each is nearest to (int64, M).
    counts: How many of the fit's images are nearest to each centroid.
    all_counts: The same of all images.
    """

    groups: Cut
    reduced: Tensor
    nearest: Tensor
    counts: Tensor
    all_counts: Tensor


def shown_of(rows: Rows, groups: Cut, nearest: Tensor | None = None) -> Shown:
    """A collective. ``nearest``: The centroid of each of this rank's rows, where it is known."""
    partition, on_map = rows.partition, torch.tensor(on_sheet(rows.partition.total))
    nearest = assigner(groups.centroids)(rows.reduced) if nearest is None else nearest
    counts, all_counts = (
        partition.processes.all_reduce(torch.bincount(each, minlength=len(groups.centroids)))
        for each in (nearest[: len(nearest) - rows.added], nearest)
    )
    reduced, nearest = (partition.to_main(each, on_map) for each in (rows.reduced, nearest))
    return Shown(groups, reduced, nearest, counts, all_counts)


def rewrite_report(folder: LockedFolder, source: Source | None, state: tuple[Model, Rows] | None = None) -> None:
    """Write the report of a run that has ended, with the map and the tree where they are missing.

    Args:
        folder: The run.
        source: Its images, where the caller has them at hand.
        state: Its model and rows, where the caller has read them.
    """
    with folder.as_disk_errors():
        if state is None:
            with suppress(DeepClusterError):  # the report can do without what is drawn from them
                state = read_run(folder)[1:]
        shown = None
        if state:
            model, rows = state
            shown = shown_of(rows, model.groups)
            # A fit may have left them out.
            if not folder.has(drawn.MAP):
                write_map(folder, shown.reduced, folder.read_record().seed)
            if not folder.has(drawn.TREE):
                write_tree(folder, model, rows, None)
        write_report(folder, found_again(folder, source), shown)


def write_report(folder: LockedFolder, source: Source | None, shown: Shown | None = None) -> None:
    """Write report.html.

    Args:
        folder: The run.
        source: Its images; None where they are not at hand.
        shown: Without it, no image shows those most like it, and no cluster can be split.
    """
    record = folder.read_record()
    used = Table.of(folder.read_clusters()).where("status", "ok")
    every, sheet, away = on_page(used)[1], drawn.read_sheet(folder), list[str]()
    picture = _or_tiny(folder, record, pictures(source, MEDOID * THUMBNAIL), used, sheet, away)
    data = RunData(
        title=record.images,
        run=record.to_json(),
        clusters=used,
        summary=folder.read_rows("cluster_summary.csv", files.SUMMARY),
        history=folder.read_rows("history.csv", files.HISTORY),
        metrics=folder.read_json("metrics.json") if folder.has("metrics.json") else None,
        skipped=folder.read_rows("skipped.csv", files.SKIPPED),
        duplicates=folder.read_rows("duplicates.csv", files.DUPLICATES) if folder.has("duplicates.csv") else None,
        picture=picture,
        positions=drawn.read_map(folder, len(used), on_sheet(len(used))),
        tree=drawn.read_tree(folder, len(used)),
        sheet=sheet,
        name=_called(folder.path),
        similar=most_alike(shown.reduced[::every]) if shown and len(used) else None,
        **_parts(shown, every),
        originals=_originals(folder.path, source),
    )
    folder.write_text("report.html", render(data))
    if away:
        loss = f"are small ones from {drawn.SHEET}" if sheet else "are missing"
        warnings.warn(
            f"{len(away):,} pictures of the page {loss}, as their images are not at hand (first: {one_line(away[0])};"
            f" location of the fit's images: {one_line(record.location)}): put them back, then type deepcluster report"
            f" {shlex.quote(str(folder.path))}",
            DeepClusterWarning,
            stacklevel=2,
        )


def _or_tiny(
    folder: RunFolder, record: RunRecord, picture: Picture, rows: Table, sheet: bytes, away: list[str]
) -> Picture:
    """``picture``, or the tiny picture on the sheet if an image cannot be read: ``away`` collects its path."""

    @cache
    def tiny() -> tuple[Mapping[str, int], Callable[[int], Image.Image | None]]:
        with folder.as_disk_errors(drawn.SHEET):
            return {path: row for row, path in enumerate(rows.column("path"))}, pictures_on(sheet, len(rows))

    def shown(path: str) -> Image.Image | None:
        image = picture(path)
        if image is None:
            if sheet:
                row_of, on_the_sheet = tiny()
                image = on_the_sheet(row_of[path])
            if image is not None or record.backbone != FEATURES:  # an image of features may never have been there
                away.append(path)
        return image

    return shown


def _called(run: Path) -> str:
    """What a command calls the run, typed where this one was. Absolute ones lose their folders: pages are passed on."""
    return run.resolve().name if run.is_absolute() or ".." in run.parts or not run.name else run.as_posix()


def most_alike(reduced: Tensor) -> npt.NDArray[np.int64]:
    """The nearest of the rows to each (N x n, nearest first); fewer where there are many, as all are in the page."""
    return nearest(reduced, max(1, min(ALIKE, ALIKE_IN_ALL // max(1, len(reduced)))))[1].numpy()


def _parts(shown: Shown | None, every: int) -> dict[str, Any]:
    """The parts of each group, and which of its own each image in the page is in."""
    if shown is None or shown.groups.count > MOST_IN_TREE:
        return {}
    numbers = shown.groups.groups.unique().tolist()
    found = {group: parts_of(shown.groups, shown.counts, group, shown.all_counts) for group in numbers}
    part = torch.stack([each.of_centroid for each in found.values()]).amax(0)[shown.nearest[::every]]
    return {"parts": {group: each for group, each in found.items() if len(each.sizes) > 1}, "part": part.numpy()}


def _originals(run: Path, source: Source | None) -> str:
    """The way from the run to the folder of its images, for links; empty where a link would tell too much or lead
    nowhere: the images are no files of one folder, or nothing but the root is above both."""
    if source is None or source.file is None or not Path(source.location).is_dir():
        return ""
    here, there = run.resolve(), Path(source.location).resolve()
    if here.anchor != there.anchor or len(Path(os.path.commonpath([here, there])).parts) < 2:
        return ""
    return Path(os.path.relpath(there, here)).as_posix() + "/"


def found_again(folder: RunFolder, images: Source | None = None) -> Source | None:
    """The images of a run that are still at hand, by their paths in the run; None if there are none.

    Args:
        folder: The run.
        images: The images of the fit at another place, under the same paths.
    """
    location, added = folder.read_record().location, folder.read_added()
    paths = [*folder.read_clusters().where("status", "ok").column("path")]
    fitted = paths[: len(paths) - len(added)]
    own = images or _at_hand(location, fitted)
    row_of = {path: row for row, path in enumerate(own.paths)} if own else {}
    parts = [own.rows([row_of[path] for path in fitted if path in row_of])] if own else []
    parts += _added(added, own, row_of, real(location))
    if not any(part.paths for part in parts):
        return None
    return joined(parts, *((own.name, own.location) if own else ("images", location)))


def _added(
    added: Sequence[Mapping[str, str]], own: Source | None, row_of: Mapping[str, int], home: str
) -> Iterator[Source]:
    """The images of updates: an image below the location of the fit, ``home``, by its path, others by their origins."""
    near, files, held = [], [], defaultdict(list)
    for row in added:
        if row["path"] in row_of and Path(row["source"]).is_relative_to(home):
            near.append(row)
        elif row["member"]:
            held[row["source"]].append(row)
        elif Path(row["source"]).is_absolute() and os.path.isfile(row["source"]):  # noqa: PTH113 (is_file may raise)
            files.append(row)
    if own:
        yield _chosen(own, {row_of[row["path"]]: row for row in near})
    if files:
        listed = from_files([(row["path"], Path(row["source"])) for row in files], "images", "python:paths")
        yield _chosen(listed, dict(enumerate(files)))
    for place, rows in held.items():
        if source := _at_hand(place):
            number = {source.origin(i).member: i for i in range(len(source.paths))}
            yield _chosen(source, {number[row["member"]]: row for row in rows if row["member"] in number})


def _chosen(source: Source, rows: Mapping[int, Mapping[str, str]]) -> Source:
    """The images of a source with these numbers, with the paths and labels that rows of added.csv give them."""
    paths, labels = (tuple(row[column] for row in rows.values()) for column in ("path", "label"))
    return replace(source.rows([*rows]), paths=paths, labels=labels)


def folder_of(location: str) -> Path | None:
    """The folder that the paths of a run's images are relative to; None where they are relative to none."""
    place = Path(location)
    return place if place.is_absolute() and place.is_dir() else None


def name_in_run(file: Path, base: Path | None) -> str:
    """What a run on the images in ``base`` calls a file: by the way from there where that is near, else absolute."""
    if base is None or file.anchor != base.anchor:
        return file.as_posix()
    near = Path(os.path.relpath(file, base))
    if near.parts[:1] != ("..",):
        return near.as_posix()
    # Not where that would name all folders, or lead elsewhere as the folder is a link.
    shared = len(Path(os.path.commonpath([file, base])).parts) > 1 and os.path.realpath(base) == str(base)
    return near.as_posix() if shared else file.as_posix()


def _at_hand(location: str, paths: Sequence[str] = ()) -> Source | None:
    """The images at a location on this machine; nothing is downloaded, as nobody asked for that.

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
    """A function from a path to its image, of at least ``size`` px if it has them; None where it cannot be read."""
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
