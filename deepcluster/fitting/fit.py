"""The life of a run: begin, read the images, alternate, conclude."""

import secrets
import shlex
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import deepcluster
from deepcluster.auto import RECTIFIED
from deepcluster.build import compute_of, network_of
from deepcluster.errors import DeepClusterError, Stopped
from deepcluster.fitting.forecast import announce
from deepcluster.fitting.like import places_before, read_former
from deepcluster.fitting.own_features import begin_features, read_given
from deepcluster.fitting.plan import (
    Begun,
    Clock,
    Contents,
    ImagesRead,
    Job,
    Request,
    begin,
    check_weights_here,
    with_precision,
)
from deepcluster.fitting.resume import check_same
from deepcluster.fitting.train import train
from deepcluster.fitting.writer import ResultWriter, rounds_text, write_beginning
from deepcluster.images import Images, find
from deepcluster.images.duplicates import near_duplicates
from deepcluster.images.given import true_labels
from deepcluster.images.own_features import OwnFeatures, read_features
from deepcluster.images.source import counted
from deepcluster.images.store import check_alike, read_once
from deepcluster.learning.features import certainty_of
from deepcluster.nets.network import Network, no_network
from deepcluster.presets import check_groups
from deepcluster.recipe import AUTO, to_toml
from deepcluster.report.pictures import sprite_sheet, tiny_pictures
from deepcluster.runs.images import duplicate_rows, fingerprint, image_digests
from deepcluster.runs.page import SHEET
from deepcluster.runs.result import summary_text
from deepcluster.runtime import signals
from deepcluster.runtime.console import Display, Several, Silent
from deepcluster.runtime.devices import CPU, choose_device, environment, keep_freed_memory, working_on
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.plain_files import shaped
from deepcluster.runtime.processes import ALONE, Processes
from deepcluster.storage import run_folder
from deepcluster.storage.checkpoint import Checkpoints, rounds_done
from deepcluster.storage.content import RunRecord
from deepcluster.storage.state import scratch_of
from deepcluster.texts import plural


def fit(
    images: Images | OwnFeatures,
    request: Request,
    display: Display | None = None,
    processes: Processes = ALONE,
) -> run_folder.RunFolder:
    """Cluster images, and return the run folder (docs/run-folder.md).

    Wrong options, labels or weights raise an error before anything is written. With ``resume`` the run goes on from the
    last checkpoint in its folder, or begins if there is none.

    Args:
        images: A folder, a list of paths, an array, ...; if the request says that these are features, anything
            that ``read_features`` takes, which are grouped without a network.
        display: Shows the run (None: nothing does).
        processes: They share the images; the main rank writes and displays.
    """
    clock = Clock()
    device = choose_device(request.device)
    if request.features:  # no network would use a GPU
        device = CPU
    display = Several(display) if processes.is_main else Silent()
    with working_on(device, deterministic=request.deterministic):
        keep_freed_memory()
        features, source = read_features(images) if request.features else (None, find(images))
        check_alike(source, processes)
        start = begin if features is None else partial(begin_features, images, features.shape[1])
        decided = processes.broadcast_json(lambda: asdict(start(source, request, display)))
        begun: Begun = shaped(decided, Begun, "begun")
        if begun.state == "finished":
            display.say("Done", f"{begun.out} is finished already")
            return run_folder.RunFolder(Path(begun.out))
        check_weights_here(begun.facts.published if begun.facts else "")
        request = replace(request, labels=begun.labels, like=Path(begun.like) if begun.like else None)
        labels = true_labels(request.labels, source) if request.labels else None
        former = run_folder.read_state(request.like, read_former) if request.like and processes.is_main else None
        job = Job(request, source, labels, device, display, processes, clock, features, former)
        if features is None:
            network = network_of(begun.plan.recipe, request.seed, device, request.module)
            if processes.is_main:
                announce(job, begun, network)
        else:
            network = no_network(features.shape[1])
        with (
            run_folder.shared_lock(Path(begun.out), processes, make=True) as folder,
            run_folder.replacing(folder if request.overwrite else None),
        ):
            _run(job, begun, folder, network)
        return run_folder.RunFolder(Path(begun.out))


def _run(job: Job, begun: Begun, folder: run_folder.LockedFolder | None, network: Network) -> None:
    """Read, train and conclude; the main rank has the folder. An error of this run is recorded in run.json."""
    request = job.request
    out = Path(begun.out)
    is_resumed = begun.state == "resumed"
    before = folder.read_record() if folder and folder.has(run_folder.RUN) and not request.overwrite else None
    record = first_record(job, before, is_resumed=is_resumed)
    signals.advise(partial(_advice, out, record, request))
    checkpoints = Checkpoints(out / "checkpoints", scratch_of(out, job.processes.rank), job.processes)
    checkpoint = checkpoints.latest() if is_resumed else None
    job.display.say("Run", str(out))
    try:
        images, facts = _read(job, begun, network) if job.features is None else read_given(job, begun, job.features)
        record = replace(
            record,
            images_count=images.store.partition.total,
            skipped_count=len(images.store.skipped),
            pseudo_labels=images.recipe.pseudo_labels,
            **facts,
        ).with_phase("reading", job.clock.lap())
        if job.former:
            size = images.recipe.store_size
            places = places_before(job.former, job.source, images.digests, size, job.display.progress)
            images = replace(images, places_before=places)
        others = {"n_clusters": request.n_clusters, "seed": request.seed, **request.steps.names}
        about: dict[str, Any] = {  # facts about the run, for --resume
            "options": {**asdict(images.recipe), **others},
            "environment": record.environment,
            "run": record.run,
        }
        if folder and is_resumed:
            record = replace(record, resumed=check_same(folder, checkpoint, about, images.digests))
        writer = ResultWriter(job, folder, network, images, record, checkpoints)
        if folder and not writer.at_once:
            with folder.next_state(anew=request.overwrite) as staged:
                write_beginning(staged, images)
                staged.write_record(record)
        outcome = writer.write(*train(writer, checkpoint, about))
    except BaseException as error:
        try:
            _record_end(folder, record, error)
        except Stopped as stop:  # the signal came on the way here; there is no second one
            _record_end(folder, record, stop)
            raise
        raise
    if folder and job.features is None:
        if images.recipe.weights and "rounds" not in request.recipe.all_options and not images.recipe.rounds:
            job.display.say("Training", "none: the network is used as it is; --rounds 1 trains it, which takes longer")
        job.display.say("Done", summary_text(outcome, request.n_clusters, rounds_text(outcome.record)))
    elif folder:
        job.display.say("Done", f"{len(outcome.summary):,} clusters of {len(job.source.paths):,} rows of features")


