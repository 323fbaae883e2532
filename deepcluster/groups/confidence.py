"""Can the groups be trusted? What can be said without labels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from deepcluster.clustering.nearest import nearest
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
HARDLY = 1.4  # times as many ties cut: groups of one network that are real in the other, too
MOST = 1000.0  # times


@dataclass(frozen=True)
class Confidence:
    """How clear the groups are, by a sample of the images.

    agreement: The share of nearest neighbours that are in one group; 0: as by chance, 1: all.
    stability: How well the cuts of several samples agree, at most 1 (choose_k.py).
    silhouette: -1 to 1 (choose_k.py).
    """

    agreement: float
    stability: float
    silhouette: float

    @property
    def score(self) -> float:
        """Agreement times stability: it orders runs more nearly as true labels do than either of them."""
        return self.agreement * self.stability

    @property
    def word(self) -> str:
        return "clear" if self.score >= CLEAR else "mixed" if self.score >= MIXED else "weak"


def confidence_of(reduced: Tensor, cluster: Tensor, *, seed: int = 0) -> Confidence | None:
    """The confidence in the groups ``cluster`` (int64, N) of N x d features (rows of length 1).

    None where nothing can be said: with fewer than two groups, with fewer than ``LEAST_ROWS`` rows, or with so many
    groups that the sample has fewer than ``LEAST_EACH`` rows for each.
    """
    chosen = torch.randperm(len(reduced), generator=generator(seed, "signs"))[:ROWS]
    rows, groups = reduced[chosen], cluster[chosen]
    count = int(cluster.max()) + 1
    shares = torch.bincount(groups) / len(groups)
    if len(rows) < max(LEAST_ROWS, LEAST_EACH * count) or (shares > 0).sum() < 2:
        return None
    _, neighbours = nearest(rows, NEIGHBOURS)
    same_group = (groups[neighbours] == groups.unsqueeze(1)).float().mean().item()
    chance = shares.square().sum().item()
    return Confidence((same_group - chance) / (1 - chance), *stability(rows, count, derive(seed, "stability")))


def confidence_text(confidence: Confidence | None) -> str:
    """Whether the groups can be trusted, in a plain sentence."""
    if confidence is None:
        return "Too few images or groups, or too few images a group, to say whether the groups can be trusted."
    advice = {
        "clear": "",
        "mixed": ": look at them before you rely on one, above all at images with a small margin",
        "weak": ": take them as a first sorting, not as classes",
    }[confidence.word]
    return (
        f"The groups are {confidence.word}{advice} (beyond chance {confidence.agreement:.0%} of nearest neighbours"
        f" share a group; stability {confidence.stability:.2f} of 1)."
    )


@dataclass(frozen=True)
class Guard:
    """How well a network fits the groups ``before`` it was adapted and ``after``.

    By the share of the ties between neighbours, in its features, that are inside the groups: 0 by chance, at most 1.
    """

    before: float
    after: float

    @property
    def kept(self) -> bool:
        """Whether the adapted network is the better one."""
        return self.after >= self.before

    @property
    def text(self) -> str:
        shares = f"(neighbours in one group, beyond chance: {self.after:.1%}; before: {self.before:.1%})"
        return f"{'adapted network kept' if self.kept else 'pretrained network kept, the groups use both'} {shares}"


@dataclass(frozen=True)
class Clarity:
    """How far the groups of one network tear apart what are neighbours to the other.

    How many times as many ties between neighbours they cut as that other network's own groups do.

    before: The groups before training, in the features of the trained network.
    after: The groups after training, in the features of the network before training.
    """

    before: float
    after: float

    @property
    def kept(self) -> bool:
        """Whether to keep the trained network: its groups hardly tear, or no more than the others do.

        No margin in favour of the untrained network: of 50,000 images of CIFAR-10 good groups tear 2.4 times and the
        untrained network's 2.7 times, and the wrong choice costs most of the result (docs/decisions.md).
        """
        return self.after <= max(HARDLY, self.before)

    @property
    def text(self) -> str:
        if self.kept:
            return (
                f"trained network kept (neighbours torn apart: {self.after:.1f}; by the groups before training:"
                f" {self.before:.1f})"
            )
        return (
            f"network before training kept (neighbours torn apart: {self.before:.1f}; by the trained one's groups:"
            f" {self.after:.1f})"
        )


def clarity(before: Tensor, after: Tensor, k: int, seed: int) -> Clarity | None:
    """The judgement on the features of the same images, cut into ``k`` groups each.

    Args:
        before: N x d features before training, rows of length 1.
        after: N x D features after training, rows of length 1.
        k: The number of groups.
        seed: For the graphs and the cuts.

    Returns:
        None where there are too few images to cut, or both networks have collapsed to too few distinct features.
    """
    graphs = [neighbour_graph(rows, derive(seed, "graph")) for rows in (before, after)]
    if any(collapsed := [len(graph.rows) < ROWS_EACH * k for graph in graphs]):
        return None if all(collapsed) else Clarity(*(MOST if each else 1.0 for each in collapsed))
    groups = []
    for rows, graph in zip((before, after), graphs, strict=True):
        parts = cut(rows, k, seed=seed, graph=graph)
        groups.append(place(rows, parts, parts.centroids[:1]).cluster)

    def torn(graph: Graph, foreign: Tensor, native: Tensor) -> float:
        by_foreign, by_native = (
            max(1 / MOST, 1 - inside(graph, graph.rows, each[graph.rows])) for each in (foreign, native)
        )
        return by_foreign / by_native

    return Clarity(torn(graphs[1], groups[0], groups[1]), torn(graphs[0], groups[1], groups[0]))


def guard(before: Graph, after: Graph, shared: Graph, k: int, seed: int) -> Guard:
    """The judgement by the ``k`` groups of the graph that both have a part in."""
    groups = normalised_cut(shared.ties, k, seed)
    return Guard(*(inside(each, shared.rows, groups) for each in (before, after)))
