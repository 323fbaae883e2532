"""From final features to the clusters a person sees: graph, embedding, cut, merge tree, choice of k, confidence."""

from deepcluster.groups.choose_k import candidates
from deepcluster.groups.confidence import confidence_of
from deepcluster.groups.cut import Cut, Placement, cut, place
from deepcluster.groups.embedding import layout
from deepcluster.groups.merge_tree import Tree, merge_tree

__all__ = [
    "Cut",
    "Placement",
    "Tree",
    "candidates",
    "confidence_of",
    "cut",
    "layout",
    "merge_tree",
    "place",
]
