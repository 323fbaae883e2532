"""A run that has a result: its record, its model, and its images with their features."""

from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from deepcluster.errors import DiskError
from deepcluster.groups.cut import Cut, Placement, placement_of
from deepcluster.groups.graph import MAX_GRAPH_ROWS, Layouts, graph_rows
from deepcluster.groups.spread import Labels, nodes_of
from deepcluster.model import Model
from deepcluster.recipes.build import cut_sample
from deepcluster.recipes.options import Recipe, read_toml
from deepcluster.records import Clustering
from deepcluster.runs.quality import estimated_quality
from deepcluster.runtime.bounded import RUN
from deepcluster.seeding import generator
from deepcluster.storage import former, run_folder
from deepcluster.storage import model_files as models
from deepcluster.storage.content import CLUSTERS, COLUMNS, IMAGES, Facts, RunRecord
from deepcluster.storage.images_table import REJECTED, ImagesTable
from deepcluster.storage.model_config import model_file
from deepcluster.texts import plural


def sample_of(reduced: Tensor, seed: int) -> Tensor:
    """Draw a sample of features; of few images all."""
    if len(reduced) <= MAX_GRAPH_ROWS:
        return reduced
    order = torch.randperm(len(reduced), generator=generator(seed, "sample of the result"))
    return reduced[order[:MAX_GRAPH_ROWS].sort().values]


KNOWN_CUTS = 4  # whose places are kept


@dataclass(frozen=True)
class Rows:
    """The images of a run, in the order of the rows of its features."""

    images: ImagesTable  # the content of images.csv
    reduced: Tensor  # the features, N x d
    sample: Tensor  # the features that decide, as :func:`sample_of`
    residuals: Tensor  # N; an image with a large one is an outlier
    layouts: Layouts = field(default_factory=Layouts)  # of the sample
    _known: list[tuple[Cut, Placement]] = field(default_factory=list, init=False, repr=False, compare=False)

    def placement(self, model: Model) -> Placement:
        """Return the places of the images in the cut of a model: those in a cut that differs little tell most of them.

        60,000 x 256 rows take 3.4 s among 2,500 centroids, and .2 s if one is new.
        """
        for cut, placement in self._known:
            if cut is model.cut:
                return placement
        last = self._known[-1] if self._known else None
        self._known.append((model.cut, placement_of(self.reduced, model.cut, model.fine_centroids, last)))
        del self._known[:-KNOWN_CUTS]
        return self._known[-1][1]

    @cached_property
    def graph(self) -> tuple[Tensor, Labels]:
        """The features in the neighbour graph, and the index among them of every image; -1: it is not there."""
        graph = self.sample[graph_rows(self.sample)]
        return graph, nodes_of(self.reduced, graph)

    @cached_property
    def paths(self) -> list[str]:
        """The paths of the usable images."""
        return [*self.images.used.column("path")]

    @cached_property
    def labels(self) -> list[str] | None:
        """The true labels of the usable images of the fit, "" for later ones; None if no image has one."""
        labels = ["" if row["added"] else row["label"] for row in self.images.used]
        return labels if any(labels) else None

    @property
    def fitted(self) -> int:
        """Number of images of the fit, the first ones. Later ones are placed in clusters, which they never define."""
        return self.images.fitted


@dataclass(frozen=True)
class Run:
    """A run that has a result, as every change takes it."""

    record: RunRecord  # content of run.json
    facts: Facts  # about its clusters
    model: Model
    rows: Rows

    @cached_property
    def placement(self) -> Placement:
        """The places of all images."""
        return self.rows.placement(self.model)

    @cached_property
    def clusters(self) -> Tensor:
        """The clusters of all images (int64, N); -1: an update rejected the image, and no person has placed it."""
        rejected = torch.from_numpy(self.rows.images.used.column("reason") == REJECTED)
        rejected[[*self.model.placed]] = False
        return self.placement.cluster.masked_fill(rejected, -1)

    @cached_property
    def quality(self) -> dict[str, float] | None:
        """The share of images in their right clusters, by answers; None without any."""
        return estimated_quality(self.model, self.clusters, self.rows.fitted)

    @property
    def names(self) -> list[str]:
        """The names of the clusters of all images."""
        names = [*self.model.names, ""]  # of -1, too
        return [names[number] for number in self.clusters.tolist()]


