"""The result of a run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from deepcluster.build import MAX_IN_CUT
from deepcluster.clustering.agreement import NMI_AVERAGE, scores
from deepcluster.clustering.kmeans import means
from deepcluster.groups.choose_k import plausible_numbers, stability
from deepcluster.groups.cut import Placement
from deepcluster.groups.tree import medoids_of
from deepcluster.model import Model
from deepcluster.recipe import Recipe
from deepcluster.runs.quality import estimated_quality
from deepcluster.runs.run import Rows, Run, placement_columns
from deepcluster.runtime.console import Display
from deepcluster.seeding import derive
from deepcluster.storage import model_files, run_folder
from deepcluster.storage.content import FILES, RunRecord, Table, Tables
from deepcluster.storage.steps import FORMER
from deepcluster.texts import agreement, plural


@dataclass(frozen=True)
class Outcome(Tables):
    """Everything that a run's files say about its clusters."""

    model: Model
    rows: Rows
    centroid: Tensor  # the nearest centroids of the cut


def describe(run: Run, placement: Placement, recipe: Recipe, baseline: Mapping[str, float]) -> Outcome:
    """Describe the clusters of a run, by the places of its rows.

    Its run.json is not complete, and has a ``cut`` if the images of that cut keep their clusters. ``baseline`` has the
    metrics before the rounds, and is empty if they are not known.
    """
    record, model, rows = run.record, run.model, run.rows
    truth = rows.labels
    summary = summary_rows(model, rows, placement)
    measured = metrics(truth, placement.cluster) if truth and any(truth) else {}
    clusters = clusters_table(model, rows, placement)
    digest = run_folder.rows_sha256(clusters)
    record = replace(
        record,
        cut=record.cut or digest[:16],  # edits are for this assignment, and for no later one
        rows_sha256=digest,
        clusters=len(summary),
        quality=estimated_quality(model, placement.cluster, rows.fitted),
        **stability_entries(rows, record, recipe, len(summary)),
    )
    measures: dict[str, Any] = {}
    if measured:
        first = baseline or ({**measured, "clusters": len(summary)} if record.rounds == 0 else {})
        at_start = {f"baseline_{name}": int(value) if name == "clusters" else value for name, value in first.items()}
        labelled = sum(map(bool, truth or ()))
        measures = {**measured, **at_start, "nmi_average": NMI_AVERAGE, "labelled": labelled}
    return Outcome(record, clusters, summary, measures, model, rows, placement.centroid)


def clusters_table(model: Model, rows: Rows, placement: Placement) -> Table:
    """Return the rows of clusters.csv."""
    used: dict[str, Iterable[object]] = {
        "path": rows.paths,
        "status": ["ok"] * len(rows.paths),
        "by": model.decided_by(len(rows.paths)),
        "label": rows.labels or [""] * len(rows.paths),
        **placement_columns(model, placement, rows.residuals, stored=True),
    }
    rest = [""] * len(rows.skipped)
    skipped = {"path": [path for path, _ in rows.skipped], "status": ["skipped"] * len(rest)}
    columns = FILES["clusters.csv"].columns
    return Table.of_columns({name: chain(used[name], skipped.get(name, rest)) for name in columns})


