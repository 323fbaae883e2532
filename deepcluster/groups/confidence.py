"""Are the groups to be trusted? What can be said without labels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from deepcluster.groups.choose_k import ROWS, stability
from deepcluster.groups.cut import ROWS_EACH, cut, place
from deepcluster.groups.neighbour_graph import Graph, inside, neighbour_graph, normalised_cut
from deepcluster.seeding import derive, generator

NEIGHBOURS = 10
LEAST_ROWS = 30
LEAST_EACH = 2  # rows of the sample for each group, on average: of a lone row no neighbour can share the group
# Of the score. Measured on 20 states of runs (docs/decisions.md): from .8 on the groups had an NMI to the labels of .65
# or more, from .6 to .8 of .41 or more, below of .4 or less.
CLEAR, MIXED = 0.8, 0.6
# A factor between numbers of ties. Of twelve trained networks it told the eight that were better from the four that
# were not, as any from 1.28 to 1.5 would have done (docs/decisions.md).
CLEARLY = 1.4
MOST = 1000.0  # times


@dataclass(frozen=True)
class Confidence:
    """Of a sample of the images: ``agreement``, the share of their nearest neighbours that are in their group, 0 as
    chance has it and 1 where all are; ``stability`` and ``silhouette`` as of a candidate (number.py)."""

    agreement: float
    stability: float
    silhouette: float

    @property
    def score(self) -> float:
        """Agreement times stability, which orders runs as the labels do more nearly than either."""
        return self.agreement * self.stability


def confidence_of(reduced: Tensor, cluster: Tensor, *, seed: int = 0) -> Confidence | None:
    """The signs of N x d features (rows of length 1) in the groups ``cluster`` (int64, N).

    None with fewer than two groups or ``LEAST_ROWS`` rows, or with so many groups that the sample has fewer than
    ``LEAST_EACH`` rows for each: of these nothing can be said.
    """
    chosen = torch.randperm(len(reduced), generator=generator(seed, "signs"))[:ROWS]
    rows, groups = reduced[chosen], cluster[chosen]
    count = int(cluster.max()) + 1
    shares = torch.bincount(groups) / len(groups)
    if len(rows) < max(LEAST_ROWS, LEAST_EACH * count) or (shares > 0).sum() < 2:
        return None
    likeness = (rows @ rows.T).fill_diagonal_(-torch.inf)
    nearest = likeness.topk(NEIGHBOURS, 1).indices
    alike = (groups[nearest] == groups.unsqueeze(1)).float().mean().item()
    chance = shares.square().sum().item()
    found = stability(rows, count, derive(seed, "stability"))
    return Confidence((alike - chance) / (1 - chance), *found)


def confidence_text(found: Confidence | None) -> str:
    """A plain sentence on whether the groups are to be trusted."""
    if found is None:
        return "Too few images or groups, or too few images a group, to say whether the groups are to be trusted."
    if found.score >= CLEAR:
        said = "The groups are clear"
    elif found.score >= MIXED:
        said = "The groups are mixed: look at them before you rely on one, above all at the images with a small margin"
    else:
        said = "The groups are weak: take them as a first sorting, not as classes"
    return (
        f"{said} (of an image's nearest neighbours {found.agreement:.0%} beyond chance share its group;"
        f" cuts of samples agree to {found.stability:.2f}, 1 being alike)."
    )


@dataclass(frozen=True)
class Guard:
    """How well a network knew the groups ``before`` it was adapted and ``after``: the share of the ties between
    neighbours, by its features, that are inside the groups; 0 as chance has it, at most 1."""

    before: float
    after: float

    @property
    def kept(self) -> bool:
        """Whether the adapted network is the better one."""
        return self.after >= self.before

    @property
    def text(self) -> str:
        shares = f"{self.after:.1%} of the ties between neighbours are inside the groups, {self.before:.1%} before"
        if self.kept:
            return f"the adapted network is kept: {shares}"
        return f"the network is kept as it was given, and what it learnt counts in the groups alone: {shares}"


@dataclass(frozen=True)
class Clarity:
    """How far the groups ``before`` a network was trained, and those ``after``, tear apart what the other network has
    for neighbours: how many times as many of its ties they cut as that network's own groups do."""

    before: float
    after: float

    @property
    def kept(self) -> bool:
        """Whether the trained network is to be kept: its groups hardly tear, or clearly less than the others do."""
        return self.after <= CLEARLY or self.after * CLEARLY <= self.before

    @property
    def text(self) -> str:
        ties = (
            f"its groups cut {self.after:.1f} times as many ties between neighbours of the network before training as"
            f" that one's own, and {self.before:.1f} times the other way round"
        )
        if self.kept:
            return f"the trained network is kept: {ties}"
        return f"the network before training, and its groups, are taken in place of the trained one: {ties}"


def clarity(before: Tensor, after: Tensor, k: int, seed: int) -> Clarity | None:
    """The judgement on the features of the same images (rows of length 1), N x d and N x D, in ``k`` groups each.

    None where there are too few images to cut, or both networks have collapsed to too few distinct features.
    """
    graphs = [neighbour_graph(rows, derive(seed, "graph")) for rows in (before, after)]
    if any(collapsed := [len(graph.rows) < ROWS_EACH * k for graph in graphs]):
        return None if all(collapsed) else Clarity(*(MOST if each else 1.0 for each in collapsed))
    groups = []
    for rows, graph in zip((before, after), graphs, strict=True):
        found = cut(rows, k, seed=seed, graph=graph)
        groups.append(place(rows, found, found.centroids[:1]).cluster)

    def torn(graph: Graph, by: Tensor, own: Tensor) -> float:
        cut_by, cut_by_own = (max(1 / MOST, 1 - inside(graph, graph.rows, each[graph.rows])) for each in (by, own))
        return cut_by / cut_by_own

    return Clarity(torn(graphs[1], groups[0], groups[1]), torn(graphs[0], groups[1], groups[0]))


def guard(before: Graph, after: Graph, shared: Graph, k: int, seed: int) -> Guard:
    """The judgement by the ``k`` groups of the graph that both have a part in."""
    groups = normalised_cut(shared.ties, k, seed)
    return Guard(*(inside(each, shared.rows, groups) for each in (before, after)))
