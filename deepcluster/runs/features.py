"""A run of features that the user computed: reduction, clustering and groups (steps 3, 4 and 7), without a network."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from deepcluster.errors import DataError, NonFiniteError, UsageError
from deepcluster.images import Source
from deepcluster.images.given import read_features, true_labels
from deepcluster.images.store import Store, read_once
from deepcluster.nets.names import FEATURES
from deepcluster.nets.network import no_network
from deepcluster.presets import check_groups
from deepcluster.recipe import Recipe, to_toml
from deepcluster.records import FINAL
from deepcluster.report.pictures import sprite_sheet, tiny_pictures
from deepcluster.runs.fit import first_record
from deepcluster.runs.page import SHEET
from deepcluster.runs.plan import Clock, ImagesRead, Job, Request, check_not_inside, free_path
from deepcluster.runs.result import conclude_run
from deepcluster.runs.rows import remember_images, row_digests
from deepcluster.runs.writer import write_result
from deepcluster.runtime.console import Display, Silent
from deepcluster.runtime.devices import CPU, choose_device, working_on
from deepcluster.runtime.machine import peak_mb
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import ALONE
from deepcluster.storage import model_files
from deepcluster.storage import run_folder as files
from deepcluster.storage.content import RunRecord
from deepcluster.storage.run_folder import LockedFolder, RunFolder

# The options of a recipe that concern features; the others are for images or for training.
OPTIONS = {"dims", "whitening", "root", "pseudo_labels", "empty", "kmeans_iterations", "spherical", "grouping"}
THUMBNAIL = 48  # px


def fit_features(given: str | Path, request: Request, display: Display | None = None) -> RunFolder:
    """Cluster features, and return the run folder: as of any other run, without the training of a network.

    ``given``: An .npy file, see ``read_features``.
    """
    clock = Clock(request.begun)
    choose_device(request.device)
    with working_on(CPU):
        features, source = read_features(given)
        check_groups(request.n_clusters, len(features))
        recipe = _recipe(request, len(features))
        labels = true_labels(request.labels, source) if request.labels else None
        job = Job(request, source, labels, CPU, display or Silent(), ALONE, clock)
        out = free_path(source, request)
        if request.overwrite:
            check_not_inside(replace(source, location=str(Path(given).absolute()), file=None), out)
        with files.locked(out, make=True) as folder:
            with folder.next_state(anew=request.overwrite) as staged:
                record = _write(job, staged, features, recipe)
            job.display.say("Run", str(folder.path))
            job.display.say("Done", f"{record.clusters:,} clusters of {len(features):,} rows of features")
        return files.open_run(out)


def _recipe(request: Request, count: int) -> Recipe:
    """Return the reduction of ``auto`` for a pretrained network, and as many fine clusters (docs/decisions.md).

    Raises UsageError if an option concerns images or training.
    """
    options = {name: value for name, value in (request.options or {}).items() if value != "auto"}
    if request.recipe != "auto":
        raise UsageError(
            f"--recipe {request.recipe} is for images: with --features no network is trained; leave it out"
        )
    if others := sorted((request.options or {}).keys() - OPTIONS):
        raise UsageError(
            f"{', '.join(others)}: for images; with --features no network is trained. What counts there: -k, --seed,"
            f" --labels and --set {', '.join(sorted(OPTIONS))}"
        )
    clusters = min(max(5 * (request.n_clusters or 0), count // 100, 2), max(1, count // 20))
    chosen = {"whitening": 0.25, "pseudo_labels": clusters, "rounds": 0, "grouping": "embedding", **options}
    return Recipe(**{**chosen, "pseudo_labels": max(1, min(chosen["pseudo_labels"], count))})


def _write(job: Job, folder: LockedFolder, features: Tensor, recipe: Recipe) -> RunRecord:
    """Compute and write the result, and return run.json."""
    source, (total, width) = job.source, features.shape
    pictures = pictures_of(source)
    images = ImagesRead(
        store=Store(torch.empty(0) if pictures is None else pictures, tuple(range(total)), (), Partition.single(total)),
        recipe=recipe,
        digests=dict(zip(source.paths, row_digests(features), strict=True)),
    )
    record = replace(
        first_record(job, None, 0),
        status="done",
        result=FINAL,
        images_count=total,
        skipped_count=0,
        backbone=FEATURES,
        pseudo_labels=recipe.pseudo_labels,
        reasons={"features": f"{width:,} numbers a row, which came from elsewhere"},
        rounds=0,
        stopped_because="features were given",
    ).with_phase("reading", job.clock.lap())
    try:
        result, record = conclude_run(job, no_network(width), images, record, features)
    except NonFiniteError as error:
        raise DataError(
            "these features are too large or too small to be compared: scale them, say to length 1"
        ) from error
    settings = (line for line in to_toml(recipe).splitlines() if line.partition(" ")[0] in OPTIONS)
    folder.write_text("recipe.toml", "\n".join(settings) + "\n")
    folder.write_rows("skipped.csv", files.SKIPPED, [])
    folder.write_rows("history.csv", files.HISTORY, [])
    if pictures is not None:
        folder.write_bytes(SHEET, sprite_sheet(tiny_pictures(pictures, 0, total)))
    remember_images(folder, images.digests)
    record = replace(record, peak_memory_mb=peak_mb(), seconds=round(job.clock.elapsed(), 2))
    record = write_result(
        folder, result, record.with_phase("result", job.clock.lap()), recipe, baseline={}, source=source,
        features=True, report=job.request.report,
    )  # fmt: skip
    model_files.save_in_run(replace(result.model, image_size=1, store_size=1), folder, record)
    return record


def pictures_of(source: Source) -> Tensor | None:
    """Return small pictures of all rows (uint8, N x 3 x S x S), grey without an image; None if there is no image."""
    if source.file is None:
        return None
    store = read_once(source, THUMBNAIL, none_is_fine=True)
    if not store.kept:
        return None
    images = torch.full((len(source.paths), THUMBNAIL, THUMBNAIL, 3), 128, dtype=torch.uint8).permute(0, 3, 1, 2)
    images[torch.tensor(store.kept)] = store.images
    return images
