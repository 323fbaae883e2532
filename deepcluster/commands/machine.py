"""Commands about this machine and the recipes."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from deepcluster.commands.session import explained
from deepcluster.errors import UsageError
from deepcluster.nets import hub
from deepcluster.nets.names import PUBLISHED
from deepcluster.recipes import flags
from deepcluster.recipes.auto import ImageFacts
from deepcluster.recipes.options import DECLARED, to_toml
from deepcluster.recipes.presets import PRESETS, read_request, resolve
from deepcluster.runtime.console import Terminal, say
from deepcluster.runtime.machine import versions
from deepcluster.texts import quality_text, short


def recipes(name: str | None = None, /, *, options: bool = False) -> None:
    """List the recipes, or print the options of one as TOML, with its departures from the published one.

    The choices of `auto` and `classic` depend on the images: `fit --dry-run --verbose` prints them.

    Args:
        options: List every option with its default (of v1), its values and its meaning.

    Example:
        deepcluster recipes v2
    """
    if options:
        _print_options()
        return
    if name is None:
        for preset, make in PRESETS.items():
            print(f"{preset:13} {' '.join((make.__doc__ or '').replace('``', '').split())}")
        return
    published = name in PRESETS and name not in ("auto", "classic")
    # Recipes v1 and v2 were made for the 1.28 million images of ImageNet.
    example = ImageFacts(count=1_281_167 if published else 50_000, short_side=32, grey=False, n_clusters=10)
    plan = resolve(read_request({}, name), example)
    if name in PRESETS and not published:
        print(f"# The choices of {name} for 50,000 colour images of 32 px, 10 clusters:")
    if name in PRESETS:
        print("".join(f"# {line}\n" for line in plan.by_reason()), end="")
    print(to_toml(plan.recipe), end="")


def _print_options() -> None:
    parts = groupby(DECLARED.items(), lambda item: item[1].heading)
    for i, (heading, options) in enumerate(parts):
        print("\n" * (i > 0) + heading)
        for name, option in options:
            default = json.dumps(round(option.default, 4) if isinstance(option.default, float) else option.default)
            print(f"  {name:20} {default:11} {option.values}\n      {option.help}")


def fetch(
    name: Annotated[
        str,
        Parameter(help=" ".join(f"{it.name}: {it.description}." for it in PUBLISHED.values()) + " Or timm:NAME."),
    ] = "photos",
    /,
    *,
    quiet: flags.Quiet = False,
) -> None:
    """Download a published network for all later runs, into the cache of the Hugging Face Hub (HF_HOME).

    Example:
        deepcluster fetch photos-ssl
    """
    if name not in PUBLISHED and not name.startswith("timm:"):
        raise UsageError(f"no published network is called {short(name)}: choose {', '.join(PUBLISHED)} or timm:NAME")
    with Terminal(quiet) as terminal:
        about = PUBLISHED[name].description if name in PUBLISHED else "from the Hub"
        file = hub.local_file(name)
        terminal.say("Weights", f"{name} is on this machine already" if file else f"{name}: {about}")
        terminal.say("Weights", str(hub.fetch(name, terminal.progress)))


def doctor(
    run_: Annotated[Path | None, Parameter(name="RUN", help="Print the state of this run instead.")] = None,
    /,
    *,
    as_json: flags.Json = False,
) -> None:
    """Print versions, device, threads, image formats and the published networks on this machine.

    Example:
        deepcluster doctor
    """
    if run_ is not None:
        from deepcluster.runs.condition import condition

        facts = condition(run_)
    else:
        from deepcluster.images.decode import accepted_formats
        from deepcluster.images.raw import reads_raw

        facts = {**versions()}
        try:
            from deepcluster.runtime.devices import choose_device, environment

            facts |= environment(choose_device("auto"))
        except (ImportError, OSError) as error:
            facts["torch"] = explained(error)[1]
        facts |= {
            "formats": [*accepted_formats(), *(["RAW"] if reads_raw() else [])],
            "weights": [*filter(hub.local_file, PUBLISHED)],
        }
    if as_json:
        print(json.dumps(facts, indent=2, default=asdict))
        return
    for name, value in facts.items():
        if isinstance(value, Mapping):
            value = quality_text(value)
        shown = ", ".join(value) or "none" if isinstance(value, list) else "-" if value is None else value
        say(f"{name:17} {f'{value:,}' if type(value) is int else shown}")
