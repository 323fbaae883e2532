"""What a fit would do: nothing is written, and nothing fetched."""

from dataclasses import replace

from deepcluster.images import Images, find
from deepcluster.images.preview import preview
from deepcluster.nets.published import PUBLISHED
from deepcluster.recipe import Recipe
from deepcluster.runs.build import network_of
from deepcluster.runs.forecast import forecast
from deepcluster.runs.job import Request, facts_of, plan
from deepcluster.runs.resources import memory
from deepcluster.runs.weights import Start, choose
from deepcluster.runtime.devices import choose_device
from deepcluster.runtime.display import Display


def dry_run(images: Images, request: Request, display: Display) -> Recipe:
    """Say what a fit would do and how long it would take, and return its recipe."""
    source = find(images)
    seen = preview(source)
    start = choose(request, facts_of(source, seen, request))
    if start.missing:
        display.say("Weights", _missing(start))
    request = replace(request, published=start.name)
    chosen = plan(source, seen, request)
    recipe, device = chosen.recipe, choose_device(request.device)
    if recipe.weights == "timm":  # time and memory do not depend on them, and nothing is fetched here
        recipe = replace(recipe, weights="")
    network = network_of(recipe, request.seed, choose_device("cpu"))
    needed = memory(network, recipe, len(source.paths), decoding=seen.decoding, device=device)
    for heading, text in forecast(chosen, request.n_clusters, source, network.to(device), needed, device):
        display.say(heading, text)
    if request.verbose:
        display.say("Memory", needed.text)
        for line in chosen.by_reason():
            display.say("Plan", line)
    return chosen.recipe


def _missing(start: Start) -> str:
    """Say how a fit would get a published network that is not on this machine."""
    network = PUBLISHED[start.name]
    then = "A fit downloads it" if start.download else "A fit ends with an error until it is downloaded"
    return f"{start.name} is not on this machine ({network.description}). {then}: deepcluster fetch {start.name}"
