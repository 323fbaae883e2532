"""Single images in other groups than their centroids say: centroids of their own make it so."""

import torch
from torch import Tensor

from deepcluster.groups.cut import Cut, exact_distances

AT_ONCE = 256  # centroids added between two looks at who is still wrong: near images need no centroid of their own


def pinned(reduced: Tensor, groups: Cut, wanted: Tensor) -> Cut:
    """The cut with as many of the rows as centroids as it takes to place every row as ``wanted``.

    A centroid for an image that moves may attract images that do not: those then become centroids of their own group.
    Only an image that equals one of another group, which no centroid can tell apart, may end up elsewhere.

    Args:
        reduced: N x d features.
        groups: The cut.
        wanted: The group of each row (int64, N). Groups that have no centroid yet may be among them.
    """
    own, other = torch.full((len(reduced),), torch.inf), torch.full((len(reduced),), torch.inf)
    centroids, numbers = [groups.centroids], [_taken_along(reduced, groups, wanted)]
    added = torch.zeros(len(reduced), dtype=torch.bool)
    while True:
        for begin in range(0, len(reduced), 4096):
            rows = slice(begin, begin + 4096)
            distances = exact_distances(reduced[rows], centroids[-1])
            same = numbers[-1] == wanted[rows].unsqueeze(1)
            own[rows] = own[rows].minimum(distances.masked_fill(~same, torch.inf).amin(1))
            other[rows] = other[rows].minimum(distances.masked_fill(same, torch.inf).amin(1))
        wrong = torch.nonzero((own >= other) & (other > 0) & ~added).flatten()
        if not len(wrong):
            return Cut(torch.cat(centroids), torch.cat(numbers))
        chosen = wrong[:: max(1, len(wrong) // AT_ONCE)]
        added[chosen] = True
        centroids.append(reduced[chosen])
        numbers.append(wanted[chosen])


def _taken_along(reduced: Tensor, groups: Cut, wanted: Tensor) -> Tensor:
    """The groups of the centroids; one that is an image itself, as of an earlier move, goes where the image goes."""
    numbers = groups.groups.clone()
    for rows, wishes in zip(reduced.split(4096), wanted.split(4096), strict=True):
        distance, nearest = exact_distances(rows, groups.centroids).min(1)
        away = (distance == 0) & (groups.groups[nearest] != wishes)
        numbers[nearest[away]] = wishes[away]
    return numbers
