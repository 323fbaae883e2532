"""The memory of a run, estimated before anything is written, the lines before it, and the time of a pass."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from deepcluster.auto import FEW_IMAGES, Plan
from deepcluster.build import loss_of, network_of
from deepcluster.fitting.plan import Request, Start, decide, with_precision
from deepcluster.groups.graph import MAX_GRAPH_ROWS
from deepcluster.images import Images, find
from deepcluster.images.store import store_budget
from deepcluster.learning.features import crop_side
from deepcluster.learning.training import number_of_parts
from deepcluster.nets.network import Network
from deepcluster.nets.timm import checked_size
from deepcluster.recipe import AFTER_READING, AUTO, Recipe, to_toml
from deepcluster.report.pictures import MAX_PICTURES
from deepcluster.runtime.console import Display
from deepcluster.runtime.devices import choose_device
from deepcluster.runtime.machine import check_fits, local_world_size
from deepcluster.texts import plural

# Measured (benchmarks/LOG.md, "Memory"): Python, torch and the result without its features; the memory that a training
# step keeps for backward, as a multiple of all layer outputs.
BASE = 500e6
OUTPUTS_FACTOR = 1.5
TABLES = 300.0  # bytes of tables and report for an image
PAGE = 6e3  # and for an image in the page
CLASSES = 160e6  # matrices of the reduction, if 1,000 class probabilities are features, too

MEASURED_SECONDS = 10.0  # of a pass, after its first batch, which is slower
LONG_SECONDS = 120.0  # a pass that takes less is not announced
SMALLER_SIZE = 144  # px


def memory(network: Network, recipe: Recipe, count: int, processes: int = 1, *, gpu: bool = False) -> float:
    """Estimate the bytes that the main rank takes, which has the tables of all ``count`` images.

    ``gpu``: The network learns on a GPU, which has the memory for that.
    """
    total = count
    count = -(-count // processes)
    images = count * 3 * recipe.store_size**2
    # Features of the rounds and of the result, raw and reduced; with several ranks also the main rank's sample.
    dims = min(recipe.dims or 256, network.feature_dim)
    sample = min(total, MAX_GRAPH_ROWS) if processes > 1 else 0
    features = 4 * (count * (max(network.embedding_dim, network.feature_dim) + 2 * dims) + sample * dims)
    tables = TABLES * total + PAGE * min(total, MAX_PICTURES)
    batch = -(-min(recipe.batch_size, total) // processes)
    training = _of_a_step(network, recipe, batch, processes) if recipe.rounds and not gpu else 0.0
    classes = CLASSES if recipe.class_probabilities else 0
    return BASE + (images if images <= store_budget() else 0) + features + training + tables + classes


def _of_a_step(network: Network, recipe: Recipe, batch: int, processes: int) -> float:
    """Return the bytes of the network, its momentum and gradients, and the layer outputs that a step keeps."""
    sizes = [recipe.view_size or recipe.image_size] * recipe.views + [recipe.small_size] * recipe.small_views
    pixels = sum(size**2 for size in sizes)
    outputs = _outputs(network, recipe.image_size) * pixels / recipe.image_size**2
    at_once = -(-batch // number_of_parts(network, batch, pixels, loss_of(recipe), processes))
    weights = sum(parameter.numel() for parameter in network.parameters())
    heads = sum(recipe.clusters) * network.embedding_dim
    return 4 * (3 * (weights + heads) + OUTPUTS_FACTOR * outputs * at_once)


def _outputs(network: Network, size: int) -> int:
    """Return the size of all layer outputs for one image of ``size`` px, in numbers.

    Layers that work in place and identities, of which transformers are full, return their input: it counts once.
    """
    outputs: dict[int, Tensor] = {}  # by address; kept, so that none is used twice

    def add(layer: nn.Module, inputs: Any, output: Any) -> None:
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


# ---- the lines before a run -----------------------------------------------------------------------------------------


def announce(start: Start, request: Request, network: Network, images: int, display: Display, ranks: int = 1) -> None:
    """Show plan and memory on the main rank. Raise an error if the run cannot work."""
    plan = start.plan
    recipe = plan.recipe
    if recipe.within_image:
        side = crop_side(recipe.image_size)
        with checked_size(recipe.backbone, side, ", or --set within_image=0, which sees no centre crops"):
            _outputs(network, side)
    device = network.mean.device
    surest = start.plan_if(certainty=1.0).recipe  # the most that it may need
    needed = memory(network, surest, images, ranks, gpu=device.type == "cuda")
    display.say("Network", plan.network)
    for step, name in request.steps.names.items():
        display.say("Step", f"{step}: {name}")
    display.say("Plan", plan.in_short(request.n_clusters))
    if start.requested.base == "classic" and not recipe.weights and images < FEW_IMAGES:
        number = plural(images, "image")
        display.say("Few", f"{number}: with fewer than {FEW_IMAGES}, training can make the features worse")
    display.say("Memory", f"{needed / 1e9:.1f} GB on {device}")
    batch = recipe.batch_size
    advice = f"try --batch-size {max(1, batch // 4)} (it is {batch}), or a smaller --image-size"
    check_fits("the run", needed * local_world_size(), advice)


def dry_run(images: Images, request: Request, display: Display) -> str:
    """Show the plan and memory of a fit, and return its recipe as TOML. Nothing is written or downloaded."""
    source = find(images)
    request = replace(request, out=None, overwrite=False, resume=False)
    start = decide(source, request, display, dry=True)
    recipe = start.plan.recipe
    # The memory does not depend on the weights, with which the classifier comes.
    untrained = replace(recipe, weights="", class_probabilities=0.0) if recipe.weights == "timm" else recipe
    device = choose_device(request.device)
    network = network_of(untrained, request.seed, device)
    announce(start, request, network, len(source.paths), display)
    plan = with_precision(start.plan, network)
    surest = asdict(start.plan_if(certainty=1.0).recipe)
    undecided = [name for name, value in asdict(recipe).items() if value != surest[name]]
    is_published = request.recipe.base not in (AUTO, "classic")
    reasons = {name: why for name, why in plan.reasons.items() if name not in undecided}
    lines = [*Plan(plan.recipe, reasons).by_reason(), *(f"{name}: {AFTER_READING}" for name in undecided)]
    for line in lines:
        if request.verbose or (is_published and line.startswith("pseudo_labels")):  # fewer images have fewer
            display.say("Plan", line)
    return to_toml(plan.recipe, undecided)


# ---- the time of a pass ---------------------------------------------------------------------------------------------


class PassForecast:
    """A ``progress`` that says once how long a pass over images of ``size`` px takes, if that is long."""

    def __init__(self, display: Display, size: int, clock: Callable[[], float] = time.perf_counter):
        self.display = display
        self.size = size
        self.clock = clock
        self.first: tuple[float, int] | None = None  # time of the first call, and the images done
        self.is_over = False

    def __call__(self, phase: str, done: int, total: int) -> None:
        self.display.progress(phase, done, total)
        now = self.clock()
        begin, done_first = self.first = self.first or (now, done)
        if self.is_over or now - begin < MEASURED_SECONDS:
            return
        self.is_over = True
        seconds = (now - begin) / (done - done_first) * total
        if seconds > LONG_SECONDS:
            text = f"about {seconds / 60:.0f} minutes for the pass over the images at {self.size} px"
            if self.size > SMALLER_SIZE:
                smaller = max(1, round(seconds / 60 * (SMALLER_SIZE / self.size) ** 2))
                text += f"; --image-size {SMALLER_SIZE} takes about {smaller}"
            self.display.say("Time", text)
