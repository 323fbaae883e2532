"""The result of a run: the features, the groups, and the files that hold them."""

import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deepcluster.algorithm import Result, conclude
from deepcluster.clustering.agreement import compared
from deepcluster.errors import DeepClusterWarning
from deepcluster.groups.cut import Cut, outlier_distances, outlier_length, place
from deepcluster.model import Model
from deepcluster.nets.backbone import Network
from deepcluster.recipe import Recipe
from deepcluster.records import FINAL, PRELIMINARY
from deepcluster.report.sprite import sprite_sheet, tiny_pictures
from deepcluster.report.text import count
from deepcluster.runs.build import kmeans_of_result, reduction_of, shares_pass
from deepcluster.runs.groups import choose_number, groups_of, placed
from deepcluster.runs.job import ImagesRead, Job
from deepcluster.runs.report import Shown, shown_of, write_report
from deepcluster.runs.results import Rows, write_features, write_groups, write_map
from deepcluster.runs.sample import Sample, sample_of
from deepcluster.runs.time_limit import SHARE_OF_TIME
from deepcluster.runs.train import Trained
from deepcluster.runtime.console import Display, Silent
from deepcluster.runtime.memory import peak_mb
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import ALONE, Processes
from deepcluster.storage import model_files, report_files
from deepcluster.storage.csv_rows import metrics, round_to
from deepcluster.storage.run_folder import FORMER, RunFolder
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
    """The result on disk: the first after the first pass over the images, others as the rounds go on, the final one.

    Each is made by the same steps, and replaces the one before all at once.

    Args:
        job: The fit.
        folder: Its folder.
        network: The network of the rounds; it stays as it is.
        images: Its images and recipe.
        record: run.json so far, without a result.
        on_disk: run.json as it is on disk, with the result of an earlier process.
    """

    def __init__(
        self, job: Job, folder: RunFolder, network: Network, images: ImagesRead, record: RunRecord, on_disk: RunRecord
    ):
        self.job, self.folder, self.network, self.images = job, folder, network, images
        self.record, self.on_disk = record, on_disk
        self.shares_pass = shares_pass(images.recipe, job.device)
        self._has_thumbnails = False  # they never change
        self._baseline: dict[int, Mapping[str, float]] = {}  # by the number of groups
        self._rounds = -1  # before the last preliminary result
        self._unsaid = Unsaid()  # with it
        self._judged: list[Tensor] = []  # clusters of this rank's images: in the first result, and in the last two
        self._shown: Shown | None = None  # of the last one
        self._last, self._took = -math.inf, 0.0  # when the last one was written, and how long it took

    def preliminary(self, features: Tensor, trained: Trained) -> str:
        """Write what the result would be if the rounds ended here; nothing where nobody looks, or where that costs much
        beside what has passed since the last time.

        Args:
            features: Those of the pass that a round began with.
            trained: The rounds so far.

        Returns:
            Whether the groups got better than in the last result, in words; empty where there is nothing new.
        """
        begin = time.perf_counter()
        due = self.job.request.report and begin - self._last >= self._took / SHARE_OF_TIME
        if not self.job.processes.broadcast_json(lambda: due):
            return ""
        self._unsaid = Unsaid()
        outcome, record = self._outcome(trained, self._unsaid, features if self.shares_pass else None)
        self._write(trained, outcome, replace(record, result=PRELIMINARY))
        if trained.rounds and (text := collapse(outcome.result)):
            self._unsaid.warnings.append(text)
        if len(self._judged) == 1:
            page = self.folder.path / "report.html"
            self.job.display.say("First", f"{page}: preliminary groups, replaced as the run goes on")
        self._last, self._rounds = time.perf_counter(), trained.rounds
        self._took = self._last - begin
        if len(self._judged) < 2:
            return ""
        return change(self._judged[-2], self._judged[-1], self.job.processes)

    def final(self, trained: Trained) -> RunRecord:
        """Conclude, and return run.json at the end."""
        self.record = self.record.with_phase("rounds", self.job.clock.lap())
        if trained.features is not None and trained.rounds == self._rounds:  # nothing has changed since
            self._make_final(trained)
        else:
            features = trained.features if self.shares_pass else None
            outcome, record = self._outcome(trained, self.job.display, features)
            self._write(trained, outcome, replace(record, result=FINAL, stopped_because=trained.stopped_because))
            if trained.rounds and (text := collapse(outcome.result)):
                warnings.warn(text, DeepClusterWarning, stacklevel=2)
        return self.on_disk

    def _make_final(self, trained: Trained) -> None:
        """Call the last preliminary result the final one."""
        self._unsaid.repeat(self.job.display)
        if not self.job.processes.is_main:
            return
        with self.folder.next_state() as staged:
            record = replace(
                self.on_disk,
                result=FINAL,
                status="done",
                stopped_because=trained.stopped_because,
                seconds_by_phase=self.record.seconds_by_phase,
                seconds=round_to(self.job.clock.elapsed(), 2),
            ).with_phase("result", self.job.clock.lap())
            staged.write_record(record)
            if self.job.request.report:
                write_report(staged, self.job.source, self._shown)
            self.job.stop.too_late()
        self.on_disk = record

    def _outcome(self, trained: Trained, display: Display, features: Tensor | None) -> tuple[Outcome, RunRecord]:
        """The features and the number of groups, and run.json with the candidates for that number."""
        job, record = self.job, self.record
        with self._averaged(trained) as averaged:
            result = self._conclude(None if averaged else features)
        sample = sample_of(result.reduced, self.images.store.partition, job.request.seed)
        n_clusters = 0
        if job.processes.is_main:
            n_clusters, record = choose_number(
                job.request.n_clusters, sample.reduced, record, self.images.recipe, display
            )
        return Outcome(result, sample, n_clusters), record

    @contextmanager
    def _averaged(self, trained: Trained) -> Iterator[bool]:
        """Inside, the network has the weights of the result: a mean of those before and after training.

        The mean keeps more of what a pretrained network knew than its last state does (WiSE-FT, Wortsman et al. 2022).
        Yields whether that changes anything.
        """
        share, body = self.images.recipe.average, self.network.body
        if share == 1 or not trained.rounds:
            yield False
            return
        last = {name: value.clone() for name, value in body.state_dict().items()}
        body.load_state_dict(
            {
                name: torch.lerp(trained.given[name], value, share) if value.is_floating_point() else value
                for name, value in last.items()
            }
        )
        try:
            yield True
        finally:
            body.load_state_dict(last)

    def _conclude(self, features: Tensor | None) -> Result:
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

    def _write(self, trained: Trained, outcome: Outcome, record: RunRecord) -> None:
        """The result in files: the model, the features, the clusters, the report. All ranks have a part in it."""
        is_main, store, result = self.job.processes.is_main, self.images.store, outcome.result
        seed = self.job.request.seed
        with self.folder.next_state() if is_main else nullcontext(self.folder) as staged:
            groups = self._groups(outcome, record)
            groups, placement = placed(
                groups, result.reduced, result.clustering.centroids, outcome.sample, store.partition
            )
            lengths = store.partition.to_main(result.lengths, outcome.sample.rows)
            rows = Rows(
                paths=[self.job.source.paths[i] for i in store.kept],
                labels=self.job.truth(store.kept),
                skipped=store.skipped,
                reduced=result.reduced,
                sample=outcome.sample,
                partition=store.partition,
                lengths=result.lengths,
            )
            model = model_of(self.network, result, groups, outcome.sample.reduced, lengths, self.images.recipe)
            if is_main:
                with self._averaged(trained):
                    model_files.save_in_run(model, staged)
                staged.remove(FORMER)  # of a recut of an earlier result
            if not self._has_thumbnails:
                own = tiny_pictures(store.images, store.partition.local.start, store.partition.total)
                thumbnails = Partition.of(self.job.processes, len(own)).gather(own)
                if is_main:
                    staged.write_bytes(report_files.SHEET, sprite_sheet(thumbnails))
                self._has_thumbnails = True
            write_features(staged, rows)
            if record.result == FINAL:
                record = record.with_phase("result", self.job.clock.lap())
            seconds = round_to(self.job.clock.elapsed(), 2)
            record = replace(record, rounds=trained.rounds, peak_memory_mb=peak_mb(), seconds=seconds)
            baseline = self._metrics_at_start(rows, trained, outcome.n_clusters) if is_main else {}
            record = write_groups(staged, model, placement, rows, record, baseline)
            if self.job.request.report:
                self._shown = shown_of(rows, model.groups, placement.centroid)
                if is_main:
                    write_map(staged, self._shown.reduced, seed)
                    write_report(staged, self.job.source, self._shown)
            if is_main and record.result == FINAL:
                self.job.stop.too_late()  # it must not be called stopped when it is done
                record = replace(record, status="done")
                staged.write_record(record)  # a run that was killed before it is not finished
        self.on_disk = record
        self._judged = [*self._judged[:1], *self._judged[1:][-1:], placement.cluster]

    def _groups(self, outcome: Outcome, record: RunRecord) -> Cut:
        """The groups of the sample, on every rank."""

        def found() -> dict[str, Tensor]:
            seed, sample, fine = self.job.request.seed, outcome.sample, outcome.result.clustering
            groups = groups_of(sample.reduced, fine, outcome.n_clusters, seed, self.images.recipe)
            if groups.count < outcome.n_clusters:
                text = (
                    f"only {groups.count} of {outcome.n_clusters} clusters are not empty: the features of the images"
                    " have no more distinct values (are many images equal?)"
                )
                if record.result == FINAL:
                    warnings.warn(text, DeepClusterWarning, stacklevel=2)
                else:
                    self._unsaid.warnings.append(text)
            return {"centroids": groups.centroids, "groups": groups.groups}

        return Cut(**self.job.processes.broadcast_tensors(found))

    def _metrics_at_start(self, rows: Rows, trained: Trained, n_clusters: int) -> Mapping[str, float]:
        """Of the sample."""
        if rows.labels is None or trained.start is None:
            return {}
        if n_clusters not in self._baseline:
            reduced, clustering = trained.start
            groups = groups_of(reduced, clustering, n_clusters, self.job.request.seed, self.images.recipe)
            labels = [rows.labels[i] for i in rows.sample.rows.tolist()]
            self._baseline[n_clusters] = metrics(labels, place(reduced, groups, clustering.centroids).cluster)
        return self._baseline[n_clusters]


class Unsaid(Silent):
    """What a preliminary result leaves unsaid, as the final one will say it."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.warnings: list[str] = []

    def say(self, heading: str, text: str) -> None:
        self.lines.append((heading, text))

    def repeat(self, display: Display) -> None:
        for heading, text in self.lines:
            display.say(heading, text)
        for text in self.warnings:
            warnings.warn(text, DeepClusterWarning, stacklevel=2)


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


def model_of(network: Network, result: Result, groups: Cut, reduced: Tensor, lengths: Tensor, recipe: Recipe) -> Model:
    """The model that places images as the ``groups`` of a result say; what an outlier is it has from a sample.

    Args:
        network: Of the result.
        result: Its reduction and its fine clusters.
        groups: Its groups.
        reduced: Features of the sample; none on other ranks than the main rank.
        lengths: Of these, before they had length 1.
        recipe: The sizes of images and batches.
    """
    return Model(
        network=network,
        reduction=result.reduction,
        fine_centroids=result.clustering.centroids,
        groups=groups,
        outlier_distance=outlier_distances(reduced, groups),
        outlier_length=outlier_length(lengths),
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
