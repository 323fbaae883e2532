"""Reduction (step 3): PCA, whitening and L2 normalisation as one affine map and a division (paper, section 4)."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh
from torch import Tensor
from torch.nn import functional as F

from deepcluster.errors import NonFiniteError

CHUNK = 8192
# Directions with less variance than this share of the largest are rounding errors of the float32 features; dividing by
# their standard deviation would turn them into noise of unit size.
EIGENVALUE_FLOOR = 1e-6


@dataclass(frozen=True)
class Whitening:
    """An affine map to whitened rows, fitted by :func:`whiten`: ``mean`` (D), ``projection`` (D x d)."""

    mean: Tensor
    projection: Tensor

    def project(self, x: Tensor) -> Tensor:
        """N x D features to N x d whitened ones: mean zero and the identity as covariance on the fitted rows."""
        x = torch.as_tensor(x)
        return (x.float() - self.mean.to(x.device)) @ self.projection.to(x.device)

    def __call__(self, x: Tensor) -> Tensor:
        """N x D features to N x d rows of length 1; a row at the mean stays zero."""
        return torch.cat([F.normalize(self.project(rows), eps=1e-12) for rows in torch.as_tensor(x).split(CHUNK)])


def whiten(x: Tensor, dims: int = 256, strength: float = 1.0) -> Whitening:
    """Fit the PCA-whitening of N x D features to at most ``dims`` dimensions.

    Each principal direction is divided by its standard deviation to the power of ``strength``: 1 whitens (the paper), 0
    only rotates, and between the two the leading directions keep some of their weight.

    The number of dimensions is min(dims, D, N - 1, rank): never one that the rows do not have. Where all rows are equal
    it is 1, and every row maps to zero. Raises NonFiniteError on NaN or infinite features.
    """
    x = torch.as_tensor(x)
    rows, width = x.shape
    if rows < 1 or width < 1 or dims < 1:
        raise ValueError(f"whitening needs rows, columns and dimensions; got {rows} x {width} to {dims}")
    mean = torch.stack([part.double().sum(0) for part in x.split(CHUNK)]).sum(0) / rows
    if not torch.isfinite(mean).all():
        bad = int((~torch.isfinite(x)).any(1).sum())
        raise NonFiniteError(f"{bad} of {rows} feature rows are not finite: lower the learning rate (--lr)")
    values, vectors = _leading_directions(x, mean, min(dims, width, max(1, rows - 1)))
    keep = values > EIGENVALUE_FLOOR * max(values[0], np.finfo(np.float32).tiny)
    keep[0] = True
    scale = np.where(values > 0, np.maximum(values, np.finfo(np.float32).tiny) ** (-strength / 2), 0.0)
    projection = (vectors * scale)[:, keep]
    return Whitening(mean.float().cpu(), torch.from_numpy(np.ascontiguousarray(projection)).float())


def _leading_directions(x: Tensor, mean: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` largest eigenvalues of the covariance (descending) and their eigenvectors as columns."""
    rows, width = x.shape
    shift = mean.float()
    if rows > width:
        covariance = torch.zeros(width, width, dtype=torch.float64)
        for part in x.split(CHUNK):
            centred = part.float() - shift
            covariance += (centred.T @ centred).double().cpu()
        # The float32 shift is not exactly the mean; this takes its error out again.
        error = shift.double().cpu() - mean.cpu()
        covariance = covariance / (rows - 1) - torch.outer(error, error) * (rows / (rows - 1))
        values, vectors = eigh(covariance.numpy(), subset_by_index=[width - count, width - 1])
        return values[::-1], vectors[:, ::-1]
    # Fewer rows than columns: the eigenvectors of the small Gram matrix give those of the covariance.
    centred = (x.double() - mean).cpu().numpy()
    values, left = eigh(centred @ centred.T, subset_by_index=[rows - count, rows - 1])
    values, left = np.maximum(values[::-1], 0.0), left[:, ::-1]
    lengths = np.sqrt(values)
    vectors = centred.T @ (left / np.where(lengths > 0, lengths, np.inf))
    return values / max(1, rows - 1), vectors
