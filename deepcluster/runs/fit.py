"""The composition root: recipe + images -> objects -> the loop -> files. The only place that knows them all."""

import math
import os
import resource
import secrets
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

import deepcluster
from deepcluster.algorithm import Result, conclude
from deepcluster.clustering.whitening import whiten
from deepcluster.errors import DeepClusterError, DeepClusterWarning, Stopped, UsageError
from deepcluster.groups.choose_k import ROWS
from deepcluster.groups.confidence import Clarity, Guard, clarity, guard
from deepcluster.groups.cut import ROWS_EACH, Cut, outlier_distances, outlier_length, place
from deepcluster.groups.neighbour_graph import Graph, joined, neighbour_graph
from deepcluster.images import Images, Source, find
from deepcluster.images.duplicates import near_duplicates
from deepcluster.images.labels import true_labels
from deepcluster.images.preview import Preview, preview
from deepcluster.images.store import Store, check_alike, read_share
from deepcluster.learning.features import extract
from deepcluster.learning.precision import fastest_precision, network_precision
from deepcluster.nets.backbone import Network
from deepcluster.recipe import Facts, Plan, Recipe, options_of, resolve, to_toml
from deepcluster.records import Clustering, State
from deepcluster.report.sprite import sprite_sheet, tiny_pictures
from deepcluster.runs import resources as estimate
from deepcluster.runs import resume as resuming
from deepcluster.runs.build import Steps, network_of, rounds_of
from deepcluster.runs.checkpointing import Keeper, scattered
from deepcluster.runs.groups import Rows, check_groups, groups_of, suggested, write_groups, write_map, write_report
from deepcluster.runtime.devices import choose_device, environment, free_memory, keep_freed_memory, working_on
from deepcluster.runtime.display import Display, Silent
from deepcluster.runtime.processes import ALONE, Processes, together
from deepcluster.runtime.signals import Stop, temporary_folder
from deepcluster.seeding import derive, generator
from deepcluster.storage import csv_rows as tables
from deepcluster.storage import model_files as models
from deepcluster.storage import report_files as drawn
from deepcluster.storage import run_folder as files
from deepcluster.storage.checkpoint import Checkpoint, Checkpoints
from deepcluster.storage.csv_rows import round_to
from deepcluster.storage.generation import check_places
from deepcluster.storage.model_files import Model
from deepcluster.storage.ownership import own_files
from deepcluster.storage.run_folder import RunFolder, graph_of, graph_tensors


@dataclass(frozen=True)
class Request:
    """What the user asked for, beside the images."""

    out: Path | None = None
    n_clusters: int | None = None  # None: chosen from the final features
    recipe: str = "auto"
    options: Mapping[str, Any] | None = None
    device: str = "auto"
    deterministic: bool = False
    seed: int = 0
    time_limit: float | None = None  # seconds
    labels: str | None = None
    overwrite: bool = False
    resume: bool = False
    checkpoint_every: float = 600.0  # seconds, beside the start of each round
    command: str = ""


def plan(source: Source, seen: Preview, request: Request, count: int | None = None) -> Plan:
    """The resolved recipe for these images, of which ``count`` are usable (default: all)."""
    count = len(source.paths) if count is None else count
    check_groups(request.n_clusters, count)
    device = choose_device(request.device)
    facts = Facts(count, seen.short_side, seen.grey, request.n_clusters, device.type)
    return resolve(request.recipe, request.options or {}, facts)


def fit(
    images: Images,
    request: Request,
    display: Display | None = None,
    stdin: TextIO | None = None,
    stop: Stop | None = None,
    processes: Processes = ALONE,
) -> RunFolder:
    """From images to a run folder (docs/run-folder.md). Raises a DeepClusterError that says what to do.

    Whatever is wrong with the options, the labels or the weights is said before anything is written. With ``resume`` it
    goes on from the last checkpoint in the folder, or begins where there is none. ``stop`` may end it with Stopped.
    Several ``processes`` share the images; the first of them writes and displays.
    """
    device = choose_device(request.device)
    with working_on(device, deterministic=request.deterministic):
        return _fit(images, request, device, display, stdin, stop or Stop(), processes)


