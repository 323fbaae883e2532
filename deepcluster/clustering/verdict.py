"""Are the groups to be trusted? What can be said without labels."""

from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor

from deepcluster.clustering.cut import ROWS_EACH, cut, place
from deepcluster.clustering.graph import Graph, inside, neighbour_graph, normalised_cut
from deepcluster.clustering.number import ROWS, stability
from deepcluster.seeding import derive, generator

NEIGHBOURS = 10
LEAST_ROWS = 30
# Of the score. Measured on 20 states of runs (docs/decisions.md): from .8 on the groups had an NMI to the labels of .65
# or more, from .6 to .8 of .41 or more, below of .4 or less.
CLEAR, MIXED = 0.8, 0.6
# By how much the groups of an untrained network must explain the ties better to be taken. Those of seven trained
# networks that were better were from .002 behind to .043 ahead, of three worse ones .018 to .082 behind
# (docs/decisions.md).
CLEARLY = 0.01


@dataclass(frozen=True)
class Signs:
    """Of a sample of the images: ``agreement``, the share of their nearest neighbours that are in their group, 0 as
    chance has it and 1 where all are; ``stability`` and ``silhouette`` as of a candidate (number.py)."""

    agreement: float
    stability: float
    silhouette: float

    @property
    def score(self) -> float:
        """Agreement times stability, which orders runs as the labels do more nearly than either."""
        return self.agreement * self.stability


def signs(reduced: Tensor, cluster: Tensor, *, seed: int = 0) -> Signs | None:
    """The signs of N x d features (rows of length 1) in the groups ``cluster`` (int64, N).

    None with fewer than two groups or ``LEAST_ROWS`` rows, of which nothing can be said.
    """
    chosen = torch.randperm(len(reduced), generator=generator(seed, "signs"))[:ROWS]
    rows, groups = reduced[chosen], cluster[chosen]
    shares = torch.bincount(groups) / len(groups)
    if len(rows) < LEAST_ROWS or (shares > 0).sum() < 2:
        return None
    likeness = (rows @ rows.T).fill_diagonal_(-torch.inf)
    nearest = likeness.topk(NEIGHBOURS, 1).indices
    alike = (groups[nearest] == groups.unsqueeze(1)).float().mean().item()
    chance = shares.square().sum().item()
    found = stability(rows, int(cluster.max()) + 1, derive(seed, "stability"))
    return Signs((alike - chance) / (1 - chance), *found)


def verdict(found: Signs | None) -> str:
    """A plain sentence on whether the groups are to be trusted."""
    if found is None:
        return "Too few images or groups to say whether the groups are to be trusted."
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
    """Of the groups by the features ``before`` a network was trained, and of those by the features ``after``: the share
    of the ties between neighbours that is inside them, the mean of that of both networks' ties; 0 as chance has it."""

    before: float
    after: float

    @property
    def kept(self) -> bool:
        """Whether the trained network is to be kept: its groups are not clearly the worse ones."""
        return self.after >= self.before - CLEARLY

    @property
    def text(self) -> str:
        shares = (
            "of the ties between neighbours, by the network before and after,"
            f" {self.after:.1%} are inside its groups, {self.before:.1%} inside those before training"
        )
        if self.kept:
            return f"the trained network is kept: {shares}"
        return f"the network before training, and its groups, are taken: {shares}"


def clarity(before: Tensor, after: Tensor, k: int, seed: int) -> Clarity | None:
    """The judgement on the features of the same images (rows of length 1), N x d and N x D, in ``k`` groups each.

    A network whose features have collapsed to too few distinct ones to cut has a share of 0; None where both have.
    """
    graphs = [neighbour_graph(rows, derive(seed, "graph")) for rows in (before, after)]
    if any(collapsed := [len(graph.rows) < ROWS_EACH * k for graph in graphs]):
        return None if all(collapsed) else Clarity(float(collapsed[1]), float(collapsed[0]))
    shares = []
    for rows, graph in zip((before, after), graphs, strict=True):
        groups = cut(rows, k, seed=seed, graph=graph)
        own = place(rows, groups, groups.centroids[:1]).cluster
        shares.append(mean(inside(each, each.rows, own[each.rows]) for each in graphs))
    return Clarity(*shares)


def guard(before: Graph, after: Graph, shared: Graph, k: int, seed: int) -> Guard:
    """The judgement by the ``k`` groups of the graph that both have a part in."""
    groups = normalised_cut(shared.ties, k, seed)
    return Guard(*(inside(each, shared.rows, groups) for each in (before, after)))
