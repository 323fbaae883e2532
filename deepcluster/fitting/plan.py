"""The decisions about a run, made once by the main rank before anything is read or written."""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepcluster.auto import Facts, Plan
from deepcluster.build import NO_STEPS, Steps
from deepcluster.errors import ModelError, UsageError
from deepcluster.fitting.like import Former
from deepcluster.fitting.resume import check_options, check_paths
from deepcluster.images import Source
from deepcluster.images.store import Store, preview
from deepcluster.learning.training import network_precision
from deepcluster.nets.hub import fetch, local_file
from deepcluster.nets.names import PUBLISHED
from deepcluster.nets.network import Network
from deepcluster.presets import RecipeRequest, check_groups, resolve, spelt_out
from deepcluster.recipe import AUTO, Recipe, read_toml
from deepcluster.runtime.console import Display
from deepcluster.runtime.devices import choose_device
from deepcluster.runtime.log import warn
from deepcluster.runtime.plain_files import is_run, shaped
from deepcluster.runtime.processes import Processes
from deepcluster.runtime.tables import CsvRow
from deepcluster.storage import run_folder
from deepcluster.storage.checkpoint import rounds_done
from deepcluster.storage.state import own_files

# Contents by the name of the file: a text, bytes, or rows.
Contents = Mapping[str, str | bytes | Sequence[CsvRow]]
# Options that a recipe may change although they were given: for a network of one size, or for few images.
ADAPTED = ("image_size", "pseudo_labels")


@dataclass(frozen=True)
class Request:
    """The request of a user, without the images."""

    out: Path | None = None
    n_clusters: int | None = None  # None: chosen from the final features
    recipe: RecipeRequest = field(default_factory=RecipeRequest)
    device: str = "auto"
    deterministic: bool = False
    seed: int = 0
    labels: str | None = None
    like: Path | None = None  # a run whose groups these continue
    overwrite: bool = False
    resume: bool = False
    keep_checkpoints: bool = False  # the last two, of the finished run
    verbose: bool = False  # every choice with its reason, instead of a line about all
    report: bool = True  # False: map and report on request only
    command: str = ""
    module: nn.Module | None = None  # the network, if the backbone is one of the user's
    steps: Steps = NO_STEPS
    features: bool = False  # the images are given as features, which another program computed


class Clock:
    """Seconds of a run: since its start, and since the last lap."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()

    def add(self, seconds: float) -> None:
        """Count time that the run took before it was interrupted."""
        self._start -= seconds

    def elapsed(self) -> float:
        return time.perf_counter() - self._start

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


@dataclass(frozen=True)
class Job:
    """A fit of the images of ``source``."""

    request: Request
    source: Source
    labels: Sequence[str] | None  # true labels in the order of the source, for metrics only
    device: torch.device
    display: Display
    processes: Processes
    clock: Clock
    features: Tensor | None = None  # of all images, if the request gives these (float32, N x D)
    former: Former | None = None  # the run of ``--like``, on the main rank

    def truth(self, usable: Sequence[int]) -> list[str] | None:
        """Return the true labels of the images ``usable``, in this order; None if none of them has one."""
        labels = [self.labels[i] for i in usable] if self.labels is not None else []
        return labels if any(labels) else None


@dataclass(frozen=True)
class ImagesRead:
    """The images as they were read. On other ranks than the main rank only ``store`` and ``recipe`` matter."""

    store: Store
    recipe: Recipe
    digests: Mapping[str, str]  # of all images, by path
    beginning: Contents  # files of the run that depend on the images alone
    places_before: Tensor | None = None  # in the run of ``--like`` (int64, N x 2), as in its Former; -1: it has no such


@dataclass(frozen=True)
class Begun:
    """The decisions of the main rank."""

    out: str  # the run folder
    state: str  # new, resumed, or finished: nothing is left to do
    plan: Plan
    facts: Facts | None = None  # about the images of a new run
    labels: str | None = None  # as in run.json
    like: str | None = None  # as in run.json

    def plan_if(self, request: Request, **facts: Any) -> Plan:
        """Return the plan if a new run had these ``facts`` about its images; a resumed one keeps its plan."""
        return resolve(request.recipe, replace(self.facts, **facts)) if self.facts else self.plan


def begin(source: Source, request: Request, display: Display, *, dry: bool = False) -> Begun:
    """Decide the folder, the start and the recipe of a run. On the main rank alone.

    ``dry``: Say which network would be downloaded or is missing, instead of a download or an error.

    Raises DeepClusterError if an option cannot be used, or the run to be resumed has other options or images.
    """
    out = free_path(source, request)
    if request.resume and is_run(out) and run_folder.RunFolder(out).has("recipe.toml"):  # recipe and images are decided
        return _resumed(out, source, request)
    facts = Facts(len(source.paths), *preview(source), request.n_clusters, choose_device(request.device).type)
    check_groups(request.n_clusters, facts.count)
    name = choose_weights(request, facts)
    _get_weights(name, request, display, dry=dry)
    facts = replace(facts, published=name)
    return Begun(str(out), "new", resolve(request.recipe, facts), facts, *names_of(request))


def with_precision(plan: Plan, network: Network) -> Plan:
    """Return the plan with the precision in use: by a rule and no trial, which would depend on the machine's load."""
    if plan.recipe.precision != "auto":
        return plan
    dtype = network_precision(network, next(network.parameters()).device)
    name = "bf16" if dtype == torch.bfloat16 else "fp32"
    return plan.changed({"precision": (name, "by the processor and the kind of convolutions")})


