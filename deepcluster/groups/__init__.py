"""From final features to the clusters a person sees: neighbour graph, cut, merge tree, choice of k, confidence, map."""

from deepcluster.groups.choose_k import candidates
from deepcluster.groups.confidence import confidence_of
from deepcluster.groups.cut import Cut, Placement, cut, place
from deepcluster.groups.map2d import layout
from deepcluster.groups.merge_tree import Tree, merge_tree
from deepcluster.groups.neighbour_graph import Graph, neighbour_graph

__all__ = [
    "Cut",
    "Graph",
    "Placement",
    "Tree",
    "candidates",
    "confidence_of",
    "cut",
    "layout",
    "merge_tree",
    "neighbour_graph",
    "place",
]
