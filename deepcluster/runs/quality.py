"""Share of images in their right clusters, by a person's answers about images drawn at random.

Drawn images do not teach, so they are a random sample of the images without an answer that teaches. A drawn image that
a question chooses leaves the sample: its answer is known and teaches from then on, so the sample stays random.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import scipy  # the parts at first use: `predict` waits for none
import torch
from torch import Tensor

from deepcluster.groups.cut import Cut
from deepcluster.groups.spread import Labels, nodes_of
from deepcluster.model import Annotations, Model

CONFIDENCE = 0.9  # of the interval
MIN_DRAWN = 10  # images; fewer tell nothing


def estimated_quality(model: Annotations, clusters: Tensor, fitted: int) -> dict[str, float] | None:
    """Return the share of images in their right clusters, and the bounds of its interval; None if none was drawn.

    Images that a person placed are right, and the share of the others is that of the drawn ones without their answers.
    Fewer than ``MIN_DRAWN`` are only counted, as are all if some clusters have names and others (not junk) have none.
    ``clusters``: Of all images (int64, N); -1: of none, which does not count. ``fitted``: Number of images of the fit,
    because later ones may be unlike them and are estimated apart.
    """
    drawn = model.drawn
    if len(drawn) < MIN_DRAWN:
        return {"drawn": len(drawn), "needed": MIN_DRAWN} if drawn else None
    have_names = [bool(model.names[number]) for number in {*clusters.tolist()}.difference(model.junk, [-1])]
    if any(have_names) and not all(have_names):
        return {"drawn": len(drawn), "unnamed": have_names.count(False)}
    rows, numbers = torch.tensor([*drawn.items()]).T
    kinds = torch.from_numpy(kinds_of(model.names))
    judged = torch.full((len(clusters),), torch.nan, dtype=torch.float64)
    judged[rows] = (kinds[numbers] == kinds[clusters[rows]]).double()
    is_open = clusters >= 0  # and nobody has placed the image
    is_open[[*model.placed]] = False
    count = int((clusters >= 0).sum())
    middle, below, above = float(count - int(is_open.sum())), 0.0, 0.0
    for part in (slice(fitted), slice(fitted, None)):
        unjudged = int(is_open[part].sum())
        sample = judged[part][judged[part].isfinite()]
        share = float((sample if len(sample) else judged).nanmean())
        low, high = bounds_of_right(unjudged, len(sample), share)
        middle += share * unjudged
        below += (share * unjudged - low) ** 2
        above += (share * unjudged - high) ** 2
    bounds = {"share": middle, "low": middle - math.sqrt(below), "high": middle + math.sqrt(above)}
    shares = {name: round(value / count, 4) for name, value in bounds.items()}
    return {"drawn": len(rows), "right": int(judged.nansum())} | shares


def bounds_of_right(rest: int, count: int, share: float) -> tuple[float, float]:
    """Return bounds of the number of right images among ``rest``, by their ``share`` in a sample of ``count`` others.

    They are Wilson's (1927), with the correction for a finite population.
    """
    square = float(scipy.special.ndtri((1 + CONFIDENCE) / 2)) ** 2
    size = count * (count + rest - 1) / max(rest, 1)
    middle = (size * share + square / 2) / (size + square)
    half = math.sqrt(square * (size * share * (1 - share) + square / 4)) / (size + square)
    low, high = ((count + rest) * bound - count * share for bound in (middle - half, middle + half))
    return max(0.0, low), min(float(rest), high)


def kinds_of(names: Sequence[str]) -> Labels:
    """Return the kinds of all clusters: those of one name have one number."""
    return np.array([names.index(name) if name else cluster for cluster, name in enumerate(names)])


def sampled(model: Model, reduced: Tensor, clusters: Tensor, words: Mapping[int, str]) -> dict[int, int]:
    """Return the drawn images with their clusters without answers.

    ``clusters``: Of all images (int64, N). ``words``: Of new answers, by rows.
    """
    known = model.drawn
    drawn = [row for row in {**known, **words} if words.get(row, "drawn") == "drawn"]
    sample = {row: known.get(row, int(clusters[row])) for row in drawn}
    placed = model.placed.keys() - known.keys()
    return sample | unpinned(model, reduced, [row for row in sample if row in placed])


def unpinned(model: Model, reduced: Tensor, rows: Sequence[int]) -> dict[int, int]:
    """Return the clusters of ``rows`` by a cut without the centroids that keep them in place."""
    if not rows:
        return {}
    in_place = nodes_of(model.cut.centroids, reduced[[*rows]]) >= 0
    others = [*model.placed.keys() - {*rows}]
    stays = torch.from_numpy(~in_place | (nodes_of(model.cut.centroids, reduced[others]) >= 0))
    cut = Cut(model.cut.centroids[stays], model.cut.cluster_of[stays]) if stays.any() else model.cut
    return dict(zip(rows, replace(model, cut=cut).placement(reduced[[*rows]]).cluster.tolist(), strict=True))
