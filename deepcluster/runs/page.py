"""The report page of a run, and the files of its drawings: the map, the thumbnails; and the merge tree."""

import os
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from deepcluster.clustering.blocks import nearest
from deepcluster.errors import DeepClusterError
from deepcluster.groups.graph import extended_layout, layout
from deepcluster.groups.tree import MAX_IN_TREE, Tree, merge_tree, parts_of
from deepcluster.images import Source
from deepcluster.images.decode import Undecodable, pillow_limits, sides
from deepcluster.images.store import read_once
from deepcluster.nets.names import NO_NETWORK
from deepcluster.report.page import RunData, on_page, render
from deepcluster.report.pictures import (
    MAX_SHEET_BYTES,
    THUMBNAIL,
    Picture,
    Thumbnails,
    extended_sheet,
    images_of_sheet,
    on_sheet,
    pictures,
    pictures_on,
    slot_of,
    thumbnails,
)
from deepcluster.runs.result import Outcome
from deepcluster.runs.run import Run
from deepcluster.runtime.bounded import check_file
from deepcluster.runtime.compute import Progress
from deepcluster.runtime.log import warn
from deepcluster.seeding import derive
from deepcluster.storage import run_folder
from deepcluster.storage.content import Row, Table
from deepcluster.storage.images_table import skipped_table
from deepcluster.texts import one_line

MAX_ALIKE = 8  # most similar images of one
MAX_ALIKE_IN_ALL = 80_000  # of all together: 2 bytes an entry
MAX_NEAR = 50  # clusters that are listed by likeness
MAP = "map.npy"
SIMILAR = "similar.npy"  # numbers as float32, which holds the 20,000 of a page
SHEET = "thumbnails.webp"
NOUNS = "nouns.csv"
TREE_VERSION = 1


@pillow_limits()
def write_page(folder: run_folder.LockedFolder, source: Source | None, outcome: Outcome, progress: Progress) -> None:
    """Write report.html, and map.npy and the sheet if they lack images. ``source``: None if no image is at hand."""
    sheet = _sheet(folder, source, outcome.usable)
    away = list[str]()
    progress("map", 0, 0)
    positions = map_positions(folder, outcome.run)
    progress("report", 0, 0)
    drawings = Drawings(positions, _similar(folder, outcome.usable, outcome.run.rows.reduced), sides_of(source))
    picture = pictures(source, THUMBNAIL, instead=_tiny(folder, outcome, sheet, away))
    data = page_data(folder, source, outcome, drawings, thumbnails(picture))
    folder.write("report.html", render(replace(data, sheet=sheet)))
    if away:
        _warn_of(away, folder, outcome.record.base)


@dataclass(frozen=True)
class Drawings:
    """Parts of a page that depend on the images alone, and not on their clusters."""

    positions: npt.NDArray[np.float32] | None  # of the images on the sheet (M x 2)
    similar: npt.NDArray[np.int64] | None  # the images most like each image of the page, by their numbers there
    sides: Callable[[str], tuple[int, int] | None]  # from a path to the width and height of the image's file


def read_drawings(folder: run_folder.RunFolder, source: Source | None) -> Drawings:
    """Read the drawings of the last page. The map and the similar images are missing if their files are."""
    used = folder.read_images().used
    positions = None
    with suppress(DeepClusterError):
        positions = read_map(folder, len(used))
    return Drawings(positions, _similar(folder, used), sides_of(source))


def page_data(
    folder: run_folder.RunFolder,
    source: Source | None,
    outcome: Outcome,
    drawings: Drawings,
    thumbnails: Thumbnails,
) -> RunData:
    """Return the content of a page, without its sheet of tiny pictures."""
    run = folder.place
    return RunData(
        result=outcome,
        skipped=skipped_table(outcome.run.rows.images),
        duplicates=folder.read_rows("duplicates.csv") if folder.has("duplicates.csv") else None,
        sides=drawings.sides,
        thumbnails=thumbnails,
        positions=drawings.positions,
        next_number=len(outcome.run.model.names),
        # In commands; absolute paths are reduced to the name, because pages get shared.
        name=run.resolve().name if run.is_absolute() or ".." in run.parts or not run.name else run.as_posix(),
        similar=drawings.similar,
        near=_near(outcome.run),
        **_parts(outcome.run, on_page(outcome.usable)[0]),
        nouns=read_nouns(folder),
        originals=_originals(run, source, Path(outcome.record.base)),
    )