def _fit(
    images: Images, request: Request, device: torch.device, display: Display | None, stdin: TextIO | None, stop: Stop,
    processes: Processes,
) -> RunFolder:  # fmt: skip
    clock = _Clock()
    keep_freed_memory()
    display = display if display and processes.leads else Silent()
    source = find(images, stdin=stdin)
    check_alike(source, processes)
    if request.resume and request.out:
        out = request.out
        if processes.first(lambda: resuming.is_finished(out, source, request.n_clusters, request.seed)):
            _check_finished(out, source, request, processes)
            display.say("Run", f"{out} is finished already")
            return files.open_run(out)
    labels = true_labels(request.labels, source) if request.labels else None
    seen = preview(source)
    recipe = plan(source, seen, request).recipe
    network = network_of(recipe, request.seed, device)
    available = estimate.available() / together()
    needed = estimate.memory(network, recipe, len(source.paths), processes.count, seen.decoding)
    estimate.check(needed, available, recipe)
    if device.type == "cuda":
        estimate.check_gpu(needed, free_memory(device), recipe, device)
    started = datetime.now(UTC)
    own = f"{files.folder_name(source.name)}-{time.strftime('%Y%m%d-%H%M%S')}"
    out = Path(processes.first(lambda: str(request.out or Path("runs") / own)))
    if processes.leads:
        files.check_free(out, overwrite=request.overwrite, resume=request.resume)
        if request.overwrite:
            check_not_inside(source, out)
    with files.shared_lock(out, processes, make=True) as folder:
        if folder.ours:
            check_places(folder.path)
        begun = folder.read_record() if folder.has(files.RUN) and folder.ours else {}
        replacing = bool(begun) and request.overwrite
        record: dict[str, Any] = {
            "schema_version": files.SCHEMA_VERSION,
            "run": secrets.token_hex(8) if replacing else begun.get("run", secrets.token_hex(8)),
            "version": deepcluster.__version__,
            "status": "running",
            "command": request.command,
            "images": source.name,
            "location": source.location,
            "started": started.isoformat(timespec="seconds"),
            "seed": request.seed,
            "n_clusters": request.n_clusters,
            "device": str(device),
            "environment": environment(device, processes.count, deterministic=request.deterministic),
        }
        checkpoints = Checkpoints(folder.path / "checkpoints", folder.scratch)
        found = checkpoints.latest() if request.resume and processes.leads else None
        # What is there stays whole until the new images are read, and are those that the checkpoint is of.
        waiting = replacing or found is not None
        if not waiting:
            folder.write_json(files.RUN, record)
        job = _Job(source, labels, seen, request, folder, device, display, clock, record, checkpoints, stop, processes)
        if not replacing:
            job.display.say("Run", str(folder.path))
        if network.origin:
            job.display.say("Weights", network.origin)
        record["memory_estimate_mb"] = round(needed.total / 1e6)
        job.display.say("Memory", f"{needed.text}, {available / 1e9:.1f} GB are free")
        try:
            with folder.next_state(anew=replacing) if waiting else nullcontext(folder) as reading:
                read = _read(replace(job, folder=reading), network)
                if found:
                    _check_same(job, read, found)
                if waiting:
                    reading.write_json(files.RUN, record)
            waiting = False
            if replacing:
                job.display.say("Run", str(folder.path))
            trained = _train(job, network, read, found)
            _finish(job, network, read.store, read.recipe, trained)
        except BaseException as error:
            stopped = stop.wanted or isinstance(error, KeyboardInterrupt | Stopped)
            record |= {"status": "stopped" if stopped else "failed", "error": f"{type(error).__name__}: {error}"}
            if not waiting:
                with suppress(DeepClusterError):
                    folder.write_json(files.RUN, record)
            raise
    return files.open_run(folder.path)


def _check_finished(out: Path, source: Source, request: Request, processes: Processes) -> None:
    """An error with both values where a finished run is of other options than those that are named, or of images with
    other pixels: they are read again only where they lie elsewhere or have changed since."""
    folder = files.open_run(out)
    record = folder.read_record()
    if request.options or request.recipe != "auto":
        named = asdict(plan(source, preview(source), request, record.get("images_count")).recipe)
        then = options_of(folder.file("recipe.toml"))
        wanted = request.options or {} if request.recipe == "auto" else named
        asked = {name: named[name] for name in wanted if name in then and named[name] not in ("auto", "probe")}
        resuming.check_options(then, asked)
    if processes.first(lambda: resuming.is_untouched(source, record)):
        return
    size = folder.read_json("model/config.json", {"store_size": int})["store_size"]
    with temporary_folder() as place:
        digests = resuming.digests(source, read_share(source, size, processes, folder=place))
    if processes.leads:
        resuming.check_fingerprint(folder, digests)


