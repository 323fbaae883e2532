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
    if not start.here:
        display.say("Weights", _missing(start))
    request = replace(request, published=start.name if start.here or start.wanted else "")
    chosen = plan(source, seen, request)
    recipe, device = chosen.recipe, choose_device(request.device)
    if "timm" in recipe.weights.split("+"):  # time and memory do not depend on them, and nothing is fetched here
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
    """What a fit would do about a published network that is not on this machine."""
    network = PUBLISHED[start.name]
    what = f"{start.name} is not on this machine ({network.description}); deepcluster fetch {start.name} fetches it."
    if start.agreed:
        return f"{what} So does a fit"
    otherwise = "ends with an error" if start.wanted else "trains from nothing, as planned here"
    return f"{what} A fit asks on a terminal whether it may, and elsewhere it {otherwise}"
