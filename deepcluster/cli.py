"""The command line: parser and printing.

What imports torch is imported inside the commands, after their arguments are checked.
"""

import json
import os
import re
import shlex
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

import cyclopts
from cyclopts import App, Parameter

import deepcluster
from deepcluster.errors import (
    DeepClusterError,
    DeepClusterWarning,
    DiskError,
    OutOfMemoryError,
    Stopped,
    Unsaid,
    UsageError,
)
from deepcluster.evaluation.options import PROTOCOL_OPTIONS
from deepcluster.nets.published import PUBLISHED
from deepcluster.presets import PRESETS, Facts, read_recipe, resolve
from deepcluster.recipe import ANY, Recipe, declared, read_options, to_toml
from deepcluster.runtime import signals as stopping
from deepcluster.runtime import streams
from deepcluster.runtime.signals import listening
from deepcluster.runtime.terminal import PipeConsole, Printed, Terminal, complain, paragraph, printable, say

if TYPE_CHECKING:
    from deepcluster.model import Model
    from deepcluster.runs.job import Request
    from deepcluster.runs.predict import Prediction
    from deepcluster.runs.weights import Start
    from deepcluster.runtime.processes import Processes
    from deepcluster.storage.output import Output
    from deepcluster.storage.run_folder import RunFolder