def _advice(out: Path, record: RunRecord, request: Request) -> str:
    """Return the end of the message of a stop: the state of the run ``record`` in ``out``, and the next command."""
    written = None
    with suppress(DeepClusterError):
        written = run_folder.RunFolder(out).read_record()
    if written and not _is_same_start(written, record):
        return f"; {out} is as it was{signals.REPEAT}"
    if not written and (request.overwrite or request.features):
        return signals.REPEAT
    if written and written.status == "done":
        return f"; the run in {out} is done"
    done = rounds_done(out)
    end = f"; to end it with {plural(done, 'round')}: --resume --rounds {done}" if done else ""
    return f"; to go on: run it again with -o {shlex.quote(str(out))} --resume{end}"


def _is_same_start(written: RunRecord, record: RunRecord) -> bool:
    """Return whether run.json is of this process."""
    return (written.run, written.started) == (record.run, record.started)


def first_record(job: Job, before: RunRecord | None, *, is_resumed: bool) -> RunRecord:
    """Return run.json at the start; a run that goes on, from whatever state, keeps its number."""
    return RunRecord(
        run=(before and before.run) or secrets.token_hex(8),
        version=deepcluster.__version__,
        status="running",
        command=job.request.command,
        images=job.source.name,
        location=job.source.location,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=job.request.seed,
        n_clusters=job.request.n_clusters,
        cut_k=job.request.n_clusters,
        labels=job.request.labels,
        like=str(job.request.like) if job.request.like else None,
        like_run=job.former.run if job.former else None,
        requested=before.requested if before and is_resumed else asdict(job.request.recipe),
        steps=job.request.steps.names or None,
        device=str(job.device),
        environment=environment(job.device, job.processes.world_size, deterministic=job.request.deterministic),
    )


def _read(job: Job, begun: Begun, network: Network) -> tuple[ImagesRead, dict[str, Any]]:
    """Return the images, read once, and entries of run.json that depend on them and on the network. A collective."""
    source = job.source
    display = job.display
    progress = partial(display.progress, "reading")
    scratch = scratch_of(Path(begun.out), job.processes.rank)
    store = read_once(source, begun.plan.recipe.store_size, job.processes, folder=scratch, progress=progress)
    used = len(store.usable)
    skipped = store.skipped
    if skipped:
        display.say("Images", f"{used:,} can be used, {len(skipped):,} skipped: {counted(skipped)} (skipped.csv)")
    plan = begun.plan
    if begun.facts:
        certainty = None
        if job.request.recipe.base == AUTO and plan.recipe.backbone.startswith(RECTIFIED):  # no other recipe asks
            compute = compute_of(network, plan.recipe, store.partition, exact=True)
            certainty = certainty_of(network, store.images, compute)
        if used != begun.facts.count or certainty is not None:
            check_groups(job.request.n_clusters, used)
            # The sizes of the images, which are read already, depend on no number of images.
            plan = begun.plan_if(job.request, count=used, certainty=certainty)
    plan = with_precision(plan, network)
    for line in plan.by_reason() if job.request.verbose else ():
        display.say("Plan", line)
    digests = image_digests(source, store)
    display.progress("duplicates", 0, 0)
    alike = near_duplicates(store.images, store.partition)
    pictures = tiny_pictures(store.images, store.partition.local.start, used)
    pictures = Partition.of(job.processes, len(pictures)).gather(pictures)
    beginning: Contents = {
        "recipe.toml": to_toml(plan.recipe),
        "skipped.csv": [{"path": path, "reason": why} for path, why in skipped],
        "duplicates.csv": [*duplicate_rows(alike, [source.paths[i] for i in store.usable])],
        SHEET: sprite_sheet(pictures) if job.processes.is_main else b"",
        **({"history.csv": []} if begun.state == "new" else {}),
    }
    if alike:
        text = f"{sum(map(len, alike)):,} images in {plural(len(alike), 'set')} are nearly identical (duplicates.csv)"
        display.say("Alike", f"{text}; all are used")
    facts = {"fingerprint": fingerprint(digests), "backbone": plan.recipe.backbone, "reasons": plan.reasons}
    return ImagesRead(store, plan.recipe, digests, beginning), facts


def _record_end(folder: run_folder.LockedFolder | None, record: RunRecord, error: BaseException) -> None:
    """Write into run.json how the run ended, unless it is done or run.json is of another process."""
    stopped = signals.stopped() or isinstance(error, KeyboardInterrupt | Stopped)
    status = "stopped" if stopped else "failed"
    with suppress(DeepClusterError), signals.uninterrupted():
        if folder and _is_same_start(written := folder.read_record(), record) and written.status != "done":
            folder.write_record(replace(written, status=status, error=f"{type(error).__name__}: {error}"))
