"""scikit-learn's estimator over ``fitting/`` and ``runs/``."""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from deepcluster.clustering.blocks import nearest
from deepcluster.clustering.kmeans import ClusteringStep
from deepcluster.errors import DataError, UsageError
from deepcluster.fitting import fit as fitting
from deepcluster.fitting.values import Request
from deepcluster.images import find
from deepcluster.images.arrays import without_torch
from deepcluster.images.own_features import (
    are_features,
    column_of_paths,
    column_of_rows,
    is_column,
    read_features,
    stacked,
)
from deepcluster.learning.heads import Loss
from deepcluster.learning.training import OptimizerOf
from deepcluster.model import Prediction
from deepcluster.nets.names import MODULE
from deepcluster.opened_run import OpenedRun, device_name, is_count, read_n_clusters
from deepcluster.recipes.build import Steps
from deepcluster.recipes.options import AUTO, DECLARED
from deepcluster.recipes.presets import RecipeRequest, read_request
from deepcluster.runs import predict
from deepcluster.runs.run import placement_columns
from deepcluster.runtime.console import Display, Several
from deepcluster.runtime.log import warn
from deepcluster.storage import run_folder
from deepcluster.storage.content import COLUMNS
from deepcluster.texts import one_line, plural

Errors = Literal["raise", "coerce"]
# numpy's type, and the value for an image that cannot be used, by the type of a column of clusters.csv.
NUMPY: Mapping[type, tuple[str, Any]] = {str: ("O", ""), int: ("i8", -1), float: ("f4", np.nan), bool: ("?", False)}