def check_not_inside(source: Source, out: Path) -> None:
    """UsageError where ``--overwrite`` would remove one of the images, as a file of the run that is replaced."""
    own = {os.path.realpath(out / name) for name in own_files(out)}
    names = {Path(path).name for path in own}
    files_read = (source.file(i) for i in range(len(source.paths))) if source.file else ()
    for file in (Path(source.location), *files_read):
        if (file.name in names or file.is_symlink()) and os.path.realpath(file) in own:
            raise UsageError(f"--overwrite would remove {file}, which is one of IMAGES: give another -o")


@dataclass(frozen=True)
class _Job:
    """What every part of a fit needs. ``record`` is run.json in the making, the one thing here that grows."""

    source: Source
    labels: Sequence[str] | None
    seen: Preview
    request: Request
    folder: RunFolder
    device: torch.device
    display: Display
    clock: "_Clock"
    record: dict[str, Any]
    checkpoints: Checkpoints
    stop: Stop
    processes: Processes

    def truth(self, store: Store) -> list[str] | None:
        """The labels in the order of the store's rows; None where no usable image has one."""
        labels = [self.labels[i] for i in store.kept] if self.labels is not None else []
        return labels if any(labels) else None


@dataclass(frozen=True)
class _Read:
    """The images as they were read, the recipe that they settled, and the digest of each image."""

    store: Store
    recipe: Recipe
    digests: Mapping[str, str]


def _read(job: _Job, network: Network) -> _Read:
    """Read the images once, and settle what depends on how many are usable and on the network."""
    store = read_share(
        job.source,
        plan(job.source, job.seen, job.request).recipe.store_size,
        job.processes,
        folder=job.folder.scratch,
        progress=partial(job.display.progress, "reading"),
    )
    count, skipped = len(store.kept), store.skipped
    job.display.say("Images", f"{count:,} of {job.source.name}, {len(skipped):,} skipped (skipped.csv)")
    settled = _with_precision(plan(job.source, job.seen, job.request, count), network)
    for line in settled.by_reason():
        job.display.say("Plan", line)
    job.folder.write_text("recipe.toml", to_toml(settled.recipe))
    job.folder.write_rows("skipped.csv", files.SKIPPED, [{"path": path, "reason": why} for path, why in skipped])
    again = near_duplicates(store.images, store.table)
    digests = resuming.digests(job.source, store)
    job.folder.write_rows("duplicates.csv", files.DUPLICATES, _duplicate_rows(job.source, store, again))
    if again:
        groups = f"{len(again):,} group{'' if len(again) == 1 else 's'}"
        job.display.say(
            "Alike", f"{sum(map(len, again)):,} images in {groups} are nearly identical (duplicates.csv); all are used"
        )
    job.record.update(
        images_count=count,
        skipped_count=len(skipped),
        fingerprint=resuming.fingerprint(digests),
        backbone=settled.recipe.backbone,
        pseudo_labels=settled.recipe.pseudo_labels,
        reasons=list(settled.reasons),
        seconds_by_phase={"reading": round_to(job.clock.lap(), 2)},
    )
    return _Read(store, settled.recipe, digests)


def _duplicate_rows(
    source: Source, store: Store, groups: Sequence[Sequence[tuple[int, float]]]
) -> Iterator[dict[str, Any]]:
    for group, members in enumerate(groups):
        for row, distance in members:
            yield {"group": group, "path": source.paths[store.kept[row]], "distance": f"{distance:.4f}"}


def _with_precision(settled: Plan, network: Network) -> Plan:
    """The plan with the precision that was chosen for this network, so that recipe.toml says what was used.

    ``auto`` is a rule and not a trial: where a step takes about as long either way, a trial would be decided by what
    else the machine does, and two runs with one seed would differ. ``probe`` is the trial.
    """
    recipe = settled.recipe
    if recipe.precision not in ("auto", "probe"):
        return settled
    device = next(network.parameters()).device
    if recipe.precision == "auto":
        dtype, why = network_precision(network, device), "by the processor and the kind of convolutions"
    else:
        dtype, share = fastest_precision(network, recipe.image_size, recipe.batch_size)
        measured = f"a step in bf16 takes {share:.2f} of one in fp32"
        why = "bfloat16 is not native here" if math.isnan(share) else measured
    name = "bf16" if dtype == torch.bfloat16 else "fp32"
    return Plan(replace(recipe, precision=name), (*settled.reasons, f"precision {name}: {why}"))


