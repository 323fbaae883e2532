"""How many groups, and which: the cut of the final features."""

from dataclasses import asdict, replace

from torch import Tensor

from deepcluster.groups.choose_k import candidates
from deepcluster.groups.consensus import consensus_cut
from deepcluster.groups.cut import Cut, as_groups, cut
from deepcluster.groups.neighbour_graph import Graph, normalised_cut
from deepcluster.records import Clustering
from deepcluster.runtime.display import Display
from deepcluster.seeding import derive
from deepcluster.storage.csv_rows import round_to
from deepcluster.storage.run_record import RunRecord

MOST_IN_CUT = 1000  # groups, where k-means has made them already: the eigenvectors of more take too long


def groups_of(
    reduced: Tensor, fine: Clustering, n_clusters: int, seed: int, grouping: str, graph: Graph | None = None
) -> Cut:
    """Groups of the features, or of a ``graph`` of the images, by the option ``grouping``. Very many would take longer
    than a run: then they are the last clustering itself, if that has as many."""
    if n_clusters > MOST_IN_CUT and len(fine.centroids) == n_clusters:
        return as_groups(fine)
    parts_of = consensus_cut if grouping == "consensus" else normalised_cut
    return cut(reduced, n_clusters, seed=derive(seed, "groups"), graph=graph, parts_of=parts_of)


def choose_number(
    n_clusters: int | None, reduced: Tensor, record: RunRecord, display: Display
) -> tuple[int, RunRecord]:
    """The number of groups, and run.json with the candidates where none was asked for."""
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
