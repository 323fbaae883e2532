"""How many groups, and which: the cut of the final features."""

from dataclasses import asdict, replace

import torch
from torch import Tensor

from deepcluster.clustering.kmeans import best_of
from deepcluster.groups.choose_k import Candidate, CutRows, candidates, cut_once, stability
from deepcluster.groups.cut import Cut, Placement, as_groups, cut, place
from deepcluster.recipe import Recipe
from deepcluster.records import Clustering
from deepcluster.report.text import agreement
from deepcluster.runs.build import kmeans_of_result
from deepcluster.runs.rows import Sample
from deepcluster.runtime.console import Display
from deepcluster.runtime.partition import Partition
from deepcluster.seeding import derive
from deepcluster.storage.run_record import RunRecord

MAX_IN_CUT = 1000  # groups: k-means with more takes too long for several starts
STARTS = 10  # of k-means; the best counts


def groups_of(reduced: Tensor, fine: Clustering, n_clusters: int, seed: int, recipe: Recipe) -> Cut:
    """Cut the features of a sample. By k-means, or if very many, the groups may be the clusters of ``fine``."""
    few, by_kmeans = n_clusters <= MAX_IN_CUT, recipe.grouping == "kmeans"
    if len(fine.centroids) == n_clusters and (by_kmeans or not few):
        return as_groups(fine)
    if not by_kmeans:
        return cut(reduced, n_clusters, seed=derive(seed, "groups"))
    kmeans, partition = kmeans_of_result(recipe), Partition.single(len(reduced))
    starts = (derive(seed, "groups", start) for start in range(STARTS if few else 1))
    clusterings = (kmeans.exact(reduced, n_clusters, start, partition) for start in starts)
    return as_groups(min(clusterings, key=lambda clustering: clustering.inertia))


def place_rows(
    groups: Cut, reduced: Tensor, fine_centroids: Tensor, sample: Sample, partition: Partition, added: int = 0
) -> tuple[Cut, Placement]:
    """Place this rank's rows in groups of a ``sample``, and number the groups by their sizes. A collective.

    added: Number of rows added by `update` (the last ones), which no sample has.
    """
    placement = place(reduced, groups, fine_centroids)
    if len(sample.rows) == partition.total - added:  # they are numbered already
        return groups, placement
    sizes = partition.processes.all_reduce(torch.bincount(placement.cluster, minlength=groups.count))
    number = torch.argsort(torch.argsort(sizes, descending=True, stable=True))
    numbered = replace(placement, cluster=number[placement.cluster])
    return Cut(groups.centroids, number[groups.groups]), numbered


def choose_number(
    n_clusters: int | None, reduced: Tensor, record: RunRecord, recipe: Recipe, display: Display
) -> tuple[int, RunRecord]:
    """Return the number of groups and, if none was asked for, run.json with the candidates for it."""
    if n_clusters is not None:
        return n_clusters, record
    seed = derive(record.seed, "number of groups")
    plausible = candidates(reduced, seed=seed, cut_rows=_cut_of(recipe))
    figures = [
        {name: None if value is None else round(float(value), 4) for name, value in asdict(candidate).items()}
        for candidate in plausible
    ]
    record = replace(record, candidates=figures)
    if not plausible:
        return 1, record
    for i, candidate in enumerate(plausible):
        display.say("" if i else "Groups", _line(candidate) + " (taken: a guess)" * (not i))
    return plausible[0].k, record


def _line(candidate: Candidate) -> str:
    stable = "" if candidate.stability is None else f", stability {agreement(candidate.stability)}"
    return f"{candidate.k:2} groups: silhouette {candidate.silhouette:.2f}{stable}"


def _cut_of(recipe: Recipe) -> CutRows:
    """Return the cut whose stability is measured: that of the recipe's groups, with fewer starts."""
    if recipe.grouping == "kmeans":
        return lambda rows, k, seed: as_groups(best_of(STARTS, rows, k, seed))
    return cut_once


def stability_of(reduced: Tensor, record: RunRecord, recipe: Recipe, n_clusters: int) -> float | None:
    """Return the stability of ``n_clusters`` groups: the candidate's, or else measured in the same way."""
    for candidate in record.candidates or ():
        if candidate["k"] == n_clusters:
            known: float | None = candidate["stability"]
            return known
    if n_clusters > MAX_IN_CUT:
        return None
    return stability(reduced, n_clusters, seed=derive(record.seed, "number of groups"), cut_rows=_cut_of(recipe))
