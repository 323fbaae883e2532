"""The numbers of groups that a run without -k came up with, and what each of them would show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


def suggestions(candidates: Sequence[Mapping[str, Any]], tree: Tree, images: int) -> list[Suggestion]:
    """Return the candidates of run.json, the best first, by the cuts of the merge tree; it may not reach them all."""
    suggested = []
    for candidate in candidates:
        k = int(candidate["k"])
        if not 1 < k <= len(tree.groups):
            continue
        nodes = sorted(nodes_at(len(tree.groups), tree.merges, k), key=lambda node: (-tree.sizes[node], node))
        about = f"silhouette {figure(candidate['silhouette'])}"
        if candidate.get("stability") is not None:
            about += f", stability {max(0.0, candidate['stability']):.0%}"
        shown = [(tree.sizes[node], tile(tree.medoids[node], images)) for node in nodes[:MAX_PICTURES]]
        suggested.append(Suggestion(k, about, shown, len(nodes) - len(shown)))
    return suggested
