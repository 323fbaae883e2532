"""Outliers: images whose features lie outside the principal directions of the images of a fit."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deepcluster.clustering.blocks import mapped, matrix, product
from deepcluster.clustering.whitening import Preparation, whiten

MAX_ROWS = 10_000  # of the fit, evenly chosen: more do not move 64 directions
MIN_ROWS = 100  # of fewer, the quantiles below flag more than 2 % of new images of the same kind
MAX_DIRECTIONS = 64
ROWS_PER_DIRECTION = 4
# The limit is the smaller of two: the median plus TAIL times the distance from it to the 90th percentile, which a few
# strangers among the images of the fit do not move; and a quantile, for residuals with a short tail. TAIL was chosen by
# leaving one set out (benchmarks/judgement.py); new images exceed the quantile twice as often as the fit's images.
TAIL = 2.4
QUANTILE = 0.9975
MIN_RESIDUAL = 2e-3  # of a row's distance from the mean: smaller residuals are errors of float32, and so 0


@dataclass(frozen=True)
class Outliers:
    """The principal directions of two halves of a fit's images, and how far an image may lie outside them.

    An image of the fit is in one half only, and the larger of its two residuals counts. So it is judged, like a new
    image, by directions that were not fitted on it.
    """

    means: Tensor  # 2 x D
    directions: Tensor  # 2 x D x r, orthonormal columns
    limit: float  # residual above which an image is an outlier; infinite if the fit had too few images to tell
    prepare: Preparation = Preparation()  # of the features, first

    def residuals(self, features: Tensor) -> Tensor:
        """Return the distance (float32, N) of N x D features from the farther of the two subspaces."""
        features = matrix(features).cpu()
        halves = [
            (mean, product(directions.T.contiguous(), directions.new_zeros(directions.shape[1])))
            for mean, directions in zip(self.means, self.directions, strict=True)
        ]

        def farther(rows: Tensor) -> Tensor:
            rows = self.prepare(rows)
            return torch.maximum(*(outside(rows - mean, multiply(rows - mean)) for mean, multiply in halves))

        return mapped(features, farther)


def outside(centred: Tensor, inside: Tensor) -> Tensor:
    """Return the distance of ... x D rows from a subspace through 0, by their ... x r coordinates in it."""
    squares = centred.square().sum(-1)
    rest = squares - inside.square().sum(-1)
    return torch.where(rest > MIN_RESIDUAL**2 * squares, rest, 0).sqrt()


def fit_outliers(features: Tensor, prepare: Preparation = Preparation()) -> Outliers:
    """Fit both halves and the limit by prepared features (n x D) of evenly chosen images."""
    width = features.shape[1]
    count = min(MAX_DIRECTIONS, len(features) // ROWS_PER_DIRECTION, width // 2)
    if len(features) < MIN_ROWS or not count:
        return Outliers(torch.zeros(2, width), torch.zeros(2, width, 1), torch.inf, prepare)
    halves = [whiten(half, count, strength=0, prepare=prepare) for half in (features[::2], features[1::2])]
    count = min(half.projection.shape[1] for half in halves)  # the rank of a half may be lower
    means = torch.stack([half.mean for half in halves])
    directions = torch.stack([half.projection[:, :count] for half in halves])
    residuals = Outliers(means, directions, torch.inf, prepare).residuals(features)
    limit = torch.tensor(limit_of(residuals)).item()  # in float32, as the file of a model has it
    return Outliers(means, directions, limit, prepare)


def limit_of(residuals: Tensor, tail: float = TAIL, quantile: float = QUANTILE) -> float:
    """Return the residual that hardly any image of the same kind exceeds, by the residuals of a fit."""
    middle, high, highest = np.quantile(residuals.numpy(), [0.5, 0.9, quantile])
    return float(min(middle + tail * (high - middle), highest))
