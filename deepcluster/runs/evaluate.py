"""Evaluate a run by a protocol; the figures are cached in ``evaluation-PROTOCOL.json`` in its folder."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from deepcluster.algorithm import Conclusion
from deepcluster.build import compute_of, conclusion_of
from deepcluster.clustering import Whitening
from deepcluster.errors import DataError, DiskError, UsageError
from deepcluster.evaluation import PROTOCOL_OPTIONS, ClusteringOptions, common
from deepcluster.evaluation.common import Labelled, NamedFigure, ProbeTask
from deepcluster.images import Images, Source, find
from deepcluster.images.given import true_labels
from deepcluster.images.store import Store, check_alike, read_once
from deepcluster.learning.features import extract
from deepcluster.model import Model
from deepcluster.recipe import Options, read_options
from deepcluster.runs.rows import Rows, cut_rows, images_at_hand, recipe_of, sample_of
from deepcluster.runtime.console import Display, Several, Silent
from deepcluster.runtime.devices import choose_device
from deepcluster.runtime.log import warn
from deepcluster.runtime.plain_files import json_sha256
from deepcluster.runtime.processes import ALONE, Processes
from deepcluster.storage import model_files as models
from deepcluster.storage import run_folder
from deepcluster.storage.checkpoint import Checkpoints, fitting
from deepcluster.storage.state import scratch_of

SCHEMA_VERSION = 1
PROBES: Mapping[str, Callable[..., Iterator[NamedFigure]]] = {"knn": common.knn, "linear": common.linear}
Prepared = Iterator[Any]  # the digests of the inputs, before these are read; then the figures


@dataclass(frozen=True)
class EvaluationRequest:
    """The request of a user."""

    #: A name in ``PROTOCOL_OPTIONS``.
    protocol: str = "clustering"
    #: Images to score; if None, the run's own, or a fifth of them if the protocol learns from the rest.
    images: Images | None = None
    #: ``folders``, or a CSV file of path and label; if None, the labels of the fit.
    labels: str | None = None
    #: Score the state after so many rounds, if its checkpoint was kept; if None, the result.
    round: int | None = None
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
    processes: Processes = ALONE,
) -> Iterator[NamedFigure]:
    """Yield the figures of a protocol as they are computed, or those in the run folder if nothing has changed since.

    Args:
        display: Shows progress, on the main rank.
        processes: They share the images, and all yield the same figures; the main rank writes the cache.

    Raises:
        DeepClusterError: The message says what to do. It is raised before anything is computed, if possible.
    """
    folder = run_folder.open_run(run)
    display = Several(display) if processes.is_main else Silent()
    kind = PROTOCOL_OPTIONS[request.protocol]
    options = kind(**read_options(kind, request.options))
    with run_folder.shared_lock(run, processes) as locked:
        job = _Evaluation(folder, request, display, processes)
        figures = _of_clusters(job, options) if isinstance(options, ClusteringOptions) else _of_probe(job, options)
        file = f"evaluation-{request.protocol}.json"
        about = {
            "schema_version": SCHEMA_VERSION,
            "protocol": request.protocol,
            "inputs": {**next(figures), "round": request.round, "seed": request.seed},
            "options": asdict(options),
        }
        if (cached := processes.broadcast_json(lambda: _cached(folder, file, about))) is not None:
            display.say("Cached", f"in {folder.path / file}: nothing has changed since")
            yield from cached.items()
            return
        values = {}
        for name, value in figures:
            values[name] = value
            yield name, value
        if locked:
            locked.write_json(file, {**about, "values": values})


def _cached(folder: run_folder.RunFolder, name: str, about: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the figures of the last evaluation if it was the same one and is complete; else None."""
    cached = {}
    with suppress(DiskError):  # a damaged file is written again
        cached = folder.read_json(name) if folder.has(name) else {}
    values = cached.pop("values", {})
    rows = [value.values() if isinstance(value, dict) else [value] for value in values.values()]
    is_whole = cached == about and all(isinstance(figure, int | float | str) for row in rows for figure in row)
    return values if is_whole else None


