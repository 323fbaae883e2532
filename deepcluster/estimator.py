"""scikit-learn's estimator, a thin layer over ``runs/``."""

import os
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor, nn

from deepcluster.build import Steps
from deepcluster.clustering.blocks import nearest
from deepcluster.clustering.kmeans import ClusteringStep, means
from deepcluster.errors import DataError, UsageError
from deepcluster.fitting import fit as fitting
from deepcluster.fitting.plan import Request
from deepcluster.images import Images, Source, find
from deepcluster.images.arrays import without_torch
from deepcluster.images.own_features import is_column, read_features, stacked
from deepcluster.learning.heads import Loss
from deepcluster.learning.training import OptimizerOf
from deepcluster.model import Model
from deepcluster.nets.names import MODULE
from deepcluster.presets import RecipeRequest, read_request
from deepcluster.recipe import AUTO, Recipe, declared
from deepcluster.runs import edits as edits_of_run
from deepcluster.runs import lesson, page, predict, recut
from deepcluster.runs.images import images_at_hand
from deepcluster.runs.lesson import Answer, Question
from deepcluster.runs.predict import Prediction
from deepcluster.runs.run import placement_columns, read_run
from deepcluster.runtime.console import Display, Several, Silent, Terminal, has_widgets
from deepcluster.runtime.devices import choose_device
from deepcluster.runtime.log import warn
from deepcluster.runtime.plain_files import PATH_COLUMNS
from deepcluster.storage import model_files as models
from deepcluster.storage import run_folder
from deepcluster.storage.content import COLUMNS
from deepcluster.storage.edits_file import checked_name, python_edits
from deepcluster.storage.files import check_output, write_output
from deepcluster.storage.state import own_files
from deepcluster.texts import one_line, plural

Errors = Literal["raise", "coerce"]
# numpy's type, and the value for an image that cannot be used, by the type of a column of clusters.csv.
NUMPY: Mapping[type, tuple[str, Any]] = {str: ("O", ""), int: ("i8", -1), float: ("f4", np.nan), bool: ("?", False)}

MISSING = ("None", "<NA>", "NaT")  # labels that are unknown, as text

if TYPE_CHECKING:
    # scikit-learn has no types: with its classes as bases, mypy would accept any attribute.
    class _Base:
        def get_params(self, deep: bool = True) -> dict[str, Any]: ...
        def set_params(self, **params: Any) -> Self: ...
        def fit_predict(self, X: Any, y: Any = None, **fit_params: Any) -> npt.NDArray[np.int64]: ...
        def set_output(self, *, transform: str | None = None) -> Self: ...
        def get_feature_names_out(self, input_features: Any = None) -> npt.NDArray[np.object_]: ...
        def __sklearn_tags__(self) -> Any: ...
        def __getstate__(self) -> dict[str, Any]: ...
        def __setstate__(self, state: dict[str, Any]) -> None: ...
