"""Decide everything about a run before an image is read or a file is written, on the main rank."""

import os
import secrets
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import deepcluster
from deepcluster.errors import DataError, ModelError, UsageError
from deepcluster.fitting.like import read_former
from deepcluster.fitting.values import Decided, Request, RunStart
from deepcluster.images import Images, Source, find
from deepcluster.images.own_features import OwnFeatures, read_features
from deepcluster.images.store import check_alike, survey
from deepcluster.images.true_labels import true_labels
from deepcluster.learning.training import network_precision
from deepcluster.nets.hub import fetch, local_file
from deepcluster.nets.names import NO_NETWORK, PUBLISHED
from deepcluster.nets.network import Network
from deepcluster.recipes.auto import WHITENING, ImageFacts, Plan
from deepcluster.recipes.options import AUTO, DECLARED, Recipe, read_toml
from deepcluster.recipes.presets import RecipeRequest, check_clusters, resolve
from deepcluster.runtime.bounded import is_run, shaped
from deepcluster.runtime.console import Display
from deepcluster.runtime.devices import environment
from deepcluster.runtime.log import warn
from deepcluster.runtime.processes import Processes
from deepcluster.storage import run_folder
from deepcluster.storage.checkpoint import Checkpoint, rounds_done
from deepcluster.storage.content import IMAGES, RunRecord
from deepcluster.storage.lock import own_files
from deepcluster.texts import a_few, one_line

DEFAULTS = {"n_clusters": None, "seed": 0, "labels": None, "like": None}  # of the values of a request in run.json
FEATURES_OPTIONS = {name for name, option in DECLARED.items() if option.for_features}


def decide_for_all(
    images: Images | OwnFeatures, request: Request, device: torch.device, display: Display, processes: Processes
) -> Decided:
    """Return what is decided before any image is read, by the main rank for all. A collective."""
    features, source = read_features(images) if request.features else (None, find(images))
    check_alike(source, processes)
    start_of = decide if features is None else partial(decide_features, images, features.shape[1])
    values = processes.broadcast_json(lambda: asdict(start_of(source, request, display)))
    start: RunStart = shaped(values, RunStart, "start")
    record = start.record
    request = replace(request, n_clusters=record.n_clusters, seed=record.seed)
    if start.is_finished:
        return Decided(request, start, source, features, None, None, record, device)
    check_weights_here(start.facts.published if start.facts else "")
    labels = true_labels(record.labels, source) if record.labels else None
    former = read_former(run_folder.open_run(Path(record.like))) if record.like and processes.is_main else None
    record = replace(
        record,
        like_run=former.run.record.run if former else None,
        device=str(device),
        environment=environment(device, processes.world_size, deterministic=request.deterministic),
    )
    return Decided(request, start, source, features, labels, former, record, device)


def decide(source: Source, request: Request, display: Display, *, dry: bool = False) -> RunStart:
    """Decide the folder, the start and the recipe of a run. On the main rank alone.

    ``dry``: Say which network would be downloaded or is missing, instead of a download or an error.

    Raises DeepClusterError if an option cannot be used, or the run to be resumed has other options or images.
    """
    out = free_path(source, request)
    if request.resume and is_run(out) and run_folder.RunFolder(out).has("recipe.toml"):  # recipe and images are decided
        return _resumed(run_folder.open_run(out), source, request)
    facts = ImageFacts(len(source.paths), *survey(source), request.n_clusters)
    check_clusters(request.n_clusters, facts.count)
    name = choose_weights(request, facts)
    _get_weights(name, request, display, dry=dry)
    facts = replace(facts, published=name)
    plan = resolve(request.recipe, facts)
    return RunStart(str(out), plan, request.recipe, first_record(request, source, plan), facts)


