"""The result of a run: the final features, the groups, and the files that hold them."""

import resource
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from deepcluster.algorithm import Result, conclude
from deepcluster.clustering.whitening import whiten
from deepcluster.errors import DeepClusterWarning
from deepcluster.groups.choose_k import ROWS
from deepcluster.groups.confidence import Clarity, Guard, clarity, guard
from deepcluster.groups.cut import ROWS_EACH, Cut, outlier_distances, outlier_length, place
from deepcluster.groups.neighbour_graph import Graph, joined_graphs, neighbour_graph
from deepcluster.learning.features import extract
from deepcluster.model import Model
from deepcluster.nets.backbone import Network
from deepcluster.recipe import Recipe
from deepcluster.report.sprite import sprite_sheet, tiny_pictures
from deepcluster.runs.build import kmeans_of_result, reduction_of
from deepcluster.runs.groups import choose_number, groups_of
from deepcluster.runs.job import ImagesRead, Job
from deepcluster.runs.report import write_report
from deepcluster.runs.results import Rows, write_groups, write_map
from deepcluster.runs.train import Trained
from deepcluster.seeding import derive, generator
from deepcluster.storage import model_files, report_files
from deepcluster.storage.csv_rows import metrics, round_to
from deepcluster.storage.run_folder import LENGTHS, RunFolder
from deepcluster.storage.run_record import RunRecord


@dataclass(frozen=True)
class Outcome:
    """Step 7, for the main rank.

    result: The final features of all images, and their clustering.
    n_clusters: Groups to cut them into.
    graph: The graph to cut (None: that of the features).
    thumbnails: Tiny pictures of all images.
    """

    result: Result
    n_clusters: int
    graph: Graph | None
    thumbnails: Tensor


def final_outcome(
    job: Job, network: Network, images: ImagesRead, trained: Trained, record: RunRecord
) -> tuple[Outcome, RunRecord]:
    """Conclude, by the network as it was given where the trained one is worse."""
    store, recipe = images.store, images.recipe
    result = _conclude(job, network, images)
    n_clusters, graph = 0, None
    judged: Guard | Clarity | None = None
    if job.processes.is_main:
        n_clusters, record = choose_number(job.request.n_clusters, result.reduced, record, job.display)
        if recipe.neighbours == "clearer":
            judged = _clearer(job, network, images, result.reduced, trained, n_clusters)
        else:
            graph, judged = _guarded(job, result.reduced, trained, n_clusters)
        if judged:
            job.display.say("Guard", judged.text)
            figures = {name: round_to(value, 4) for name, value in asdict(judged).items()}
            record = replace(record, guard={**figures, "kept": judged.kept, "text": judged.text})
    if not job.processes.broadcast_json(lambda: judged is None or judged.kept):
        network.body.load_state_dict(trained.given)
        result = _conclude(job, network, images)
    thumbnails = store.partition.gather(tiny_pictures(store.images, store.partition.local.start, store.partition.total))
    return Outcome(result, n_clusters, graph, thumbnails), record


def _conclude(job: Job, network: Network, images: ImagesRead) -> Result:
    """Step 7; the main rank gets the features of all images."""
    recipe, partition = images.recipe, images.store.partition
    result = conclude(
        network,
        images.store.images,
        clusters=recipe.pseudo_labels,
        seed=job.request.seed,
        size=recipe.image_size,
        batch_size=recipe.batch_size,
        reduction=reduction_of(recipe),
        clustering=kmeans_of_result(recipe),
        progress=job.display.progress,
        processes=job.processes,
    )
    return replace(result, reduced=partition.gather(result.reduced), lengths=partition.gather(result.lengths))


def _guarded(job: Job, reduced: Tensor, trained: Trained, n_clusters: int) -> tuple[Graph | None, Guard | None]:
    """The graph of all rounds, where the recipe joins them, and the judgement on the trained network."""
    if not trained.graphs:
        return None, None
    seed = job.request.seed
    last = neighbour_graph(reduced, derive(seed, "graph"))
    graph = joined_graphs(trained.graphs[0], [*trained.graphs[1:], last], trained.weights)
    if n_clusters < 2 or len(graph.rows) < ROWS_EACH * n_clusters:
        return graph, None
    return graph, guard(trained.graphs[0], last, graph, n_clusters, derive(seed, "guard"))


