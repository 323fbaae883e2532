"""The protocols on a run: from its folder, images and labels to figures, and to ``evaluation-PROTOCOL.json`` in it."""

import difflib
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TextIO

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from deepcluster.errors import DataError, DiskError, UsageError
from deepcluster.evaluation import clustering, knn, linear
from deepcluster.evaluation import few_labels as few
from deepcluster.evaluation.common import Labelled, Once, Pair, Task, Value, Values, held_out
from deepcluster.evaluation.feature_maps import chosen_layers
from deepcluster.images import Source, find
from deepcluster.images.labels import true_labels
from deepcluster.images.store import Store, check_alike, read_share
from deepcluster.recipe import as_type
from deepcluster.research import filters, retrieval, voc07
from deepcluster.runs.groups import found_again
from deepcluster.runtime.devices import choose_device
from deepcluster.runtime.display import Display, Silent
from deepcluster.runtime.processes import ALONE, Processes
from deepcluster.runtime.signals import temporary_folder
from deepcluster.storage import model_files as models
from deepcluster.storage import run_folder as files
from deepcluster.storage.digest import json_sha256
from deepcluster.storage.model_files import Model
from deepcluster.storage.ownership import SHEET_MARK
from deepcluster.storage.run_folder import RunFolder

SCHEMA_VERSION = 1
OPTIONS: dict[str, Any] = {
    "clustering": clustering.Options, "knn": knn.Options, "linear": linear.Options, "few": few.Options,
    "retrieval": retrieval.Options, "voc07": voc07.Options, "filters": filters.Options,
}  # fmt: skip
# Options that only choose among the parts of a protocol, or that are in the names of these.
SELECTING = {"linear": ("layers",), "few": ("shares", "lr", "head_lr")}
RANGES = {
    "batch_size": (1, 1e6), "epochs": (1, 1e6), "image_size": (0, 8192), "margin": (1, 2), "momentum": (0, 0.9999),
    "temperature": (1e-6, 1e6), "levels": (1, 100), "dims": (1, 1e6), "filters": (1, 256), "count": (1, 100),
    "blur": (0, 10), "blur_every": (1, 1e9),
}  # fmt: skip
UNSHARED = ("retrieval", "voc07", "filters")


@dataclass(frozen=True)
class Request:
    """What to evaluate a run by. images: what is scored (None: the run's own images, or a fifth of them that is kept
    from training); train: what a protocol learns from (None: the run's own images); options: those of the protocol."""

    protocol: str = "clustering"
    images: str | None = None
    labels: str | None = None
    train: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str = "auto"


def evaluate(
    run: Path,
    request: Request,
    *,
    display: Display | None = None,
    stdin: TextIO | None = None,
    processes: Processes = ALONE,
) -> Iterator[Pair]:
    """Yield what the protocol finds, as it is found; parts that are in the run folder are not computed again.

    Several ``processes`` share the images; each yields the same, and the first writes and displays.

    Raises a DeepClusterError that says what to do, before anything is computed where it can be known by then.
    """
    files.open_run(run)
    if not processes.alone and request.protocol in UNSHARED:
        raise UsageError(f"the protocol {request.protocol} is for one process: leave torchrun out")
    display = display if display and processes.leads else Silent()
    options = options_of(request)
    with files.shared_lock(run, processes) as folder:
        job = _Job(folder, request, options, display, stdin, processes)
        depends, pairs = PREPARE[request.protocol](job)
        memory = Memory(folder, request.protocol, {**depends, "seed": request.seed}, asdict(job.options), processes)
        if memory.complete:
            job.display.say("Known", f"from {memory.path}: it was computed from the same before")
            yield from memory.values.items()
            return
        for name, value in pairs(memory.once):
            memory.values[name] = value
            yield name, value
        memory.end()


def options_of(request: Request) -> Any:
    """The options of the protocol, each turned into its type. UsageError names the one that is wrong."""
    kind = OPTIONS[request.protocol]
    types = {each.name: type(each.default) for each in fields(kind)}
    chosen = {}
    for name, value in request.options.items():
        if name not in types:
            near = difflib.get_close_matches(name, types, n=1) or types
            raise UsageError(
                f"no option of the protocol {request.protocol} is called {name!r}: it has {', '.join(near)}"
            )
        chosen[name] = as_type(name, value, types[name])
        if types[name] in (int, float):
            least, most = RANGES.get(name, (0, 1e9))
            if not least <= chosen[name] <= most:
                raise UsageError(f"{name}={chosen[name]!r} must lie between {least:g} and {most:g}")
    return kind(**chosen)


