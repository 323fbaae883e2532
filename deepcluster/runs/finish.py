"""The result of a run: the features, the groups, and the files that hold them."""

import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from deepcluster.algorithm import Result, conclude, devices
from deepcluster.clustering.agreement import compared
from deepcluster.errors import DeepClusterWarning
from deepcluster.groups.cut import Cut
from deepcluster.learning.features import extract
from deepcluster.model import Model
from deepcluster.nets.backbone import Network
from deepcluster.recipe import Recipe
from deepcluster.records import FINAL, PRELIMINARY
from deepcluster.report.sprite import sprite_sheet, tiny_pictures
from deepcluster.report.text import count
from deepcluster.runs.build import kmeans_of_result, reduction_of
from deepcluster.runs.groups import choose_number, groups_of, placed
from deepcluster.runs.job import ImagesRead, Job
from deepcluster.runs.report import shown_of, write_report
from deepcluster.runs.results import Rows, figures_at_start, write_features, write_groups, write_map
from deepcluster.runs.sample import Sample, sample_of
from deepcluster.runs.time_limit import RESULT, RESULT_EACH, SHARE_OF_TIME
from deepcluster.runtime.console import Display, Silent
from deepcluster.runtime.memory import peak_mb
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import ALONE, Processes
from deepcluster.storage import model_files, report_files
from deepcluster.storage.csv_rows import round_to
from deepcluster.storage.run_folder import FORMER, LockedFolder, RunFolder
from deepcluster.storage.run_record import RunRecord

COLLAPSED = 0.5  # share of the images in one fine cluster


@dataclass(frozen=True)
class Outcome:
    """Step 7; what is not of this rank's images is the main rank's.

    result: The final features of this rank's images, and the clustering of all.
    sample: Of these features.
    n_clusters: Groups to cut them into.
    """

    result: Result
    sample: Sample
    n_clusters: int


