"""The images of a run: features, the sample by which the main rank decides, digests, and the files still at hand."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepcluster.build import groups_of
from deepcluster.errors import DataError, DeepClusterError
from deepcluster.groups.cut import Cut, Placement, placement_of
from deepcluster.groups.graph import MAX_GRAPH_ROWS, Embeddings
from deepcluster.images import Source, find
from deepcluster.images.files import absolute, files_in, from_files
from deepcluster.images.named import cache_folder
from deepcluster.images.source import IDS, LINK, SOME_FILES, joined, real
from deepcluster.images.store import Store, read_once
from deepcluster.model import Model
from deepcluster.recipe import Recipe, read_toml
from deepcluster.records import Clustering
from deepcluster.runtime.log import warn
from deepcluster.runtime.partition import Partition
from deepcluster.seeding import draw, generator
from deepcluster.storage import model_files as models
from deepcluster.storage import run_folder
from deepcluster.storage.content import COLUMNS, IMAGES_READ, RunRecord

PICTURE_SIDE = 48  # px


def sample_of(reduced: Tensor, partition: Partition, seed: int) -> Tensor:
    """Draw a sample of features for the main rank, one for any number of ranks; of few images all. A collective."""
    if partition.total <= MAX_GRAPH_ROWS:
        return partition.gather(reduced)
    rows = draw(partition.total, MAX_GRAPH_ROWS, generator(seed, "sample of the result")).sort().values
    return partition.to_main(reduced, rows)


@dataclass(frozen=True)
class Rows:
    """The images of a run, in the order of the rows of its features."""

    paths: Sequence[str]  # of all ranks' usable images, like the labels
    labels: Sequence[str] | None  # None if no image has one
    skipped: Sequence[tuple[str, str]]  # (path, reason) of the images that cannot be used
    reduced: Tensor  # this rank's features, n x d
    sample: Tensor  # the features by which the main rank decides, as :func:`sample_of`
    partition: Partition  # which rank has which rows
    residuals: Tensor  # of this rank's rows (n); an image with a large one is an outlier
    added: int = 0  # images of updates, the last rows: assigned to groups, which they never define
    embeddings: Embeddings = field(default_factory=Embeddings)  # of the sample, on the main rank

    @property
    def fitted(self) -> int:
        """Number of images of the fit."""
        return self.partition.total - self.added


@dataclass(frozen=True)
class Run:
    """A run that has a result, as every change takes it."""

    record: RunRecord  # content of run.json
    model: Model
    rows: Rows

    @cached_property
    def placement(self) -> Placement:
        """The places of all images."""
        return self.model.place(self.rows.reduced)


def read_run(folder: run_folder.RunFolder, backbone: nn.Module | None = None, *, takes_images: bool = False) -> Run:
    """Read run.json, the model (of the user's own ``backbone``) and the images with their features.

    ``takes_images``: Of the model; without, it is read faster.
    """
    model = models.load_of_run(folder, backbone=backbone, takes_images=takes_images)  # explains a run without a result
    record = folder.read_record()
    table = folder.read_clusters()
    used = table.where("status", "ok")
    reduced = torch.from_numpy(folder.read_array("features.npy", len(used), model.reduction.projection.shape[1]))
    added = folder.count_added(used)
    fitted = len(used) - added
    rows = Rows(
        paths=list(used.column("path")),
        labels=list(used.column("label")) if any(used.words("label")[0]) else None,
        skipped=[(path, "") for path in table.where("status", "skipped").column("path")],
        reduced=reduced,
        sample=sample_of(reduced[:fitted], Partition.single(fitted), record.seed),
        partition=Partition.single(len(used)),
        residuals=torch.from_numpy(folder.read_array("residuals.npy", len(used), 1)).squeeze(1),
        added=added,
        embeddings=models.read_embeddings(folder),
    )
    return Run(record, model, rows)


def duplicate_rows(
    groups: Iterable[Iterable[tuple[int, float]]], paths: Sequence[str], first: int = 0
) -> Iterator[dict[str, object]]:
    """Yield the rows of duplicates.csv for sets of (row, distance); ``first``: the number of the first set."""
    for group, members in enumerate(groups, first):
        for row, distance in members:
            yield {"group": group, "path": paths[row], "distance": f"{distance:.4f}"}


def recipe_of(folder: run_folder.RunFolder) -> Recipe:
    """Read the recipe of a run, without options that only another version of the package has."""
    options = read_toml(folder.file("recipe.toml"), ignore_unknown=True)[1] if folder.has("recipe.toml") else {}
    return Recipe(**options)


# ---- their groups ----------------------------------------------------------------------------------------------------


def cut_rows(rows: Rows, fine: Clustering, n_clusters: int, seed: int, recipe: Recipe) -> tuple[Cut, Placement]:
    """Cut the rows into groups by the sample of the main rank, and place them. A collective."""
    cut = Cut(
        **rows.partition.processes.broadcast_tensors(
            lambda: vars(groups_of(rows.sample, fine, n_clusters, seed, recipe, rows.embeddings))
        )
    )
    return place_rows(cut, rows, fine.centroids)


def place_rows(cut: Cut, rows: Rows, fine_centroids: Tensor) -> tuple[Cut, Placement]:
    """Place this rank's rows in groups of the sample, and number the groups by their sizes. A collective."""
    placement = placement_of(rows.reduced, cut, fine_centroids)
    if rows.fitted <= MAX_GRAPH_ROWS:  # all are in the sample, and the groups numbered already
        return cut, placement
    sizes = rows.partition.all_reduce(torch.bincount(placement.cluster[: rows.fitted], minlength=cut.count))
    number = torch.argsort(torch.argsort(sizes, descending=True, stable=True))
    numbered = replace(placement, cluster=number[placement.cluster])
    return Cut(cut.centroids, number[cut.group_of]), numbered


# ---- their columns in tables ----------------------------------------------------------------------------------------


def placement_columns(
    model: Model, placement: Placement, residuals: Tensor, *, reject: bool = False, stored: bool = False
) -> dict[str, list[Any]]:
    """Return the columns of predictions.

    ``reject``: Outliers and junk get the cluster -1. ``stored``: With the columns that clusters.csv alone has.
    """
    outliers = residuals > model.outliers.limit
    cluster = placement.cluster
    if reject:
        cluster = cluster.masked_fill(outliers | torch.isin(cluster, torch.tensor(model.junk, dtype=cluster.dtype)), -1)
    numbers = cluster.tolist()  # -1 is the last
    names = [*model.names, ""]
    known = vars(placement) | {"cluster": cluster, "residual": residuals, "is_outlier": outliers}
    columns = [column for column in COLUMNS if stored or column.predicted]
    values = {column.name: known[column.name].tolist() for column in columns if column.name in known}
    values["name"] = [names[number] for number in numbers]
    return {column.name: column.cells(values[column.name]) for column in columns if column.name in values}


# ---- their digests, by which a run recognises them ------------------------------------------------------------------


def image_digests(source: Source, store: Store) -> dict[str, str]:
    """Return the SHA-256 of the pixels of all ranks' usable images by path. A collective."""
    of_rank = row_digests(store.images.permute(0, 2, 3, 1))
    of_all = (digest for part in store.partition.processes.all_gather_json(of_rank) for digest in part)
    return dict(zip((source.paths[i] for i in store.usable), of_all, strict=False))


def row_digests(rows: Tensor) -> list[str]:
    """Return the SHA-256 of every row: of features, or of images with the colours last."""
    return [hashlib.sha256(row.tobytes()).hexdigest() for row in rows.numpy()]


def fingerprint(images: Mapping[str, str]) -> str:
    """Return the SHA-256 over the paths and pixels of a run, by their :func:`image_digests`."""
    digest = hashlib.sha256()
    for path, pixels in images.items():
        digest.update(path.encode(errors="surrogateescape") + b"\0" + pixels.encode())
    return digest.hexdigest()


# ---- the files that are still at hand ------------------------------------------------------------


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

    def read(folder: run_folder.RunFolder) -> tuple[str, list[str], list[str], dict[str, str], Source | None]:
        added = [row["path"] for row in folder.read_added()]
        # An unfinished run may have no clusters yet.
        fitted = [row["path"] for row in folder.read_rows(IMAGES_READ)]
        skipped = {row["path"]: row["reason"] for row in folder.read_rows("skipped.csv")}
        tried = [path for path, reason in skipped.items() if reason != LINK]
        source = images_at_hand(folder, None, [*fitted, *tried, *added])
        return folder.read_record().location, fitted, added, skipped, source

    location, fitted, added, skipped, source = run_folder.read_state(run, read)
    used, here = {*fitted, *added}, {*(source.paths if source else ())}
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


def pictures_of(source: Source) -> Tensor | None:
    """Return small pictures of all rows (uint8, N x 3 x S x S), grey without an image; None if there is no image."""
    if not source.items.of_files:
        return None
    store = read_once(source, PICTURE_SIDE, none_is_fine=True)
    if not store.usable:
        return None
    images = torch.full((len(source.paths), PICTURE_SIDE, PICTURE_SIDE, 3), 128, dtype=torch.uint8).permute(0, 3, 1, 2)
    images[torch.tensor(store.usable)] = store.images
    return images
