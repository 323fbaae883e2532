"""The parts that one group can be split into: the branches below it in the merge tree, down to its centroids."""

from dataclasses import dataclass

import torch
from torch import Tensor

from deepcluster.groups.cut import Cut
from deepcluster.groups.merge_tree import Merge, nodes_at, numbered, ward

MOST_PARTS = 12  # more are no longer told apart at a glance


@dataclass(frozen=True)
class Parts:
    """P parts of a group, the finest that are offered, and the order in which they merge.

    Attributes:
        of_centroid: The part of each centroid of the cut (int64, M); -1: it belongs to another group.
        sizes: The number of images of the fit in each part (P), by which the parts are ordered.
        images: The number of all images in each, those that came after the fit too.
        merges: ``merges[j]`` joins two nodes into node P + j; part i is node i (P - 1).
    """

    of_centroid: Tensor
    sizes: tuple[int, ...]
    merges: tuple[Merge, ...]
    images: tuple[int, ...]

    def at(self, count: int) -> list[list[int]]:
        """The parts inside each of ``count`` groups, the largest group first; of equal ones that of the lowest part."""
        nodes = nodes_at(len(self.sizes), self.merges, count)
        return sorted(nodes.values(), key=lambda parts: (-sum(self.sizes[part] for part in parts), parts[0]))


def parts_of(groups: Cut, counts: Tensor, group: int, all_counts: Tensor | None = None) -> Parts:
    """The parts of ``group`` by Ward's tree of its centroids.

    Args:
        groups: The cut.
        counts: How many images are nearest to each centroid (int64, M). A centroid without any goes with the nearest.
        group: Its number.
        all_counts: The same, with those that came after the fit (None: none did).
    """
    own = torch.nonzero(groups.groups == group).flatten()
    used = own[counts[own] > 0]
    if not len(used):
        used = own[:1]
    points, weights = groups.centroids[used].double(), counts[used].double().clamp(min=1)
    order = [(a, b) for _, a, b in ward(points.numpy(), weights.numpy())]
    part_of, merges = numbered(order, len(used), min(MOST_PARTS, len(used)))
    of_centroid = torch.full((len(counts),), -1)
    nearest = torch.cdist(groups.centroids[own].double(), points).argmin(1)
    of_centroid[own] = torch.from_numpy(part_of)[nearest]
    of_centroid[used] = torch.from_numpy(part_of)
    sizes, images = (
        tuple(torch.bincount(of_centroid[own], each[own].double()).long().tolist())
        for each in (counts, counts if all_counts is None else all_counts)
    )
    return Parts(of_centroid, sizes, merges, images)


def split(groups: Cut, parts: Parts, count: int) -> Cut:
    """The cut with the group of ``parts`` split into ``count``.

    The largest keeps the number, the others get the next free ones. No image comes into a group that it was not in.
    """
    numbers = groups.groups.clone()
    for number, inside in enumerate(parts.at(count)[1:], groups.count):
        numbers[torch.isin(parts.of_centroid, torch.tensor(inside))] = number
    return Cut(groups.centroids, numbers)