class Results:
    """The results on disk: the first before any round, others as the rounds go on, the final one.

    Each replaces the one before all at once.

    Args:
        job: The fit.
        folder: Its folder, on the main rank.
        network: The network of the rounds, with the weights that it begins with; it stays as it is.
        images: Its images and recipe.
        record: run.json so far, without a result.
    """

    def __init__(self, job: Job, folder: LockedFolder | None, network: Network, images: ImagesRead, record: RunRecord):
        self.job, self.folder, self.network, self.images = job, folder, network, images
        self.record = record
        self.baseline: Mapping[str, float] = {}  # the metrics of the first result
        weights = network.body.state_dict() if images.recipe.average < 1 else {}
        self._first_weights = {name: value.clone() for name, value in weights.items()}
        self.pass_seconds = 0.0  # of the last pass over the images for a result
        self.seconds = RESULT + len(images.store.kept) * RESULT_EACH  # of the last result; until then, of its files
        self._written = -math.inf  # when the last one was written
        self._has_thumbnails = False  # they never change
        self._judged: list[Tensor] = []  # clusters of this rank's images: in the first result, and in the last two

    def features(self) -> Tensor:
        """Return the features of the network as it is now, for a result."""
        recipe, images, processes = self.images.recipe, self.images.store.images, self.job.processes
        dims, begin = reduction_of(recipe, self.network.feature_dim).dims, time.perf_counter()
        where, _ = devices(self.network, len(images), self.network.feature_dim, dims, processes)
        features = extract(
            self.network,
            images,
            size=recipe.image_size,
            batch_size=recipe.batch_size,
            where=where,
            progress=partial(self.job.display.progress, "features"),
        )
        self.pass_seconds = time.perf_counter() - begin
        return features

    @property
    def is_due(self) -> bool:
        """Whether a preliminary result costs little beside the time since the last one. False if nobody looks."""
        waited = time.perf_counter() - self._written
        return self.job.request.report and waited >= self.seconds / SHARE_OF_TIME

    def preliminary(self, rounds: int, features: Tensor | None = None) -> str:
        """Write the result that the run has after ``rounds``.

        Args:
            rounds: The rounds done.
            features: Those of the network, if its pass is made already.

        Returns:
            Whether the groups got better than in the last result, in words; empty for the first result.
        """
        begin, before = time.perf_counter(), 0.0 if features is None else self.pass_seconds
        outcome, record = self._outcome(rounds, features, Silent())
        self._write(rounds, outcome, replace(record, result=PRELIMINARY))
        self._written = time.perf_counter()
        self.seconds = before + self._written - begin
        if rounds == 0 and self.folder:
            self.baseline = figures_at_start(self.folder)
        if len(self._judged) == 1:
            if self.folder:
                page = self.folder.path / "report.html"
                self.job.display.say("First", f"{page}: preliminary groups, replaced as the run goes on")
            return ""
        return change(self._judged[-2], self._judged[-1], self.job.processes)

    def final(self, rounds: int, stopped_because: str, features: Tensor | None = None) -> RunRecord:
        """Write the final result, and return run.json."""
        self.record = self.record.with_phase("rounds", self.job.clock.lap())
        outcome, record = self._outcome(rounds, features, self.job.display)
        record = self._write(rounds, outcome, replace(record, result=FINAL, stopped_because=stopped_because))
        if rounds and (text := collapse(outcome.result)):
            warnings.warn(text, DeepClusterWarning, stacklevel=2)
        return record

    def _outcome(self, rounds: int, features: Tensor | None, display: Display) -> tuple[Outcome, RunRecord]:
        """The features and the number of groups, and run.json with the candidates for that number."""
        job, record = self.job, self.record
        with self._averaged(rounds):
            result = self._conclude(self.features() if features is None else features)
        sample = sample_of(result.reduced, self.images.store.partition, job.request.seed)
        n_clusters = 0
        if job.processes.is_main:
            n_clusters, record = choose_number(
                job.request.n_clusters, sample.reduced, record, self.images.recipe, display
            )
        return Outcome(result, sample, n_clusters), record

    @contextmanager
    def _averaged(self, rounds: int) -> Iterator[None]:
        """Inside, the network has the weights of the result: a mean of those before and after training.

        The mean keeps more of what a pretrained network knew than its last state does (WiSE-FT, Wortsman et al. 2022).
        """
        share, body = self.images.recipe.average, self.network.body
        if share == 1 or not rounds:
            yield
            return
        last = {name: value.clone() for name, value in body.state_dict().items()}
        body.load_state_dict(
            {
                name: torch.lerp(self._first_weights[name], value, share) if value.is_floating_point() else value
                for name, value in last.items()
            }
        )
        try:
            yield
        finally:
            body.load_state_dict(last)

    def _conclude(self, features: Tensor) -> Result:
        """Step 7."""
        job, recipe, store = self.job, self.images.recipe, self.images.store
        return conclude(
            self.network,
            store.images,
            clusters=recipe.pseudo_labels,
            seed=job.request.seed,
            size=recipe.image_size,
            batch_size=recipe.batch_size,
            reduction=reduction_of(recipe, self.network.feature_dim),
            clustering=kmeans_of_result(recipe),
            progress=job.display.progress,
            processes=job.processes,
            features=features,
        )

    def _write(self, rounds: int, outcome: Outcome, record: RunRecord) -> RunRecord:
        """Write the model, the features, the clusters and the report, and return run.json. A collective."""
        store, result, seed = self.images.store, outcome.result, self.job.request.seed
        with self.folder.next_state() if self.folder else nullcontext() as staged:
            groups = self._groups(outcome, record)
            groups, placement = placed(
                groups, result.reduced, result.clustering.centroids, outcome.sample, store.partition
            )
            rows = Rows(
                paths=[self.job.source.paths[i] for i in store.kept],
                labels=self.job.truth(store.kept),
                skipped=store.skipped,
                reduced=result.reduced,
                sample=outcome.sample,
                partition=store.partition,
                residuals=result.residuals,
            )
            model = model_of(self.network, result, groups, self.images.recipe)
            if staged:
                with self._averaged(rounds):
                    model_files.save_in_run(model, staged)
                staged.remove(FORMER)  # of a recut of an earlier result
            if not self._has_thumbnails:
                own = tiny_pictures(store.images, store.partition.local.start, store.partition.total)
                thumbnails = Partition.of(self.job.processes, len(own)).gather(own)
                if staged:
                    staged.write_bytes(report_files.SHEET, sprite_sheet(thumbnails))
                self._has_thumbnails = True
            write_features(staged, rows)
            if record.result == FINAL:
                record = record.with_phase("result", self.job.clock.lap())
            seconds = round_to(self.job.clock.elapsed(), 2)
            record = replace(record, rounds=rounds, peak_memory_mb=peak_mb(), seconds=seconds)
            record = write_groups(staged, model, placement, rows, record, self.baseline)
            if self.job.request.report:
                shown = shown_of(rows, model.groups, placement.centroid)
                if staged:
                    write_map(staged, shown.reduced, seed)
                    write_report(staged, self.job.source, shown)
            if staged and record.result == FINAL:
                record = replace(record, status="done")
                staged.write_record(record)  # a run that was killed before it is not finished
        self._judged = [*self._judged[:1], *self._judged[1:][-1:], placement.cluster]
        return record

    def _groups(self, outcome: Outcome, record: RunRecord) -> Cut:
        """The groups of the sample, on every rank."""

        def found() -> dict[str, Tensor]:
            seed, sample, fine = self.job.request.seed, outcome.sample, outcome.result.clustering
            groups = groups_of(sample.reduced, fine, outcome.n_clusters, seed, self.images.recipe)
            if groups.count < outcome.n_clusters and record.result == FINAL:
                warnings.warn(
                    f"only {groups.count} of {outcome.n_clusters} clusters are not empty: the features of the images"
                    " have no more distinct values (are many images equal?)",
                    DeepClusterWarning,
                    stacklevel=2,
                )
            return {"centroids": groups.centroids, "groups": groups.groups}

        return Cut(**self.job.processes.broadcast_tensors(found))


