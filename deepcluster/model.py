"""The model that places new images: network, reduction and centroids."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deepcluster.clustering.outliers import Outliers
from deepcluster.clustering.whitening import Whitening
from deepcluster.errors import DataError, NonFiniteError, UsageError
from deepcluster.groups.cut import Cut, Placement, placement_of
from deepcluster.images import Images, Source, find, read_once
from deepcluster.images.arrays import from_bytes
from deepcluster.images.own_features import read_features
from deepcluster.learning.features import extract
from deepcluster.nets.fast_pass import features_pass
from deepcluster.nets.names import NO_NETWORK
from deepcluster.nets.network import Absent, Network
from deepcluster.records import Identity
from deepcluster.runtime.compute import Compute, Progress, ignore_progress
from deepcluster.texts import one_line

# Why a person is sure of an image: she answered about it (a move is an answer), looked at it and left it, or answered
# about it because it was drawn at random, which tells the quality and teaches nothing.
WORDS = ("answer", "checked", "drawn")


class Said(NamedTuple):
    """A person's word about an image, which is in the right cluster by it."""

    row: int  # of the image
    by: str  # one of ``WORDS``
    cluster: int = -1  # of a drawn image, without its answer


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """A person's decisions about clusters.

    ``names`` has an entry for all L numbers that were ever given, so the next new cluster is number L.
    To change them in a model: ``replace(model, **vars(annotations))``.
    """

    names: tuple[str, ...]  # of the clusters (L); "": none
    junk: tuple[int, ...] = ()  # clusters that are marked as junk
    said: tuple[Said, ...] = ()  # one for an image, the last one at the end

    @property
    def placed(self) -> dict[int, str]:
        """The rows of images that are in their right cluster by a person's word, and the word."""
        return {said.row: said.by for said in self.said}

    @property
    def drawn(self) -> dict[int, int]:
        """The rows of drawn images, and their clusters without their answers."""
        return {said.row: said.cluster for said in self.said if said.by == "drawn"}