class DeepCluster(OpenedRun):
    """Cluster images by DeepCluster (Caron et al., 2018): k-means alternates with a convnet that learns the clusters.

    ``X`` is a folder, a list of paths, images (an array or tensor of uint8, or of floats from 0 to 1: N x H x W,
    N x H x W x C or N x C x H x W), a list of PIL images, or a ``Dataset`` of torch or of Hugging Face; or it is
    N x D numbers, the features of another model, which are clustered without a network (docs/python.md).

    Args:
        n_clusters: Number of clusters, or "auto".
        recipe: A name, a .toml file, or a dict with the content of one: {"base": "v1", "lr": 0.1}.
        backbone, weights, pseudo_labels, rounds, epochs, image_size, batch_size, lr: Options of the recipe
            (``deepcluster recipes --options``); None leaves them to it. ``backbone`` may be any module from images
            in [0, 1], normalised as ImageNet's, to features, N x D, or maps. A copy of it is used, and trained
            if there are rounds; weights="none" says that its weights are random, so the copy is trained from nothing.
        clustering, loss, optimizer: Steps of your own (docs/change-a-step.md): a ``ClusteringStep``, a ``Loss``, and a
            function from parameters to an optimizer; None leaves them to the recipe.
        options: A dict of any other options of the recipe.
        device: auto, cpu, cuda or mps; a device of torch, or the number of a GPU.
        random_state: The seed: an int, a RandomState to draw it from, or None for a new one in every fit.
        verbose: 0: silent; 1: show progress; 2: also every choice with its reason; None: a bar in a notebook.

    Attributes:
        labels_: Clusters of the N usable images.
        embedding_: N x d, their reduced features, as ``transform`` returns them.
        paths_: Their paths.
        skipped_: (path, reason) of images that could not be used.
        cluster_centers_: K x d, the means of the centroids of the clusters.
        names_: Names of the clusters by number, "" without one: ``names_[labels_]`` has one for each image.
        n_clusters_: K.
        inertia_: Sum of the squared distances to the centers.
        quality_: A dict: the share of images in the right cluster, from answers about images drawn at random, with the
            bounds low and high of a 90 % interval, or the number needed if it has too few; None without such answers.
        n_iter_: Number of rounds.
        history_: A dict per round.
        run_: The run folder (docs/run-folder.md).
        n_features_in_: D, if X was features.

    Examples:
        >>> digits = load_digits().images[:30] / 16
        >>> dc = DeepCluster(n_clusters=3, backbone="compact", rounds=0).fit(digits)
        >>> dc.labels_.shape, (dc.predict(digits) == dc.labels_).all().item()
        ((30,), True)
    """

    def __init__(  # noqa: PLR0913 scikit-learn lists each parameter
        self,
        n_clusters: int | str | None = "auto",
        *,
        recipe: str | Path | Mapping[str, Any] = "auto",
        backbone: str | nn.Module | None = None,
        weights: str | Path | None = None,
        pseudo_labels: int | str | None = None,
        rounds: int | None = None,
        epochs: int | None = None,
        image_size: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        clustering: ClusteringStep | None = None,
        loss: Loss | None = None,
        optimizer: OptimizerOf | None = None,
        options: Mapping[str, Any] | None = None,
        device: str | int | torch.device = "auto",
        random_state: Any = 0,
        verbose: int | None = None,
    ):
        self.n_clusters = n_clusters
        self.recipe = recipe
        self.backbone = backbone
        self.weights = weights
        self.pseudo_labels = pseudo_labels
        self.rounds = rounds
        self.epochs = epochs
        self.image_size = image_size
        self.batch_size = batch_size
        self.lr = lr
        self.clustering = clustering
        self.loss = loss
        self.optimizer = optimizer
        self.options = options
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    # ---- fit and use ------------------------------------------------------------------------------------------------

    def fit(
        self, X: Any, y: Any = None, *, paths: Sequence[str | Path] | None = None, run: str | Path | None = None,
        like: str | Path | None = None, resume: bool = False, display: Display | None = None,
    ) -> Self:  # fmt: skip
        """Train and cluster.

        Args:
            X: The images; unusable ones are skipped with a DeepClusterWarning.
            y: Ignored, as by all clusterers of scikit-learn: ``fit(X).teach(y)`` takes labels.
            paths: The images of the rows, if X is features.
            run: The run folder to make; None: a temporary one, deleted with the estimator.
            like: A run folder: clusters of this run that reappear keep their numbers, names and junk marks.
            resume: Continue ``run`` from its last checkpoint, with the same images, parameters and steps.
            display: Shows every round (docs/python.md), besides the display of ``verbose``.

        Raises:
            DeepClusterError: The message says what to do.
        """
        n_clusters = read_n_clusters(self.n_clusters)
        if self.verbose not in (None, 0, 1, 2):
            raise UsageError(f"verbose={self.verbose!r}: give 0, 1 or 2")
        if not isinstance(like, str | os.PathLike | None):
            raise UsageError(f"like is a {type(like).__name__}: give the path of a run folder")
        is_features, images = self._read(X, reset=True)
        if is_features:
            images = read_features(images, None if paths is None else list(paths))
        elif paths is not None:
            raise UsageError("paths are for features, and X is images: leave them out")
        seed = _seed(self.random_state)
        recipe = self._recipe()
        steps = Steps(self.clustering, self.loss, self.optimizer)
        temporary = None if run is not None else Path(tempfile.mkdtemp(prefix="deepcluster-"))
        out = temporary / "run" if temporary else Path(str(run))
        request = Request(
            out=out,
            n_clusters=n_clusters,
            recipe=recipe,
            device=device_name(self.device),
            seed=seed,
            like=None if like is None else Path(like),
            resume=resume,
            verbose=(self.verbose or 0) > 1,
            module=self._module,
            steps=steps,
            features=is_features,
            report=run is not None,  # a parameter search fits many estimators and reads no report
        )
        try:
            with self._display() as shown:
                fitting.fit(images, request, Several(shown, display, logged=False))
        except BaseException:
            if temporary:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._open(out, temporary, None if is_features or isinstance(images, str | Path) else images)
        if self.skipped_:
            warn(f"{_unusable(self.skipped_)}, and left out: skipped_ lists all of them")
        return self

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> npt.NDArray[np.float32]:
        """Fit, and return ``embedding_``."""
        return self.fit(X, **fit_params).embedding_

    def transform(self, X: Any, *, errors: Errors = "raise") -> npt.NDArray[np.float32]:
        """Return the reduced features of images, float32 N x d with rows of length 1; not distances to clusters.

        An unusable image raises DataError; with ``errors="coerce"`` its row is NaN.
        """
        return self._measured(X, errors).reduced.numpy()

    def predict(self, X: Any, *, errors: Errors = "raise") -> npt.NDArray[np.int64]:
        """Return the clusters of images; for the images of the fit these are ``labels_``.

        An unusable image raises DataError; with ``errors="coerce"`` its cluster is -1.
        """
        reduced = self._measured(X, errors).reduced
        clusters = torch.full((len(reduced),), -1)
        usable = torch.isfinite(reduced[:, 0])
        clusters[usable] = self._model.placement(reduced[usable]).cluster
        return clusters.numpy()

    def place(self, X: Any = None, *, errors: Errors = "raise") -> npt.NDArray[np.void]:
        """Return the columns of ``deepcluster predict`` for images.

        Args:
            X: Images; None: the images of the fit.
            errors: As for ``predict``; a coerced row has cluster -1, NaN for numbers, and is no outlier.

        Returns:
            A structured array (pandas.DataFrame accepts it) with a row per image: path (a number if there are no
            files), cluster, name, distance to the nearest centroid, margin (0: between two clusters) and is_outlier.
        """
        if X is None:
            self._check_run("place without images")
        images = self._of_fit if X is None else self._measured(X, errors)
        usable = torch.isfinite(images.reduced[:, 0])
        placement = self._model.placement(images.reduced[usable])
        cells = placement_columns(self._model, placement, images.residuals[usable])
        types = {column.name: NUMPY[column.type] for column in COLUMNS if column.name in ("path", *cells)}
        dtype = np.dtype([(name, code) for name, (code, _) in types.items()])
        placed = np.full(len(usable), np.array(tuple(nothing for _, nothing in types.values()), dtype))
        placed["path"] = images.paths
        for name in cells:
            placed[name][usable.numpy()] = cells[name]
        return placed

    def nearest(self, X: Any = None, n: int = 5) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Return the ``n`` images of the fit that are most similar to each image of X.

        Args:
            X: Images; None: the images of the fit, without the image itself.
            n: Number of images; fewer are returned if the fit had fewer.

        Returns:
            Similarities (the cosines of the features, descending) and numbers of the images, as in ``paths_`` and
            ``labels_``: two arrays with a row per image of X, in the order of scikit-learn's ``kneighbors``.
        """
        self._check_run("nearest")
        if not is_count(n):
            raise UsageError(f"n={n!r}: give a whole number of at least 1")
        queries = None if X is None else self._measured(X, "raise").reduced
        embedding = torch.from_numpy(self.embedding_)
        similarities, numbers = nearest(embedding, n) if queries is None else nearest(queries, n, embedding)
        return similarities.numpy(), numbers.numpy()

    def score(self, X: Any, y: Any = None) -> float:
        """Return the negative sum of the squared distances to ``cluster_centers_``, as KMeans does."""
        reduced = self._measured(X, "raise").reduced
        return -self._inertia(reduced, self._model.placement(reduced).cluster)

    @classmethod
    def load(
        cls, folder: str | Path, *, device: str | int | torch.device = "auto", backbone: nn.Module | None = None
    ) -> Self:
        """Open a run folder (``recut`` then changes it), or the folder of a model.

        A model alone has only ``predict``, ``place``, ``transform``, ``score`` and ``save``.

        Args:
            folder: A folder that ``fit`` or ``save`` made.
            device: As in the class.
            backbone: The module, if the fit had one: the files have its weights, but no code. Without it, everything
                that needs images raises ModelError.

        Raises:
            ModelError: The model is missing or damaged.
            DiskError: The run folder is damaged.
        """
        if backbone is not None and not isinstance(backbone, nn.Module):
            raise UsageError(f"backbone={backbone!r}: give the module of the fit; the files name other networks")
        loaded = cls(device=device, backbone=backbone)
        loaded._open(Path(folder))
        if hasattr(loaded, "run_"):  # with the parameters of that run
            seed = run_folder.RunFolder(loaded.run_).read_record().seed
            loaded.set_params(recipe=str(loaded.run_ / "recipe.toml"), random_state=seed)
        loaded.set_params(n_clusters=loaded.n_clusters_)
        return loaded

    # ---- scikit-learn's protocols -----------------------------------------------------------------------------------

    @property
    def _n_features_out(self) -> int:
        return int(self._model.reduction.projection.shape[1])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _recipe(self) -> RecipeRequest:
        """Return the recipe with the options given as parameters, in ``options`` or in a dict as ``recipe``."""
        parameters = self.get_params(deep=False)
        options = {name: parameters[name] for name in DECLARED if parameters.get(name) is not None}
        if not isinstance(self.options, Mapping | None):
            raise UsageError(f"options={self.options!r}: give a dict, such as {{'whitening': 1.0}}")
        options |= self.options or {}
        if self._module is not None:
            options["backbone"] = MODULE
        recipe = dict(self.recipe) if isinstance(self.recipe, Mapping) else {"base": self.recipe}
        base = str(recipe.pop("base", AUTO))
        return read_request(recipe | options, base)

    def _read(self, X: Any, *, reset: bool) -> tuple[bool, Any]:
        """Return whether X is features, and the features (N x D) or the images of X.

        ``reset``: X is for a fit. Later features must have its columns.
        """
        paths = column_of_paths(X)
        if (rows := column_of_rows(X)) is not None:
            ways = f"fit(X[{rows!r}]) clusters these"
            if paths is not None:
                ways = f"fit(X[{rows!r}], paths=X[{paths!r}]) clusters these, and fit(X[[{paths!r}]]) the pictures"
            raise DataError(f"column {rows!r} of X has rows of numbers in its cells: {ways}")
        is_features = are_features(X)
        if not reset and is_features != self._model.of_features and not isinstance(X, str | Path):
            fitted = "images: X.reshape(-1, H, W)" if is_features else "features: N x D numbers"
            raise UsageError(f"X is {'features' if is_features else 'images'}, and the fit was of {fitted}")
        if is_features:
            rows = stacked(X) if is_column(X) else without_torch(X)
            return True, validate_data(self, rows, reset=reset, ensure_all_finite=False)
        if reset:
            for name in ("n_features_in_", "feature_names_in_"):
                self.__dict__.pop(name, None)
        X = X if paths is None else X[paths]
        return False, list(X) if getattr(X, "ndim", 0) == 1 else X

    def _measured(self, X: Any, errors: Errors) -> Prediction:
        """Return the images of X with their features and residuals; with ``errors="coerce"`` NaN for unusable ones."""
        check_is_fitted(self, "cluster_centers_")
        if errors not in ("raise", "coerce"):
            raise UsageError(f"errors={errors!r}: choose raise or coerce")
        images = self._read(X, reset=False)[1]
        predictions = list(predict.predict(self._model, images, none_is_fine=errors == "coerce"))
        reduced, residuals = (
            torch.cat([getattr(part, name) for part in predictions]) for name in ("reduced", "residuals")
        )
        paths = tuple(path for part in predictions for path in part.paths)
        skipped = tuple(pair for part in predictions for pair in part.skipped)
        if skipped and errors == "raise":
            raise DataError(f"{_unusable(skipped)}: leave them out, or pass errors='coerce' for -1 or NaN")
        if skipped:
            row_of = {path: row for row, path in enumerate(paths)}
            paths = find(images).paths
            rows = torch.tensor([row_of.get(path, -1) for path in paths])  # -1 is the row of NaN
            blank = torch.full((1, reduced.shape[1]), torch.nan)
            reduced = torch.cat([reduced, blank])[rows]
            residuals = torch.cat([residuals, blank[0, :1]])[rows]
        return Prediction(paths, reduced, residuals, skipped)


def _seed(random_state: Any) -> int:
    if isinstance(random_state, Integral):
        return int(random_state)
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    return int(check_random_state(random_state).randint(2**31 - 1))


def _unusable(skipped: Sequence[tuple[str, str]]) -> str:
    shown = "; ".join(f"{one_line(path)}: {reason}" for path, reason in skipped[:5])
    return f"{plural(len(skipped), 'image')} cannot be used ({shown}{'; ...' if len(skipped) > 5 else ''})"