class Memory:
    """evaluation-PROTOCOL.json: the ``values`` of the last evaluation, and every part that was ever computed by what it
    depends on. It is written after each part."""

    def __init__(
        self, folder: RunFolder, protocol: str, depends: Mapping[str, Any], options: Mapping[str, Any],
        processes: Processes = ALONE,
    ):  # fmt: skip
        self.folder = folder
        self.name = files.evaluation(protocol)
        self.path = folder.path / self.name  # where a person finds it
        self.about = {"schema_version": SCHEMA_VERSION, "protocol": protocol, "inputs": depends, "options": options}
        shaping = {name: value for name, value in options.items() if name not in SELECTING.get(protocol, ())}
        self._depends = {"schema_version": SCHEMA_VERSION, "inputs": depends, "options": shaping}
        before = processes.first(self._read)
        self.parts: dict[str, dict[str, Value]] = before.get("parts", {})
        self.complete = before.get("status") == "done" and all(before.get(key) == self.about[key] for key in self.about)
        self.values: dict[str, Value] = before["values"] if self.complete else {}

    def once(self, part: str, compute: Callable[[], Values]) -> Values:
        key = json_sha256({**self._depends, "part": part})
        if key not in self.parts:
            self.parts[key] = dict(compute())
            self._write("running")
        return self.parts[key]

    def end(self) -> None:
        self._write("done")

    def _write(self, status: str) -> None:
        self.folder.write_json(self.name, {**self.about, "status": status, "values": self.values, "parts": self.parts})

    def _read(self) -> dict[str, Any]:
        if not self.folder.has(self.name):
            return {}
        types = {"schema_version": int, "status": str, "values": dict, "parts": dict}
        try:
            found = self.folder.read_json(self.name, types)
            every = [*found["values"].values(), *(value for part in found["parts"].values() for value in part.values())]
            if not all(isinstance(value, int | float | str) for value in every):
                raise ValueError
        except (DiskError, ValueError, AttributeError):
            raise DiskError(f"{self.path} is damaged: remove it, and it is computed again") from None
        return found if found["schema_version"] == SCHEMA_VERSION else {}


# ---- what each protocol needs ---------------------------------------------------------------------------------------

Prepared = tuple[dict[str, Any], Callable[[Once], Iterator[Pair]]]


@dataclass(frozen=True)
class _Job:
    """An evaluation: ``options`` are those of its protocol."""

    folder: RunFolder
    request: Request
    options: Any
    display: Display
    stdin: TextIO | None
    processes: Processes

    @property
    def labels(self) -> str:
        if self.request.labels is None:
            raise UsageError(
                f"the protocol {self.request.protocol} needs labels: --labels folders, or a CSV file of path,label"
            )
        return self.request.labels

    def images(self, what: str) -> str:
        if self.request.images is None:
            raise UsageError(f"the protocol {self.request.protocol} needs IMAGES: {what}")
        if self.request.labels is not None:
            raise UsageError(f"the protocol {self.request.protocol} brings its own labels: leave --labels out")
        return self.request.images

    def own_images(self) -> Source:
        source = found_again(self.folder)
        if source is None:
            raise DataError(
                f"the images of {self.folder.path} are not where they were any more:"
                " say where they are (IMAGES, or --train for those to learn from)"
            )
        return source

    def model(self) -> Model:
        return models.load_of_run(self.folder, choose_device(self.request.device))

    def read(self, source: Source, labels: Sequence[str], size: int, place: Path) -> tuple[Store, list[str]]:
        """The usable images that have a label, and these. What does not fit into memory goes to ``place``."""
        check_alike(source, self.processes)
        wanted = [i for i, label in enumerate(labels) if label]
        if not wanted:
            raise DataError(f"no image of {source.name} has a label: check --labels")
        place.mkdir()
        store = read_share(
            source.rows(wanted), size, self.processes, folder=place,
            progress=lambda *done: self.display.progress("reading", *done),
        )  # fmt: skip
        if left_out := len(wanted) - len(store.kept):
            self.display.say("Skipped", f"{left_out:,} files of {source.name} that cannot be used")
        return store, [labels[wanted[i]] for i in store.kept]