@dataclass(frozen=True)
class Prediction:
    """The usable images of a batch with their reduced features and residuals, and (path, reason) of the others."""

    paths: tuple[str, ...]
    reduced: Tensor
    residuals: Tensor
    skipped: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Model(Annotations):
    """Network, reduction, fine centroids, and a cut with annotations. A merged cluster has no centroids or images."""

    network: Network
    reduction: Whitening
    fine_centroids: Tensor
    cut: Cut
    outliers: Outliers  #: with the limit above which an image is an outlier
    image_size: int
    store_size: int  #: side in px of the square images it takes
    batch_size: int  #: images in one pass of the network; part of the model, because another size may round differently
    identity: Identity = field(default=Identity())  #: which model it is

    def __repr__(self) -> str:
        """Return a short text: the tensors would fill the screen."""
        name = self.network.architecture.get("name", type(self.network.body).__name__)
        dims = self.reduction.projection.shape[1]
        return f"Model({len(self.cut.cluster_of.unique())} clusters, {name} at {self.image_size} px, {dims} dimensions)"

    def with_cut(self, cut: Cut) -> Self:
        """Return the model with another cut. Clusters that it lacks lose their names and junk marks."""
        present = {*cut.cluster_of.tolist()}
        names = tuple(name if cluster in present else "" for cluster, name in enumerate(self.names))
        return replace(self, cut=cut, names=names, junk=tuple(sorted(present.intersection(self.junk))))

    def predict(self, images: Images) -> npt.NDArray[np.int64]:
        """Return the clusters of the images of a folder, a list of paths, ... DataError if one cannot be used."""
        return self.placement(self.transform(images)).cluster.numpy()

    def transform(self, images: Images | Tensor) -> Tensor:
        """Return reduced features (float32, N x d, rows of length 1) of images, as :meth:`predict` takes them, or as a
        store has them: uint8, N x 3 x store_size x store_size."""
        return self.measure(images)[0]

    def measure(self, images: Images | Tensor, progress: Progress = ignore_progress) -> tuple[Tensor, Tensor]:
        """Return the result of :meth:`transform`, and the residuals (float32, N) by which an image is an outlier."""
        if self.of_features:
            return self.measure_features(read_features(images)[0])
        stored = (3, self.store_size, self.store_size)
        if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.shape[1:] != stored:
            store = read_once(find(images), self.store_size)
            if store.skipped:
                path, reason = store.skipped[0]
                raise DataError(f"{len(store.skipped)} of the images cannot be used; {one_line(path)}: {reason}")
            images = store.images
        compute = Compute.of(self.network, images, size=self.image_size, batch_size=self.batch_size, progress=progress)
        return self.measure_features(extract(self.network, images, compute, forward=self._features).cpu())

    @property
    def of_features(self) -> bool:
        """True if the model has no network, and takes features computed elsewhere instead of images."""
        return self.network.architecture.get("name") == NO_NETWORK

    def check_network(self, what: str) -> None:
        """Raise an error if the model has no network, which ``what`` needs."""
        if isinstance(self.network.body, Absent):
            self.network.body()
        if self.of_features:
            raise UsageError(f"{what} needs a network, and this model is of features that came from elsewhere")

    def measure_features(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the result of :meth:`measure` for features (N x D)."""
        width = self.outliers.means.shape[1]
        if features.shape[1] != width:
            raise DataError(f"the features have {features.shape[1]:,} numbers a row, and the model is of {width:,}")
        reduced = self.reduction(features)
        if not torch.isfinite(reduced).all():
            raise NonFiniteError("the model's features of these images are not finite numbers: fit again")
        return reduced, self.outliers.residuals(features)

    @cached_property
    def _features(self) -> Callable[[Tensor], Tensor]:
        """Pass of the network, prepared once because images come in batches."""
        return features_pass(self.network.eval(), self.batch_size)

    def place(self, batch: Iterable[Any]) -> dict[str, npt.NDArray[Any]]:
        """Return the places of images by the bytes of their files, as engines such as Ray, Daft and Spark pass them.

        Decoder, limits and values are those of ``deepcluster predict``. An image that cannot be used raises nothing.

        Returns:
            Arrays with a value per image: cluster (-1 if it cannot be used), name, distance, margin, outlier, features
            (N x d) and reason (why it cannot be used, else ""). Numbers of unusable images are NaN.
        """
        self.check_network("place")
        source = from_bytes([*batch])
        count = len(source.paths)
        dims = self.reduction.projection.shape[1]
        shapes = {"distance": (count,), "margin": (count,), "features": (count, dims)}
        columns: dict[str, npt.NDArray[Any]] = {name: np.full(shapes[name], np.nan, np.float32) for name in shapes}
        columns |= {"cluster": np.full(count, -1), "outlier": np.zeros(count, bool)}
        columns |= {name: np.full(count, "", object) for name in ("name", "reason")}
        for part in map(self.read, source.parts(self.batch_size)):
            for path, why in part.skipped:
                columns["reason"][int(path)] = why
            placed: dict[str, Any] = vars(self.placement(part.reduced)) | {"features": part.reduced}
            placed["outlier"] = part.residuals > self.outliers.limit
            placed["name"] = [self.names[number] for number in placed["cluster"].tolist()]
            for name in columns.keys() - {"reason"}:
                columns[name][[*map(int, part.paths)]] = placed[name]
        return columns

    def read(self, source: Source) -> Prediction:
        """Read and measure images in memory: the network takes far more than its batch."""
        store = read_once(source, self.store_size, none_is_fine=True)
        return Prediction(tuple(source.paths[i] for i in store.usable), *self.measure(store.images), store.skipped)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a worker, without the pass, which it prepares for itself."""
        return {name: value for name, value in vars(self).items() if name != "_features"}

    def placement(self, reduced: Tensor) -> Placement:
        """Return the clusters of the rows of :meth:`transform`."""
        return placement_of(reduced, self.cut, self.fine_centroids)