def first_record(request: Request, source: Source, plan: Plan) -> RunRecord:
    """Return run.json at the start of a run, without the machine."""
    labels = request.labels
    return RunRecord(
        run=secrets.token_hex(8),
        version=deepcluster.__version__,
        status="running",
        command=request.command,
        images=source.name,
        base=str(source.base),
        of_folder=source.of_folder,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=request.seed,
        n_clusters=request.n_clusters,
        labels=str(Path(labels).absolute()) if labels and labels != "folders" else labels,
        like=str(request.like.absolute()) if request.like else None,
        requested=asdict(request.recipe),
        steps=request.steps.names or None,
        backbone=NO_NETWORK if request.features else plan.recipe.backbone,
    )


def decide_features(data: Any, width: int, source: Source, request: Request, display: Display) -> RunStart:
    """Decide the folder and the recipe of a run of features of ``width`` numbers, as :func:`decide` does for images."""
    check_clusters(request.n_clusters, len(source.paths))
    recipe = _features_recipe(request, source)
    out = free_path(source, request)
    if request.overwrite and isinstance(data, str | Path):
        check_not_inside([Path(data).absolute()], out)
    if not (source.items.of_files or source.paths[0].isdecimal()):
        display.say("Pictures", f"none: no path leads to a file; the first is {one_line(source.paths[0])}")
    plan = Plan(recipe, {"features": f"{width:,} numbers a row, which came from elsewhere"})
    return RunStart(str(out), plan, request.recipe, first_record(request, source, plan))


