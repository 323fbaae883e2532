"""The composition root: recipe + images -> objects -> the loop -> files."""

import os
import secrets
import shlex
import time
import warnings
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

import torch

import deepcluster
from deepcluster.errors import DeepClusterError, DeepClusterWarning, Stopped, UsageError
from deepcluster.images import Images, Source, find
from deepcluster.images.duplicates import near_duplicates
from deepcluster.images.labels import true_labels
from deepcluster.images.preview import preview
from deepcluster.images.skipped import counted
from deepcluster.images.store import check_alike, read_share
from deepcluster.learning.precision import network_precision
from deepcluster.nets.backbone import Network
from deepcluster.presets import Plan
from deepcluster.recipe import Recipe, read_toml, to_toml
from deepcluster.report.text import count
from deepcluster.runs import resume as resuming
from deepcluster.runs import time_limit
from deepcluster.runs.build import network_of
from deepcluster.runs.finish import Results, summary
from deepcluster.runs.forecast import check_memory, forecast, memory
from deepcluster.runs.job import Clock, ImagesRead, Job, Request, facts_of, plan
from deepcluster.runs.train import train
from deepcluster.runs.weights import recorded, settle
from deepcluster.runtime import signals
from deepcluster.runtime.console import Display, Several, Silent
from deepcluster.runtime.devices import choose_device, environment, keep_freed_memory, working_on
from deepcluster.runtime.processes import ALONE, Processes
from deepcluster.runtime.tensorboard import TensorBoard
from deepcluster.storage import run_folder as files
from deepcluster.storage.checkpoint import Checkpoints
from deepcluster.storage.run_folder import LockedFolder, RunFolder
from deepcluster.storage.run_record import RunRecord
from deepcluster.storage.state import own_files, scratch_of


def fit(
    images: Images,
    request: Request,
    display: Display | None = None,
    stdin: TextIO | None = None,
    processes: Processes = ALONE,
) -> RunFolder:
    """From images to a run folder (docs/run-folder.md).

    Whatever is wrong with the options, the labels or the weights is said before anything is written.

    Args:
        images: A folder, a list of paths, an array, ...
        request: What to do with them. With ``resume`` the run goes on from the last checkpoint in its folder, or begins
            where there is none.
        display: Shows the run (None: nothing does).
        stdin: Where the list of paths comes from if ``images`` is "-".
        processes: Those that share the images; the main rank writes and displays.

    Raises:
        DeepClusterError: It says what to do.
    """
    clock = Clock(request.begun)
    device = choose_device(request.device)
    display = display if display and processes.is_main else Silent()
    if request.log and processes.is_main:
        display = Several(display, TensorBoard())
    with working_on(device, deterministic=request.deterministic):
        keep_freed_memory()
        source = find(images, stdin=stdin)
        check_alike(source, processes)
        if request.resume:
            request = replace(request, published=processes.broadcast_json(lambda: recorded(request.out)))
        if request.resume and request.out:
            source = _without_added(source, request.out, processes)
        if finished := _finished(source, request, processes):
            display.say("Run", f"{finished.path} is finished already")
            return finished
        labels = true_labels(request.labels, source) if request.labels else None
        seen = preview(source)
        request = settle(request, facts_of(source, seen, request), display=display, processes=processes)
        job = Job(request, source, seen, labels, device, display, processes, clock)
        recipe = job.plan().recipe
        network = network_of(recipe, request.seed, device, request.module)
        _check_limit(job, network, recipe)
        needed = memory(network, recipe, len(job.source.paths), processes.world_size, gpu=device.type == "cuda")
        check_memory(needed, recipe)
        if job.shows:
            timed = request.time_limit is None and not (request.resume and resuming.has_begun(request.out))
            lines = forecast(
                job.plan(),
                request.n_clusters,
                job.source,
                network,
                needed,
                device,
                ranks=processes.world_size,
                timed=timed,
            )
            for heading, line in lines:
                display.say(heading, line)
        out = free_path(job)
        with files.shared_lock(out, processes, make=True) as folder:
            _run(job, out, folder, network, needed)
        return files.open_run(out)


def _without_added(source: Source, out: Path, processes: Processes) -> Source:
    """The source without the images that an update has added to the run at ``out``."""
    added = set(processes.broadcast_json(lambda: resuming.added(out)))
    if not added:
        return source
    kept = source.rows([i for i, path in enumerate(source.paths) if path not in added])
    return replace(kept, skipped=source.skipped)


