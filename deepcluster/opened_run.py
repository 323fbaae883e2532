"""A run as an object: its results as attributes, its changes as methods."""

import os
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils import estimator_html_repr
from sklearn.utils.validation import check_is_fitted, column_or_1d
from torch import Tensor, nn

from deepcluster.clustering.kmeans import means
from deepcluster.errors import UsageError
from deepcluster.images import Images, Source, find
from deepcluster.model import Model, Prediction
from deepcluster.report.pictures import THUMBNAIL, pictures, thumbnails
from deepcluster.runs import apply, recut, teach, views
from deepcluster.runs.images import images_at_hand
from deepcluster.runs.run import read_run
from deepcluster.runs.teach import Answer, Question
from deepcluster.runtime.console import Display, Silent, Terminal, has_widgets
from deepcluster.runtime.devices import choose_device
from deepcluster.storage import model_files as models
from deepcluster.storage import run_folder
from deepcluster.storage.edits_file import checked_name, python_edits
from deepcluster.storage.files import check_output, write_output
from deepcluster.storage.lock import own_files
from deepcluster.texts import plural

# In a notebook.
MAX_SHOWN = 20  # clusters, the largest
MEDOIDS = 6  # pictures of a cluster, the nearest to its centroids
PICTURE_BYTES = 2000
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


