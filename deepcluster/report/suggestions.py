"""The numbers of groups that a run without -k came up with, and what each of them would show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deepcluster.groups.merge_tree import Tree, nodes_at
from deepcluster.report.sprite import tile
from deepcluster.report.text import figure

MAX_PICTURES = 12


@dataclass(frozen=True)
class Suggestion:
    """``k`` groups: figures in words, and the largest groups' size and position on the sheet (-1: none) of the image in
    the middle; ``hidden`` groups have no picture here."""

    k: int
    about: str
    groups: list[tuple[int, int]]
    hidden: int


def suggestions(candidates: Sequence[Mapping[str, float]], tree: Tree, images: int) -> list[Suggestion]:
    """The candidates of run.json, the best first, by the cuts of the merge tree; its range may not reach them all."""
    found = []
    for each in candidates:
        k = int(each["k"])
        if not 1 < k <= len(tree.groups):
            continue
        nodes = sorted(nodes_at(len(tree.groups), tree.merges, k), key=lambda node: (-tree.sizes[node], node))
        about = ", ".join(f"{name} {figure(each[name])}" for name in ("silhouette", "stability") if name in each)
        shown = [(tree.sizes[node], tile(tree.medoids[node], images)) for node in nodes[:MAX_PICTURES]]
        found.append(Suggestion(k, about, shown, len(nodes) - len(shown)))
    return found