def _check_limit(job: Job, network: Network, recipe: Recipe) -> None:
    """Say how long the first groups take, and warn if that is longer than the time limit."""
    limit, source, processes = job.request.time_limit, job.source, job.processes
    if limit is None or processes.broadcast_json(lambda: job.request.resume and resuming.has_begun(job.request.out)):
        return
    if not processes.is_main:
        return
    count = len(source.paths)
    pace = time_limit.measured(source, network, recipe).shared(processes.world_size)
    first = job.clock.elapsed() + time_limit.first_result(pace, count)
    job.display.say("Time", f"the first groups after about {time_limit.in_words(first)}")
    if first > limit:
        warnings.warn(
            f"--time-limit {time_limit.in_words(limit)} is too short for one pass over {count:,} images: the first"
            f" groups take about {time_limit.in_words(first)}, and then the run ends. Give more time, or fewer images",
            DeepClusterWarning,
            stacklevel=2,
        )


def _finished(source: Source, request: Request, processes: Processes) -> RunFolder | None:
    """The run that ``--resume`` asks for, where it has ended well.

    Raises:
        UsageError, DataError: It is of other options than those that are named, or of images with other pixels: these
            are read again only where they lie elsewhere or have changed since.
    """
    out = request.out
    if not (request.resume and out):
        return None
    if not processes.broadcast_json(lambda: resuming.is_finished(out, source, request.n_clusters, request.seed)):
        return None
    folder = files.open_run(out)
    record = folder.read_record()
    if request.options or request.recipe != "auto":
        named = asdict(plan(source, preview(source), request, record.images_count).recipe)
        _, then = read_toml(folder.file("recipe.toml"))
        names = request.options or {} if request.recipe == "auto" else named
        asked = {name: named[name] for name in names if name in then and named[name] != "auto"}
        resuming.check_options(then, asked)
    if processes.broadcast_json(lambda: resuming.is_untouched(source, record)):
        return folder
    size = folder.read_json("model/config.json", {"store_size": int})["store_size"]
    with TemporaryDirectory() as place:
        digests = resuming.digests(source, read_share(source, size, processes, folder=Path(place)))
    if processes.is_main:
        resuming.check_fingerprint(folder, digests)
    return folder


def free_path(job: Job) -> Path:
    """The path of the run, at which it may write."""
    request, source = job.request, job.source
    name = f"{files.folder_name(source.name)}-{time.strftime('%Y%m%d-%H%M%S')}"
    out = Path(job.processes.broadcast_json(lambda: str(request.out or Path("runs") / name)))
    if job.processes.is_main:
        files.check_free(out, overwrite=request.overwrite, resume=request.resume)
        if request.overwrite:
            check_not_inside(source, out)
    return out


def check_not_inside(source: Source, out: Path) -> None:
    """UsageError where ``--overwrite`` would remove one of the images, as a file of the run that is replaced."""
    replaced = {os.path.realpath(out / name) for name in own_files(out)}
    names = {Path(path).name for path in replaced}
    for file in (Path(source.location), *source.files()):
        if (file.name in names or file.is_symlink()) and os.path.realpath(file) in replaced:
            raise UsageError(f"--overwrite would remove {file}, which is one of IMAGES: give another -o")


def _run(job: Job, out: Path, folder: LockedFolder | None, network: Network, needed: float) -> None:
    """Make the run at ``out``; only the main rank has its folder. An error ends up in run.json, unless that is another
    run's still."""
    request, scratch = job.request, scratch_of(out, job.processes.rank)
    before = folder.read_record() if folder and folder.has(files.RUN) else None
    replacing = before is not None and request.overwrite
    before = None if replacing else before
    record = first_record(job, before, needed)
    files.check_shared(out, job.processes)
    checkpoints = Checkpoints(out / "checkpoints", scratch, job.processes)
    checkpoint = checkpoints.latest() if request.resume else None
    # What is there stays whole until the new images are read, and are those that the checkpoint is of.
    staged = replacing or checkpoint is not None
    if folder and not staged:
        folder.write_record(record.with_result_of(before))
    if not replacing:
        job.display.say("Run", str(out))
    if network.origin:
        job.display.say("Weights", network.origin)
    try:
        with folder.next_state(anew=replacing) if folder and staged else nullcontext(folder) as reading:
            read, record = _read(job, reading, scratch, network, record)
            about: dict[str, Any] = {  # what a checkpoint says of its run
                "options": {**asdict(read.recipe), "n_clusters": request.n_clusters, "seed": request.seed},
                "environment": record.environment,
                "run": record.run,
                "fingerprint": record.fingerprint,
            }
            if folder and checkpoint:
                resuming.check_run(checkpoints.folder, checkpoint.about, about)
                then, now = checkpoint.about["options"], about["options"]
                named = {"n_clusters", "seed", *(k for k, value in (request.options or {}).items() if value != "auto")}
                # The recipe chooses the other options by the images, which are therefore compared before them.
                resuming.check_options(then, {name: value for name, value in now.items() if name in named})
                resuming.check_images(folder, read.digests, pixels=False)
                resuming.check_options(then, now)
                resuming.check_images(folder, read.digests)
            if reading:
                reading.write_record(record.with_result_of(before))
        if replacing:
            job.display.say("Run", str(out))
        if checkpoint:
            differences = resuming.differing_environment(checkpoint.about["environment"], about["environment"])
            record = replace(record, resumed=differences)
        elif folder:
            resuming.remember(folder, read.digests)
        results = Results(job, folder, network, read, record)
        rounds = train(job, folder, network, read, checkpoints, checkpoint, about, results)
        record = results.final(rounds.count, rounds.stopped_because, rounds.features)
        if folder:
            job.display.say("Done", summary(folder, record))
    except BaseException as error:
        stopped = signals.stopped() or isinstance(error, KeyboardInterrupt | Stopped)
        begun = _record_end(folder, record, error, "stopped" if stopped else "failed") if folder else True
        if isinstance(error, Stopped) and (begun or not replacing):
            again = f"run it again with -o {shlex.quote(str(out))} --resume"
            raise Stopped(f"{error}{_so_far(out)}; to go on: {again}") from None
        raise