def first_metrics(measures: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of the clusters before the rounds, which metrics.json has as baseline."""
    return {name.removeprefix("baseline_"): value for name, value in measures.items() if name.startswith("baseline_")}


def metrics(truth: Sequence[str], cluster: Tensor) -> dict[str, float]:
    """Measure clusters (int64) against true labels ("": none)."""
    labels, known = label_numbers(truth, sorted(set(truth)))
    return {name: round(float(value), 5) for name, value in scores(labels[known], cluster[known]).items()}


def label_numbers(truth: Sequence[str], words: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return the numbers of labels among the ``words`` (int64), and a mask of the words that are not empty."""
    number = {label: i for i, label in enumerate(words)}
    codes = torch.tensor([number[label] for label in truth], dtype=torch.int64)
    return codes, torch.tensor([bool(label) for label in words], dtype=torch.bool)[codes]


def summary_rows(model: Model, rows: Rows, placement: Placement) -> list[dict[str, str]]:
    """Return the rows of cluster_summary.csv. Arguments as in :func:`describe`."""
    cut = model.cut
    reduced = rows.reduced
    cluster = placement.cluster
    sizes = torch.bincount(cluster, minlength=cut.count).tolist()
    zeros = torch.zeros(cut.count, dtype=torch.float64)  # bincount with weights returns integers for no rows at all
    distances = zeros.index_add(0, cluster, placement.distance.double()).tolist()
    # Each is of all images of a cluster, which may have many centroids.
    cluster_means = means(reduced, cluster, cut.count)
    medoids = medoids_of(cluster_means, reduced, cluster).tolist()
    between = torch.cdist(cluster_means, cluster_means).fill_diagonal_(torch.inf)
    present = cut.cluster_of.unique().tolist()
    between[:, [number for number in range(cut.count) if number not in present]] = torch.inf
    return [
        {
            "cluster": str(number),
            "name": model.names[number],
            "size": str(sizes[number]),
            "share": f"{sizes[number] / len(reduced):.6f}",
            "mean_distance": f"{distances[number] / sizes[number]:.6f}" if sizes[number] else "",
            "nearest_cluster": str(between[number].argmin().item()) if len(present) > 1 else "",
            "medoid_path": rows.paths[medoids[number]] if sizes[number] else "",
            "junk": str(int(number in model.junk)),
        }
        for number in present
    ]


# ---- how many clusters -----------------------------------------------------------------------------------------------


def choose_number(
    n_clusters: int | None, rows: Rows, record: RunRecord, recipe: Recipe, display: Display
) -> tuple[int, RunRecord]:
    """Return the number of clusters and, without a requested one, run.json with the candidates for it."""
    if n_clusters is not None:
        return n_clusters, record
    seed = derive(record.seed, "groups")
    shared = recipe.grouping == "embedding"
    plausible = plausible_numbers(rows.sample, seed=seed, shared=shared, embed=rows.embeddings)
    record = replace(record, candidates=[asdict(candidate) for candidate in plausible])
    if not plausible:
        return 1, record
    texts = (f"{candidate.k} clusters: silhouette {candidate.silhouette:.2f}" for candidate in plausible)
    display.say("Clusters", "; ".join(texts))
    return plausible[0].k, record


def stability_entries(rows: Rows, record: RunRecord, recipe: Recipe, n_clusters: int) -> dict[str, Any]:
    """Return the entries of run.json on the stability of the clusters."""
    if record.verdict is not None:  # it is still true: the images keep their clusters
        return {}
    if record.edits is not None:
        return {"stability": None, "verdict": "The clusters are as you edited them. Their stability is not measured."}
    stable = None
    if n_clusters <= MAX_IN_CUT:
        seed = derive(record.seed, "groups")
        by_kmeans = recipe.grouping == "kmeans"
        stable = stability(rows.sample, n_clusters, seed=seed, by_kmeans=by_kmeans, embed=rows.embeddings)
    if stable is None:
        verdict = f"{plural(rows.fitted, 'image')} are too few to tell how stable {plural(n_clusters, 'cluster')} are."
        return {"stability": None, "verdict": verdict}
    verdict = (
        "Look at the report to see if these are the clusters that you want. Stability"
        f" {agreement(stable)}: how alike the clusters of two samples of your images are (1 is identical). It does not"
        " say how many images are in the right cluster."
    )
    return {"stability": round(float(stable), 4), "verdict": verdict}


# ---- written --------------------------------------------------------------------------------------------------------


def write_outcome(folder: run_folder.LockedFolder, outcome: Outcome, before: Run | None = None) -> None:
    """Write an outcome into a run, and remove files of an earlier outcome that do not apply.

    ``before``: The run that it changes, whose features or model stay if they are the same; None: it is of a fit.
    """
    rows = outcome.rows
    record = outcome.record
    if before is None:
        for name in (FORMER, "map.npy"):
            folder.remove(name)
    if before is None or rows is not before.rows:
        folder.write_blocks("features.npy", tuple(rows.reduced.shape), [rows.reduced])
        folder.write_blocks("residuals.npy", (len(rows.reduced), 1), [rows.residuals.unsqueeze(1)])
    folder.write_rows("clusters.csv", outcome.clusters)
    folder.write_rows("cluster_summary.csv", outcome.summary)
    if outcome.metrics:
        folder.write_json("metrics.json", outcome.metrics)
    else:
        folder.remove("metrics.json")
    if rows.embeddings.known:
        folder.write_tensors(model_files.EMBEDDINGS, rows.embeddings.known)
    else:
        folder.remove(model_files.EMBEDDINGS)
    folder.write_record(record)
    if before is None or outcome.model is not before.model:
        model_files.save_in_run(outcome.model, folder, record, network=before is None)


def summary_text(outcome: Outcome, n_clusters: int | None, rounds: str = "") -> str:
    """Return sentences on the clusters: sizes, ``rounds``, and other numbers, if ``n_clusters`` is None."""
    sizes = [int(row["size"]) for row in outcome.summary]
    text = f"{plural(len(sizes), 'cluster')} of {min(sizes):,} to {max(sizes):,} images{rounds}."
    others = [str(candidate["k"]) for candidate in (outcome.record.candidates or ())[1:]]
    if n_clusters is not None or not others:
        return text
    return f"{text} Their number is a guess: {' or '.join(others)} {'is' if len(others) == 1 else 'are'} possible too."