def _clustering(job: _Job) -> Prepared:
    """Of the run's own images by clusters.csv, of others by the model."""
    if job.request.images is None:
        rows = [row for row in job.folder.read_clusters() if row["status"] == "ok"]
        paths = [row["path"] for row in rows]
        source = job.own_images() if job.labels == "folders" else find(paths)
        by_path = dict(zip(source.paths, true_labels(job.labels, source), strict=True))
        labels = [by_path.get(path, "") for path in paths]
        with job.folder.believed():
            clusters = [int(row["cluster"]) for row in rows]
        depends = {"clusters": json_sha256([clusters, labels])}
        return depends, lambda once: clustering.clustering(
            clusters, labels, job.options, seed=job.request.seed, once=once
        )
    source = find(job.request.images, stdin=job.stdin)
    every = true_labels(job.labels, source)
    model = job.model()

    def pairs(once: Once) -> Iterator[Pair]:
        with _scratch(job) as scratch:
            store, labels = job.read(source, every, model.store_size, scratch / "images")
            placed = store.table.whole(model.place(model.transform(store.images)).cluster).tolist()
        yield from clustering.clustering(placed, labels, job.options, seed=job.request.seed, once=once)

    return {"model": model_digest(model), "test": _fingerprint(source, every)}, pairs


def _learnt(
    job: _Job, protocol: Callable[..., Iterator[Pair]], sizes: Callable[[Model, Any], tuple[int, int]]
) -> Prepared:
    """Protocols that learn from labelled images and are scored on others: those that are given, or a fifth of the same.

    sizes: of a model and the options, side of the images that the network sees and of those that are stored.
    """
    source = find(job.request.train, stdin=job.stdin) if job.request.train else job.own_images()
    labels = true_labels(job.labels, source)
    if job.request.images:
        tests = find(job.request.images, stdin=job.stdin)
        test_labels = true_labels(job.labels, tests)
        _check_apart(source, tests)
    else:
        source, labels, tests, test_labels = _split(source, labels, job.request.seed)
    model = job.model()
    image_size, store_size = sizes(model, job.options)

    def pairs(once: Once) -> Iterator[Pair]:
        with _scratch(job) as scratch:
            train, names = job.read(source, labels, store_size, scratch / "train")
            test, test_names = job.read(tests, test_labels, store_size, scratch / "test")
            known = sorted({*names, *test_names})
            number = {name: i for i, name in enumerate(known)}
            task = Task(
                network=model.network,
                train=Labelled(train.images, torch.tensor([number[name] for name in names]), train.table),
                test=Labelled(test.images, torch.tensor([number[name] for name in test_names]), test.table),
                names=known,
                image_size=image_size,
                batch_size=model.batch_size,
                seed=job.request.seed,
            )
            yield from protocol(task, job.options, once=once, display=job.display)

    depends = {
        "backbone": body_digest(model),
        "train": _fingerprint(source, labels),
        "test": _fingerprint(tests, test_labels),
    }
    return depends, pairs


def _split(source: Source, labels: Sequence[str], seed: int) -> tuple[Source, list[str], Source, list[str]]:
    """Four fifths of the images that have a label, and the other one."""
    known = [i for i, label in enumerate(labels) if label]
    train, test = ([known[i] for i in rows.tolist()] for rows in held_out(len(known), seed))
    return source.rows(train), [labels[i] for i in train], source.rows(test), [labels[i] for i in test]


def _check_apart(train: Source, test: Source) -> None:
    """DataError where images that are to be scored are among those that are learnt from."""
    if train.file and test.file:
        known = {train.file(i) for i in range(len(train.paths))}
        both = sum(test.file(i) in known for i in range(len(test.paths)))
    else:
        both = len(test.paths) if train.location == test.location else 0
    if both:
        raise DataError(
            f"{both:,} images of {test.name} are among those that are learnt from: give others, or leave IMAGES out,"
            " and a fifth is kept from training"
        )


def _as_in_the_run(model: Model, options: Any) -> tuple[int, int]:
    return model.image_size, model.store_size


def _with_margin(model: Model, options: linear.Options) -> tuple[int, int]:
    size = options.image_size or model.image_size
    return size, max(size, round(size * options.margin))


def _retrieval(job: _Job) -> Prepared:
    """Of images with queries as Oxford and Paris come; the whitening is learnt from them, or from those of --train."""
    source, queries = retrieval.dataset(job.images("images and ground truth of Oxford or Paris buildings"))
    others = retrieval.images_below(job.request.train) if job.request.train else None
    model = job.model()
    depends = {
        "backbone": body_digest(model),
        "test": _fingerprint(source),
        "queries": hashlib.sha256(repr([_sorted(query) for query in queries]).encode()).hexdigest(),
        "train": _fingerprint(others) if others else "",
    }
    return depends, lambda once: retrieval.retrieval(
        model.network, source, queries, job.options,
        whiten_by=others, seed=job.request.seed, once=once, display=job.display,
    )  # fmt: skip