@dataclass(frozen=True)
class _Trained:
    """How the rounds went: their number, why there were no more, the features and clusters at the start; and where the
    recipe wants them the graphs of their features, and how much what came out of each round counts: 1 minus its loss as
    a share of that of guessing, as a network that cannot tell its own clusters apart has lost what it knew. ``given``
    is the body as it was before them."""

    rounds: int
    stopped_because: str
    start: tuple[Tensor, Clustering] | None
    graphs: Sequence[Graph]
    weights: Sequence[float]
    given: Mapping[str, Tensor]


def _about(job: _Job, recipe: Recipe) -> dict[str, Any]:
    """What a checkpoint says of its run."""
    own = {"n_clusters": job.request.n_clusters, "seed": job.request.seed}
    return {
        "options": {**asdict(recipe), **own}, "environment": job.record["environment"],
        "run": job.record["run"], "fingerprint": job.record["fingerprint"],
    }  # fmt: skip


def _check_same(job: _Job, read: _Read, found: Checkpoint) -> None:
    """An error with both values where a checkpoint is of another run, or of other options or images."""
    about = _about(job, read.recipe)
    resuming.check_run(job.checkpoints.folder, found.about, about)
    resuming.check_options(found.about["options"], about["options"])
    resuming.check_images(job.folder, read.digests)


def _train(job: _Job, network: Network, read: _Read, found: Checkpoint | None) -> _Trained:
    """Alternate until the recipe or the time limit ends it; keep history.csv up to date, and checkpoints."""
    store, recipe, processes = read.store, read.recipe, job.processes
    truth = job.truth(store)
    columns = files.HISTORY if truth is None else (*files.HISTORY, "nmi_labels")
    history: list[Mapping[str, Any]] = []
    start: tuple[Tensor, Clustering] | None = None
    graphs: list[Graph] = []
    weights: list[float] = []
    joining = recipe.neighbours == "rounds"
    final = recipe.neighbours == "final"
    given = {} if final else {name: value.clone() for name, value in network.body.state_dict().items()}
    limit = job.request.time_limit
    stopped = ""
    about = _about(job, recipe)
    if found:
        job.record["resumed"] = resuming.differing_environment(found.about["environment"], about["environment"])
        history = resuming.history(job.folder, columns, found.state.round)
        start = _start_of(found.parts["start"]) if "start" in found.parts else None
        weights = list(found.about["weights"])
        graphs = [graph_of(found.parts[f"graph{i}"], len(store.kept)) for i in range(len(weights))]
        job.clock.start -= found.about["elapsed"]
        job.display.say("Resumed", f"in round {found.state.round + 1}, from {job.checkpoints.folder}")
    elif processes.leads:
        resuming.remember(job.folder, read.digests)
    state: State | None = None
    if processes.any(found is not None):
        network.restore(processes.first_tensors(lambda: found.network if found else {}), recipe.temperature or None)
        state = scattered(found.state if found else None, store.table)
    job.folder.write_rows("history.csv", columns, history)
    steps = Steps(recipe)
    if limit is not None:  # the step depends on how many rounds fit into the time
        steps.rounds = processes.first(lambda: found.about.get("rounds", recipe.rounds) if found else recipe.rounds)
    before, begun = len(history), job.clock.elapsed()
    keeper = Keeper(
        job.checkpoints,
        network,
        lambda: {**about, "weights": weights, "elapsed": job.clock.elapsed(), "rounds": steps.rounds},
        job.stop,
        job.request.checkpoint_every,
        store.table,
    )
    rounds = rounds_of(
        network, store.images, recipe, steps, job.request.seed, state=state, keep=keeper,
        progress=job.display.progress, processes=processes,
    )  # fmt: skip
    for round in rounds:
        if joining:  # a graph takes many seconds, and may be left where it is once the training is in a checkpoint
            keeper.rest()
        wanted = joining or round.index == 0
        reduced = store.table.at_first(round.reduced) if wanted else round.reduced
        if processes.leads:
            if start is None and round.index == 0:
                start = (reduced, round.clustering)
                job.checkpoints.add("start", _tensors_of_start(*start))
            if joining:
                graphs.append(_graph(reduced, job.request.seed))
                job.checkpoints.add(f"graph{round.index}", graph_tensors(graphs[-1]))
                weights.append(max(0.0, 1 - round.loss / max(round.chance_loss, 1e-9)))
            row = tables.history_row(round, truth)
            history.append(row)
            job.folder.write_rows("history.csv", columns, history)
            job.display.round(row, recipe.rounds)
            if limit is not None:
                mean = (job.clock.elapsed() - begun) / (len(history) - before)
                left = max(0, int(((1 - FOR_THE_RESULT) * limit - job.clock.elapsed()) / mean))
                steps.rounds = min(recipe.rounds, len(history) + left)
                stopped = "time limit" if len(history) < recipe.rounds and not left else ""
        # The clock of the first process decides for all.
        steps.rounds, stopped = processes.every(steps.rounds)[0], processes.every(stopped)[0]
        if stopped:
            break
    job.stop.at_once = True
    if processes.any(job.stop.wanted):
        raise Stopped("stopped after the last round")
    job.record["seconds_by_phase"]["rounds"] = round_to(job.clock.lap(), 2)
    ended = "assignments settled" if keeper.settled >= recipe.patience else "all rounds done"
    return _Trained(len(history), stopped or ended, start, graphs, weights, given)