def _features_recipe(request: Request, source: Source) -> Recipe:
    """Return the reduction and fine clusters of ``auto`` for a pretrained network (docs/decisions.md)."""
    options = request.recipe.all_options
    others = ["recipe"] * (request.recipe.base != AUTO) + ["resume"] * request.resume
    others += [*options, *request.steps.names]
    if others := [name for name in others if name not in FEATURES_OPTIONS]:
        raise UsageError(
            f"{', '.join(others)}: for images only, because features train no network. Leave this out, or pass images"
            f" (rows of pixels: X.reshape(-1, H, W)). Options for features: {', '.join(sorted(FEATURES_OPTIONS))}"
        )
    count = len(source.paths)
    clusters = min(max(5 * (request.n_clusters or 0), count // 100, 2), max(1, count // 20))
    chosen: dict[str, Any] = {"whitening": WHITENING, "pseudo_labels": clusters, "rounds": 0, "grouping": "layout"}
    chosen |= options
    return Recipe(**{**chosen, "pseudo_labels": max(1, min(chosen["pseudo_labels"], count))})


def free_path(source: Source, request: Request) -> Path:
    """Return the path of the run. DiskError or UsageError if it may not write there."""
    name = f"{run_folder.folder_name(source.name)}-{time.strftime('%Y%m%d-%H%M%S')}"
    out = request.out or Path("runs") / name
    if request.like and run_folder.open_run(request.like) and out.exists() and out.samefile(request.like):
        raise UsageError(f"--like {out} is the run at -o: give another -o, and then deepcluster promote it")
    run_folder.check_free(out, overwrite=request.overwrite, resume=request.resume)
    if request.overwrite:
        check_not_inside((Path(source.location), *source.files()), out)
    return out


def check_not_inside(images: Iterable[Path], out: Path) -> None:
    """Raise UsageError if ``--overwrite`` would remove one of the images: a file of the run that is replaced."""
    replaced = {os.path.realpath(out / name) for name in own_files(out)}
    names = {Path(path).name for path in replaced}
    for file in images:
        if (file.name in names or file.is_symlink()) and os.path.realpath(file) in replaced:
            raise UsageError(f"--overwrite would remove {file}, which is one of IMAGES: give another -o")


# ---- a run that goes on ----------------------------------------------------------------------------------------------


def _resumed(folder: run_folder.RunFolder, source: Source, request: Request) -> RunStart:
    """Continue a run by its own recipe. An option that its recipe.toml lacks has its default."""
    record = folder.read_record()
    if record.backbone == NO_NETWORK:
        raise UsageError(f"{folder.path} is a run of features, which has no rounds to resume: use --overwrite")
    recipe = Recipe(**read_toml(folder.file("recipe.toml"))[1])
    with folder.as_disk_errors(run_folder.RUN):
        requested: RecipeRequest = shaped(record.requested, RecipeRequest, "requested")
    is_finished = record.status == "done"
    done = record.rounds or 0 if is_finished else rounds_done(folder.path)
    plan = Plan(recipe, record.reasons or {})
    now = first_record(request, source, plan)
    _check_same_request(folder, request, record, now, requested, (recipe.rounds, *range(done + 1)))
    check_paths(folder, source)
    if now.like or not is_finished:
        check_like(record, now.like)
    values = {name: getattr(record, name) for name in ("command", "requested", *DEFAULTS)}
    now = replace(now, **values | {"like": now.like or record.like})
    return RunStart(str(folder.path), plan, requested, now, is_resumed=not is_finished, is_finished=is_finished)


def _check_same_request(
    folder: run_folder.RunFolder,
    request: Request,
    record: RunRecord,
    now: RunRecord,
    requested: RecipeRequest,
    rounds: Sequence[int],
) -> None:
    """Raise UsageError unless each value of a request to resume is the default, or the one that the run began with.

    ``now``: The record of a new run by the request. ``requested``: The recipe that the run began with. ``rounds``: The
    numbers of rounds that may be requested.
    """
    if request.steps.names != (record.steps or {}):
        began = ", ".join(record.steps or {}) or "no steps of your own"
        how = "resume from Python with the same steps: DeepCluster(...).fit(X, run=..., resume=True)"
        raise UsageError(f"the run in {folder.path} began with {began}: {how}")
    # The run of --like may be at another place by now.
    compared = {name: value for name, value in DEFAULTS.items() if name != "like" or not record.like_run}
    is_same = all(getattr(now, name) in (value, getattr(record, name)) for name, value in compared.items())
    is_same &= request.recipe.without("rounds") in (RecipeRequest(), requested.without("rounds"))
    if not is_same or request.recipe.all_options.get("rounds", rounds[0]) not in rounds:
        began = f"began as: {one_line(record.command)}" if record.command else "began in Python, with other parameters"
        only = f"-o {shlex.quote(str(folder.path))} --resume [--rounds N]"
        raise UsageError(f"the run {began}; give that, or only {only}")


def check_like(record: RunRecord, like: str | None) -> None:
    """Raise UsageError unless the run of ``--like`` is at ``like``, or (None) where it was when this run began."""
    place = Path(like or record.like or "")
    if (run := record.like_run) and (not is_run(place) or run_folder.open_run(place).read_record().run != run):
        raise UsageError(f"this fit began --like run {run}, which is not in {place}: give its folder, --like RUN")


def check_paths(folder: run_folder.RunFolder, source: Source) -> None:
    """Raise DataError if files were added or removed since the run began; no image is read for it."""
    if not folder.has(IMAGES):
        return
    images = folder.read_images()
    updates = images.rows.column("added") != ""
    updated = {*images.rows.at(np.flatnonzero(updates)).column("path")}
    then = {*images.rows.at(np.flatnonzero(~updates)).column("path")}
    used = {*images.used.column("path")} - updated
    now = {*source.paths, *(path for path, _ in source.skipped)} - updated
    if used - now or now - then:
        raise _differing(added=sorted(now - then), removed=sorted(used - now))


def _differing(**differences: Sequence[str]) -> DataError:
    shown = {kind: a_few([*map(one_line, paths)]) for kind, paths in differences.items() if paths}
    texts = [f"{len(differences[kind]):,} {kind} ({paths})" for kind, paths in shown.items()]
    return DataError(
        f"the run began with other images: {'; '.join(texts) or 'they are in another order'}: put them"
        " back, or begin anew with --overwrite"
    )


def check_same(
    folder: run_folder.RunFolder, record: RunRecord, checkpoint: Checkpoint | None, images: Mapping[str, str]
) -> list[str] | None:
    """Compare a resumed run with its beginning, and return the differences of machine, versions and threads.

    ``checkpoint``: The last one. ``images``: Their digests by path.

    Raises DataError if the images have changed, ModelError if the checkpoint is of another run.
    """
    if checkpoint and checkpoint.about.get("run") != record.run:
        raise ModelError(
            f"the last checkpoint in {folder.path / 'checkpoints'} is of run {checkpoint.about.get('run')}, and this is"
            f" run {record.run}: put back the checkpoints of this run"
        )
    rows = folder.read_images().used if folder.has(IMAGES) else None
    then = images if rows is None else {row["path"]: row["sha256"] for row in rows}
    if [*then.items()] != [*images.items()]:
        raise _differing(
            added=[path for path in images if path not in then],
            removed=[path for path in then if path not in images],
            changed=[path for path in images if path in then and then[path] != images[path]],
        )
    if not checkpoint:
        return None
    before = checkpoint.about["environment"]
    changed = {name: value for name, value in (record.environment or {}).items() if before.get(name) != value}
    differences = [f"{name} {before.get(name)} then, {value} now" for name, value in changed.items()]
    if differences:
        warn(f"the result may differ from that of an uninterrupted run: {'; '.join(differences)}")
    return differences


# ---- weights --------------------------------------------------------------------------------------------------------


def choose_weights(request: Request, facts: ImageFacts, have: Callable[[str], object] = local_file) -> str:
    """Choose the published network (in ``PUBLISHED``) that a run starts from; empty: none. Nothing is downloaded."""
    options = request.recipe.all_options
    weights = options.get("weights")
    backbone = options.get("backbone")
    if weights not in (None, "timm") or (backbone is not None and backbone not in PUBLISHED):
        return ""  # a file, random weights, or a network without published weights
    if backbone:
        return str(backbone)
    if weights is None and (request.recipe.base != AUTO or not facts.suits_published):
        return ""
    best = next(filter(have, PUBLISHED), "")
    return best or (next(iter(PUBLISHED)) if weights == "timm" else "")


def _get_weights(name: str, request: Request, display: Display, *, dry: bool) -> None:
    """Download the published network ``name`` (empty: none) if it is not here and ``--weights timm`` asks for it."""
    options = request.recipe.all_options
    is_download = options.get("weights") == "timm"
    if (backbone := options.get("backbone", "")).startswith("timm:") and "weights" not in options:
        warn(
            f"{backbone} starts untrained. Add --weights timm for its published weights (usually better), or --weights"
            " none to hide this warning."
        )
    if not name or local_file(name):
        return
    about = PUBLISHED[name].description
    if dry:
        then = "A fit downloads it" if is_download else "A fit ends with an error until it is downloaded"
        display.say("Network", f"{name} is not on this machine ({about}). {then}: deepcluster fetch {name}")
    elif is_download:
        display.say("Network", f"downloading {name}: {about}")
        fetch(name, display.progress)
    else:
        check_weights_here(name)


def check_weights_here(name: str) -> None:
    """Raise ModelError if the published network ``name`` is not on this machine; empty is none."""
    if name and not local_file(name):
        network = PUBLISHED[name]
        raise ModelError(
            f"{name} ({network.title}, {network.megabytes} MB) has not been downloaded yet: deepcluster fetch {name};"
            " or start from nothing: --weights none"
        )


def with_precision(plan: Plan, network: Network) -> Plan:
    """Return the plan with the precision in use: by a rule and no trial, which would depend on the machine's load."""
    if plan.recipe.precision != "auto":
        return plan
    dtype = network_precision(network, next(network.parameters()).device)
    name = "bf16" if dtype == torch.bfloat16 else "fp32"
    return plan.changed({"precision": (name, "by the processor and the kind of convolutions")})