def _sorted(query: retrieval.Query) -> list[Any]:
    return [query.name, query.image, query.box, sorted(query.positive), sorted(query.junk)]


def _voc07(job: _Job) -> Prepared:
    """Of a VOCdevkit."""
    root = voc07.devkit(job.images("the folder VOCdevkit/VOC2007"))
    if job.request.train:
        raise UsageError("the protocol voc07 learns from a part of VOC07: leave --train out, see --set split=...")
    train, test, names = voc07.splits(root, job.options.split)
    model = job.model()

    def pairs(once: Once) -> Iterator[Pair]:
        yield from voc07.voc07(
            model.network, train, test, names, job.options, image_size=model.image_size,
            scratch=lambda: _scratch(job), seed=job.request.seed, once=once, display=job.display,
        )  # fmt: skip

    depends = {
        "backbone": body_digest(model),
        **{part: [_fingerprint(each.source), each.digest()] for part, each in (("train", train), ("test", test))},
    }
    return depends, pairs


def _filters(job: _Job) -> Prepared:
    """Of the run's images, or others; the sheets go into the run folder, and are made again where one is gone."""
    if job.request.labels is not None or job.request.train is not None:
        raise UsageError("the protocol filters looks at images alone: leave --labels and --train out")
    source = find(job.request.images, stdin=job.stdin) if job.request.images else job.own_images()
    model = job.model()
    for layer in chosen_layers(model.network, job.options.layers):
        if not job.folder.has(files.filters(layer.name)):
            job.folder.remove(files.evaluation("filters"))

    def keep(layer: str, sheet: Image.Image) -> None:
        data = io.BytesIO()
        mark = PngInfo()
        mark.add_text("Software", SHEET_MARK)
        sheet.save(data, "PNG", pnginfo=mark)
        job.folder.write_bytes(files.filters(layer), data.getvalue())

    def pairs(once: Once) -> Iterator[Pair]:
        with _scratch(job) as scratch:
            store, _ = job.read(source, source.paths, model.store_size, scratch / "images")
            yield from filters.filters(
                model.network, store.images, job.options, image_size=model.image_size, batch_size=model.batch_size,
                seed=job.request.seed, keep=keep, display=job.display,
            )  # fmt: skip

    return {"backbone": body_digest(model), "images": _fingerprint(source)}, pairs


PREPARE: dict[str, Callable[[_Job], Prepared]] = {
    "clustering": _clustering,
    "knn": lambda job: _learnt(job, knn.knn, _as_in_the_run),
    "linear": lambda job: _learnt(job, linear.linear, _with_margin),
    "few": lambda job: _learnt(job, few.few, _as_in_the_run),
    "retrieval": _retrieval,
    "voc07": _voc07,
    "filters": _filters,
}


@contextmanager
def _scratch(job: _Job) -> Iterator[Path]:
    """A folder for images that do not fit into memory, in the run folder, as there is room for those of the run."""
    assert job.folder.scratch is not None, "an evaluation has the lock"
    with temporary_folder(place=job.folder.scratch) as place:
        yield place


def body_digest(model: Model) -> str:
    """SHA-256 of the backbone and of how large the images are that it takes: whatever a recut leaves alone."""
    digest = hashlib.sha256(f"{model.network.architecture} {model.image_size} {model.store_size}".encode())
    for name, value in model.network.body.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_digest(model: Model) -> str:
    """SHA-256 of all that places an image."""
    parts = (
        model.reduction.mean, model.reduction.projection, model.fine_centroids,
        model.groups.centroids, model.groups.groups,
    )  # fmt: skip
    digest = hashlib.sha256(body_digest(model).encode())
    for part in parts:
        digest.update(part.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _fingerprint(source: Source, labels: Sequence[str] = ()) -> str:
    """SHA-256 of paths, labels, and where they are files size and time of change: known before an image is read."""
    digest = hashlib.sha256()

    def add(*values: object) -> None:
        digest.update("\0".join(map(str, values)).encode(errors="surrogateescape") + b"\n")

    place = Path(source.location)
    add(source.location, *_stamp(place))
    for i, path in enumerate(source.paths):
        add(path, labels[i] if labels else "", *(_stamp(source.file(i)) if source.file else ()))
    return digest.hexdigest()


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return ()
    return () if path.is_dir() else (status.st_size, status.st_mtime_ns)
