"""The memory and the time of a run, estimated before anything is written."""

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from deepcluster.errors import DeepClusterWarning, OutOfMemoryError
from deepcluster.groups.graph import SAMPLE
from deepcluster.images import Images, Source, find
from deepcluster.images.store import MEMORY_BUDGET, read_once
from deepcluster.learning.features import extract
from deepcluster.learning.training import number_of_parts
from deepcluster.nets.network import Network
from deepcluster.place import Place
from deepcluster.presets import Plan
from deepcluster.recipe import Recipe
from deepcluster.report.pictures import MAX_PICTURES
from deepcluster.runs.build import loss_of, network_of
from deepcluster.runs.plan import Begun, Clock, Job, Request, begin
from deepcluster.runtime.console import Display
from deepcluster.runtime.devices import choose_device
from deepcluster.runtime.memory import CERTAIN, available
from deepcluster.runtime.processes import ALONE
from deepcluster.runtime.torchrun import local_world_size

# Measured (docs/decisions.md): Python, torch and what the result takes beside its features; the memory that a training
# step keeps for backward, as a multiple of all layer outputs.
BASE = 500e6
KEPT = 1.5
# Bytes that tables and report of the result take: for each image, and for each image in the page
# (benchmarks/LOG.md, "Memory").
TABLES, PAGE = 300.0, 6e3
# Seconds of the files of a result (graph, cut, signs, tree, map, report), and for each image with its digest and the
# search for duplicates. Measured on one core with 1,000 to 10,000 images; only until the first result is written.
RESULT, RESULT_EACH = 8.0, 1.5e-3
SHARE_OF_TIME = 0.1  # of preliminary results after the first: at most one per ten times its own cost
BACKWARD = 3.0  # a training step in forward passes
TRIAL = 32  # images that are read, and seen by the network, to tell how long all take