def _record_end(folder: LockedFolder, record: RunRecord, error: BaseException, status: str) -> bool:
    """Write into run.json how the run ended, unless it is done, and return whether run.json is of this process."""
    with suppress(DeepClusterError), signals.uninterrupted():
        written = folder.read_record()
        if (written.run, written.started) == (record.run, record.started):
            if written.status != "done":
                folder.write_record(replace(written, status=status, error=f"{type(error).__name__}: {error}"))
            return True
    return False


def _so_far(run: Path) -> str:
    """Name the preliminary result, if there is one."""
    with suppress(DeepClusterError):
        if RunFolder(run).read_record().result:
            return f"; the groups so far are in {run}"
    return ""


def first_record(job: Job, before: RunRecord | None, needed: float) -> RunRecord:
    """run.json at the start; a run that goes on, from whatever state, keeps its number."""
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
        device=str(job.device),
        environment=environment(job.device, job.processes.world_size, deterministic=job.request.deterministic),
        memory_estimate_mb=round(needed / 1e6) or None,
    )


def _read(
    job: Job, folder: LockedFolder | None, scratch: Path, network: Network, record: RunRecord
) -> tuple[ImagesRead, RunRecord]:
    """Read the images once, and settle what depends on how many are usable and on the network."""
    source, display = job.source, job.display
    store = read_share(
        source,
        job.plan().recipe.store_size,
        job.processes,
        folder=scratch,
        progress=partial(display.progress, "reading"),
    )
    used, skipped = len(store.kept), store.skipped
    aside = f", {len(skipped):,} skipped: {counted(why for _, why in skipped)} (skipped.csv)" if skipped else ""
    display.say("Images", f"{used:,} of {source.name}{aside}")
    settled = _with_precision(job.plan(used), network)
    for line in settled.by_reason() if job.request.verbose else ():
        display.say("Plan", line)
    duplicates = near_duplicates(store.images, store.partition)
    digests = resuming.digests(source, store)
    if folder:
        folder.write_text("recipe.toml", to_toml(settled.recipe))
        folder.write_rows("skipped.csv", files.SKIPPED, [{"path": path, "reason": why} for path, why in skipped])
        alike = (
            {"group": group, "path": source.paths[store.kept[row]], "distance": f"{distance:.4f}"}
            for group, members in enumerate(duplicates)
            for row, distance in members
        )
        folder.write_rows("duplicates.csv", files.DUPLICATES, alike)
    if duplicates:
        images, groups = sum(map(len, duplicates)), count(len(duplicates), "group")
        display.say("Alike", f"{images:,} images in {groups} are nearly identical (duplicates.csv); all are used")
    record = replace(
        record,
        images_count=used,
        skipped_count=len(skipped),
        fingerprint=resuming.fingerprint(digests),
        backbone=settled.recipe.backbone,
        pseudo_labels=settled.recipe.pseudo_labels,
        reasons=list(settled.reasons),
    ).with_phase("reading", job.clock.lap())
    return ImagesRead(store, settled.recipe, digests), record


def _with_precision(settled: Plan, network: Network) -> Plan:
    """The plan with the precision that was chosen for this network, so that recipe.toml says what was used.

    ``auto`` is a rule and not a trial: where a step takes about as long either way, a trial would be decided by what
    else the machine does, and two runs with one seed would differ.
    """
    recipe = settled.recipe
    if recipe.precision != "auto":
        return settled
    dtype = network_precision(network, next(network.parameters()).device)
    name = "bf16" if dtype == torch.bfloat16 else "fp32"
    reason = f"precision {name}: by the processor and the kind of convolutions"
    return Plan(replace(recipe, precision=name), (*settled.reasons, reason))
