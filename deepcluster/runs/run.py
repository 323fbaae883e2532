"""A run that has a result: its record, its model, and its images with their features."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from deepcluster.build import cut_sample
from deepcluster.groups.cut import Cut, Placement, placement_of
from deepcluster.groups.graph import MAX_GRAPH_ROWS, Embeddings
from deepcluster.model import Model
from deepcluster.recipe import Recipe, read_toml
from deepcluster.records import Clustering
from deepcluster.seeding import draw, generator
from deepcluster.storage import model_files as models
from deepcluster.storage import run_folder
from deepcluster.storage.content import COLUMNS, RunRecord


def sample_of(reduced: Tensor, seed: int) -> Tensor:
    """Draw a sample of features; of few images all."""
    if len(reduced) <= MAX_GRAPH_ROWS:
        return reduced
    return reduced[draw(len(reduced), MAX_GRAPH_ROWS, generator(seed, "sample of the result")).sort().values]


@dataclass(frozen=True)
class Rows:
    """The images of a run, in the order of the rows of its features."""

    paths: Sequence[str]  # of the usable images, like the labels
    labels: Sequence[str] | None  # None if no image has one
    skipped: Sequence[tuple[str, str]]  # (path, reason) of the images that cannot be used
    reduced: Tensor  # the features, N x d
    sample: Tensor  # the features that decide, as :func:`sample_of`
    residuals: Tensor  # N; an image with a large one is an outlier
    added: int = 0  # images of updates, the last rows: assigned to clusters, which they never define
    embeddings: Embeddings = field(default_factory=Embeddings)  # of the sample

    @property
    def fitted(self) -> int:
        """Number of images of the fit."""
        return len(self.reduced) - self.added


@dataclass(frozen=True)
class Run:
    """A run that has a result, as every change takes it."""

    record: RunRecord  # content of run.json
    model: Model
    rows: Rows

    @cached_property
    def placement(self) -> Placement:
        """The places of all images."""
        return self.model.placement(self.rows.reduced)

    @property
    def names(self) -> list[str]:
        """The names of the clusters of all images."""
        return [self.model.names[number] for number in self.placement.cluster.tolist()]


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
        sample=sample_of(reduced[:fitted], record.seed),
        residuals=torch.from_numpy(folder.read_array("residuals.npy", len(used), 1)).squeeze(1),
        added=added,
        embeddings=models.read_embeddings(folder),
    )
    return Run(record, model, rows)


def recipe_of(folder: run_folder.RunFolder) -> Recipe:
    """Read the recipe of a run, without options that only another version of the package has."""
    options = read_toml(folder.file("recipe.toml"), ignore_unknown=True)[1] if folder.has("recipe.toml") else {}
    return Recipe(**options)


# ---- their clusters --------------------------------------------------------------------------------------------------


def cut_rows(rows: Rows, fine: Clustering, n_clusters: int, seed: int, recipe: Recipe) -> tuple[Cut, Placement]:
    """Cut the rows into clusters by their sample, and place them."""
    return place_rows(cut_sample(rows.sample, fine, n_clusters, seed, recipe, rows.embeddings), rows, fine.centroids)


def place_rows(cut: Cut, rows: Rows, fine_centroids: Tensor) -> tuple[Cut, Placement]:
    """Place the rows in clusters of the sample, and number the clusters by their sizes."""
    placement = placement_of(rows.reduced, cut, fine_centroids)
    if rows.fitted <= MAX_GRAPH_ROWS:  # all are in the sample, and the clusters numbered already
        return cut, placement
    sizes = torch.bincount(placement.cluster[: rows.fitted], minlength=cut.count)
    number = torch.argsort(torch.argsort(sizes, descending=True, stable=True))
    numbered = replace(placement, cluster=number[placement.cluster])
    return Cut(cut.centroids, number[cut.cluster_of]), numbered


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