def memory(network: Network, recipe: Recipe, count: int, processes: int = 1, *, gpu: bool = False) -> float:
    """Estimate the bytes that the main rank takes, which has the tables of all.

    Args:
        network: Sees one image.
        recipe: Sizes and numbers.
        count: Images in all.
        processes: Ranks that share them.
        gpu: The network learns on a GPU, which has the memory for that.
    """
    total, count = count, -(-count // processes)
    images = count * 3 * recipe.store_size**2
    # The features, those of the result, and both reduced; of several ranks' those that the main rank decides by.
    dims = min(recipe.dims or 256, network.feature_dim)
    sample = min(total, SAMPLE) if processes > 1 else 0
    features = 4 * (count * (max(network.embedding_dim, network.feature_dim) + 2 * dims) + sample * dims)
    tables = TABLES * total + PAGE * min(total, MAX_PICTURES)
    training = 0.0 if gpu else _of_a_step(network, recipe, -(-min(recipe.batch_size, total) // processes), processes)
    return BASE + (images if images <= MEMORY_BUDGET else 0) + features + training + tables


def _of_a_step(network: Network, recipe: Recipe, batch: int, processes: int) -> float:
    """Return the bytes of the network, its momentum and gradients, and of what a training step keeps for backward."""
    sizes = [recipe.view_size or recipe.image_size] * recipe.views + [recipe.small_size] * recipe.small_views
    pixels = sum(size**2 for size in sizes)
    outputs = _outputs(network, recipe.image_size) * pixels / recipe.image_size**2
    at_once = -(-batch // number_of_parts(network, batch, pixels, loss_of(recipe), processes))
    weights = sum(parameter.numel() for parameter in network.parameters())
    heads = sum(recipe.clusters) * network.embedding_dim
    return 4 * (3 * (weights + heads) + KEPT * outputs * at_once)


def _outputs(network: Network, size: int) -> int:
    """Return the size of all layer outputs for one image of ``size`` px, in numbers.

    Each counts once: layers that work in place and identities, of which transformers are full, return what they get.
    """
    outputs: dict[int, Tensor] = {}  # by address; kept, so that none is used twice

    def add(layer: nn.Module, given: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs.setdefault(output.data_ptr(), output)

    hooks = [layer.register_forward_hook(add) for layer in network.modules() if not list(layer.children())]
    training = network.training
    network.eval()  # batch normalisation learns nothing from it
    try:
        with torch.no_grad():
            network.embed(network.features(torch.zeros(1, 3, size, size, device=network.mean.device)))
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return sum(output.numel() for output in outputs.values())


def check_memory(needed: float, recipe: Recipe) -> None:
    """Raise OutOfMemoryError if ``needed`` bytes cannot be there."""
    free = available() / local_world_size()
    if CERTAIN * needed > free:
        raise OutOfMemoryError(
            f"the run needs about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free: try --batch-size"
            f" {max(1, recipe.batch_size // 4)} (it is {recipe.batch_size}), or a smaller --image-size"
        )


def announce(job: Job, begun: Begun, network: Network) -> float:
    """Say what a run is about to do, and return its estimated bytes of memory. On the main rank alone.

    Raises:
        OutOfMemoryError: It cannot fit into memory.
    """
    source, ranks, plan, is_new = job.source, job.processes.world_size, begun.plan, begun.state == "new"
    needed = memory(network, plan.recipe, len(source.paths), ranks, gpu=job.device.type == "cuda")
    limit = job.request.time_limit
    if limit is not None and is_new:
        _check_limit(job, network, plan.recipe, limit)
    if job.shows:
        timed = limit is None and is_new
        lines = forecast(plan, job.request.n_clusters, source, network, needed, job.device, ranks=ranks, timed=timed)
        for heading, line in lines:
            job.display.say(heading, line)
    check_memory(needed, plan.recipe)
    return needed


def _check_limit(job: Job, network: Network, recipe: Recipe, limit: float) -> None:
    """Say how long the first groups take, and warn if that is longer than the time limit."""
    count = len(job.source.paths)
    pace = measured(job.source, network, recipe).shared(job.processes.world_size)
    first = job.clock.elapsed() + first_result(pace, count)
    job.display.say("Time", f"the first groups after about {in_words(first)}")
    if first > limit:
        warnings.warn(
            f"--time-limit {in_words(limit)} is too short for one pass over {count:,} images: the first"
            f" groups take about {in_words(first)}, and then the run ends. Give more time, or fewer images",
            DeepClusterWarning,
            stacklevel=2,
        )


def forecast(
    plan: Plan,
    n_clusters: int | None,
    source: Source,
    network: Network,
    needed: float,
    device: torch.device,
    *,
    ranks: int = 1,
    timed: bool = True,
) -> Iterator[tuple[str, str]]:
    """Yield (heading, text) of each line.

    Args:
        plan: What is done.
        n_clusters: As in ``Facts``.
        source: The images.
        network: As it is before the run.
        needed: Bytes of memory, estimated.
        device: Where the network will be.
        ranks: The processes that share the images.
        timed: Also how long it takes, by a pass over a few of the images.
    """
    yield "Network", plan.network
    yield "Plan", plan.in_short(n_clusters)
    memory = f"{needed / 1e9:.1f} GB of memory on {device}"
    if not timed:
        yield "Memory", memory
        return
    pace, count = measured(source, network, plan.recipe).shared(ranks), len(source.paths)
    first = first_result(pace, count)
    whole = first + plan.recipe.rounds * round_cost(pace, count, plan.recipe)
    early = f", the first groups after {in_words(first)}" if whole > 1.5 * first else ""
    yield "Time", f"about {in_words(whole)}{early}; {memory}"


def dry_run(images: Images, request: Request, display: Display) -> Recipe:
    """Say what a fit would do and how long it would take, and return its recipe. Nothing is written or fetched."""
    source, device = find(images), choose_device(request.device)
    request = replace(request, out=None, overwrite=False, resume=False)
    begun = begin(source, request, display, dry=True)
    recipe = begun.plan.recipe
    # Time and memory do not depend on the weights, and nothing is fetched here.
    network = network_of(replace(recipe, weights="") if recipe.weights == "timm" else recipe, request.seed, device)
    announce(Job(request, source, None, device, display, ALONE, Clock()), begun, network)
    for line in begun.plan.by_reason() if request.verbose else ():
        display.say("Plan", line)
    return recipe


# ---- time ------------------------------------------------------------


@dataclass(frozen=True)
class Pace:
    """Seconds for an image: to read it, and for its features."""

    reading: float
    features: float

    def shared(self, ranks: int) -> "Pace":
        """Of all ranks together, where each reads its share."""
        return Pace(self.reading / ranks, self.features / ranks)


def first_result(pace: Pace, count: int) -> float:
    """Seconds until the first result."""
    return count * (pace.reading + pace.features + RESULT_EACH) + RESULT


def training_cost(recipe: Recipe, features: float) -> float:
    """Seconds of a round's training, by those of a pass: until they are measured."""
    sides = [recipe.view_size or recipe.image_size] * recipe.views + [recipe.small_size] * recipe.small_views
    return features * recipe.epochs * BACKWARD * sum((side / recipe.image_size) ** 2 for side in sides)


def round_cost(pace: Pace, count: int, recipe: Recipe) -> float:
    """Seconds of a round of ``count`` images: its training, and the pass after it."""
    features = count * pace.features
    return features + training_cost(recipe, features)


def measured(source: Source, network: Network, recipe: Recipe) -> Pace:
    """The pace of this machine just now, by a few images."""
    count = len(source.paths)
    few = [i * count // min(TRIAL, count) for i in range(min(TRIAL, count))]
    begin = time.perf_counter()
    images = read_once(source.rows(few), recipe.store_size, none_is_fine=True).images
    reading = (time.perf_counter() - begin) / len(few)
    if not len(images):
        return Pace(reading, 0.0)
    place = Place.of(network, images, size=recipe.image_size, batch_size=recipe.batch_size)
    extract(network, images[:1], replace(place, batch_size=1))  # the first call sets up much
    batch = images[torch.arange(min(count, recipe.batch_size)) % len(images)]  # few tiny images are slower, each
    begin = time.perf_counter()
    extract(network, batch, place)
    return Pace(reading, (time.perf_counter() - begin) / len(batch))


def in_words(seconds: float) -> str:
    """``40 s``, ``12 min``, ``1.5 h``."""
    unit, name = next(
        (unit, name) for unit, name in ((3600, "h"), (60, "min"), (1, "s")) if seconds >= 1.5 * unit or unit == 1
    )
    return f"{seconds / unit:.{0 if seconds >= 10 * unit or unit == 1 else 1}f} {name}"
