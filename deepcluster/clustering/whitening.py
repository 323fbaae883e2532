"""Reduction (step 3): PCA, whitening and L2 normalisation as one affine map and a division (paper, section 4)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import scipy  # the parts at first use: `predict` waits for none
import torch
from torch import Tensor
from torch.nn import functional as F

from deepcluster.clustering.blocks import (
    AllReduce,
    Blocks,
    check_scale,
    mapped,
    matrix,
    of_all,
    product,
    shared_out,
)
from deepcluster.errors import NonFiniteError

# Directions with less variance than this share of the largest are rounding errors of the float32 features; dividing by
# their standard deviation would turn them into noise of unit size.
EIGENVALUE_FLOOR = 1e-6
# From this width on only the leading eigenvectors are computed, in float32: all in float64 take ten times as long.
WIDE = 1024
# Up to this width the covariance is computed in float64, which then costs little. float32 has an error of 1e-7 of the
# largest variance, which may be 1e-3 of the smallest.
NARROW = 256
SHIFT_ROWS = 1024  # rows of a rank for a provisional mean; corrected afterwards
LOWER_LR = ": lower the learning rate (--lr)"
Directions = npt.NDArray[np.float64]
Components = tuple[Tensor, Directions, Directions]  # mean, largest eigenvalues (descending), eigenvectors as columns


@dataclass(frozen=True)
class ClassProbabilities:
    """More features of an image: the square roots of its class probabilities by a classifier of its features."""

    weight: Tensor  #: K x D
    bias: Tensor  #: K
    scale: Tensor  #: length of the K features; a number

    def __call__(self, features: Tensor) -> Tensor:
        """Return N x K features for N x D."""
        weight, bias, scale = (tensor.to(features.device) for tensor in (self.weight, self.bias, self.scale))
        # A graph that is exported has a plain product, because it cannot depend on the number of rows.
        linear = partial(F.linear, weight=weight, bias=bias)
        multiply = linear if torch.compiler.is_exporting() else product(weight, bias)
        return scale * multiply(features.float()).softmax(1).sqrt()


@dataclass(frozen=True)
class Preparation:
    """Map from features to the rows that PCA reduces. The default changes nothing."""

    root: bool = False  #: take the :func:`square_roots` of the features
    classes: ClassProbabilities | None = None  #: more features, behind the others

    def __call__(self, features: Tensor) -> Tensor:
        """Return N x :meth:`width` rows for N x D features."""
        rows = square_roots(features.float()) if self.root else features
        return rows if self.classes is None else torch.cat([rows.float(), self.classes(features)], 1)

    def width(self, columns: int) -> int:
        """Return the number of columns of the rows for so many features."""
        return columns + (len(self.classes.bias) if self.classes else 0)


@dataclass(frozen=True)
class Whitening:
    """An affine map to whitened rows, fitted by :func:`whiten`.

    Examples:
        >>> reduce = whiten(torch.eye(5), dims=3)
        >>> reduce(torch.eye(5)[:2]).shape
        torch.Size([2, 3])
    """

    mean: Tensor  #: D, or D + K with class probabilities
    projection: Tensor  #: the same number x d
    prepare: Preparation = Preparation()  #: applied first

    def __call__(self, x: Tensor, device: torch.device | None = None, *, unit: bool = True) -> Tensor:
        """Map N x D features to N x d rows of length 1, on ``device`` (None: x's own); a row at the mean stays zero.

        Without ``unit`` the fitted rows have mean zero and the identity as covariance.
        """
        x = matrix(x)
        device = device or x.device
        mean = self.mean.to(device)
        weight = self.projection.T.to(device).contiguous()
        # The mean goes before the product: as part of an offset it would leave rounding errors of a row at the mean.
        multiply = product(weight, weight.new_zeros(len(weight)))

        def reduced(rows: Tensor) -> Tensor:
            rows = multiply(self.prepare(rows) - mean)
            return F.normalize(rows, eps=1e-12) if unit else rows

        return mapped(x, reduced, self.projection.shape[1], device=device)


def whiten(
    x: Tensor,
    dims: int = 256,
    strength: float = 1.0,
    device: torch.device | None = None,
    *,
    prepare: Preparation = Preparation(),
    pairs: tuple[Tensor, float] | None = None,
    all_reduce: AllReduce = of_all,
) -> Whitening:
    """Fit the PCA-whitening of N x D features.

    Args:
        x: N x D, of any floating type.
        dims: Dimensions at most; min(dims, D, N - 1, rank) are kept. If all rows are equal it is 1, and every row
            maps to zero.
        strength: Each principal direction is divided by its standard deviation to this power: 1 whitens (the paper), 0
            only rotates, and in between the leading directions keep some of their weight.
        device: Device of the products, a block of rows at a time. None: x's own.
        prepare: Makes the rows that are reduced of the features.
        pairs: Features of two views of some images (2 x m x D) and a weight: before the PCA, the features are scaled by
            :func:`within_image_scaling` of these.
        all_reduce: Adds up sums of all ranks, if ``x`` has a part of the rows, which are more than columns.

    Raises:
        NonFiniteError: NaN or infinity in the features or pairs, or numbers too small or large for squares in float32.

    Examples:
        >>> whiten(torch.eye(5), dims=3)(torch.eye(5)).norm(dim=1).allclose(torch.ones(5))
        True
    """
    x = matrix(x)
    rows = int(all_reduce(torch.tensor(len(x))))
    width = prepare.width(x.shape[1])
    if rows < 1 or width < 1 or dims < 1:
        raise ValueError(f"whitening needs rows, columns and dimensions; got {rows} x {width} to {dims}")
    count = min(dims, width, max(1, rows - 1))
    if pairs and not torch.isfinite(pairs[0]).all():
        raise NonFiniteError(f"features of centre crops are not finite{LOWER_LR}")
    if rows <= width:
        if not torch.isfinite(x).all():
            raise Blocks(x).not_finite(LOWER_LR)
        prepared = prepare(x)
        check_scale(x, prepared.double().square().mean().item())
        components = partial(_components, prepared, count)
    else:
        mean, covariance = _covariance(x, rows, device or x.device, prepare, all_reduce)
        check_scale(x, np.trace(covariance))
        components = partial(_leading, mean, covariance, count)
    scaling = within_image_scaling(torch.stack([*map(prepare, pairs[0])]), pairs[1]) if pairs else None
    mean, values, vectors = components(scaling)
    keep = values > EIGENVALUE_FLOOR * max(values[0], np.finfo(np.float32).tiny)  # a direction without variance goes
    keep[0] = True
    scale = np.where(values > 0, np.maximum(values, np.finfo(np.float32).tiny) ** (-strength / 2), 0.0)
    projection = (vectors * scale)[:, keep]
    projection = projection if scaling is None else scaling @ projection
    weights = torch.from_numpy(np.ascontiguousarray(projection)).float()
    return Whitening(mean.float(), weights, prepare)


def within_image_scaling(pairs: Tensor, weight: float = 1.0) -> Directions:
    """Return the symmetric map (D x D) that shrinks features along the differences between views of an image.

    It is (1 + ``weight`` S / s)^(-1/2), with S the covariance of the differences (without their mean) and s the mean of
    the min(m - 1, D) eigenvalues that m pairs can show: within-class covariance normalisation (Hatch et al.,
    Interspeech 2006), with each image a class. A mean over all D would make few pairs scale more than many.

    Args:
        pairs: Rows (as of a :class:`Preparation`) of two views of some images, 2 x m x D.
        weight: 0 changes nothing.
    """
    first, second = pairs.float()
    width = first.shape[1]
    _, values, vectors = _components(first - second, max(1, min(len(first) - 1, width)))
    relative = values / max(values.mean(), np.finfo(np.float64).tiny)  # all 0 if the views are equal
    scaling: Directions = np.eye(width) + (vectors * ((1 + weight * relative) ** -0.5 - 1)) @ vectors.T
    return scaling


def square_roots(rows: Tensor) -> Tensor:
    """Return the square roots of float32 features, with their signs, as rows of length 1 (power normalisation).

    Few large features then decide less; if none is negative, products of rows compare them as shares (Hellinger).
    """
    return F.normalize(rows.sign() * rows.abs().sqrt(), eps=1e-12)


def unit_rows(x: Tensor, device: torch.device | None = None) -> Tensor:
    """Return N x D features of any floating type as float32 rows of length 1, on ``device`` (None: x's own)."""
    return mapped(x, lambda rows: F.normalize(rows, eps=1e-12), x.shape[1], device=device)


def _covariance(
    x: Tensor, rows: int, device: torch.device, prepare: Callable[[Tensor], Tensor], all_reduce: AllReduce
) -> tuple[Tensor, Directions]:
    """Return the mean (D) and the covariance (D x D), in float64, of more ``rows`` than columns, which it prepares.

    ``x``: All rows, or this rank's. One pass: sums and products of the blocks, around the mean of the first rows, are
    added up in float64.
    """
    first = prepare(x[:SHIFT_ROWS].float().to(device))
    shift = all_reduce(first.sum(0)) / all_reduce(torch.tensor(len(first)))
    width = len(shift)
    with shared_out(x) as walk:
        total = torch.zeros(width, dtype=torch.float64)
        products = np.zeros((width, width))
        least = max(1 << 12, 2 * width)  # the products of a block are as large however few its rows are

        def sums(begin: int, block: Tensor) -> tuple[Tensor, npt.NDArray[np.floating]]:
            centred = prepare(block.to(device)) - shift
            centred = centred.double() if width <= NARROW else centred
            block_total = centred.sum(0).double().cpu()
            if centred.device.type != "cpu":
                return block_total, (centred.T @ centred).cpu().numpy()
            array = centred.numpy()
            return block_total, array.T @ array  # numpy sees the symmetry and computes half of it; torch does not

        for block_total, block_products in walk.map(sums, least):
            total += block_total
            products += block_products
        total = all_reduce(total)
        products = all_reduce(torch.from_numpy(products)).numpy()
        if not torch.isfinite(total).all():
            raise walk.not_finite(LOWER_LR, all_reduce)
    error = total / rows  # of the shift, which is not the mean of all rows
    covariance = products / (rows - 1) - np.outer(error, error) * (rows / (rows - 1))
    return shift.double().cpu() + error, covariance


def _leading(mean: Tensor, covariance: Directions, count: int, scaling: Directions | None) -> Components:
    """Return the components of rows of this mean and covariance, or of these after a ``scaling``."""
    covariance = covariance if scaling is None else scaling @ covariance @ scaling
    width = len(covariance)
    if width < WIDE:
        values, vectors = scipy.linalg.eigh(covariance, driver="evd")
        return mean, values[: -count - 1 : -1], vectors[:, : -count - 1 : -1]
    vectors = scipy.linalg.eigh(
        covariance.astype(np.float32), subset_by_index=[width - count, width - 1], driver="evr"
    )[1]
    # The eigenvectors span the right space to seven digits; inside it float64 is cheap (Rayleigh-Ritz).
    basis = np.linalg.qr(vectors.astype(np.float64))[0]
    values, turn = scipy.linalg.eigh(basis.T @ covariance @ basis)
    return mean, values[::-1], basis @ turn[:, ::-1]


def _components(x: Tensor, count: int, scaling: Directions | None = None) -> Components:
    """Return the components of few rows, or of these after a ``scaling``, by the products of the rows."""
    rows = len(x)
    double = x.double()
    mean = double.mean(0)
    centred = (double - mean).cpu()
    if scaling is not None:
        centred = centred @ torch.from_numpy(scaling)
        centred = centred - centred.mean(0)
    array = centred.numpy()
    values, left = np.linalg.eigh(array @ array.T)  # a subset that is nearly the whole takes scipy longer
    values, left = np.maximum(values[: -count - 1 : -1], 0.0), left[:, : -count - 1 : -1]
    lengths = np.sqrt(values)
    vectors = array.T @ (left / np.where(lengths > 0, lengths, np.inf))
    return mean.cpu(), values / max(1, rows - 1), vectors


@dataclass(frozen=True)
class Reduction:
    """Step 3. The defaults are the paper's.

    Examples:
        >>> Reduction(dims=64, within_image=1.0).takes_pairs
        True
    """

    dims: int | None = 256  #: number of principal components at most; if None, no PCA and only L2
    #: Each component is divided by its standard deviation to this power (1 whitens, 0 only rotates).
    whitening: float = 1.0
    root: bool = False  #: the square roots of the features are reduced, as rows of length 1
    within_image: float = 0.0  #: weight of the :func:`within_image_scaling` before PCA; 0: none
    class_probabilities: float = 0.0  #: scale of the :class:`ClassProbabilities` beside the features; 0: none
    classifier: tuple[Tensor, Tensor] | None = None  #: their weight (K x D) and bias (K)

    @property
    def takes_pairs(self) -> bool:
        """True if the features need their ``pairs``."""
        return self.dims is not None and self.within_image > 0

    def fit(
        self,
        rows: Tensor,
        pairs: Tensor | None = None,
        device: torch.device | None = None,
        all_reduce: AllReduce = of_all,
    ) -> Whitening:
        """Return the map, for new images too. Needs ``dims``.

        Arguments as of :func:`whiten`, but ``pairs`` without a weight.
        """
        if self.dims is None:
            raise ValueError("dims=None fits no map: give a number of dimensions")
        scale = torch.tensor(self.class_probabilities)
        classes = ClassProbabilities(*self.classifier, scale) if self.classifier and scale else None
        return whiten(
            rows,
            self.dims,
            self.whitening,
            device,
            prepare=Preparation(self.root, classes),
            pairs=None if pairs is None else (pairs, self.within_image),
            all_reduce=all_reduce,
        )
