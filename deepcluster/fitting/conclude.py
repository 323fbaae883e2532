"""Step 7 of a run: its result. All ranks reduce the features, and the main rank makes the rest."""

from dataclasses import replace

import torch
from torch import Tensor

from deepcluster.algorithm import Conclusion
from deepcluster.build import conclusion_of
from deepcluster.errors import DataError, NonFiniteError
from deepcluster.fitting.like import continued
from deepcluster.fitting.read import exact_features
from deepcluster.fitting.values import ImagesRead
from deepcluster.model import Model
from deepcluster.nets.network import Network
from deepcluster.recipe import Recipe
from deepcluster.records import Identity
from deepcluster.report.pictures import on_sheet
from deepcluster.runs.change import cut_of
from deepcluster.runs.result import choose_number, metrics
from deepcluster.runs.run import Rows, Run, cut_rows, sample_of
from deepcluster.runtime.compute import GROUPING_PHASE, MAX_PASS_BATCH
from deepcluster.runtime.console import Display, Silent
from deepcluster.runtime.log import warn
from deepcluster.storage.content import Facts, RunRecord

COLLAPSED = 0.5  # share of the images in one fine cluster
MIN_COLLAPSED = 30  # images: of fewer, one cluster may have most of them by chance


def knows_nouns(network: Network, recipe: Recipe) -> bool:
    """Return True if the network came with a classifier of nouns; training would change the features that it takes."""
    return recipe.weights == "timm" and network.classifier is not None


def result_features(network: Network, images: ImagesRead, display: Display) -> Tensor:
    """Return this rank's features for a result: those given, or of the network as it is now."""
    if images.features is not None:
        return images.features[images.store.partition.local]
    if images.first_pass is not None:
        return images.first_pass
    return exact_features(network, images.store, images.recipe, display)


def features_with_nouns(network: Network, images: ImagesRead, features: Tensor) -> Tensor | None:
    """Return the ``features`` (this rank's) of all images on the sheet, on the main rank. A collective.

    None if the network knows no nouns of them.
    """
    if not knows_nouns(network, images.recipe):
        return None
    partition = images.store.partition
    return partition.to_main(features, torch.tensor(on_sheet(partition.total)))


def conclude(network: Network, images: ImagesRead, seed: int, features: Tensor, display: Display) -> Conclusion:
    """Cluster this rank's ``features`` (n x D), of one pass of the network as it is now. A collective."""
    display.progress(GROUPING_PHASE, 0, 0)
    try:
        return conclusion_of(network, images.store, images.recipe, seed, features)
    except NonFiniteError as error:
        if images.features is None:
            raise
        raise DataError("the features are too large or too small to compare: scale them, say to length 1") from error


def run_of(network: Network, images: ImagesRead, record: RunRecord, final: Conclusion, display: Display) -> Run:
    """Cut the clusters of all images, on the main rank. ``record`` has the number of rounds."""
    recipe = images.recipe
    if record.rounds and (text := collapse(final)):
        warn(text)
    rows = rows_of(images, final, record.seed)
    cut_k = record.n_clusters
    if cut_k is None and images.former:  # as many as the run of --like has, unless others were asked for
        cut_k = min(len(images.former.run.model.cut.cluster_of.unique()), rows.fitted)
    n_clusters, candidates = choose_number(cut_k, rows, record.seed, recipe, display)
    cut, _ = cut_rows(rows, final.clustering, n_clusters, record.seed, recipe)
    if cut.count < n_clusters:
        why = "the features have no more distinct values (are many equal?)"
        warn(f"only {cut.count} of {n_clusters} clusters are not empty: {why}")
    # Without a network the model takes no images.
    image_size, store_size = (recipe.image_size, recipe.store_size) if images.features is None else (1, 1)
    model = Model(
        network=network,
        reduction=final.reduction,
        fine_centroids=final.clustering.centroids,
        cut=cut,
        outliers=final.outliers,
        names=("",) * cut.count,
        image_size=image_size,
        store_size=store_size,
        batch_size=min(recipe.batch_size, MAX_PASS_BATCH),
        identity=Identity(run=record.run),
    )
    run = Run(record, Facts(cut_k=cut_k, candidates=candidates), model, rows)
    if images.former and images.former_rows is not None:
        run, text = continued(run, images.former, images.former_rows)
        display.say("Names", text)
    return replace(run, facts=replace(run.facts, cut=cut_of(run)))


def rows_of(images: ImagesRead, final: Conclusion, seed: int) -> Rows:
    """Return the images of a run with their reduced features."""
    return Rows(images.table, final.reduced, sample_of(final.reduced, seed), final.residuals)


def metrics_of(images: ImagesRead, record: RunRecord, final: Conclusion) -> dict[str, float]:
    """Return the scores of the clusters of some features by the true labels, on the main rank; empty without labels."""
    if images.truth is None:
        return {}
    rows = rows_of(images, final, record.seed)
    count, _ = choose_number(record.n_clusters, rows, record.seed, images.recipe, Silent())
    _, placement = cut_rows(rows, final.clustering, count, record.seed, images.recipe)
    return {**metrics(images.truth, placement.cluster), "clusters": len(placement.cluster.unique())}


def collapse(conclusion: Conclusion) -> str:
    """Return a warning if most images are in one fine cluster or the features differ in one direction only, else ""."""
    share = conclusion.clustering.largest_share
    sizes = conclusion.clustering.sizes
    is_crowded = share > COLLAPSED and sizes.sum() >= MIN_COLLAPSED
    if len(sizes) <= 2 or not (is_crowded or conclusion.reduced.shape[1] == 1):
        return ""
    what = f"{share:.0%} of the images are in one fine cluster" if is_crowded else "all features are alike"
    return f"training has collapsed ({what}): lower --lr, or give --rounds 0 for the network before training"