def read_run(folder: run_folder.RunFolder, backbone: nn.Module | None = None, *, takes_images: bool = False) -> Run:
    """Read a run from its truths: the model (of the user's own ``backbone``), and the images with their features.

    It needs no lock. The clusters, which are read once, come first, then the images, of which later ones only follow.

    ``takes_images``: Of the model; without, it is read faster.

    Raises DiskError if the files are of two runs, or do not fit together.
    """
    path_of = partial(model_file, folder)  # explains an unfinished run
    model, header = models.read_model(path_of, backbone=backbone, takes_images=takes_images)
    record = folder.read_record()
    if record.run != header.run:
        raise DiskError(
            f"{folder.path} has files of two runs ({RUN} of {record.run}, {CLUSTERS} of {header.run}): restore one of"
            " them from a copy"
        )
    images = folder.read_images()
    if not images.fitted or images.fitted != (record.images_count or images.fitted):
        raise DiskError(
            f"{folder.path / IMAGES} has {plural(images.fitted, 'image')} of the fit, which were"
            f" {record.images_count or 'more'}: restore it from a copy"
        )
    count = len(images.used)
    if any(said.row >= count for said in model.said):
        raise DiskError(
            f"{folder.path / CLUSTERS} has answers about images that {IMAGES} lacks: restore it from a copy"
        )
    numbers = max(len(model.names), former.given(folder))  # a number is never given twice, whatever was taken back
    model = replace(model, names=model.names + ("",) * (numbers - len(model.names)))
    reduced = torch.from_numpy(folder.read_array("features.npy", count, model.reduction.projection.shape[1]))
    rows = Rows(
        images=images,
        reduced=reduced,
        sample=sample_of(reduced[: images.fitted], record.seed),
        residuals=torch.from_numpy(folder.read_array("residuals.npy", count, 1)).squeeze(1),
        layouts=models.read_layouts(folder),
    )
    return Run(record, header.facts, model, rows)


def write_features(folder: run_folder.LockedFolder, rows: Rows) -> None:
    """Write the features of all images, and their residuals."""
    folder.write_blocks("features.npy", tuple(rows.reduced.shape), [rows.reduced])
    folder.write_blocks("residuals.npy", (len(rows.reduced), 1), [rows.residuals.unsqueeze(1)])


def recipe_of(folder: run_folder.RunFolder) -> Recipe:
    """Read the recipe of a run."""
    return Recipe(**read_toml(folder.file("recipe.toml"))[1])


def cut_rows(rows: Rows, fine: Clustering, n_clusters: int, seed: int, recipe: Recipe) -> tuple[Cut, Placement]:
    """Cut the rows into clusters by their sample, and place them."""
    return place_rows(cut_sample(rows.sample, fine, n_clusters, seed, recipe, rows.layouts), rows, fine.centroids)


def place_rows(cut: Cut, rows: Rows, fine_centroids: Tensor) -> tuple[Cut, Placement]:
    """Place the rows in clusters of the sample, and number the clusters by their sizes."""
    placement = placement_of(rows.reduced, cut, fine_centroids)
    if rows.fitted <= MAX_GRAPH_ROWS:  # all are in the sample, and the clusters numbered already
        return cut, placement
    sizes = torch.bincount(placement.cluster[: rows.fitted], minlength=cut.count)
    number = torch.argsort(torch.argsort(sizes, descending=True, stable=True))
    numbered = replace(placement, cluster=number[placement.cluster])
    cut = Cut(cut.centroids, number[cut.cluster_of])
    rows._known.append((cut, numbered))
    return cut, numbered


def placement_columns(
    model: Model, placement: Placement, residuals: Tensor, *, reject: bool = False, stored: Tensor | None = None
) -> dict[str, list[Any]]:
    """Return the columns of predictions.

    ``reject``: Outliers and junk get the cluster -1. ``stored``: The ``clusters`` of a run, with the columns that
    clusters.csv alone has.
    """
    outliers = residuals > model.outliers.limit
    cluster = placement.cluster if stored is None else stored
    if reject:
        cluster = cluster.masked_fill(outliers | torch.isin(cluster, torch.tensor(model.junk, dtype=cluster.dtype)), -1)
    numbers = cluster.tolist()  # -1 is the last
    names = [*model.names, ""]
    known = vars(placement) | {"cluster": cluster, "residual": residuals, "is_outlier": outliers}
    columns = [column for column in COLUMNS if stored is not None or column.predicted]
    values = {column.name: known[column.name].tolist() for column in columns if column.name in known}
    values["name"] = [names[number] for number in numbers]
    return {column.name: column.cells(values[column.name]) for column in columns if column.name in values}