def _tensors_of_start(reduced: Tensor, clustering: Clustering) -> dict[str, Tensor]:
    return {
        "reduced": reduced, "labels": clustering.labels, "centroids": clustering.centroids, "sizes": clustering.sizes
    }  # fmt: skip


def _start_of(parts: Mapping[str, Tensor]) -> tuple[Tensor, Clustering]:
    clustering = Clustering(parts["labels"], parts["centroids"], parts["sizes"], math.nan, 0, 0)
    return parts["reduced"], clustering


def _graph(reduced: Tensor, seed: int) -> Graph:
    return neighbour_graph(reduced, derive(seed, "graph"))


def _conclude(network: Network, job: _Job, store: Store, recipe: Recipe) -> Result:
    """Step 7; the first process gets the features of all images."""
    empty = "split" if recipe.empty == "faiss" else recipe.empty  # that one is for the record of rounds
    found = conclude(
        network, store.images, clusters=recipe.pseudo_labels, seed=job.request.seed, size=recipe.image_size,
        batch_size=recipe.batch_size, dims=recipe.dims, whitening=recipe.whitening,
        iterations=recipe.kmeans_iterations, empty=empty, levels=recipe.kmeans_levels,
        progress=job.display.progress, processes=job.processes,
    )  # fmt: skip
    at_first = store.table.at_first
    return replace(found, reduced=at_first(found.reduced), lengths=at_first(found.lengths))


def _finish(job: _Job, network: Network, store: Store, recipe: Recipe, trained: _Trained) -> None:
    """Step 7, and by the first process what is made of it."""
    result = _conclude(network, job, store, recipe)
    n_clusters, graph, kept = 0, None, True
    if job.processes.leads:
        n_clusters = job.request.n_clusters or suggested(result.reduced, job.record, job.display)
        if recipe.neighbours == "clearer":
            kept = _clearer(job, network, store, recipe, result.reduced, trained, n_clusters)
        else:
            graph, kept = _guarded(job, result.reduced, trained, n_clusters)
    if not job.processes.first(lambda: kept):
        network.body.load_state_dict(trained.given)
        result = _conclude(network, job, store, recipe)
    table = store.table
    small = table.at_first(tiny_pictures(store.images, table.own.start, table.total))
    if job.processes.leads:
        with job.folder.next_state() as staged:
            _write(replace(job, folder=staged), network, store, recipe, trained, result, n_clusters, graph, small)
        job.display.say("Done", _summary(job.folder, job.record))


def _guarded(job: _Job, reduced: Tensor, trained: _Trained, n_clusters: int) -> tuple[Graph | None, bool]:
    """The graph of all rounds, where the recipe joins them, and whether the network that was trained is to be kept."""
    if not trained.graphs:
        return None, True
    last = _graph(reduced, job.request.seed)
    graph = joined(trained.graphs[0], [*trained.graphs[1:], last], trained.weights)
    if n_clusters < 2 or len(graph.rows) < ROWS_EACH * n_clusters:
        return graph, True
    return graph, _said(job, guard(trained.graphs[0], last, graph, n_clusters, derive(job.request.seed, "guard")))


