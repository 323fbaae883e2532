"""Show the plan of a run before it begins, and forecast the time of a pass."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace

from deepcluster.fitting.plan import decide, with_precision
from deepcluster.fitting.values import Request, RunStart
from deepcluster.images import Images, find
from deepcluster.learning.features import crop_side
from deepcluster.nets.network import Network, trial
from deepcluster.recipes.auto import FEW_IMAGES, Plan
from deepcluster.recipes.build import network_of
from deepcluster.recipes.options import AFTER_READING, AUTO, to_toml
from deepcluster.runtime.console import Display
from deepcluster.runtime.devices import choose_device
from deepcluster.runtime.machine import check_fits
from deepcluster.texts import plural

MEASURED_SECONDS = 10.0  # of a pass, after its first batch, which is slower
LONG_SECONDS = 120.0  # a pass that takes less is not announced
SMALLER_SIZE = 144  # px


def announce(start: RunStart, request: Request, network: Network, images: int, display: Display) -> None:
    """Show the plan and the size of the features, on the main rank. Raise an error if the run cannot work."""
    plan = start.plan
    recipe = plan.recipe
    if recipe.within_image:
        advice = ", or --set within_image=0, which sees no centre crops"
        trial(network.body, recipe.backbone, crop_side(recipe.image_size), advice=advice)
    display.say("Network", plan.network)
    for step, name in request.steps.names.items():
        display.say("Step", f"{step}: {name}")
    display.say("Plan", plan.in_short(request.n_clusters))
    if start.requested.base == "classic" and not recipe.weights and images < FEW_IMAGES:
        number = plural(images, "image")
        display.say("Few", f"{number}: with fewer than {FEW_IMAGES}, training can make the features worse")
    dim = network.feature_dim
    size = 4 * images * (dim + 2 * min(recipe.dims or 256, dim))  # float32, with the reduced rows and their copy
    display.say("Features", f"{images:,} x {dim:,} on {network.mean.device}, {math.ceil(size / 1e6):,} MB of memory")
    check_fits("the matrix of features", size, "fit a part of the images, and then predict the others")


def dry_run(images: Images, request: Request, display: Display) -> str:
    """Show the plan of a fit and the size of its features, and return its recipe as TOML.

    Nothing is written or downloaded.
    """
    source = find(images)
    request = replace(request, out=None, overwrite=False, resume=False)
    start = decide(source, request, display, dry=True)
    recipe = start.plan.recipe
    # The lines do not depend on the weights, with which the classifier comes.
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
