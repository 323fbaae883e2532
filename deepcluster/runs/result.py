"""The result of a run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from deepcluster.clustering.agreement import NMI_AVERAGE, scores
from deepcluster.clustering.kmeans import means
from deepcluster.groups.choose_k import plausible_numbers
from deepcluster.groups.tree import medoids_of
from deepcluster.recipes.options import Recipe
from deepcluster.runs.run import Rows, Run, placement_columns
from deepcluster.runtime.console import Display
from deepcluster.seeding import derive
from deepcluster.storage.content import FILES, Row, Table, Tables
from deepcluster.texts import number, plural


@dataclass(frozen=True)
class Outcome(Tables):
    """Everything that a run's views say about its clusters."""

    run: Run


def describe(run: Run) -> Outcome:
    """Describe the clusters of a run, for its views."""
    record, rows = run.record, run.rows
    measures: dict[str, Any] = {}
    if truth := rows.labels:
        baseline = {f"baseline_{name}": value for name, value in (record.baseline or {}).items()}
        labelled = sum(map(bool, truth))
        measured = metrics(truth, run.placement.cluster)
        measures = {**measured, **baseline, "nmi_average": NMI_AVERAGE, "labelled": labelled}
    return Outcome(
        record=record,
        facts=run.facts,
        clusters=clusters_table(run),
        summary=summary_rows(run),
        metrics=measures,
        quality=run.quality,
        run=run,
    )


def clusters_table(run: Run) -> Table:
    """Return the rows of clusters.csv."""
    rows, placed = run.rows, run.model.placed
    used: dict[str, Iterable[object]] = {
        **rows.images.used.columns,
        "by": [placed.get(row, "") for row in range(len(rows.paths))],
        "label": rows.labels or [""] * len(rows.paths),
        **placement_columns(run.model, run.placement, rows.residuals, stored=run.clusters),
    }
    blank = [""] * len(rows.images.skipped)
    skipped = {"path": [*rows.images.skipped], "status": ["skipped"] * len(blank)}
    columns = FILES["clusters.csv"].columns
    return Table.of_columns({name: chain(used[name], skipped.get(name, blank)) for name in columns})


def metrics(truth: Sequence[str], cluster: Tensor) -> dict[str, float]:
    """Measure clusters (int64) against true labels ("": none)."""
    labels, known = label_numbers(truth)
    return {name: round(float(value), 5) for name, value in scores(labels[known], cluster[known]).items()}


def label_numbers(truth: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return numbers in the place of labels (int64), and a mask of the labels that are not empty."""
    number = {label: i for i, label in enumerate(sorted({*truth}))}
    codes = torch.tensor([number[label] for label in truth], dtype=torch.int64)
    return codes, torch.tensor([bool(label) for label in truth], dtype=torch.bool)


def summary_rows(run: Run) -> list[dict[str, str]]:
    """Return the rows of cluster_summary.csv, in which rejected images do not count."""
    model, rows, cut = run.model, run.rows, run.model.cut
    placed = torch.nonzero(run.clusters >= 0).flatten()
    reduced, cluster = rows.reduced[placed], run.clusters[placed]
    sizes = torch.bincount(cluster, minlength=cut.count).tolist()
    zeros = torch.zeros(cut.count, dtype=torch.float64)  # bincount with weights returns integers for no rows at all
    distances = zeros.index_add(0, cluster, run.placement.distance[placed].double()).tolist()
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
            "medoid_path": rows.paths[placed[medoids[number]]] if sizes[number] else "",
            "junk": str(int(number in model.junk)),
        }
        for number in present
    ]


def choose_number(
    n_clusters: int | None, rows: Rows, seed: int, recipe: Recipe, nouns: Sequence[Row], display: Display
) -> tuple[int, Sequence[Mapping[str, Any]]]:
    """Return the number of clusters and, without a requested one, the candidates for it.

    ``nouns``: Rows of nouns.csv.
    """
    if n_clusters is not None:
        return n_clusters, ()
    shared = recipe.grouping == "layout"
    seen = [(row["noun"], number(row["probability"]) or 0.0) for row in nouns]
    seed = derive(seed, "groups")
    plausible = plausible_numbers(rows.sample, seen, seed=seed, shared=shared, layouts=rows.layouts)
    if not plausible:
        return 1, ()
    texts = (f"{candidate.k} clusters: silhouette {candidate.silhouette:.2f}" for candidate in plausible)
    display.say("Clusters", "; ".join(texts))
    return plausible[0].k, [asdict(candidate) for candidate in plausible]


def summary_text(outcome: Outcome, n_clusters: int | None, rounds: str = "") -> str:
    """Return sentences on the clusters: sizes, ``rounds``, and other numbers, if ``n_clusters`` is None."""
    sizes = [int(row["size"]) for row in outcome.summary]
    text = f"{plural(len(sizes), 'cluster')} of {min(sizes):,} to {max(sizes):,} images{rounds}."
    numbers = [int(candidate["k"]) for candidate in outcome.facts.candidates]
    if n_clusters is not None or len(numbers) < 2:
        return text
    words = ("half" if k < numbers[0] else "twice" if k < 3 * numbers[0] else "four times" for k in numbers[1:])
    others = ", ".join(f"{word} as many ({k})" for word, k in zip(words, numbers[1:], strict=True))
    return f"{text} Their number is a guess; try also {others}."