def _clearer(
    job: Job, network: Network, images: ImagesRead, reduced: Tensor, trained: Trained, n_clusters: int
) -> Clarity | None:
    """The judgement on the trained network by the groups of a sample of the main rank's images."""
    if not trained.rounds or n_clusters < 2:
        return None
    store, recipe = images.store, images.recipe
    seed = derive(job.request.seed, "guard")
    rows = torch.randperm(len(store.images), generator=generator(seed, "sample"))[:ROWS].sort().values
    weights = {name: value.clone() for name, value in network.body.state_dict().items()}
    network.body.load_state_dict(trained.given)
    features = extract(network, store.images[rows], size=recipe.image_size, batch_size=recipe.batch_size).cpu()
    network.body.load_state_dict(weights)
    before = whiten(features, recipe.dims, recipe.whitening)(features)
    return clarity(before, reduced[rows], n_clusters, seed)


def write_outcome(
    job: Job,
    folder: RunFolder,
    network: Network,
    images: ImagesRead,
    trained: Trained,
    outcome: Outcome,
    record: RunRecord,
) -> RunRecord:
    """The result in files: the model, the features, the clusters, the report. Returns run.json as it is then."""
    store, result, seed = images.store, outcome.result, job.request.seed
    truth = job.truth(store)
    groups = groups_of(result.reduced, result.clustering, outcome.n_clusters, seed, outcome.graph)
    model = _model(network, result, groups, images.recipe)
    if groups.count < outcome.n_clusters:
        warnings.warn(
            f"only {groups.count} of {outcome.n_clusters} clusters are not empty: the features of the images have no"
            " more distinct values (are many images equal?)",
            DeepClusterWarning,
            stacklevel=2,
        )
    baseline: Mapping[str, float] = {}
    if truth is not None and trained.start is not None:
        reduced, clustering = trained.start
        first = groups_of(reduced, clustering, outcome.n_clusters, seed)
        baseline = metrics(truth, place(reduced, first, clustering.centroids))
    model_files.save_in_run(model, folder)
    if outcome.graph:
        folder.write_graph(outcome.graph)
    folder.write_array("features.npy", result.reduced.numpy())
    folder.write_array(LENGTHS, result.lengths.unsqueeze(1).numpy())
    record = replace(
        record.with_phase("result", job.clock.lap()),
        rounds=trained.rounds,
        stopped_because=trained.stopped_because,
        peak_memory_mb=peak_memory_mb(),
        seconds=round_to(job.clock.elapsed(), 2),
    )
    paths = tuple(job.source.paths[i] for i in store.kept)
    rows = Rows(paths=paths, labels=truth, skipped=store.skipped, reduced=result.reduced, lengths=result.lengths)
    record = write_groups(folder, model, model.place(result.reduced), rows, record, baseline)
    folder.write_bytes(report_files.SHEET, sprite_sheet(outcome.thumbnails))
    if job.request.report:
        write_map(folder, result.reduced, seed)
        write_report(folder, job.source, model.groups, result.reduced)
    job.stop.too_late()  # it must not be called stopped when it is done
    record = replace(record, status="done")  # the last thing: a run that was killed before it is not finished
    folder.write_record(record)
    return record


def _model(network: Network, result: Result, groups: Cut, recipe: Recipe) -> Model:
    return Model(
        network=network,
        reduction=result.reduction,
        fine_centroids=result.clustering.centroids,
        groups=groups,
        outlier_distance=outlier_distances(result.reduced, groups),
        outlier_length=outlier_length(result.lengths),
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
        f"{len(rows)} clusters (largest {max(shares):.0%}, smallest {min(shares):.1%}) after {record.rounds} rounds:"
        f" {record.stopped_because}"
    )


def peak_memory_mb() -> int:
    """The most memory that this process has had, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3))
