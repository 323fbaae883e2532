"""Drift: do the images added since a fit differ so much from the images of the fit that a new fit is due?"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy  # the parts at first use: `predict` waits for none

MIN_ADDED = 20  # images: fewer tell little
# Outliers among the images added: at least so many, and so much more than twice the share among the images of the fit.
MIN_OUTLIERS = 5
MORE_OUTLIERS = 0.05
# Share of the fit's images that are less strange than the median image added. Of batches of 20 images of the same kind
# none reached .9, of strangers all did (benchmarks/judgement.py).
STRANGE_MEDIAN = 0.9
# Share of all images that are in other clusters than the sizes of the fit let expect, and the chance of its test.
MIN_SHIFT = 0.1
SHIFT_P = 0.001


@dataclass(frozen=True)
class Drift:
    """Differences between the images added since a fit and the images of the fit."""

    fitted: int  # number of images
    added: int
    fitted_outliers: int = 0
    added_outliers: int = 0
    # Share of the fit's images with a smaller residual than the median image added; None if no image was added, or if
    # the fit had too few images for a limit.
    residual_rank: float | None = None
    shift: float = 0.0  # share of all images that changes cluster if the images added are spread as the fit's
    shift_p: float = 1.0  # chance of such a shift, or of a larger one, if they were drawn as the fit's images

    @property
    def reason(self) -> str | None:
        """Reason for a new fit; None if none is due."""
        usual = self.fitted_outliers / max(1, self.fitted)
        share = self.added_outliers / max(1, self.added)
        if self.added >= MIN_ADDED:
            if self.added_outliers >= MIN_OUTLIERS and share > 2 * usual + MORE_OUTLIERS:
                return f"{share:.0%} of the images added since the fit are outliers, and {usual:.1%} of its own"
            if self.residual_rank is not None and self.residual_rank >= STRANGE_MEDIAN:
                return f"half of the images added since the fit are stranger than {self.residual_rank:.0%} of its own"
            if self.shift >= MIN_SHIFT and self.shift_p < SHIFT_P:
                return f"the images added since the fit changed the clusters' shares by {self.shift:.0%} in all"
        if self.added > self.fitted:
            return f"{self.added:,} images were added to a fit of {self.fitted:,}"
        return None

    @property
    def entries(self) -> dict[str, Any]:
        """The fields of an Update and of a run's condition."""
        rank = self.residual_rank
        return {
            "residual_rank": None if rank is None else round(float(rank), 3),
            "shift": round(float(self.shift), 3),
            "reason": self.reason,
        }


def drift(cluster: npt.NDArray[np.int64], residuals: npt.NDArray[np.float32], fitted: int, limit: float) -> Drift:
    """Compare the images added since a fit with the first, ``fitted`` ones; residuals above ``limit`` are outliers'."""
    added = len(cluster) - fitted
    if not added:
        return Drift(fitted, 0)
    ours, new = np.split(residuals, [fitted])
    clusters = int(cluster.max()) + 1
    counts = np.stack([np.bincount(part, minlength=clusters) for part in np.split(cluster, [fitted])])
    counts = counts[:, counts.sum(0) > 0]
    shares = counts / counts.sum(1, keepdims=True)
    apart = np.abs(shares[0] - shares[1]).sum().item() / 2
    lower_median = np.sort(new)[(added - 1) // 2]
    return Drift(
        fitted=fitted,
        added=added,
        fitted_outliers=int((ours > limit).sum()),
        added_outliers=int((new > limit).sum()),
        residual_rank=(ours < lower_median).mean().item() if limit < np.inf else None,
        shift=apart * added / len(cluster),
        shift_p=_chance(counts),
    )


def _chance(counts: npt.NDArray[np.int64]) -> float:
    """Return the p of the chi-squared test that the rows of a table are of one kind, without the slow scipy.stats."""
    if counts.shape[1] == 1:
        return 1.0
    expected = counts.sum(1, keepdims=True) * counts.sum(0) / counts.sum()
    return float(scipy.special.chdtrc(counts.shape[1] - 1, ((counts - expected) ** 2 / expected).sum()))
