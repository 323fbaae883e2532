"""A run of features that the user computed: reduction, clustering and groups (steps 3, 4 and 7), without a network."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepcluster.algorithm import result_of
from deepcluster.errors import DataError, DeepClusterWarning, NonFiniteError, UsageError
from deepcluster.images import Source
from deepcluster.images.given_features import GivenFeatures, read_features
from deepcluster.images.labels import true_labels
from deepcluster.images.preview import Preview
from deepcluster.images.store import read_once
from deepcluster.nets.given import no_network
from deepcluster.nets.sizes import FEATURES
from deepcluster.presets import check_groups
from deepcluster.recipe import Recipe, to_toml
from deepcluster.records import FINAL
from deepcluster.report.sprite import sprite_sheet, tiny_pictures
from deepcluster.runs.build import kmeans_of_result, reduction_of
from deepcluster.runs.finish import model_of
from deepcluster.runs.fit import check_not_inside, first_record, free_path
from deepcluster.runs.groups import choose_number, groups_of, placed
from deepcluster.runs.job import Clock, Job, Request
from deepcluster.runs.report import shown_of, write_report
from deepcluster.runs.results import Rows, write_features, write_groups, write_map
from deepcluster.runs.resume import remember, row_digests
from deepcluster.runs.sample import sample_of
from deepcluster.runtime.console import Display, Silent
from deepcluster.runtime.devices import choose_device, working_on
from deepcluster.runtime.memory import peak_mb
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import ALONE
from deepcluster.storage import model_files, report_files
from deepcluster.storage import run_folder as files
from deepcluster.storage.csv_rows import round_to
from deepcluster.storage.run_folder import LockedFolder, RunFolder
from deepcluster.storage.run_record import RunRecord

# The options of a recipe that concern features; the others are for images or for training.
OPTIONS = {"dims", "whitening", "root", "pseudo_labels", "empty", "kmeans_iterations", "spherical", "grouping"}
THUMBNAIL = 48  # px


def fit_features(given: str | Path | GivenFeatures, request: Request, display: Display | None = None) -> RunFolder:
    """From features to a run folder, in which everything but the training of a network is as in any other.

    Args:
        given: An .npy file (see ``read_features``), or what was read of one.
        request: What to do with them.
        display: Shows the run (None: nothing does).

    Raises:
        DeepClusterError: It says what to do.
    """
    clock = Clock(request.begun)
    _check_request(request)
    with working_on(torch.device("cpu")):
        place = Path(given) if isinstance(given, str | Path) else None
        given = read_features(given) if isinstance(given, str | Path) else given
        count = len(given.features)
        check_groups(request.n_clusters, count)
        recipe = _recipe(request, count)
        labels = true_labels(request.labels, given.source) if request.labels else None
        seen = Preview(short_side=1, grey=False)
        job = Job(request, given.source, seen, labels, torch.device("cpu"), display or Silent(), ALONE, clock)
        out = free_path(job)
        if request.overwrite and place is not None:
            check_not_inside(replace(given.source, location=str(place.absolute()), file=None), out)
        with files.locked(out, make=True) as folder:
            with folder.next_state(anew=request.overwrite and folder.has(files.RUN)) as staged:
                record = _write(job, staged, given, recipe)
            job.display.say("Run", str(folder.path))
            job.display.say("Done", f"{record.clusters:,} clusters of {count:,} rows of features")
        return files.open_run(out)


def _check_request(request: Request) -> None:
    """UsageError where something is asked for that only a network can do."""
    choose_device(request.device)
    others = sorted((request.options or {}).keys() - OPTIONS)
    if request.recipe != "auto":
        raise UsageError(
            f"--recipe {request.recipe} is for images: with --features no network is trained; leave it out"
        )
    if others:
        raise UsageError(
            f"{', '.join(others)}: for images; with --features no network is trained. What counts there: -k, --seed,"
            f" --labels and --set {', '.join(sorted(OPTIONS))}"
        )


def _recipe(request: Request, count: int) -> Recipe:
    """Return the reduction of ``auto`` for a pretrained network, and as many fine clusters (docs/decisions.md)."""
    clusters = max(5 * (request.n_clusters or 0), count // 100, 2)
    chosen: dict[str, Any] = {
        "whitening": 0.25,
        "pseudo_labels": min(clusters, max(1, count // 20)),
        "rounds": 0,
        "grouping": "embedding",
    }
    options = {name: value for name, value in (request.options or {}).items() if value != "auto"}
    recipe = Recipe(**{**chosen, **options})
    return replace(recipe, pseudo_labels=max(1, min(recipe.pseudo_labels, count)))


def _write(job: Job, folder: LockedFolder, given: GivenFeatures, recipe: Recipe) -> RunRecord:
    request, source, seed = job.request, given.source, job.request.seed
    partition = Partition.single(len(given.features))
    try:
        result = result_of(
            given.features,
            recipe.pseudo_labels,
            seed=seed,
            reduction=reduction_of(recipe, given.features.shape[1]),
            clustering=kmeans_of_result(recipe),
            where=job.device,
            partition=partition,
        )
    except NonFiniteError as error:
        raise DataError(
            "these features are too large or too small to be compared: scale them, say to length 1"
        ) from error
    sample = sample_of(result.reduced, partition, seed)
    truth = job.truth(range(partition.total))
    rows = Rows(source.paths, truth, (), result.reduced, sample, partition, result.residuals)
    record = replace(
        first_record(job, None, 0),
        images_count=partition.total,
        skipped_count=0,
        backbone=FEATURES,
        pseudo_labels=recipe.pseudo_labels,
        reasons=[f"features of {given.features.shape[1]:,} numbers that came from elsewhere"],
        rounds=0,
        stopped_because="features were given",
    ).with_phase("reading", job.clock.lap())
    n_clusters, record = choose_number(request.n_clusters, sample.reduced, record, recipe, job.display)
    groups = groups_of(sample.reduced, result.clustering, n_clusters, seed, recipe)
    if groups.count < n_clusters:
        warnings.warn(
            f"only {groups.count} of {n_clusters} clusters are not empty: the features have no more distinct values",
            DeepClusterWarning,
            stacklevel=2,
        )
    groups, placement = placed(groups, result.reduced, result.clustering.centroids, sample, partition)
    network = no_network(given.features.shape[1])
    model = replace(model_of(network, result, groups, recipe), image_size=1, store_size=1)
    settings = (line for line in to_toml(recipe).splitlines() if line.partition(" ")[0] in OPTIONS)
    folder.write_text("recipe.toml", "\n".join(settings) + "\n")
    folder.write_rows("skipped.csv", files.SKIPPED, [])
    folder.write_rows("history.csv", files.HISTORY, [])
    model_files.save_in_run(model, folder)
    remember(folder, dict(zip(source.paths, row_digests(given.features), strict=True)))
    write_features(folder, rows)
    record = replace(record, peak_memory_mb=peak_mb(), seconds=round_to(job.clock.elapsed(), 2))
    record = write_groups(folder, model, placement, rows, record, {})
    if (images := pictures_of(source)) is not None:
        folder.write_bytes(report_files.SHEET, sprite_sheet(tiny_pictures(images, 0, len(images))))
    if request.report:
        shown = shown_of(rows, groups, placement.centroid)
        write_map(folder, shown.reduced, seed)
        write_report(folder, source, shown)
    record = replace(record.with_phase("result", job.clock.lap()), status="done", result=FINAL)
    folder.write_record(record)
    return record


def pictures_of(source: Source) -> Tensor | None:
    """A small picture for each row (uint8, N x 3 x S x S), grey where there is no image; None where there is none."""
    if source.file is None:
        return None
    store = read_once(source, THUMBNAIL, none_is_fine=True)
    if not store.kept:
        return None
    images = torch.full((len(source.paths), THUMBNAIL, THUMBNAIL, 3), 128, dtype=torch.uint8).permute(0, 3, 1, 2)
    images[torch.tensor(store.kept)] = store.images
    return images
