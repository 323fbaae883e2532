"""Are the groups to be trusted? What can be said without labels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from deepcluster.clustering.cut import cut, place
from deepcluster.clustering.graph import Graph, inside, normalised_cut
from deepcluster.clustering.number import ROWS, stability
from deepcluster.seeding import derive, generator

NEIGHBOURS = 10
LEAST_ROWS = 30
LEAST_EACH = 2  # rows of the sample for each group, on average: of a lone row no neighbour can share the group
# Of the score. Measured on 20 states of runs (docs/decisions.md): from .8 on the groups had an NMI to the labels of .65
# or more, from .6 to .8 of .41 or more, below of .4 or less.
CLEAR, MIXED = 0.8, 0.6
# How much clearer the groups of an untrained network must be to be taken. Below, the score does not order two networks
# (CIFAR-10: .38 before training and .37 after, NMI .10 and .27).
CLEARLY = 0.05


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
    return Signs((alike - chance) / (1 - chance), *found)


def verdict(found: Signs | None) -> str:
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
    """The scores of the groups of one sample of the images, by the features ``before`` a network was trained and
    ``after``."""

    before: float
    after: float

    @property
    def kept(self) -> bool:
        """Whether the trained network is to be kept: it is not clearly the worse one."""
        return self.after >= self.before - CLEARLY

    @property
    def text(self) -> str:
        scores = f"agreement times stability of its groups is {self.after:.2f}, {self.before:.2f} before training"
        if self.kept:
            return f"the trained network is kept: {scores}"
        return f"training made the groups less clear, so those of the network before it are taken: {scores}"


def clarity(before: Tensor, after: Tensor, k: int, seed: int) -> Clarity | None:
    """The judgement on N x d features of the same images (rows of length 1) in ``k`` groups each; None of too few.
    Features that have collapsed into one group have a score of 0."""
    if len(before) < LEAST_ROWS:
        return None
    found = []
    for rows in (before, after):
        groups = cut(rows, k, seed=derive(seed, "cut"))
        told = signs(rows, place(rows, groups, groups.centroids[:1]).cluster, seed=derive(seed, "signs"))
        found.append(told.score if told else 0.0)
    return Clarity(*found)


def guard(before: Graph, after: Graph, shared: Graph, k: int, seed: int) -> Guard:
    """The judgement by the ``k`` groups of the graph that both have a part in."""
    groups = normalised_cut(shared.ties, k, seed)
    return Guard(*(inside(each, shared.rows, groups) for each in (before, after)))