def _clearer(
    job: _Job, network: Network, store: Store, recipe: Recipe, reduced: Tensor, trained: _Trained, n_clusters: int
) -> bool:
    """Whether the network that was trained is to be kept, by the groups of a sample of the first process's images."""
    if not trained.rounds or n_clusters < 2:
        return True
    seed = derive(job.request.seed, "guard")
    rows = torch.randperm(len(store.images), generator=generator(seed, "sample"))[:ROWS].sort().values
    own = {name: value.clone() for name, value in network.body.state_dict().items()}
    network.body.load_state_dict(trained.given)
    features = extract(network, store.images[rows], size=recipe.image_size, batch_size=recipe.batch_size).cpu()
    network.body.load_state_dict(own)
    found = clarity(whiten(features, recipe.dims, recipe.whitening)(features), reduced[rows], n_clusters, seed)
    return found is None or _said(job, found)


def _said(job: _Job, found: Guard | Clarity) -> bool:
    """What a guard has found, on the screen and in run.json."""
    job.record["guard"] = {name: round_to(value, 4) for name, value in asdict(found).items()}
    job.record["guard"] |= {"kept": found.kept, "text": found.text}
    job.display.say("Guard", found.text)
    return found.kept


def _write(
    job: _Job, network: Network, store: Store, recipe: Recipe, trained: _Trained, result: Result, n_clusters: int,
    graph: Graph | None, small: Tensor,
) -> None:  # fmt: skip
    """The result in files: the model, the features, the clusters, the report."""
    request, folder, truth = job.request, job.folder, job.truth(store)
    groups = groups_of(result.reduced, result.clustering, n_clusters, request.seed, graph)
    model = _model(network, result, groups, recipe)
    if model.groups.count < n_clusters:
        warnings.warn(
            f"only {model.groups.count} of {n_clusters} clusters are not empty: the features of the images have no more"
            " distinct values (are many images equal?)",
            DeepClusterWarning,
            stacklevel=2,
        )
    baseline: dict[str, float] = {}
    if truth is not None and trained.start is not None:
        reduced, clustering = trained.start
        first = groups_of(reduced, clustering, n_clusters, request.seed)
        baseline = tables.metrics(truth, place(reduced, first, clustering.centroids))
    models.save_in_run(model, folder)
    if graph:
        folder.write_graph(graph)
    folder.write_array("features.npy", result.reduced.numpy())
    folder.write_array(files.LENGTHS, result.lengths.unsqueeze(1).numpy())
    job.record.update(
        rounds=trained.rounds, stopped_because=trained.stopped_because,
        peak_memory_mb=peak_memory_mb(),
    )  # fmt: skip
    job.record["seconds_by_phase"]["result"] = round_to(job.clock.lap(), 2)
    job.record.update(seconds=round_to(job.clock.elapsed(), 2))
    paths = tuple(job.source.paths[i] for i in store.kept)
    rows = Rows(paths=paths, labels=truth, skipped=store.skipped, reduced=result.reduced, lengths=result.lengths)
    write_groups(folder, model, rows, job.record, baseline)
    write_map(folder, result.reduced, request.seed)
    folder.write_bytes(drawn.SHEET, sprite_sheet(small))
    write_report(folder, job.source)
    job.stop.at_once = False  # too late: it must not be called stopped when it is done
    job.record.update(status="done")  # the last thing: a run that was killed before it is not finished
    folder.write_json(files.RUN, job.record)


FOR_THE_RESULT = 0.05  # of a time limit: the final features, the cut and the report come after the rounds


def _model(network: Network, result: Result, groups: Cut, recipe: Recipe) -> Model:
    return Model(
        network=network,
        reduction=result.reduction,
        fine_centroids=result.clustering.centroids,
        groups=groups,
        outlier_distance=outlier_distances(result.reduced, groups),
        outlier_length=outlier_length(result.lengths),
        names=("",) * groups.count,
        image_size=recipe.image_size,
        store_size=recipe.store_size,
        batch_size=recipe.batch_size,
    )


# ---- small things ---------------------------------------------------------------------------------------------------


class _Clock:
    """Seconds since the start and since the last lap."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()

    def elapsed(self) -> float:
        return time.perf_counter() - self.start

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        return seconds


def _summary(folder: RunFolder, record: Mapping[str, Any]) -> str:
    rows = folder.read_rows("cluster_summary.csv")
    shares = [float(row["share"]) for row in rows]
    return (
        f"{len(rows)} clusters (largest {max(shares):.0%}, smallest {min(shares):.1%}) after {record['rounds']} rounds:"
        f" {record['stopped_because']}"
    )


def peak_memory_mb() -> int:
    """The most memory that this process has had, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3))
