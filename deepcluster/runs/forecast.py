"""The memory and the time of a run, estimated before anything is written."""

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from deepcluster.errors import warn
from deepcluster.groups.graph import SAMPLE
from deepcluster.images import Images, Source, find
from deepcluster.images.store import MEMORY_BUDGET, read_once
from deepcluster.learning.features import extract
from deepcluster.learning.training import number_of_parts
from deepcluster.nets.network import Network
from deepcluster.place import Place
from deepcluster.presets import options_of
from deepcluster.recipe import AUTO, Recipe
from deepcluster.report.pictures import MAX_PICTURES
from deepcluster.report.text import in_words
from deepcluster.runs.build import loss_of, network_of
from deepcluster.runs.plan import Begun, Clock, Job, Request, begin
from deepcluster.runtime.console import Display
from deepcluster.runtime.devices import choose_device
from deepcluster.runtime.machine import check_fits, local_world_size
from deepcluster.runtime.processes import ALONE

# Measured (docs/decisions.md): Python, torch and what the result takes beside its features; the memory that a training
# step keeps for backward, as a multiple of all layer outputs.
BASE = 500e6
KEPT = 1.5
# Bytes that tables and report of the result take: an image, and an image in the page
# (benchmarks/LOG.md, "Memory").
TABLES, PAGE = 300.0, 6e3
# Seconds of the files of a result (graph, cut, signs, tree, map, report), and of an image with its digest and the
# search for duplicates. Measured on one core with 1,000 to 10,000 images; only until the first result is written.
RESULT, RESULT_EACH = 8.0, 1.5e-3
SHARE_OF_TIME = 0.1  # of preliminary results after the first: at most one per ten times its own cost
BACKWARD = 3.0  # a training step in forward passes
TRIAL = 32  # images that are read, and seen by the network, to tell how long all take


def memory(network: Network, recipe: Recipe, count: int, processes: int = 1, *, gpu: bool = False) -> float:
    """Estimate the bytes that the main rank takes, which has the tables of all ``count`` images.

    ``gpu``: The network learns on a GPU, which has the memory for that.
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

    Layers that work in place and identities, of which transformers are full, return their input: it counts once.
    """
    outputs: dict[int, Tensor] = {}  # by address; kept, so that none is used twice

    def add(layer: nn.Module, given: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not list(layer.children()):
            outputs.setdefault(output.data_ptr(), output)

    training = network.training
    network.eval()  # batch normalisation learns nothing from it
    try:
        with torch.no_grad(), register_module_forward_hook(add):
            network.embed(network.features(torch.zeros(1, 3, size, size, device=network.mean.device)))
    finally:
        network.train(training)
    return sum(output.numel() for output in outputs.values())


# ---- time -----------------------------------------------------------------------------------------------------------


def training_cost(recipe: Recipe, features: float) -> float:
    """Estimate the seconds of a round's training by those of a pass over the images, ``features``."""
    sides = [recipe.view_size or recipe.image_size] * recipe.views + [recipe.small_size] * recipe.small_views
    return features * recipe.epochs * BACKWARD * sum((side / recipe.image_size) ** 2 for side in sides)


def measured(source: Source, network: Network, recipe: Recipe) -> tuple[float, float]:
    """Measure the seconds to read an image and to compute its features, by a few of the images."""
    count = len(source.paths)
    few = [i * count // min(TRIAL, count) for i in range(min(TRIAL, count))]
    begin = time.perf_counter()
    images = read_once(source.rows(few), recipe.store_size, none_is_fine=True).images
    reading = (time.perf_counter() - begin) / len(few)
    if not len(images):
        return reading, 0.0
    place = Place.of(network, images, size=recipe.image_size, batch_size=recipe.batch_size)
    extract(network, images[:1], replace(place, batch_size=1))  # the first call sets up much
    batch = images[torch.arange(min(count, recipe.batch_size)) % len(images)]  # small batches are slower for an image
    begin = time.perf_counter()
    extract(network, batch, place)
    return reading, (time.perf_counter() - begin) / len(batch)


def expected(pace: tuple[float, float], recipe: Recipe, count: int, ranks: int) -> tuple[float, float]:
    """Return the seconds until the first result of ``count`` images, and those of the whole run.

    ``pace``: As :func:`measured`. ``ranks``: Number of processes, which share the images.
    """
    reading, features = (count * seconds / ranks for seconds in pace)
    first = reading + features + count * RESULT_EACH + RESULT
    return first, first + recipe.rounds * (features + training_cost(recipe, features))


# ---- the lines before a run -----------------------------------------------------------------------------------------


def announce(job: Job, begun: Begun, network: Network) -> float:
    """Show the plan, time and memory of a run, and return its estimated bytes of memory. On the main rank alone.

    Raises OutOfMemoryError if it cannot fit into memory.
    """
    plan, count, ranks, limit = begun.plan, len(job.source.paths), job.processes.world_size, job.request.time_limit
    needed = memory(network, plan.recipe, count, ranks, gpu=job.device.type == "cuda")
    job.display.say("Network", plan.network)
    for step, name in job.request.steps.names.items():
        job.display.say("Step", f"{step}: {name}")
    job.display.say("Plan", plan.in_short(job.request.n_clusters))
    job.display.say("Memory", f"{needed / 1e9:.1f} GB on {job.device}")
    if begun.state == "new" and (limit is not None or not getattr(job.display, "quiet", False)):
        first, whole = expected(measured(job.source, network, plan.recipe), plan.recipe, count, ranks)
        early = f", the first groups after {in_words(first)}" if whole > 1.5 * first else ""
        total = f"about {in_words(whole)}{early}"
        if limit is not None:
            first += job.clock.elapsed()
            total = f"the first groups after about {in_words(first)}"
        job.display.say("Time", total)
        if limit is not None and first > limit:
            warn(
                f"--time-limit {in_words(limit)} is too short for one pass over {count:,} images: the first"
                f" groups take about {in_words(first)}, and then the run ends. Give more time, or fewer images"
            )
    batch = plan.recipe.batch_size
    advice = f"try --batch-size {max(1, batch // 4)} (it is {batch}), or a smaller --image-size"
    check_fits("the run", needed * local_world_size(), advice)
    return needed


def dry_run(images: Images, request: Request, display: Display) -> Recipe:
    """Show the plan, time and memory of a fit, and return its recipe. Nothing is written or downloaded."""
    source, device = find(images), choose_device(request.device)
    request = replace(request, out=None, overwrite=False, resume=False)
    begun = begin(source, request, display, dry=True)
    recipe = begun.plan.recipe
    # Time and memory do not depend on the weights.
    network = network_of(replace(recipe, weights="") if recipe.weights == "timm" else recipe, request.seed, device)
    announce(Job(request, source, None, device, display, ALONE, Clock()), begun, network)
    is_published = options_of(request.recipe, {})[0] not in (AUTO, "classic")
    for line in begun.plan.by_reason():
        if request.verbose or (is_published and line.startswith("pseudo_labels")):  # fewer images have fewer
            display.say("Plan", line)
    return recipe
