"""Score the clusters of a run by labels, which choose nothing."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from deepcluster.clustering import agreement
from deepcluster.errors import DataError, UsageError
from deepcluster.images import Images, find
from deepcluster.images.true_labels import true_labels
from deepcluster.runs.images import images_at_hand
from deepcluster.runs.predict import predict
from deepcluster.runs.run import read_run
from deepcluster.runtime.console import Display, Silent
from deepcluster.runtime.devices import choose_device
from deepcluster.runtime.log import warn
from deepcluster.seeding import generator
from deepcluster.storage import model_files as models
from deepcluster.storage.run_folder import RunFolder, open_run
from deepcluster.texts import quality_text

SHUFFLES = 5
Scorer = Callable[[Sequence[str], Sequence[int]], Mapping[str, float]]  # from labels and clusters to figures by name


def evaluate(
    run: Path,
    images: Images | None = None,
    labels: str | None = None,
    *,
    scores: Scorer | None = None,
    device: str = "auto",
    display: Display = Silent(),
) -> dict[str, float]:
    """Return :func:`scores_with_chance` of the clusters of a run, or of those in which its model places images.

    Args:
        images: The images to score. None: the run's own, in the clusters of clusters.csv.
        labels: ``folders``, or a CSV file of path and label. None: the labels of the fit.
        scores: A function of your own in place of acc, NMI, AMI and ARI: its figures get a level of chance, too.
        device: As for ``fit``.
        display: For the progress and the skipped files.

    Raises:
        DeepClusterError: The message says what to do.
    """
    folder = open_run(run)
    place = labels or folder.read_record().labels
    if place is None:
        quality = read_run(folder).quality
        answers = f". Your answers say: {quality_text(quality)}" if quality else ""
        how = "--labels folders (also for the labels of a named data set), or a CSV file of path,label"
        raise UsageError(f"evaluate needs labels, and the fit had none: {how}{answers}")
    if images is None:
        return scores_with_chance(*_of_run(folder, labels), scores)
    source = find(images)
    truth = true_labels(place, source)
    labelled = [row for row, label in enumerate(truth) if label]
    if not labelled:
        raise DataError(f"no image of {source.name} has a label: check --labels")
    model = models.load(run, choose_device(device))
    model.check_network("evaluate with other images")
    label_of = {source.paths[row]: truth[row] for row in labelled}
    parts = [*predict(model, source.rows(labelled), display=display)]
    if skipped := sum(len(part.skipped) for part in parts):
        display.say("Skipped", f"{skipped:,} files of {source.name} that cannot be used")
    clusters = torch.cat([model.placement(part.reduced).cluster for part in parts]).tolist()
    return scores_with_chance(clusters, [label_of[path] for part in parts for path in part.paths], scores)


def scores_with_chance(
    clusters: Sequence[int], labels: Sequence[str], scores: Scorer | None = None
) -> dict[str, float]:
    """Return ``acc``, ``nmi`` (geometric mean), ``ami`` and ``ari``, then their ``_chance``, by shuffled labels.

    Args:
        clusters: Clusters of the images.
        labels: Labels of the images; "" if it has none.
        scores: As for :func:`evaluate`.

    Raises:
        DataError: No image has a label.
    """
    scores = scores or agreement.scores
    labelled = [row for row, label in enumerate(labels) if label]
    if not labelled:
        raise DataError("no image that has a cluster has a label: check --labels")
    truth = [labels[row] for row in labelled]
    assigned = [clusters[row] for row in labelled]
    drawn = []
    for i in range(SHUFFLES):
        order = torch.randperm(len(truth), generator=generator(0, "chance", i)).tolist()
        drawn.append(scores([truth[row] for row in order], assigned))
    counts = {"images": len(truth), "classes": len({*truth}), "clusters": len({*assigned})}
    chance = {f"{name}_chance": sum(figures[name] for figures in drawn) / SHUFFLES for name in drawn[0]}
    return {**counts, **scores(truth, assigned), **chance}


def _of_run(folder: RunFolder, labels: str | None) -> tuple[list[int], list[str]]:
    """Return the clusters of a run's images, and their labels."""
    stored = read_run(folder)
    paths = stored.rows.paths
    clusters = stored.placement.cluster.tolist()
    if not labels:
        return clusters, stored.rows.labels or [""] * len(paths)
    base = Path(stored.record.base)
    source = images_at_hand(stored.rows.images, base) if labels == "folders" else find(paths)
    if source is None:
        raise DataError(f"the images of {folder.path} were not found: name their place (IMAGES)")
    if away := len(paths) - len(source.paths):
        warn(
            f"{away:,} of the {len(paths):,} images of {folder.path} were not found (they were in {base}): the figures"
            " are of the others"
        )
    label_of = dict(zip(source.paths, true_labels(labels, source), strict=True))
    return clusters, [label_of.get(path, "") for path in paths]