def change(before: Tensor, after: Tensor, processes: Processes = ALONE) -> str:
    """Return how many images changed their group, in words. A collective."""
    return f"{compared(before, after, processes)[1]:.0%} of the images moved"


def collapse(result: Result) -> str:
    """Return a warning if most images are in one fine cluster or the features differ in one direction only, else ""."""
    share, rank = result.clustering.largest_share, result.reduced.shape[1]
    if len(result.clustering.sizes) <= 2 or (share <= COLLAPSED and rank > 1):
        return ""
    what = f"{share:.0%} of the images are in one fine cluster" if share > COLLAPSED else "all features are alike"
    return f"training has collapsed ({what}): lower --lr, or give --rounds 0 for the network before training"


def model_of(network: Network, result: Result, groups: Cut, recipe: Recipe) -> Model:
    """Return the model that places images in the ``groups`` of a result."""
    return Model(
        network=network,
        reduction=result.reduction,
        fine_centroids=result.clustering.centroids,
        groups=groups,
        outliers=result.outliers,
        names=("",) * groups.count,
        image_size=recipe.image_size,
        store_size=recipe.store_size,
        batch_size=recipe.batch_size,
    )


def summary(folder: RunFolder, record: RunRecord) -> str:
    """A sentence on the groups and the rounds."""
    rows = folder.read_rows("cluster_summary.csv")
    shares = [float(row["share"]) for row in rows]
    return (
        f"{count(len(rows), 'cluster')} (largest {max(shares):.0%}, smallest {min(shares):.1%}) after"
        f" {count(record.rounds or 0, 'round')}: {record.stopped_because}"
    )
