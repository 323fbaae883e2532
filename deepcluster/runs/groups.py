"""How many groups, and which: the cut of the final features."""

from dataclasses import asdict, replace

import torch
from torch import Tensor

from deepcluster.groups.choose_k import candidates
from deepcluster.groups.cut import Cut, Placement, as_groups, cut, place
from deepcluster.recipe import Recipe
from deepcluster.records import Clustering
from deepcluster.runs.build import kmeans_of_result
from deepcluster.runs.sample import Sample
from deepcluster.runtime.display import Display
from deepcluster.runtime.partition import Partition
from deepcluster.seeding import derive
from deepcluster.storage.csv_rows import round_to
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


def placed(
    groups: Cut, reduced: Tensor, fine_centroids: Tensor, sample: Sample, partition: Partition, added: int = 0
) -> tuple[Cut, Placement]:
    """Where groups of a ``sample`` put this rank's rows; the groups get their numbers by the sizes that come of it.

    added: The last rows, which no sample has.
    """
    placement = place(reduced, groups, fine_centroids)
    if len(sample.rows) == partition.total - added:  # they have them
        return groups, placement
    sizes = partition.processes.all_reduce(torch.bincount(placement.cluster, minlength=groups.count))
    number = torch.argsort(torch.argsort(sizes, descending=True, stable=True))
    numbered = replace(placement, cluster=number[placement.cluster])
    return Cut(groups.centroids, number[groups.groups]), numbered


def choose_number(
    n_clusters: int | None, reduced: Tensor, record: RunRecord, display: Display
) -> tuple[int, RunRecord]:
    """The number of groups by the features of a sample, and run.json with the candidates where none was asked for."""
    if n_clusters is not None:
        return n_clusters, record
    found = candidates(reduced, seed=derive(record.seed, "number of groups"))
    figures = [{name: round_to(value, 4) for name, value in asdict(each).items()} for each in found]
    record = replace(record, candidates=figures)
    if not found:
        return 1, record
    texts = [f"{each.k} (stability {each.stability:.2f}, silhouette {each.silhouette:.2f})" for each in found]
    others = f"; also plausible: {', '.join(texts[1:])}: deepcluster recut RUN -k N" if texts[1:] else ""
    display.say("Groups", f"{texts[0]} is a guess, by how far groups are apart and hold together{others}")
    return found[0].k, record