else:

    class _Base(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
        pass


class DeepCluster(_Base):
    """Cluster images by DeepCluster (Caron et al., 2018): k-means alternates with a convnet that learns the clusters.

    ``X`` is a folder, a list of paths, images (an array or tensor of uint8, or of floats from 0 to 1: N x H x W,
    N x H x W x C or N x C x H x W), a list of PIL images, or a ``Dataset`` of torch or of Hugging Face; or it is
    N x D numbers, the features of another model, which are grouped without a network (docs/python.md).

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
        verdict_: Stability of the clusters, in words, as the command prints it.
        quality_: A dict: the share of images in the right cluster, from answers about images drawn at random, with the
            bounds low and high of a 90 % interval; None without such answers.
        n_iter_: Number of rounds.
        history_: A dict per round.
        run_: The run folder (docs/run-folder.md).
        n_features_in_: D, if X was features.
    """

    def __init__(  # noqa: PLR0913 scikit-learn lists each parameter
        self,
        *,
        n_clusters: int | str | None = "auto",
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
        n_clusters = _n_clusters(self.n_clusters)
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
        clusters[usable] = self._model.place(reduced[usable]).cluster
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
        placement = self._model.place(images.reduced[usable])
        cells = placement_columns(self._model, placement, images.residuals[usable])
        kinds = {column.name: NUMPY[column.kind] for column in COLUMNS if column.name in ("path", *cells)}
        dtype = np.dtype([(name, code) for name, (code, _) in kinds.items()])
        placed = np.full(len(usable), np.array(tuple(nothing for _, nothing in kinds.values()), dtype))
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
        if not _is_count(n):
            raise UsageError(f"n={n!r}: give a whole number of at least 1")
        queries = None if X is None else self._measured(X, "raise").reduced
        embedding = torch.from_numpy(self.embedding_)
        similarities, numbers = nearest(embedding, n) if queries is None else nearest(queries, n, embedding)
        return similarities.numpy(), numbers.numpy()

    def score(self, X: Any, y: Any = None) -> float:
        """Return the negative sum of the squared distances to ``cluster_centers_``, as KMeans does."""
        reduced = self._measured(X, "raise").reduced
        return -self._inertia(reduced, self._model.place(reduced).cluster)

    def recut(self, n_clusters: int | str | None) -> Self:
        """Make another number of clusters from the same features, without training; clusters get new numbers."""
        self._check_run("recut")
        with self._display() as display:
            recut.recut(self.run_, _n_clusters(n_clusters), display, self._images_at_hand())
        self._read_results()
        return self

    def apply(self, edits: Mapping[str, Any]) -> Self:
        """Apply edits with the words of ``edits.json``, for example ``{"names": {0: "roses"}, "merge": [[1, 3]]}``.

        Args:
            edits: Any of names (by cluster), merge (lists of clusters), split (pairs of a cluster and a number of
                parts), move (pairs of a path or row and a cluster), junk (all junk clusters).
        """
        self._check_run("apply", changes=True)
        wanted = python_edits(edits, self._cut or "")
        with self._display() as display:
            edits_of_run.apply(self.run_, wanted, display)
        self._read_results()
        return self

    def ask(self, n: int = 20, *, drawn: bool = False) -> list[Question]:
        """Return up to ``n`` images for a person to name, for ``teach``.

        Args:
            n: Number of images.
            drawn: Draw them at random: answers about such images give ``quality_``.

        Returns:
            Objects (pandas.DataFrame accepts them) with path, now (name of the cluster), name (empty), likely
            (clusters) and drawn.
        """
        self._check_run("ask")
        if not _is_count(n):
            raise UsageError(f"n={n!r}: give a whole number of at least 1")
        return lesson.ask(self.run_, n, drawn=drawn)

    def teach(
        self, answers: Mapping[str | int, str | int] | Iterable[Any] | None = None,
        *, drawn: Collection[str | int] = (),
    ) -> Self:  # fmt: skip
        """Let all images follow answers about some of them; ``recut`` and the next ``teach`` remember these.

        Args:
            answers: Name of the cluster (a new name makes a new cluster) or its number, by path or row of the image. Or
                a label for each row of ``labels_``, as y of scikit-learn: a name or a whole number, -1 or a missing
                value if it is unknown. A cluster without a name gets the label that most of its images have.
            drawn: Images of ``answers`` that were drawn at random (``ask``); they teach nothing.
        """
        self._check_run("teach", changes=True)
        pairs: Any = {} if answers is None else answers  # a Series of pandas has items, too
        names: Sequence[str] = ()
        if not _are_by_image(pairs):
            pairs = _labels(pairs, len(self.paths_))
            names = self._named_by(pairs)
        row_of = {path: row for row, path in enumerate(self.paths_)}

        def row(image: Any) -> Any:
            return row_of.get(str(image)) if isinstance(image, str | Path) else image

        marked = {row(image) for image in drawn}
        wanted = [_answer(image, given, row(image) in marked) for image, given in pairs.items()]
        with self._display() as display:
            lesson.teach(self.run_, wanted, display, names=names)
        self._read_results()
        return self

    def report(self, path: str | Path) -> Path:
        """Write the report of the run, one HTML page, and return its path."""
        self._check_run("a report")
        html = page.report(self.run_, self._images_at_hand()).read_text(encoding="utf-8")
        path = Path(path)
        check_output(path, overwrite=True, inputs=tuple)
        write_output(path, lambda file: file.write(html))
        return path

    def save(self, folder: str | Path) -> Path:
        """Write the model (config.json and .safetensors files) for ``load``, and return the folder."""
        check_is_fitted(self)
        models.save(self._model, Path(folder))
        return Path(folder)

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

    def __getstate__(self) -> dict[str, Any]:
        """Return parameters and the bytes of files, no torch objects; a copy gets its own run folder."""
        state: dict[str, Any] = super().__getstate__()
        if not hasattr(self, "_model"):
            return state
        names = {*self.get_params(deep=False), "_sklearn_version", "n_features_in_", "feature_names_in_"}
        state = {name: value for name, value in state.items() if name in names}
        with tempfile.TemporaryDirectory() as saved:
            folder = self.run_ if hasattr(self, "run_") else self.save(saved)
            content = own_files(folder) if hasattr(self, "run_") else os.listdir(folder)  # noqa: PTH208
            # A copy writes its own report, and needs no checkpoints: the run is finished.
            packed = (name for name in content if name != "report.html" and not name.startswith("checkpoints/"))
            return state | {"_files": {name: (folder / name).read_bytes() for name in packed}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        packed = state.pop("_files", None)
        super().__setstate__(state)
        if packed is None:
            return
        temporary = Path(tempfile.mkdtemp(prefix="deepcluster-"))
        for name, content in packed.items():
            file = temporary / "run" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        self._open(temporary / "run", temporary)

    # ---- inside -----------------------------------------------------------------------------------------------------

    @property
    def _module(self) -> nn.Module | None:
        return self.backbone if isinstance(self.backbone, nn.Module) else None

    def _recipe(self) -> RecipeRequest:
        """Return the recipe with the options given as parameters, in ``options`` or in a dict as ``recipe``."""
        parameters = self.get_params(deep=False)
        options = {name: parameters[name] for name in declared(Recipe) if parameters.get(name) is not None}
        if not isinstance(self.options, Mapping | None):
            raise UsageError(f"options={self.options!r}: give a dict, such as {{'whitening': 1.0}}")
        options |= self.options or {}
        if self._module is not None:
            options["backbone"] = MODULE
        recipe = dict(self.recipe) if isinstance(self.recipe, Mapping) else {"base": self.recipe}
        base = str(recipe.pop("base", AUTO))
        return read_request(recipe | options, base)

    def _display(self) -> AbstractContextManager[Display]:
        if self.verbose or (self.verbose is None and has_widgets()):
            return Terminal(quiet=False, verbose=(self.verbose or 0) > 1, lines=self.verbose is not None)
        return nullcontext(Silent())

    def _open(self, folder: Path, temporary: Path | None = None, images: Images | None = None) -> None:
        """Take over a run or a model; ``temporary`` is deleted with the estimator; ``images`` have no path."""
        delete_previous = getattr(self, "_end", None)
        self._end = weakref.finalize(self, _remove, temporary, os.getpid()) if temporary else None
        self._images = images
        if (folder / "run.json").is_file():
            self.run_ = folder.absolute()
            self._read_results()
        else:
            self._take(models.load(folder, backbone=self._module))
        if delete_previous:
            delete_previous()

    def _read_results(self) -> None:
        folder = run_folder.RunFolder(self.run_)
        run = read_run(folder, self._module, takes_images=True)
        rows, record, clusters = run.rows, run.record, run.placement.cluster
        self._take(run.model)
        self.labels_: npt.NDArray[np.int64] = clusters.numpy()
        self.embedding_: npt.NDArray[np.float32] = rows.reduced.numpy()
        self.paths_ = list(rows.paths)
        self.skipped_ = [(row["path"], row["reason"]) for row in folder.read_rows("skipped.csv")]
        self._of_fit = Prediction(tuple(rows.paths), rows.reduced, rows.residuals, ())
        self.inertia_ = self._inertia(rows.reduced, clusters)
        self.verdict_ = record.verdict or ""
        self._cut = record.cut
        self.quality_ = record.quality
        self.n_iter_ = int(record.rounds or 0)
        self.history_ = [
            {name: int(cell) if cell.isdecimal() else float(cell or "nan") for name, cell in row.items()}
            for row in folder.read_rows("history.csv")
        ]

    def _take(self, model: Model) -> None:
        model.network.to(choose_device(device_name(self.device)))
        self._model = model
        if model.of_features:
            self.n_features_in_ = model.outliers.means.shape[1]
        self.names_: npt.NDArray[np.object_] = np.array(model.names, dtype=object)
        cut = model.cut
        self.cluster_centers_: npt.NDArray[np.float32] = means(cut.centroids, cut.group_of, cut.count).numpy()
        self.n_clusters_ = len(cut.group_of.unique())

    def _inertia(self, reduced: Tensor, clusters: Tensor) -> float:
        centers = torch.from_numpy(self.cluster_centers_)
        parts = zip(reduced.split(4096), clusters.split(4096), strict=True)
        return float(sum((rows - centers[labels]).square().sum(dtype=torch.float64).item() for rows, labels in parts))

    def _read(self, X: Any, *, reset: bool) -> tuple[bool, Any]:
        """Return whether X is features, and the features (N x D) or the images of X.

        ``reset``: X is for a fit. Later features must have its columns.
        """
        paths = _column_of_paths(X)
        if (rows := _column_of_rows(X)) is not None:
            ways = f"fit(X[{rows!r}]) groups these"
            if paths is not None:
                ways = f"fit(X[{rows!r}], paths=X[{paths!r}]) groups these, and fit(X[[{paths!r}]]) the pictures"
            raise DataError(f"column {rows!r} of X has rows of numbers in its cells: {ways}")
        is_features = _are_features(X)
        if not reset and is_features != self._model.of_features and not isinstance(X, str | Path):
            fitted = "images: X.reshape(-1, H, W)" if is_features else "features: N x D numbers"
            raise UsageError(f"X is {'features' if is_features else 'images'}, and the fit was of {fitted}")
        if is_features:
            return True, validate_data(self, stacked(X) if is_column(X) else without_torch(X), reset=reset)
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

    def _named_by(self, label_of: Mapping[int, str]) -> list[str]:
        """Return the names of the clusters; one without a name gets the commonest label of its rows."""
        names = [*self._model.names]
        for (group, label), _ in Counter((int(self.labels_[row]), label_of[row]) for row in label_of).most_common():
            if not names[group] and label not in names:
                names[group] = label
        return names

    def _check_run(self, what: str, *, changes: bool = False) -> None:
        """Raise UsageError without a run, or if ``what`` ``changes`` clusters that are not those of ``labels_``."""
        check_is_fitted(self, "cluster_centers_")
        if not hasattr(self, "run_"):
            raise UsageError(f"{what} needs the features of a run, and this is a model alone: load the run folder")
        if changes and run_folder.open_run(self.run_).read_record().cut != self._cut:
            raise UsageError(f"{self.run_} has other clusters by now: DeepCluster.load({str(self.run_)!r}) reads them")

    def _images_at_hand(self) -> Source | None:
        """Return the images of the fit, for thumbnails; None if they are gone."""
        return images_at_hand(run_folder.RunFolder(self.run_)) if self._images is None else find(self._images)


def _are_features(X: Any) -> bool:
    """Return whether X is (meant as) N x D numbers; anything else holds images or paths."""
    if hasattr(X, "cast_column") or _column_of_paths(X) is not None:
        return False
    if is_column(X):
        first = next(iter(X), "")
        return not isinstance(first, str | Path | Image.Image) and getattr(first, "ndim", 0) < 2
    return (hasattr(X, "__array__") or hasattr(X, "shape")) and getattr(X, "ndim", 2) <= 2


def _column_of_paths(X: Any) -> Any:
    """Return the name of the column of a data frame that has the paths of images, or None."""
    columns = getattr(X, "columns", ())
    names = [name for name in columns if isinstance(name, str) and name.lower() in PATH_COLUMNS]
    return next((name for name in names if len(X) and isinstance(next(iter(X[name])), str | Path)), None)


def _column_of_rows(X: Any) -> Any:
    """Return the name of a column of a data frame with rows of numbers in its cells, such as embeddings, or None."""
    for name in getattr(X, "columns", ()):
        some = (cell for cell in islice(X[name], 100) if np.iterable(cell) and not isinstance(cell, str | bytes))
        number = next(iter(next(some, ())), "")
        if isinstance(number, Real) or getattr(number, "ndim", 1) == 0:
            return name
    return None


def _are_by_image(answers: Any) -> bool:
    """Return whether answers are by path or row; a Series of pandas is if its index has paths."""
    keys = answers.keys() if hasattr(answers, "keys") else ()
    return isinstance(answers, Mapping) or any(isinstance(key, str | Path) for key in keys)


def _labels(y: Any, count: int) -> dict[int, str]:
    """Return the labels that are known, as text, by row. UsageError unless there are ``count`` names or numbers."""
    try:
        values = column_or_1d(y, dtype=None if hasattr(y, "dtype") else object).tolist()
    except ValueError:
        raise UsageError(
            f"answers is a {type(y).__name__}: give a dict such as {{'a.jpg': 'owl'}}, or a label for each image"
        ) from None
    if len(values) != count:
        raise UsageError(f"y has {len(values):,} labels, and labels_ has {count:,} rows: give one for each")
    labels = {row: _label(value) for row, value in enumerate(values)}
    return {row: label for row, label in labels.items() if label}


def _label(value: Any) -> str:
    """Return a label as text, "" if it is unknown."""
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        if value == -1 or value != value:  # NaN
            return ""
        if value < 0 or value % 1:
            raise UsageError(f"the label {value} is no class: give names or whole numbers from 0 on, -1 if unknown")
        value = int(value)
    missing = ("-1",) if isinstance(value, str) else MISSING  # an array of words has no number -1
    return "" if str(value) in missing else checked_name(str(value))


def _answer(image: str | int | Path, given: Any, drawn: bool) -> Answer:
    if not isinstance(image, str | int | np.integer | Path):
        raise UsageError(f"the answer about {image!r} is about no image: give its path or its row")
    image = image if isinstance(image, str) else str(image) if isinstance(image, Path) else int(image)
    if isinstance(given, str):
        return Answer(image, name=checked_name(given), drawn=drawn)
    if _is_count(given) or (given == 0 and given is not False):
        return Answer(image, int(given), drawn=drawn)
    raise UsageError(f"the answer {given!r} is no cluster: give its name, or its number")


def device_name(device: str | int | torch.device) -> str:
    return f"cuda:{device}" if isinstance(device, int) else str(device)


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and value is not True and bool(value >= 1)


def _n_clusters(n_clusters: Any) -> int | None:
    if n_clusters is None or (isinstance(n_clusters, str) and n_clusters == "auto"):
        return None
    if not _is_count(n_clusters):
        raise UsageError(f"n_clusters={n_clusters!r}: give a whole number of at least 1, or 'auto'")
    return int(n_clusters)


def _seed(random_state: Any) -> int:
    if isinstance(random_state, Integral):
        return int(random_state)
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    return int(check_random_state(random_state).randint(2**31 - 1))


def _unusable(skipped: Sequence[tuple[str, str]]) -> str:
    shown = "; ".join(f"{one_line(path)}: {reason}" for path, reason in skipped[:5])
    return f"{plural(len(skipped), 'image')} cannot be used ({shown}{'; ...' if len(skipped) > 5 else ''})"


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # not in a process forked from it
        shutil.rmtree(folder, ignore_errors=True)