@dataclass(frozen=True)
class _Evaluation:
    """An evaluation, and the inputs of the protocols."""

    folder: run_folder.RunFolder
    request: EvaluationRequest
    display: Display
    processes: Processes

    def labels(self, source: Source, *, of_run: bool = False) -> list[str]:
        """Return the labels of images; ``of_run``: they are the run's own, so its table has their labels."""
        given = self.request.labels
        spec = given or self.folder.read_record().labels
        if spec is None:
            how = "--labels folders, or a CSV file of path,label"
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
        if (away := total - len(source.paths)) and self.processes.is_main:
            warn(
                f"{away:,} of the {total:,} images of {self.folder.path} were not found (they were in"
                f" {self.folder.read_record().location}): the figures are of the others"
            )
        return source

    @cached_property
    def model(self) -> Model:
        model = models.load_of_run(self.folder, choose_device(self.request.device))
        model.check_network(f"evaluate with other images or --protocol {self.request.protocol}")
        if self.request.round is not None:
            way_out = "choose another round, or fit with --keep-checkpoints N"
            weights = Checkpoints(self.folder.path / "checkpoints").body(self.request.round, way_out)
            with fitting(self.folder.path / "checkpoints"):
                model.network.body.load_state_dict(weights)
        return model

    def images_of_fit(self) -> tuple[Source, list[int]]:
        """Return the images that the run was fitted to, and their places among :meth:`run_images`."""
        every = self.run_images()
        added = {row["path"] for row in self.folder.read_added()}
        of_fit = [i for i, path in enumerate(every.paths) if path not in added]
        return every.rows(of_fit), of_fit

    def conclude(self, source: Source) -> tuple[Store, Conclusion]:
        """Return the images, as read, and the step 7 that a result of these weights would have. A collective."""
        model, recipe = self.model, recipe_of(self.folder)
        network = model.network
        if classes := model.reduction.classes:
            network.classifier = classes.weight, classes.bias
        store = read_once(source, model.store_size, self.processes, progress=partial(self.display.progress, "reading"))
        features = extract(network, store.images, compute_of(network, recipe, store.partition, exact=True))
        return store, conclusion_of(network, store, recipe, self.folder.read_record().seed, features)

    def reduction(self) -> Whitening:
        """Return the reduction of the model; after a round, that of a result of this round."""
        if self.request.round is None:
            return self.model.reduction
        return self.conclude(self.images_of_fit()[0])[1].reduction

    def read(self, source: Source, labels: Sequence[str], name: str) -> tuple[Store, list[str]]:
        """Return the usable images with a label, and the labels; a collective. ``name``: Of a new scratch folder."""
        check_alike(source, self.processes)
        labelled = [i for i, label in enumerate(labels) if label]
        if not labelled:
            raise DataError(f"no image of {source.name} has a label: check --labels")
        folder = scratch_of(self.folder.path, self.processes.rank) / name
        progress = partial(self.display.progress, "reading")
        folder.mkdir()
        rows, size = source.rows(labelled), self.model.store_size
        store = read_once(rows, size, self.processes, folder=folder, progress=progress)
        if skipped := len(labelled) - len(store.usable):
            self.display.say("Skipped", f"{skipped:,} files of {source.name} that cannot be used")
        return store, [labels[labelled[i]] for i in store.usable]


def _of_round(job: _Evaluation, options: ClusteringOptions) -> Prepared:
    """Score the clusters of the run's images that a result after this round would have, as many as the run has now."""
    if job.request.images is not None:
        raise UsageError("--round has no clusters of other images: leave out IMAGES, or give --protocol knn or linear")
    source, of_fit = job.images_of_fit()
    every_label = job.labels(job.run_images(), of_run=True)
    labels = [every_label[i] for i in of_fit]
    model, record, recipe = job.model, job.folder.read_record(), recipe_of(job.folder)
    yield {"model": model.identity.digest, "test": common.fingerprint(source, labels)}
    store, final = job.conclude(source)
    partition = store.partition
    sample = sample_of(final.reduced, partition, record.seed)
    paths = [source.paths[i] for i in store.usable]
    rows = Rows(paths, None, (), final.reduced, sample, partition, final.residuals)
    k = len(model.cut.group_of.unique())
    clusters = partition.all_gather(cut_rows(rows, final.clustering, k, record.seed, recipe)[1].cluster)
    yield from common.clustering(clusters.tolist(), [labels[i] for i in store.usable], options, seed=job.request.seed)


def _of_clusters(job: _Evaluation, options: ClusteringOptions) -> Prepared:
    """Score the clusters of clusters.csv, or of other images the clusters that the model assigns."""
    if job.request.round is not None:
        yield from _of_round(job, options)
    elif job.request.images is None:
        rows = job.folder.read_clusters().where("status", "ok")
        paths = list(rows.column("path"))
        source = job.run_images() if job.request.labels == "folders" else find(paths)
        by_path = dict(zip(source.paths, job.labels(source, of_run=True), strict=True))
        labels = [by_path.get(path, "") for path in paths]
        clusters = [int(cell) for cell in rows.column("cluster")]
        yield {"clusters": json_sha256([clusters, labels])}
        yield from common.clustering(clusters, labels, options, seed=job.request.seed)
    else:
        source = find(job.request.images)
        all_labels = job.labels(source)
        model = job.model
        yield {"model": model.identity.digest, "test": common.fingerprint(source, all_labels)}
        store, labels = job.read(source, all_labels, "images")
        clusters = store.partition.all_gather(model.place(model.transform(store.images)).cluster).tolist()
        yield from common.clustering(clusters, labels, options, seed=job.request.seed)


def _of_probe(job: _Evaluation, options: Options) -> Prepared:
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
    digests = {"train": common.fingerprint(source, labels), "test": common.fingerprint(tests, test_labels)}
    yield {"model": model.identity.digest, **digests}
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
        reduction=job.reduction,
    )
    yield from PROBES[job.request.protocol](task, options, display=job.display)
