"""The images of a run with their features, and the sample of them by which the main rank decides."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepcluster.groups.graph import SAMPLE
from deepcluster.model import Model
from deepcluster.recipe import Recipe, read_toml
from deepcluster.runtime.partition import Partition
from deepcluster.seeding import draw, generator
from deepcluster.storage import model_files as models
from deepcluster.storage import run_folder as files
from deepcluster.storage.run_folder import RunFolder
from deepcluster.storage.run_record import RunRecord
from deepcluster.storage.table import Table


@dataclass(frozen=True)
class Sample:
    """Rows of N x d features in one place: all rows of a run, or a sample of very many.

    Attributes:
        rows: Their numbers among all (int64, M, ascending), on every rank.
        reduced: The features (M x d) on the main rank; none on the others.
    """

    rows: Tensor
    reduced: Tensor


def sample_of(reduced: Tensor, partition: Partition, seed: int) -> Sample:
    """Draw the sample of all ranks' features. It is the same for any number of ranks. A collective."""
    if partition.total <= SAMPLE:
        return Sample(torch.arange(partition.total), partition.gather(reduced))
    rows = draw(partition.total, SAMPLE, generator(seed, "sample of the result")).sort().values
    return Sample(rows, partition.to_main(reduced, rows))


@dataclass(frozen=True)
class Rows:
    """The images of a run, in the order of the rows of its features.

    Attributes:
        paths, labels: Of all ranks' usable images; labels are None if no image has one.
        skipped: (path, reason) of the images that cannot be used.
        reduced: This rank's features, n x d.
        sample: The features by which the main rank decides.
        partition: Which rank has which rows.
        residuals: Of this rank's rows (n); an image with a large one is an outlier.
        added: Number of rows added by `update` (the last ones). They are assigned to groups but never define them.
    """

    paths: Sequence[str]
    labels: Sequence[str] | None
    skipped: Sequence[tuple[str, str]]
    reduced: Tensor
    sample: Sample
    partition: Partition
    residuals: Tensor
    added: int = 0

    @property
    def fitted(self) -> int:
        """Number of images of the fit."""
        return self.partition.total - self.added

    @property
    def is_main(self) -> bool:
        return self.partition.processes.is_main


def read_run(folder: RunFolder, backbone: nn.Module | None = None) -> tuple[RunRecord, Model, Rows]:
    """Read run.json, the model (of the user's own ``backbone``) and the images with their features."""
    model = models.load_of_run(folder, backbone=backbone)  # explains a run that has no result yet
    record = folder.read_record({"rounds": int})
    table = folder.read_clusters()
    used = table.where("status", "ok")
    reduced = torch.from_numpy(folder.read_array("features.npy", len(used), model.reduction.projection.shape[1]))
    added = _added(folder, used)
    fitted = len(used) - added
    rows = Rows(
        paths=list(used.column("path")),
        labels=list(used.column("label")) if any(used.words("label")[0]) else None,
        skipped=[(path, "") for path in table.where("status", "skipped").column("path")],
        reduced=reduced,
        sample=sample_of(reduced[:fitted], Partition.single(fitted), record.seed),
        partition=Partition.single(len(used)),
        residuals=torch.from_numpy(folder.read_array(files.RESIDUALS, len(used), 1)).squeeze(1),
        added=added,
    )
    return record, model, rows


def recipe_of(folder: RunFolder) -> Recipe:
    """Read the recipe of a run."""
    options = read_toml(folder.file("recipe.toml"))[1] if folder.has("recipe.toml") else {}
    return Recipe(**options)


def _added(folder: RunFolder, used: Table) -> int:
    added = [row["path"] for row in folder.read_added()]
    with folder.as_disk_errors(files.ADDED):
        if len(added) >= len(used) or added != [row["path"] for row in used[len(used) - len(added) :]]:
            raise ValueError("its images are not the last ones of clusters.csv")
    return len(added)