def _warn_of(away: Sequence[str], folder: run_folder.RunFolder, base: str) -> None:
    """Warn of pictures whose images are no longer there."""
    loss = f"are small ones from {SHEET}" if folder.has(SHEET) else "are missing"
    warn(
        f"{len(away):,} pictures of the page {loss}, because their images were not found (first:"
        f" {one_line(away[0])}; those of the fit were in {one_line(base)}): put them back, and"
        f" type deepcluster report {shlex.quote(str(folder.place))}"
    )


def _tiny(folder: run_folder.RunFolder, tables: Outcome, sheet: bytes, away: list[str]) -> Picture:
    """Return a function from the path of an unreadable image to its tiny picture; ``away`` collects the path."""
    row_of = {path: row for row, path in enumerate(tables.usable.column("path"))}
    on_the_sheet = cache(partial(pictures_on, sheet, len(row_of)))  # read at the first such image

    def shown(path: str) -> Image.Image | None:
        image = None
        if sheet:
            with folder.as_disk_errors(SHEET):
                image = on_the_sheet()(row_of[path])
        if image is not None or tables.record.backbone != NO_NETWORK:  # an image of features may never have existed
            away.append(path)
        return image

    return shown


def _similar(folder: run_folder.RunFolder, used: Table, reduced: Tensor | None = None) -> npt.NDArray[np.int64] | None:
    """Return the images most like each image of the page; similar.npy keeps them, because features never change.

    If it is missing, damaged, or of fewer images, they are searched in ``reduced``, which takes 3 s for 20,000 x 256.
    """
    rows, _ = on_page(used)
    alike = min(MAX_ALIKE, max(1, MAX_ALIKE_IN_ALL // max(1, len(rows))), len(rows) - 1)
    with suppress(DeepClusterError, OSError, ValueError):
        if folder.has(SIMILAR) and run_folder.rows_in(folder.file(SIMILAR)) == len(rows):
            return folder.read_array(SIMILAR, len(rows), alike).astype(np.int64)
    if reduced is None or alike < 1 or not isinstance(folder, run_folder.LockedFolder):
        return None
    similar = nearest(reduced[rows], alike)[1].numpy()
    folder.write_blocks(SIMILAR, similar.shape, [similar])
    return similar


def _near(run: Run) -> dict[int, list[int]]:
    """Return the other clusters for every cluster, by the likeness of the means of their images on the sheet."""
    shown = on_sheet(len(run.rows.reduced))
    reduced = run.rows.reduced[shown]
    numbers, cluster = run.placement.cluster[shown].unique(return_inverse=True)
    means = normalize(torch.zeros(len(numbers), reduced.shape[1]).index_add(0, cluster, reduced))
    return {
        int(number): numbers[alike].tolist() for number, alike in zip(numbers, nearest(means, MAX_NEAR)[1], strict=True)
    }


def _parts(run: Run, in_page: Sequence[int]) -> dict[str, Any]:
    """Return the parts of the clusters, and the part of every image in the page."""
    cut, centroid = run.model.cut, run.placement.centroid
    numbers = cut.cluster_of.unique().tolist()
    if len(numbers) > MAX_IN_TREE:
        return {}
    counts, all_counts = (
        torch.bincount(centroids, minlength=len(cut.centroids))
        for centroids in (centroid[: run.rows.fitted], centroid[run.clusters >= 0])
    )
    parts = {number: parts_of(cut, counts, number, all_counts) for number in numbers}
    part = torch.stack([branches.of_centroid for branches in parts.values()]).amax(0)[centroid[[*in_page]]]
    divisible = {number: branches for number, branches in parts.items() if len(branches.sizes) > 1}
    return {"parts": divisible, "part": part.numpy()}


def _originals(run: Path, source: Source | None, base: Path) -> str:
    """Return the relative path from the run to its images, for links; empty if no link is safe to publish.

    No link is safe if the images are not files of one folder, or if only the root is above both.
    """
    if source is None or not source.items.of_files or not base.is_dir():
        return ""
    page = run.resolve()
    images = base.resolve()
    if page.anchor != images.anchor or len(Path(os.path.commonpath([page, images])).parts) < 2:
        return ""
    return Path(os.path.relpath(images, page)).as_posix() + "/"


def sides_of(source: Source | None) -> Callable[[str], tuple[int, int] | None]:
    """Return a function from a path to the width and height of an image's file; None if it is not at hand."""
    row_of = {path: i for i, path in enumerate(source.paths)} if source else {}

    @cache
    def of_path(path: str) -> tuple[int, int] | None:
        with suppress(Undecodable, OSError):
            if source and path in row_of and (file := source.file(row_of[path])):
                return sides(file)
        return None

    return of_path


# ---- the drawings as files ------------------------------------------------------------------------------------------


def map_positions(folder: run_folder.RunFolder, run: Run) -> npt.NDArray[np.float32]:
    """Return the positions of the images on the sheet (float32, M x 2); a locked folder keeps those that it lacks."""
    total = len(run.rows.reduced)
    positions = read_map(folder, total)
    if positions is None:
        before = run_folder.rows_in(folder.file(MAP)) if folder.has(MAP) else 0
        if 0 < before < total and on_sheet(before) == [*range(before)]:  # images have been added since
            with folder.as_disk_errors(MAP):
                known = folder.read_array(MAP, before, 2)
                positions = extended_layout(known, range(before), on_sheet(total), run.rows.reduced)
        else:
            positions = layout(run.rows.reduced[on_sheet(total)], derive(run.record.seed, "map"))
        if isinstance(folder, run_folder.LockedFolder):
            folder.write_blocks(MAP, positions.shape, [positions])
    return positions


def read_map(folder: run_folder.RunFolder, images: int) -> npt.NDArray[Any] | None:
    """Read the positions (float32, M x 2) of the ``images`` of a run that are on the sheet; None if it has none."""
    count = len(on_sheet(images))
    with folder.as_disk_errors(MAP):
        has_all = folder.has(MAP) and run_folder.rows_in(folder.file(MAP)) == count
    return folder.read_array(MAP, count, 2) if has_all else None


def _sheet(folder: run_folder.LockedFolder, source: Source | None, used: Table) -> bytes:
    """Return the sheet of all ``used`` images, empty if the run has none, and write it if images have been added."""
    sheet = read_sheet(folder)
    with folder.as_disk_errors(SHEET):
        if not sheet or (before := images_of_sheet(sheet)) == len(used):
            return sheet
        paths = used.column("path")
        row_of = {paths[row]: row for row in on_sheet(len(used)) if row >= before or slot_of(row, before) < 0}
        more: dict[int, Tensor] = {}
        if source and (new := [i for i, path in enumerate(source.paths) if path in row_of]):
            added = source.rows(new)
            store = read_once(added, THUMBNAIL, none_is_fine=True)
            more = {row_of[added.paths[i]]: image for i, image in zip(store.usable, store.images, strict=True)}
        sheet = extended_sheet(sheet, len(used), more)
    folder.write(SHEET, sheet)
    return sheet


def read_sheet(folder: run_folder.RunFolder) -> bytes:
    """Read the sheet of tiny pictures; empty if the run has none."""
    if not folder.has(SHEET):
        return b""
    path = folder.file(SHEET)
    with folder.as_disk_errors(SHEET):
        check_file(path, 2 * MAX_SHEET_BYTES)
        data = path.read_bytes()
        if data[:4] + data[8:12] != b"RIFFWEBP":
            raise ValueError("no WebP picture")
        return data


def read_nouns(folder: run_folder.RunFolder) -> Sequence[Row]:
    """Read nouns.csv; nothing if the network knows no nouns."""
    return folder.read_rows(NOUNS) if folder.has(NOUNS) else ()


def tree_of(run: Run) -> Tree | None:
    """Return the merge tree of the clusters; None if there are too many."""
    rows, cut = run.rows, run.model.cut
    if len(cut.cluster_of.unique()) > MAX_IN_TREE:
        return None
    placed = torch.nonzero(run.clusters >= 0).flatten()
    tree = merge_tree(rows.reduced[placed], cut, run.placement.centroid[placed], len(placed) - rows.fitted)
    return replace(tree, medoids=tuple(placed[[*tree.medoids]].tolist()))
