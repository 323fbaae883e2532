"""Evaluate a run by a protocol."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from deepcluster.errors import DataError, UsageError
from deepcluster.evaluation import PROTOCOL_OPTIONS, ClusteringOptions, common
from deepcluster.evaluation.common import Labelled, NamedFigure, ProbeTask
from deepcluster.images import Images, Source, find
from deepcluster.images.given import true_labels
from deepcluster.images.store import Store, read_once
from deepcluster.model import Model
from deepcluster.recipe import Options, read_options
from deepcluster.runs.images import images_at_hand
from deepcluster.runtime.console import Display, Several
from deepcluster.runtime.devices import choose_device
from deepcluster.runtime.log import warn
from deepcluster.storage import model_files as models
from deepcluster.storage import run_folder
from deepcluster.storage.state import scratch_of
from deepcluster.texts import quality_text

PROBES: Mapping[str, Callable[..., Iterator[NamedFigure]]] = {"knn": common.knn, "linear": common.linear}


@dataclass(frozen=True)
class EvaluationRequest:
    """The request of a user."""

    #: A name in ``PROTOCOL_OPTIONS``.
    protocol: str = "clustering"
    #: Images to score; if None, the run's own, or a fifth of them if the protocol learns from the rest.
    images: Images | None = None
    #: ``folders``, or a CSV file of path and label; if None, the labels of the fit.
    labels: str | None = None
    #: Images to learn from; if None, the run's own.
    train: Images | None = None
    #: Options of the protocol.
    options: Mapping[str, Any] = field(default_factory=dict)
    #: Seed of all random numbers.
    seed: int = 0
    #: As for ``fit``.
    device: str = "auto"


def evaluate(
    run: Path,
    request: EvaluationRequest,
    *,
    display: Display | None = None,
) -> Iterator[NamedFigure]:
    """Yield the figures of a protocol as they are computed.

    Args:
        display: Shows progress.

    Raises:
        DeepClusterError: The message says what to do. It is raised before anything is computed, if possible.
    """
    folder = run_folder.open_run(run)
    display = Several(display)
    kind = PROTOCOL_OPTIONS[request.protocol]
    options = kind(**read_options(kind, request.options))
    with run_folder.locked(run):  # for the images, which may need a file
        job = _Evaluation(folder, request, display)
        yield from _of_clusters(job, options) if isinstance(options, ClusteringOptions) else _of_probe(job, options)


@dataclass(frozen=True)
class _Evaluation:
    """An evaluation, and the inputs of the protocols."""

    folder: run_folder.RunFolder
    request: EvaluationRequest
    display: Display

    def labels(self, source: Source, *, of_run: bool = False) -> list[str]:
        """Return the labels of images; ``of_run``: they are the run's own, so its table has their labels."""
        given = self.request.labels
        spec = given or self.folder.read_record().labels
        if spec is None:
            how = "--labels folders (also for the labels of a named data set), or a CSV file of path,label"
            if quality := self.folder.read_record().quality:
                how += f". Your answers say: {quality_text(quality)}"
            raise UsageError(f"{self.request.protocol} needs labels, and the fit had none: {how}")
        return true_labels(str(self.folder.file("clusters.csv")) if of_run and not given else spec, source)

    def run_images(self) -> Source:
        source = images_at_hand(self.folder)
        if source is None:
            raise DataError(
                f"the images of {self.folder.path} were not found:"
                " name their place (IMAGES, or --train for those to learn from)"
            )
        total = len(self.folder.read_clusters().where("status", "ok"))
        if away := total - len(source.paths):
            warn(
                f"{away:,} of the {total:,} images of {self.folder.path} were not found (they were in"
                f" {self.folder.read_record().location}): the figures are of the others"
            )
        return source

    @cached_property
    def model(self) -> Model:
        model = models.load_of_run(self.folder, choose_device(self.request.device))
        model.check_network(f"evaluate with other images or --protocol {self.request.protocol}")
        return model

    def read(self, source: Source, labels: Sequence[str], name: str) -> tuple[Store, list[str]]:
        """Return the usable images with a label, and the labels. ``name``: Of a new scratch folder."""
        labelled = [i for i, label in enumerate(labels) if label]
        if not labelled:
            raise DataError(f"no image of {source.name} has a label: check --labels")
        folder = scratch_of(self.folder.path) / name
        progress = partial(self.display.progress, "reading")
        folder.mkdir()
        rows = source.rows(labelled)
        size = self.model.store_size
        store = read_once(rows, size, folder=folder, progress=progress)
        if skipped := len(labelled) - len(store.usable):
            self.display.say("Skipped", f"{skipped:,} files of {source.name} that cannot be used")
        return store, [labels[labelled[i]] for i in store.usable]


def _of_clusters(job: _Evaluation, options: ClusteringOptions) -> Iterator[NamedFigure]:
    """Score the clusters of clusters.csv, or of other images the clusters that the model assigns."""
    if job.request.images is None:
        rows = job.folder.read_clusters().where("status", "ok")
        paths = list(rows.column("path"))
        source = job.run_images() if job.request.labels == "folders" else find(paths)
        by_path = dict(zip(source.paths, job.labels(source, of_run=True), strict=True))
        labels = [by_path.get(path, "") for path in paths]
        clusters = [int(cell) for cell in rows.column("cluster")]
    else:
        source = find(job.request.images)
        all_labels = job.labels(source)
        model = job.model
        store, labels = job.read(source, all_labels, "images")
        clusters = model.placement(model.transform(store.images)).cluster.tolist()
    yield from common.clustering(clusters, labels, options, seed=job.request.seed)


def _of_probe(job: _Evaluation, options: Options) -> Iterator[NamedFigure]:
    """Learn from labelled images and score others: IMAGES, or a fifth held out."""
    train = job.request.train
    source = job.run_images() if train is None else find(train)
    labels = job.labels(source, of_run=train is None)
    model = job.model
    if job.request.images is not None:
        tests = find(job.request.images)
        test_labels = job.labels(tests)
        common.check_apart(source, tests)
    else:
        source, labels, tests, test_labels = common.hold_out(source, labels, job.request.seed)
    learnt, learnt_names = job.read(source, labels, "train")
    test, test_names = job.read(tests, test_labels, "test")
    names = sorted({*learnt_names, *test_names})
    class_of = {name: i for i, name in enumerate(names)}
    task = ProbeTask(
        network=model.network,
        train=Labelled(learnt.images, torch.tensor([class_of[name] for name in learnt_names]), learnt.partition),
        test=Labelled(test.images, torch.tensor([class_of[name] for name in test_names]), test.partition),
        names=names,
        image_size=model.image_size,
        batch_size=model.batch_size,
        reduction=model.reduction,
    )
    yield from PROBES[job.request.protocol](task, options, display=job.display)