class OpenedRun(_Base):
    """The results of a run or a model as attributes, and the changes of a run as methods."""

    # Parameters of the estimator.
    backbone: str | nn.Module | None
    device: str | int | torch.device
    verbose: int | None

    def recut(self, n_clusters: int | str | None) -> Self:
        """Make another number of clusters from the same features, without training; clusters get new numbers."""
        self._check_run("recut")
        with self._display() as display:
            recut.recut(self.run_, read_n_clusters(n_clusters), display, self._images_at_hand())
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
            apply.apply(self.run_, wanted, display)
        self._read_results()
        return self

    def ask(self, n: int = 20, *, drawn: bool = False) -> list[Question]:
        """Return up to ``n`` images for a person to name, for ``teach``.

        Args:
            n: Number of images.
            drawn: Draw them at random: answers about such images give ``quality_``.

        Returns:
            Objects (pandas.DataFrame accepts them) with path, now (name of the cluster), name (empty, or the answer
            about an image that was drawn before), likely (clusters) and drawn.
        """
        self._check_run("ask")
        if not is_count(n):
            raise UsageError(f"n={n!r}: give a whole number of at least 1")
        return teach.ask(self.run_, n, drawn=drawn)

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
        keys = pairs.keys() if hasattr(pairs, "keys") else ()  # of a Series paths, or the numbers of its labels
        if not (isinstance(pairs, Mapping) or any(isinstance(key, str | Path) for key in keys)):
            pairs = _labels(pairs, len(self.paths_))
        row_of = {path: row for row, path in enumerate(self.paths_)}

        def row(image: Any) -> Any:
            return row_of.get(str(image)) if isinstance(image, str | Path) else image

        marked = {row(image) for image in drawn}
        wanted = [
            _answer(image, value, "drawn" if row(image) in marked else "answer") for image, value in pairs.items()
        ]
        with self._display() as display:
            teach.teach(self.run_, wanted, display)
        self._read_results()
        return self

    def report(self, path: str | Path | None = None) -> Path:
        """Write the report of the run, one HTML page, and return its path; without one it is in the run folder."""
        self._check_run("a report")
        written = views.report(self.run_, self._images_at_hand())
        if path is None:
            return written
        html = written.read_text(encoding="utf-8")
        path = Path(path)
        check_output(path, overwrite=True, inputs=tuple)
        write_output(path, lambda file: file.write(html))
        return path

    def _repr_html_(self) -> str:
        """Return a row of pictures for each of the largest clusters, and before a fit scikit-learn's parameters."""
        source = self._images_at_hand() if hasattr(self, "run_") else None
        if source is None:
            return str(estimator_html_repr(self))
        thumbnail = thumbnails(pictures(source, THUMBNAIL))
        distance = self._model.placement(torch.from_numpy(self.embedding_)).distance.numpy()
        sizes = Counter(self.labels_.tolist()).most_common()
        rows = []
        for number, size in sizes[:MAX_SHOWN]:
            members = np.flatnonzero(self.labels_ == number)
            nearest = members[np.argsort(distance[members])]
            sources = filter(None, (thumbnail(self.paths_[row], PICTURE_BYTES) for row in nearest[:MEDOIDS]))
            tags = "".join(f'<img src="{source}">' for source in sources)
            rows.append(f"<p>{escape(self._model.names[number] or f'cluster {number}')} ({size:,})<br>{tags}</p>")
        more = f"<p>{plural(len(sizes) - MAX_SHOWN, 'smaller cluster')}</p>" if len(sizes) > MAX_SHOWN else ""
        return "".join(rows) + more

    def _repr_mimebundle_(self, **options: Any) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}

    def save(self, folder: str | Path) -> Path:
        """Write the model (config.json and .safetensors files) for ``load``, and return the folder."""
        check_is_fitted(self)
        models.save(self._model, Path(folder))
        return Path(folder)

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

    @property
    def _module(self) -> nn.Module | None:
        return self.backbone if isinstance(self.backbone, nn.Module) else None

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
        rows = run.rows
        record = run.record
        clusters = run.clusters
        self._take(run.model)
        self.labels_: npt.NDArray[np.int64] = clusters.numpy()
        self.embedding_: npt.NDArray[np.float32] = rows.reduced.numpy()
        self.paths_ = list(rows.paths)
        self.skipped_ = [*rows.images.skipped.items()]
        self._of_fit = Prediction(tuple(rows.paths), rows.reduced, rows.residuals, ())
        self.inertia_ = self._inertia(rows.reduced[clusters >= 0], clusters[clusters >= 0])
        self._cut = run.facts.cut
        self.quality_ = run.quality
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
        self.cluster_centers_: npt.NDArray[np.float32] = means(cut.centroids, cut.cluster_of, cut.count).numpy()
        self.n_clusters_ = len(cut.cluster_of.unique())

    def _inertia(self, reduced: Tensor, clusters: Tensor) -> float:
        centers = torch.from_numpy(self.cluster_centers_)
        parts = zip(reduced.split(4096), clusters.split(4096), strict=True)
        return float(sum((rows - centers[labels]).square().sum(dtype=torch.float64).item() for rows, labels in parts))

    def _check_run(self, what: str, *, changes: bool = False) -> None:
        """Raise UsageError without a run, or if ``what`` ``changes`` clusters that are not those of ``labels_``."""
        check_is_fitted(self, "cluster_centers_")
        if not hasattr(self, "run_"):
            raise UsageError(f"{what} needs the features of a run, and this is a model alone: load the run folder")
        if changes and run_folder.open_run(self.run_).read_header().facts.cut != self._cut:
            raise UsageError(f"{self.run_} has other clusters by now: DeepCluster.load({str(self.run_)!r}) reads them")

    def _images_at_hand(self) -> Source | None:
        """Return the images of the fit, for thumbnails; None if they are gone."""
        if self._images is not None:
            return find(self._images)
        folder = run_folder.RunFolder(self.run_)
        return images_at_hand(folder.read_images(), Path(folder.read_record().base))


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


def _answer(image: str | int | Path, value: Any, by: str) -> Answer:
    if not isinstance(image, str | int | np.integer | Path):
        raise UsageError(f"the answer about {image!r} is about no image: give its path or its row")
    image = image if isinstance(image, str) else str(image) if isinstance(image, Path) else int(image)
    if isinstance(value, str):
        return Answer(image, name=checked_name(value), by=by)
    if is_count(value) or (value == 0 and value is not False):
        return Answer(image, int(value), by=by)
    raise UsageError(f"the answer {value!r} is no cluster: give its name, or its number")


def device_name(device: str | int | torch.device) -> str:
    return f"cuda:{device}" if isinstance(device, int) else str(device)


def is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and value is not True and bool(value >= 1)


def read_n_clusters(n_clusters: Any) -> int | None:
    if n_clusters is None or (isinstance(n_clusters, str) and n_clusters == "auto"):
        return None
    if not is_count(n_clusters):
        raise UsageError(f"n_clusters={n_clusters!r}: give a whole number of at least 1, or 'auto'")
    return int(n_clusters)


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # not in a process forked from it
        shutil.rmtree(folder, ignore_errors=True)