def names_of(request: Request) -> tuple[str | None, str | None]:
    """Return ``--labels`` and ``--like`` as run.json has them: by absolute paths."""
    labels = request.labels
    labels = str(Path(labels).absolute()) if labels and labels != "folders" else labels
    return labels, str(request.like.absolute()) if request.like else None


def _resumed(out: Path, source: Source, request: Request) -> Begun:
    """Continue a run by its own recipe. Only the options that the command names are compared with it."""
    folder = run_folder.open_run(out)
    record = folder.read_record()
    recipe = read_toml(folder.file("recipe.toml"), ignore_unknown=True)[1]
    with folder.as_disk_errors(run_folder.RUN):
        before = shaped(record.requested, RecipeRequest | None, "requested")
    before = before or RecipeRequest(str(out / "recipe.toml"))  # an older version recorded no request
    steps = record.steps or {}
    of_record = {name: getattr(record, name) for name in ("n_clusters", "seed", "labels", "like")}
    then = {**of_record, "recipe": before.base}
    now = {"n_clusters": request.n_clusters, "seed": request.seed, **dict.fromkeys(steps), **request.steps.names}
    labels, like = names_of(request)
    typed = {"labels": labels, "like": None if record.like_run else like}  # a run may be at another place by now
    now |= {name: value for name, value in typed.items() if value}
    now |= {"recipe": request.recipe.base} if request.recipe.base != AUTO else {}
    options = request.recipe.all_options
    resolved = spelt_out(options)
    for name, value in options.items():
        is_adapted = name in ADAPTED and value == before.all_options.get(name)
        if value != AUTO and not is_adapted:
            now[name] = resolved[name]
    state = "finished" if record.status == "done" else "resumed"
    done = record.rounds or 0 if state == "finished" else rounds_done(out)
    if options.get("rounds", recipe["rounds"]) <= done:  # the run ends with the rounds that it has
        now.pop("rounds", None)
    check_options({**then, **recipe, **steps}, now)
    check_paths(folder, source)
    if (run := record.like_run) and (like or state == "resumed"):
        there = Path(like or record.like or "")
        if not is_run(there) or run_folder.open_run(there).read_record().run != run:
            raise UsageError(f"this fit began --like run {run}, which is not in {there}: give its folder, --like RUN")
    plan = Plan(Recipe(**recipe), record.reasons or {})
    return Begun(str(out), state, plan, None, record.labels, like or record.like)


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


# ---- weights --------------------------------------------------------------------------------------------------------


def choose_weights(request: Request, facts: Facts, have: Callable[[str], object] = local_file) -> str:
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
    if (backbone := options.get("backbone", "")).startswith("timm:") and "weights" not in options and not dry:
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
