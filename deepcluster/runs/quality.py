"""Share of images in their right clusters, by a person's answers about images drawn at random."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import scipy  # the parts at first use: `predict` waits for none
import torch
from torch import Tensor

from deepcluster.groups.cut import Cut
from deepcluster.groups.spread import Labels, nodes_of
from deepcluster.model import Model

CONFIDENCE = 0.9  # of the interval


def estimated_quality(drawn: Sequence[tuple[int, int]]) -> dict[str, float] | None:
    """Return the share of images in their right groups, and the bounds of its interval (Wilson 1927).

    ``drawn``: The images drawn at random, as in Annotations; None is returned if there are none.
    """
    if not drawn:
        return None
    count, right = len(drawn), sum(is_right for _, is_right in drawn)
    square = float(scipy.special.ndtri((1 + CONFIDENCE) / 2)) ** 2 / count
    middle = (right / count + square / 2) / (1 + square)
    half = math.sqrt(square * (right * (count - right) / count**2 + square / 4)) / (1 + square)
    bounds = {"share": right / count, "low": middle - half, "high": middle + half}
    return {"drawn": count, "right": right} | {name: round(value, 4) for name, value in bounds.items()}


def verdicts(
    model: Model,
    reduced: Tensor,
    drawn: Mapping[int, int],
    marked: Collection[int],
    pinned: Sequence[int],
    answered: Mapping[int, int],
    before: Sequence[int],
    clusters: Tensor,
    kinds: Labels,
) -> dict[int, int]:
    """Return the drawn rows after answers; 1 if their cluster was right, else 0.

    ``model``: Before it keeps answered images in place. ``drawn``: Verdicts so far. ``marked``: Rows drawn now.
    ``pinned``: Rows that may be in their clusters by their answers alone. ``answered``: Clusters by all answers.
    ``before``, ``clusters``: Of all rows. ``kinds``: Of all clusters.
    """
    # An image is judged once, by the cluster that it would have if nobody had answered about it: later its own answer
    # keeps it in place. So the quality does not grow by lessons that follow. Another answer is judged anew, unless the
    # first one was right.
    changed = {row for row in drawn if kinds[answered.get(row, before[row])] != kinds[before[row]]}
    judged = [row for row in answered if row in marked or (row in changed and not drawn[row])]
    by_itself = _unpinned(model, reduced, judged, pinned, clusters)
    kept = {row: int(drawn[row] and row not in changed) for row in drawn if row in answered}
    return kept | {row: int(kinds[by_itself[row]] == kinds[answered[row]]) for row in judged}


def _unpinned(model: Model, reduced: Tensor, rows: Sequence[int], answered: Sequence[int], clusters: Tensor) -> Tensor:
    """Return the clusters, those of ``rows`` by a cut without the centroids that keep ``answered`` images in place.

    Other images stay where they are, whatever is pinned beside them.
    """
    places = nodes_of(reduced[[*rows]], reduced[[*answered]]).tolist()
    own = [row for row, place in zip(rows, places, strict=True) if place >= 0]
    others = torch.from_numpy(nodes_of(model.cut.centroids, reduced[own]) < 0)
    if not own or not others.any():
        return clusters
    cut = Cut(model.cut.centroids[others], model.cut.group_of[others])
    return clusters.scatter(0, torch.tensor(own), replace(model, cut=cut).placement(reduced[own]).cluster)