app = App(
    name="deepcluster",
    version=deepcluster.__version__,
    help="From a folder of unlabelled images to clusters, features and a model that places new images.",
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
app.register_install_completion_command(help="Let the shell complete commands and options (bash, zsh, fish).")

LONGEST = 1e9  # seconds of a time limit: 30 years

RunArgument = Annotated[
    Path, Parameter(name="RUN", help="The run folder that `deepcluster fit` made.", allow_leading_hyphen=False)
]
ImagesArgument = Annotated[
    str,
    Parameter(
        help="A folder (searched recursively; of images or of .tar shards), a text file of paths, an .npy/.npz array, a"
        " .tar shard, several as 'train-{000..146}.tar', - for paths on standard input, sklearn:digits,"
        " torchvision:NAME or hf:NAME.",
        allow_leading_hyphen=True,
    ),
]


def _check_device(_: object, name: str) -> None:
    """Check the type alone: to ask for what this machine has imports torch."""
    if name.partition(":")[0] not in ("auto", "cpu", "cuda", "mps"):
        raise ValueError("Choose auto, cpu, cuda or mps.")


Device = Annotated[str, Parameter(help="auto, cpu, cuda or mps.", validator=_check_device)]
Quiet = Annotated[bool, Parameter(name=["--quiet", "-q"], negative=(), help="Print errors only.")]
Json = Annotated[
    bool,
    Parameter(name="--json", negative=(), help="Result as JSON on standard output, messages on standard error."),
]
Overwrite = Annotated[bool, Parameter(negative=(), help="Replace the file at -o.")]
Assignments = Annotated[
    list[str] | None,
    Parameter(name="--set", negative=(), consume_multiple=True, help="OPTION=VALUE ... for any further option."),
]
NumberOfClusters = Annotated[str, Parameter(name=["-k", "--clusters"], help="Number of clusters, or auto.")]


def _recipe_flags() -> dict[str, Any]:
    flags: dict[str, Any] = {}
    for name, option in declared(Recipe).items():
        if option.flag:
            closed = option.choices and not option.choices[-1].endswith(ANY)
            kind: Any = Literal[option.choices] if closed else str if option.auto else type(option.default)
            flags[name] = Annotated[kind, Parameter(help=option.help)]
    return flags


def _protocol_flags() -> dict[str, Any]:
    """A flag may belong to several protocols, and mean something else to each."""
    types: dict[str, type] = {}
    meanings: dict[str, dict[str, list[str]]] = {}
    for protocol, kind in PROTOCOL_OPTIONS.items():
        for name, option in declared(kind).items():
            if option.flag:
                types[name] = type(option.default)
                meanings.setdefault(name, {}).setdefault(option.help, []).append(protocol)
    return {
        name: Annotated[
            types[name],
            Parameter(help=" ".join(f"{', '.join(protocols)}: {text}" for text, protocols in texts.items())),
        ]
        for name, texts in meanings.items()
    }


if TYPE_CHECKING:
    RecipeFlags = dict[str, Any]
    ProtocolFlags = dict[str, Any]
else:  # the flags that were given, by the name of their option
    RecipeFlags = TypedDict("RecipeFlags", _recipe_flags(), total=False)
    ProtocolFlags = TypedDict("ProtocolFlags", _protocol_flags(), total=False)


@app.command
def fit(
    images: ImagesArgument,
    /,
    *,
    out: Annotated[Path | None, Parameter(name=["-o", "--out"], help="The run folder to make.")] = None,
    k: NumberOfClusters = "auto",
    recipe: Annotated[str, Parameter(help="auto, classic, v1, ... (see `deepcluster recipes`) or FILE.toml.")] = "auto",
    flags: Annotated[RecipeFlags | None, Parameter(name="*")] = None,
    set_: Assignments = None,
    device: Device = "auto",
    deterministic: Annotated[
        bool, Parameter(negative=(), help="On a GPU: only kernels whose results repeat bit for bit; some are slower.")
    ] = False,
    seed: Annotated[
        int, Parameter(help="The same seed gives the same bits on a CPU (on a GPU with --deterministic).")
    ] = 0,
    time_limit: Annotated[
        str | None, Parameter(help="Be done by then, with as many rounds as fit: 90s, 30m, 2h.")
    ] = None,
    labels: Annotated[
        str | None, Parameter(help="For metrics only: folders (or what comes with the source), or a CSV of path,label.")
    ] = None,
    overwrite: Annotated[bool, Parameter(negative=(), help="Replace the run at -o.")] = False,
    resume: Annotated[bool, Parameter(negative=(), help="Continue the run at -o from its last checkpoint.")] = False,
    checkpoint_every: Annotated[
        str,
        Parameter(
            help="Interval between checkpoints (also one per round): 90s, 10m, ...; 0s: after every optimizer step."
        ),
    ] = "10m",
    features: Annotated[
        bool,
        Parameter(
            negative=(),
            help="IMAGES are features: N x D numbers in an .npy (paths in a .txt or .csv of the same name) or .parquet"
            " file. They are grouped without a network.",
        ),
    ] = False,
    dry_run: Annotated[bool, Parameter(negative=(), help="Print the plan with its time and memory, and stop.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Cluster images: train a network on its own clusters; write clusters, features, model and report."""
    begun = time.perf_counter()
    options = read_options(Recipe, {**(flags or {}), **_assignments(set_)})
    read_recipe(recipe)
    n_clusters = _n_clusters(k)
    limit = None if time_limit is None else _seconds("--time-limit", time_limit)
    interval = _seconds("--checkpoint-every", checkpoint_every)
    if resume and (overwrite or out is None):
        raise UsageError("--resume continues the run at -o: give -o RUN, and no --overwrite")

    from deepcluster.runs import fit as runs
    from deepcluster.runs.job import Request
    from deepcluster.runs.own_features import fit_features

    request = Request(
        out=out,
        n_clusters=n_clusters,
        recipe=recipe,
        options=options,
        device=device,
        deterministic=deterministic,
        seed=seed,
        time_limit=limit,
        begun=begun,
        labels=labels,
        overwrite=overwrite,
        resume=resume,
        checkpoint_every=interval,
        command=shlex.join(["deepcluster", *sys.argv[1:]]),
    )
    if dry_run and features:
        raise UsageError("--dry-run is for images: features are grouped at once; leave it out")
    if dry_run:
        _print_plan(images, request)
        return
    with _session(images, quiet, to_stderr=as_json) as (processes, terminal):
        try:
            with listening() as stop:
                if features:
                    folder = fit_features(images, request, terminal, stop)
                else:
                    folder = runs.fit(images, request, terminal, sys.stdin, stop, processes, terminal.ask)
        except Stopped as error:
            raise Stopped(f"{error}{_so_far(terminal.run)}; to go on: {_resuming(terminal.run)}") from None
        if processes.is_main:
            _print_result(folder, quiet, as_json)


@app.command
def predict(
    run_: RunArgument,
    images: ImagesArgument,
    /,
    *,
    out: Annotated[
        str, Parameter(name=["-o", "--out"], help="A CSV file, or - for standard output.", allow_leading_hyphen=True)
    ] = "-",
    reject: Annotated[
        bool, Parameter(negative=(), help="Cluster -1 for images far from every cluster, or in one marked as junk.")
    ] = False,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Annotated[bool, Parameter(name="--json", negative=(), help="Lines of JSON instead of CSV.")] = False,
) -> None:
    """Put images into the clusters of a run: a row for each usable image, the others named on standard error."""
    _warn_of_preliminary(run_)

    from deepcluster.runs.predict import files_read
    from deepcluster.storage.csv_files import write_csv
    from deepcluster.storage.csv_rows import placement_rows
    from deepcluster.storage.output import output
    from deepcluster.storage.run_folder import PREDICTIONS

    def write(file: Any, rows: Iterator[dict[str, Any]]) -> None:
        if as_json:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            write_csv(file, PREDICTIONS, rows)

    with _session(images, quiet, to_stderr=True) as (processes, terminal):
        target = None
        if out != "-" and processes.is_main:
            target = output(Path(out), overwrite=overwrite, inputs=lambda: files_read(run_, images))

        def placed() -> Iterator[dict[str, Any]]:
            for model, part in _predictions(run_, images, device, processes, terminal, target):
                placements = placement_rows(model, model.place(part.reduced), part.lengths, reject=reject)
                yield from ({"path": path, **row} for path, row in zip(part.paths, placements, strict=True))
                sys.stdout.flush()

        rows = placed()
        first = list(islice(rows, 1))  # most errors come up here, before anything is written
        if not processes.is_main:  # its share is computed, and the main rank writes
            return
        rows = chain(first, rows)
        if target:
            target.write(lambda file: write(file, rows))
        else:
            sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="")  # type: ignore[union-attr]
            write(Printed(sys.stdout) if sys.stdout.isatty() else sys.stdout, rows)


@app.command
def embed(
    run_: RunArgument,
    images: ImagesArgument,
    /,
    *,
    out: Annotated[Path, Parameter(name=["-o", "--out"], help="The .npy file to write; paths go to a .csv beside it.")],
    device: Device = "auto",
    overwrite: Annotated[bool, Parameter(negative=(), help="Replace the file at -o, and the .csv beside it.")] = False,
    quiet: Quiet = False,
) -> None:
    """Write the reduced features of images: float32, a row for each usable image, in the order of the .csv beside."""
    if out.suffix != ".npy":
        raise UsageError(f"-o {out}: give a name ending in .npy")
    _warn_of_preliminary(run_)

    import numpy as np

    from deepcluster.runs.predict import files_read
    from deepcluster.storage.csv_files import write_csv
    from deepcluster.storage.output import output

    with _session(images, quiet, to_stderr=True) as (processes, terminal):
        targets = [
            output(path, overwrite=overwrite, inputs=lambda: files_read(run_, images))
            for path in ((out, out.with_suffix(".csv")) if processes.is_main else ())
        ]
        parts = [part for _, part in _predictions(run_, images, device, processes, terminal, *targets)]
    if not processes.is_main:
        return
    features_file, paths_file = targets
    features = np.concatenate([part.reduced.numpy() for part in parts])
    paths = [{"path": path} for part in parts for path in part.paths]
    stopping.check()
    with stopping.later():
        features_file.write(lambda file: np.save(file, features), binary=True)
        paths_file.write(lambda file: write_csv(file, ("path",), paths))


@app.command
def recut(
    run_: RunArgument,
    /,
    *,
    k: NumberOfClusters,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Cut the features of a run into another number of groups, without training; clusters get new numbers."""
    n_clusters = _n_clusters(k)
    _warn_of_preliminary(run_)

    from deepcluster.runs.recut import recut as recut_run

    with Terminal(quiet, to_stderr=as_json) as terminal:
        folder = recut_run(run_, n_clusters, terminal)
    _print_result(folder, quiet, as_json)


@app.command
def apply(
    run_: RunArgument,
    edits: Annotated[
        Path | None, Parameter(help="The edits.json that the report made.", allow_leading_hyphen=False)
    ] = None,
    /,
    *,
    undo: Annotated[bool, Parameter(negative=(), help="Take back the last apply or recut.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Merge, split, name and mark clusters and move images as edits.json says; numbers stay, and `predict` follows."""
    if (edits is None) is not undo:
        raise UsageError("give an edits.json to apply, or --undo to take the last one back" + " (not both)" * undo)
    _warn_of_preliminary(run_)

    from deepcluster.runs.recut import apply as apply_run
    from deepcluster.runs.recut import undo as undo_run
    from deepcluster.storage.edits import read_edits

    with Terminal(quiet, to_stderr=as_json) as terminal:
        folder = undo_run(run_, terminal) if edits is None else apply_run(run_, read_edits(edits), terminal)
    _print_result(folder, quiet, as_json)


@app.command
def report(run_: RunArgument, /) -> None:
    """Write the report.html of a run again."""
    _warn_of_preliminary(run_)

    from deepcluster.runs.report import report as report_run

    say(str(report_run(run_)))


@app.command
def evaluate(
    run_: RunArgument,
    images: Annotated[
        str | None,
        Parameter(help="What is scored, as for fit; without it the images of the run.", allow_leading_hyphen=True),
    ] = None,
    /,
    *,
    labels: Annotated[
        str | None, Parameter(help="folders (what comes with the source) or a CSV of path,label.")
    ] = None,
    protocol: Annotated[
        Literal["clustering", "knn", "linear", "few", "retrieval", "voc07", "filters"],
        Parameter(help="See docs/protocols.md."),
    ] = "clustering",
    train: Annotated[
        str | None, Parameter(help="Images that a protocol learns from, instead of those of the run.")
    ] = None,
    flags: Annotated[ProtocolFlags | None, Parameter(name="*")] = None,
    set_: Assignments = None,
    seed: Annotated[int, Parameter(help="All random numbers depend on it.")] = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score clusters and features against labels. Results are cached in the run folder."""
    kind = PROTOCOL_OPTIONS[protocol]
    options = read_options(kind, {**(flags or {}), **_assignments(set_)})
    kind(**options)  # checks what the options must be together
    _warn_of_preliminary(run_)

    from deepcluster.runs.evaluate import EvaluationRequest, evaluate

    request = EvaluationRequest(
        protocol=protocol, images=images, labels=labels, train=train, options=options, seed=seed, device=device
    )
    values = {}
    with _session(images, quiet, to_stderr=as_json) as (processes, terminal):
        try:
            for name, value in evaluate(run_, request, display=terminal, stdin=sys.stdin, processes=processes):
                values[name] = value
                if processes.is_main and not (as_json or quiet):
                    say(f"{name:24} {value:.4f}" if isinstance(value, float) else f"{name:24} {value}")
        except Stopped as error:
            raise Stopped(f"{error}; to go on: {_again()}") from None
    if as_json and processes.is_main:
        print(json.dumps({"run": str(run_), "protocol": protocol, "values": values}, indent=2))


IMAGE_EXPORTS = ("folders", "imagefolder")


@app.command
def export(
    run_: RunArgument,
    /,
    *,
    to: Annotated[
        Literal["folders", "imagefolder", "parquet", "onnx", "hub", "official"],
        Parameter(
            help="What to make: images sorted into folders, a data set, a table, a graph, a model for the Hub, or a"
            " checkpoint as the authors' own programs read it (alexnet and vgg16)."
        ),
    ],
    out: Annotated[Path, Parameter(name=["-o", "--out"], help="The folder or file to make; it must not be there yet.")],
    mode: Annotated[
        Literal["symlink", "hardlink", "copy"] | None,
        Parameter(help="How images get there (default: folders take the first that works, imagefolder copies)."),
    ] = None,
    images: Annotated[str | None, Parameter(help="Where the images are, if not where they were any more.")] = None,
    strip_metadata: Annotated[
        bool | None,
        Parameter(
            name="--strip-metadata",
            negative="--keep-metadata",
            help="Copies of images without EXIF (time, place), comments and the like (default: for imagefolder).",
        ),
    ] = None,
    fold_sobel: Annotated[
        bool, Parameter(negative=(), help="For official: the Sobel filter becomes part of the first convolution.")
    ] = False,
    dry_run: Annotated[bool, Parameter(negative=(), help="Print what would be done, and stop.")] = False,
    quiet: Quiet = False,
) -> None:
    """Make something else of a run. Images are linked or copied, never moved, and originals are never changed."""
    if fold_sobel and to != "official":
        raise UsageError(f"--fold-sobel is for --to official: --to {to} has no use for it, so leave it out")
    options: dict[str, Any] = {"mode": mode, "images": images, "strip_metadata": strip_metadata}
    options["dry_run"] = dry_run or None
    options = {name: value for name, value in options.items() if value is not None}
    if options and to not in IMAGE_EXPORTS:
        raise UsageError(
            f"--mode, --images, --strip-metadata, --keep-metadata and --dry-run are for images: --to {to} writes none,"
            " so leave them out"
        )
    if fold_sobel:
        options["fold_sobel"] = True
    _warn_of_preliminary(run_)

    from deepcluster import export as exports
    from deepcluster.research.official_layout import official

    with Terminal(quiet) as terminal:
        write = official if to == "official" else getattr(exports, to)
        write(run_, out, display=terminal, **options)


@app.command
def recipes(
    name: str | None = None,
    /,
    *,
    options: Annotated[
        bool, Parameter(negative=(), help="List every option: the default (of v1), what it may be, what it is for.")
    ] = False,
) -> None:
    """List the recipes, or print the options of one as TOML, with how it departs from what was published.

    What `auto` and `classic` choose depends on the images: --dry-run."""
    if options:
        _print_options()
        return
    if name is None:
        for preset, make in PRESETS.items():
            print(f"{preset:13} {' '.join((make.__doc__ or '').split())}")
        return
    published = name in PRESETS and name not in ("auto", "classic")
    # Those were made for the 1.28 million images of ImageNet.
    example = Facts(count=1_281_167 if published else 50_000, short_side=32, grey=False, n_clusters=10, device="cpu")
    plan = resolve(name, {}, example)
    if published:
        print("".join(f"# {line}\n" for line in plan.by_reason()), end="")
    elif name in PRESETS:
        print(f"# What {name} chooses for 50,000 colour images of 32 px, 10 clusters, on a CPU:")
    print(to_toml(plan.recipe), end="")


@app.command
def fetch(
    name: Annotated[
        str,
        Parameter(
            help=" ".join(f"{one.name}: {one.description}." for one in PUBLISHED.values()) + " Or timm:NAME.",
            show_default=True,
        ),
    ] = "photos",
    /,
    *,
    quiet: Quiet = False,
) -> None:
    """Fetch the weights of a published network for all later runs, into the cache of the Hugging Face Hub (HF_HOME)."""
    if name not in PUBLISHED and not name.startswith("timm:"):
        raise UsageError(f"no published network is called {_short(name)}: choose {', '.join(PUBLISHED)} or timm:NAME")
    from deepcluster.nets.published import fetch, is_here, parts_of

    with Terminal(quiet) as terminal:
        about = PUBLISHED[name].description if name in PUBLISHED else "from the Hub"
        terminal.say("Weights", f"{name} is on this machine already" if is_here(name) else f"{name}: {about}")
        for part in parts_of(name):
            terminal.say("Weights", str(fetch(part, terminal.progress)))


@app.command
def doctor(*, as_json: Json = False) -> None:
    """Print what a run depends on: versions, device, threads, image formats, published networks that are here."""
    from deepcluster.images.decode import accepted_formats
    from deepcluster.nets.published import is_here
    from deepcluster.runtime.devices import choose_device, environment

    facts = {
        **environment(choose_device("auto")),
        "formats": list(accepted_formats()),
        "weights": [*filter(is_here, PUBLISHED)],
    }
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        print(f"{name:14} {', '.join(value) or 'none' if isinstance(value, list) else value}")


# ---- helpers ----------------------------------------------------------------------------------------------------


def _print_options() -> None:
    group = ""
    for name, option in declared(Recipe).items():
        if option.group != group:
            print(f"{chr(10) if group else ''}{option.group}")
            group = option.group
        default = json.dumps(round(option.default, 4) if isinstance(option.default, float) else option.default)
        print(f"  {name:20} {default:11} {option.values}\n      {option.help}")


def _print_plan(images: str, request: "Request") -> None:
    """What a fit would do, and how long it would take."""
    from deepcluster.images import find
    from deepcluster.images.preview import preview
    from deepcluster.runs.build import network_of
    from deepcluster.runs.job import facts_of, plan
    from deepcluster.runs.resources import memory, seconds
    from deepcluster.runs.weights import choose
    from deepcluster.runtime.devices import choose_device

    source = find(images, stdin=sys.stdin)
    skipped = f", {len(source.skipped):,} skipped" if source.skipped else ""
    print(paragraph("Images", f"{len(source.paths):,} of {source.name}{skipped}"))
    seen = preview(source)
    start = choose(request, facts_of(source, seen, request))
    if not start.here:
        print(paragraph("Weights", _missing(start)))
    request = replace(request, published=start.name if start.here or start.wanted else "")
    chosen = plan(source, seen, request)
    for line in chosen.by_reason():
        print(paragraph("Plan", line))
    recipe = chosen.recipe
    if "timm" in recipe.weights.split("+"):  # time and memory do not depend on them, and nothing is fetched here
        recipe = replace(recipe, weights="")
    network, device = network_of(recipe, request.seed, choose_device("cpu")), choose_device(request.device)
    needed = memory(network, chosen.recipe, len(source.paths), decoding=seen.decoding, device=device)
    print(paragraph("Memory", needed.text))
    total, per_round = seconds(network.to(device), chosen.recipe, len(source.paths))
    print(paragraph("Time", f"about {_duration(total)}: {chosen.recipe.rounds} rounds of {_duration(per_round)}"))
    print("\n" + to_toml(chosen.recipe), end="")


def _missing(start: "Start") -> str:
    """What a fit would do about a published network that is not on this machine."""
    network = PUBLISHED[start.name]
    what = f"{start.name} is not on this machine ({network.description}); deepcluster fetch {start.name} fetches it."
    if start.agreed:
        return f"{what} So does a fit"
    otherwise = "ends with an error" if start.wanted else "trains from nothing, as planned here"
    return f"{what} A fit asks on a terminal whether it may, and elsewhere it {otherwise}"


@contextmanager
def _session(images: str | None, quiet: bool, *, to_stderr: bool) -> "Iterator[tuple[Processes, Terminal]]":
    """The processes of torchrun, and a display that only the main rank's shows anything."""
    from deepcluster.runtime.processes import init_processes

    with init_processes() as processes, Terminal(quiet or not processes.is_main, to_stderr=to_stderr) as terminal:
        if images == "-" and not processes.alone:
            raise UsageError(
                "several processes cannot share standard input: write the paths to a .txt file, and give that"
            )
        yield processes, terminal


def _predictions(
    run_: Path, images: str, device: str, processes: "Processes", terminal: Terminal, *targets: "Output | None"
) -> Iterator[tuple["Model", "Prediction"]]:
    """The model of a run with what it predicts, part by part; unusable images are named on standard error.

    Raises:
        UsageError: One of the images is one of the ``targets``, which are still to be written.
    """
    from deepcluster.runs.predict import predict
    from deepcluster.runtime.devices import choose_device
    from deepcluster.storage.model_files import load
    from deepcluster.storage.output import check_apart
    from deepcluster.storage.run_folder import open_run

    model = load(open_run(run_).path, choose_device(device))
    for part in predict(model, images, display=terminal, stdin=sys.stdin, processes=processes):
        for path, reason in part.skipped:
            complain(f"skipped {path}: {reason}")
        for target in filter(None, targets if images == "-" else ()):
            for path in (*part.paths, *(path for path, _ in part.skipped)):
                check_apart(target.path, Path(path))
        yield model, part


def _warn_of_preliminary(run: Path) -> None:
    from deepcluster.images.run_folders import is_run
    from deepcluster.records import PRELIMINARY
    from deepcluster.storage.run_folder import read_state

    if is_run(run) and (record := read_state(run, lambda folder: folder.read_record())).result == PRELIMINARY:
        warnings.warn(
            f"the result in {run} is preliminary, after {record.rounds} rounds: going on replaces it, with any"
            " edits (the command of the fit with --resume goes on)",
            DeepClusterWarning,
            stacklevel=2,
        )


def _print_result(folder: "RunFolder", quiet: bool, as_json: bool) -> None:
    """What came out of a fit, recut or apply: for a person, or as one object of JSON."""
    text = _result(folder, as_json)
    if as_json or not quiet:
        print(text)


def _result(folder: "RunFolder", as_json: bool) -> str:
    path = folder.path
    record = folder.read_json("run.json", {"verdict": str})
    values = folder.read_json("metrics.json") if (path / "metrics.json").is_file() else {}
    if as_json:
        names = ("clusters", "images_count", "skipped_count", "rounds", "grade", "verdict")
        summary = {name: record.get(name) for name in names}
        return json.dumps({"run": str(path), **summary, "metrics": values or None}, indent=2)
    lines = []
    with folder.as_disk_errors():
        for prefix, heading in (("", "Metrics"), ("baseline_", "At start")):
            if f"{prefix}acc" in values:
                shown = "  ".join(
                    f"{name.upper()} {values[prefix + name]:.3f}" for name in ("acc", "nmi", "ami", "ari")
                )
                average, labelled = values["nmi_average"], values["labelled"]
                lines.append(f"{heading:9} {shown}  (NMI: {average} mean; {labelled:,} labels)")
    run = shlex.quote(str(path))
    paths_and_commands = [
        f"{'Files':9} {path / 'clusters.csv'}  {path / 'report.html'}",
        *(f"{'' if i else 'Next':9} {command}" for i, command in enumerate(_next_commands(record, run))),
        f"{'Run':9} {path}",
    ]
    return "\n".join(
        [*map(printable, lines), paragraph("Verdict", record["verdict"]), *map(printable, paths_and_commands)]
    )


def _next_commands(record: Mapping[str, Any], run: str) -> list[str]:
    """What to type next: first what makes the most of groups of this grade, with the images where they are files."""
    location = str(record.get("location", ""))
    images = "IMAGES"
    if Path(location).is_absolute():
        images = shlex.quote(min(location, os.path.relpath(location), key=len))
    words = {"RUN": run, "IMAGES": images}
    first = " ".join(words.get(word, word) for word in str(record.get("next_step", "")).split())
    others = (f"deepcluster predict {run} NEW_IMAGES", f"deepcluster recut {run} -k N")
    return [*filter(None, dict.fromkeys((first, *others)))]


def _so_far(run_: str) -> str:
    """Where the preliminary result of a run is that was stopped; empty where it has none."""
    from deepcluster.images.run_folders import is_run
    from deepcluster.storage.run_folder import open_run

    if not run_ or not is_run(Path(run_)) or open_run(Path(run_)).read_record().result is None:
        return ""
    return f"; the groups so far are in {run_}"


def _resuming(run_: str) -> str:
    """The command that goes on with this one, whose run is in ``run_``."""
    if not run_:  # nothing is written so far
        return _again()
    arguments = [argument for argument in sys.argv[1:] if argument not in ("--overwrite", "--resume")]
    out = [] if any(re.fullmatch(r"(-o|--out)(=.*)?", argument) for argument in arguments) else ["-o", run_]
    return shlex.join([*_program(), *arguments, *out, "--resume"])


def _again() -> str:
    """This command as it was given."""
    return shlex.join([*_program(), *sys.argv[1:]])


def _program() -> list[str]:
    several = os.environ.get("LOCAL_WORLD_SIZE")
    torchrun = ["torchrun", "--standalone", f"--nproc-per-node={several}", "-m"] if several else []
    return [*torchrun, "deepcluster"]


def _duration(seconds: float) -> str:
    unit, name = next(
        (unit, name) for unit, name in ((3600, "h"), (60, "min"), (1, "s")) if seconds >= 1.5 * unit or unit == 1
    )
    return f"{seconds / unit:.{0 if seconds >= 10 * unit else 1}f} {name}"


def _n_clusters(k: str) -> int | None:
    if k == "auto":
        return None
    if not re.fullmatch(r"\d{1,12}", k) or int(k) < 1:
        raise UsageError(f"-k {_short(k)}: give a whole number of at least 1, or auto")
    return int(k)


def _assignments(texts: list[str] | None) -> dict[str, str]:
    values = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text}: write it as OPTION=VALUE, for example --set dims=64")
        values[name.strip().replace("-", "_")] = value.strip()
    return values


def _seconds(option: str, text: str) -> float:
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text)
    hours, minutes, seconds = (float(value or 0) for value in match.groups()) if match else (0.0, 0.0, 0.0)
    seconds += 3600 * hours + 60 * minutes
    if not match or not any(match.groups()) or seconds > LONGEST:
        raise UsageError(f"{option} {_short(text)}: write it as 90s, 30m, 2h or 1h30m")
    return seconds


def _short(text: str, most: int = 40) -> str:
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def _check_filled(arguments: list[str]) -> None:
    """UsageError where an argument is empty, as "$UNSET" in a script is: no file or folder has such a name."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option = re.fullmatch(r"(--?[\w-]+)=", argument)
        if option or not argument:
            what = f"value of {option[1]}" if option else f"argument after {before or 'deepcluster'}"
            raise UsageError(f"the {what} is empty (a variable that is not set?): give it a value, or leave it out")


def run_command(arguments: list[str]) -> int:
    """Run one command; returns the exit code (docs/usage.md)."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    is_main = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts, one warns
    warnings.filterwarnings("always" if is_main else "ignore", category=DeepClusterWarning)
    warnings.showwarning = lambda message, *_, **__: complain(f"warning: {message}")
    try:
        with listening():
            _check_filled(arguments)
            app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
            sys.stdout.flush()
    except Stopped as error:
        complain(f"error: {error}")
        return Stopped.exit_code
    except cyclopts.CycloptsError as error:
        complain(f"error: {_short(str(error), 1000)}")
        return UsageError.exit_code
    except DeepClusterError as error:
        if debug:
            raise
        if not isinstance(error, Unsaid):
            complain(f"error: {_short(str(error), 2000)}")
        return error.exit_code
    except KeyboardInterrupt:
        complain("stopped")
        return Stopped.exit_code
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does (streams.py)
        return 0
    except Exception as error:
        if debug:
            raise
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error):
            complain(f"error: out of memory ({error}); try a smaller --image-size or --batch-size")
            return OutOfMemoryError.exit_code
        if isinstance(error, OSError) and error.errno and isinstance(error.filename, str):
            # A path that cannot be used: too long a name, a file in place of a folder, ...
            complain(
                f"error: cannot use {error.filename} ({error.strerror}): check what is there, or name another place"
            )
            return DiskError.exit_code
        complain(f"error: {type(error).__name__}: {error} (this is a bug; --debug shows where)")
        return 1
    return 0


def main() -> None:
    """Run the command of the command line, and end the process with its exit code."""
    streams.set_up()
    app.console = PipeConsole()  # after set_up, which checks the COLUMNS that give it its width
    code = run_command(sys.argv[1:])
    if (unsaid := streams.failure()) and code == 0:
        complain(f"error: {unsaid}")
        code = unsaid.exit_code
    sys.exit(code)
