"""The commands, and the printing of results and errors.

A command imports torch only after all checks that need none: arguments, paths, runs, the number of images. Help and
checks of arguments need no numpy either.
"""

import json
import os
import re
import shlex
import signal
import sys
import time
import warnings
import webbrowser
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict
from functools import partial
from itertools import chain, groupby, islice, zip_longest
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Annotated, Any, Literal

import cyclopts
from cyclopts import App, Group, Parameter, validators

import deepcluster
from deepcluster import errors, flags
from deepcluster.auto import Facts
from deepcluster.errors import DataError, DeepClusterError, DeepClusterWarning, DiskError, Stopped, UsageError
from deepcluster.evaluation import PROTOCOL_OPTIONS
from deepcluster.flags import refuse
from deepcluster.nets import hub
from deepcluster.nets.names import NO_NETWORK, PUBLISHED, backbone_of
from deepcluster.presets import PRESETS, check_groups, check_weights, read_request, resolve
from deepcluster.recipe import Recipe, declared, read_options, to_toml
from deepcluster.runtime import console, log, signals
from deepcluster.runtime.console import Terminal, complain, say
from deepcluster.runtime.machine import is_main_rank, versions, world_size
from deepcluster.runtime.plain_files import is_run, write_csv
from deepcluster.storage import files
from deepcluster.storage.edits_file import read_edits
from deepcluster.texts import plural, short, some

if TYPE_CHECKING:
    from deepcluster.images import Source
    from deepcluster.model import Model
    from deepcluster.storage.content import RunRecord


app = App(
    name="deepcluster",
    version=deepcluster.__version__,
    help="From a folder of unlabelled images to clusters, features and a model that places new images.",
    help_format="plaintext",
    # A switch that is off shows nothing.
    default_parameter=Parameter(
        negative=(), show_default=lambda value: None if value is None or value is False else str(value)
    ),
    group_arguments=Group("Arguments", sort_key=0),
    group_parameters=Group("Parameters", sort_key=1),
    suppress_keyboard_interrupt=False,
)
app.register_install_completion_command(help="Let the shell complete commands and options (bash, zsh, fish).")

RANK_WAIT_SECONDS = 20.0  # before another rank than the main rank prints an error
# Messages of torch's allocators, of the system, of its loader of libraries and of oneDNN. (With "descriptor", it is an
# operation that oneDNN lacks.)
NO_MEMORY = re.compile(
    "can't allocate memory|[Cc]annot allocate memory|out of memory|failed to map segment"
    "|could not create a primitive(?! descriptor)"
)
MAX_WORDS = 60  # of a command in run.json, log.txt and the page
SHARED = ("fit", "predict", "embed", "evaluate")  # commands that share their work among processes


@app.command
def fit(
    images: flags.ImagesArgument | None = None,
    more_images: flags.MoreImages = (),
    /,
    *,
    fit_flags: flags.FitFlags = flags.FIT,
    recipe_flags: Annotated[flags.RecipeFlags | None, Parameter(name="*")] = None,
    set_: Annotated[flags.Assignments, Parameter(group=flags.NETWORK)] = None,
    output: flags.Output = flags.OUTPUT,
) -> None:
    """Cluster images; write the clusters, features, a model and a report."""
    recipe = read_request({**(recipe_flags or {}), **flags.read_assignments(set_)}, fit_flags.recipe)
    check_weights(recipe.all_options)
    fit_flags.check()
    verbose = fit_flags.verbose or fit_flags.dry_run
    with _session(images, output.quiet, to_stderr=output.as_json, verbose=verbose) as (terminal, shared):
        source = _fit_source(fit_flags, terminal, images, *more_images)
        from deepcluster.fitting.plan import Request

        command = _typed(sys.argv[1:])
        request = Request(**fit_flags.request, recipe=recipe, command=command)
        if fit_flags.dry_run:
            from deepcluster.fitting.forecast import dry_run

            resolved = dry_run(source, request, terminal)
            print("\n" + resolved if fit_flags.verbose else "", end="")
            return
        from deepcluster.fitting import fit as fitting

        folder = fitting.fit(source, request, terminal, **shared)
    if is_main_rank():
        _print_result(folder.path, output, "fit")


def _fit_source(fit_flags: flags.FitFlags, terminal: Terminal, images: str | None, *others: str) -> "Source | str":
    """Return the images, or the file of features, after all checks that need no torch."""
    from deepcluster.images.files import LIBRARIES, find
    from deepcluster.images.given import check_labels_there
    from deepcluster.images.own_features import check_features_there
    from deepcluster.images.source import WHAT_TO_TYPE
    from deepcluster.storage.run_folder import check_free

    try:
        Path.cwd()  # as torch asks at the first optimizer step
    except FileNotFoundError:
        raise DiskError(
            "the current folder no longer exists: change to another one, and type the command again"
        ) from None
    if fit_flags.out is not None and not fit_flags.dry_run:
        check_free(fit_flags.out, overwrite=fit_flags.overwrite, resume=fit_flags.resume)
    if fit_flags.labels is not None:
        check_labels_there(fit_flags.labels)
    if fit_flags.like is not None:
        _check_run(fit_flags.like)
    if images is None:
        goes_on = fit_flags.resume and fit_flags.out is not None and is_run(fit_flags.out)
        run = fit_flags.out if goes_on else fit_flags.like
        if run is None or fit_flags.features:
            raise UsageError(f"IMAGES is missing; --like RUN and --resume need none (features do). {WHAT_TO_TYPE}")
        from deepcluster.runs.images import images_of  # imports torch

        source = images_of(run)
    elif fit_flags.features:
        return check_features_there(images, *others)
    else:
        if images.partition(":")[0] in LIBRARIES:  # which may take a while to load it
            terminal.say("Loading", images)
        source = find(images, *others)
    check_groups(fit_flags.n_clusters, len(source.paths))
    location = "standard input" if source.location == "-" else source.location
    terminal.say("Images", f"{len(source.paths):,} in {location}")
    return source


@app.command
def predict(
    run_: flags.RunArgument,
    images: flags.ImagesArgument,
    more_images: flags.MoreImages = (),
    /,
    *,
    out: flags.OutOfTable = "-",
    reject: bool = False,
    device: flags.Device = "auto",
    max_skipped: flags.MaxSkipped = None,
    overwrite: flags.Overwrite = False,
    quiet: flags.Quiet = False,
    as_json: Annotated[flags.Json, Parameter(help="A line of JSON per file instead of CSV.")] = False,
) -> None:
    """Place images in the clusters of a run: a row per usable image; standard error names the others.

    Args:
        reject: Give cluster -1 to outliers and to images in junk clusters.
    """
    with _session(images, quiet, to_stderr=True) as (terminal, shared):
        from deepcluster.storage.content import PREDICTIONS

        source = _images_for(run_, images, *more_images, may_be_empty=True)
        target = None if out == "-" else _output(Path(out), run_, source, overwrite)
        from deepcluster.runs.predict import placed_rows, predicted, write_lines

        model = _model(run_, device)
        sizes: Counter[int] = Counter()  # by cluster
        skipped: list[dict[str, str]] = []
        predictions = predicted(model, source, skipped, max_skipped, display=terminal, **shared)
        rows = placed_rows(model, predictions, reject, sizes)
        # Most errors occur in the first row, before anything is written; too many skipped images do at the end.
        first = list(islice(rows, 1 if max_skipped is None else None))
        if not is_main_rank():  # its share is computed, and the main rank writes
            return
        terminal.say("Model", str(model.identity))
        rows = chain(first, rows)
        as_lines = partial(write_lines, rows=rows, skipped=skipped, model=model.identity)
        files.write_table(target, as_lines if as_json else partial(write_csv, columns=PREDICTIONS, rows=rows))
        if target:
            names = [*model.names, ""]  # of -1, too
            counts = [f"{size:,} in {names[number] or f'cluster {number}'}" for number, size in sorted(sizes.items())]
            terminal.say("Done", f"{out}: {some([plural(sizes.total(), 'image'), *counts], 13)}")


@app.command
def embed(
    run_: flags.RunArgument,
    images: flags.ImagesArgument,
    more_images: flags.MoreImages = (),
    /,
    *,
    out: flags.Out,
    device: flags.Device = "auto",
    overwrite: bool = False,
    quiet: flags.Quiet = False,
) -> None:
    """Write the reduced features of images: float32, a row per usable image, in the order of the .csv beside it.

    Args:
        out: The .npy file to write; paths go to a .csv beside it.
        overwrite: Replace the file at -o, and the .csv beside it.
    """
    if out.suffix != ".npy":
        raise UsageError(f"-o {out}: give a name ending in .npy")

    with _session(images, quiet, to_stderr=True) as (terminal, shared):
        source = _images_for(run_, images, *more_images)
        features_file, paths_file = (_output(path, run_, source, overwrite) for path in (out, out.with_suffix(".csv")))
        from deepcluster.runs.predict import predicted

        model = _model(run_, device)
        parts = [*predicted(model, source, [], display=terminal, **shared)]
    if not is_main_rank():
        return
    import numpy as np

    features = np.concatenate([part.reduced.numpy() for part in parts])
    paths = [{"path": path} for part in parts for path in part.paths]
    signals.check()
    with signals.uninterrupted():
        files.write_output(features_file, lambda file: np.save(file, features), binary=True)
        files.write_output(paths_file, lambda file: write_csv(file, ("path",), paths))


@app.command
def recut(run_: flags.RunArgument, /, *, k: flags.NumberOfClusters, output: flags.Output = flags.OUTPUT) -> None:
    """Make another number of clusters from a run's features, without training; clusters get new numbers."""
    record = _check_run(run_)
    if record.images_count is not None:
        check_groups(k, record.images_count)
    with Terminal(output.quiet, to_stderr=output.as_json) as terminal:
        from deepcluster.runs import recut as recutting

        recutting.recut(run_, k, terminal)
    _print_result(run_, output, "recut")


@app.command
def apply(
    run_: flags.RunArgument,
    edits: Path | None = None,
    /,
    *,
    undo: bool = False,
    output: flags.Output = flags.OUTPUT,
) -> None:
    """Apply edits: merge, split, name and mark clusters, move images; other clusters keep their numbers.

    Args:
        edits: A JSON file with edits; the served report (report RUN --serve) needs none.
        undo: Take back the last apply, recut or teach; --undo 3 the last three, --undo all every one since the fit.
    """
    word = "" if edits is None else str(edits)
    if not (re.fullmatch("|all|[0-9]{1,9}", word) if undo else edits):
        raise UsageError("give a FILE of edits, or --undo with a number of changes or all (not both)")
    _check_run(run_)
    wanted = None if undo or edits is None else read_edits(edits)
    with Terminal(output.quiet, to_stderr=output.as_json) as terminal:
        from deepcluster.runs import change
        from deepcluster.runs import edits as editing

        if wanted is None:
            change.undo(run_, terminal, None if word == "all" else int(word or 1))
        else:
            editing.apply(run_, wanted, terminal)
    _print_result(run_, output, "apply")


@app.command
def ask(
    run_: flags.RunArgument,
    /,
    *,
    n: Annotated[int, Parameter(name=["-n", "--number"], validator=validators.Number(gte=1))] = 20,
    drawn: bool = False,
    out: flags.OutOfTable = "-",
    overwrite: flags.Overwrite = False,
    as_json: flags.Json = False,
) -> None:
    """List images for a person to name, for teach: path, present name, name (empty), likely clusters, drawn.

    Args:
        n: Number of images.
        drawn: Draw the images at random: their answers tell how many of all images are in the right cluster.
    """
    _check_run(run_)
    target = None if out == "-" else _output(Path(out), run_, "", overwrite)
    with Terminal(quiet=True, to_stderr=True):
        from deepcluster.runs import lesson as teaching

        rows = [asdict(question) for question in teaching.ask(run_, n, drawn=drawn)]
        if as_json:
            print(json.dumps(rows, indent=2))
            if target is None:
                return
        cells = ({**row, "likely": " ".join(map(str, row["likely"])), "drawn": int(row["drawn"])} for row in rows)
        files.write_table(target, partial(write_csv, columns=teaching.COLUMNS, rows=cells))


@app.command
def teach(run_: flags.RunArgument, answers: Path | None = None, /, *, output: flags.Output = flags.OUTPUT) -> None:
    """Teach the run by your answers: the other images follow. Cluster numbers do not change. Undo: apply RUN --undo.

    Args:
        answers: A CSV file of path and name (a new one makes a new cluster) or cluster, such as that of ask, filled in;
            without it, the answers stored in the run count again.
    """
    _check_run(run_)
    with Terminal(output.quiet, to_stderr=output.as_json) as terminal:
        from deepcluster.runs import lesson as teaching

        changes = teaching.teach(run_, teaching.read_answers(answers, terminal) if answers else (), terminal)
    pairs = [{"before": before, "after": after, "images": images} for (before, after), images in changes.items()]
    counts = {"changed": sum(changes.values()), "changes": pairs, "quality": _check_run(run_).quality}
    _print_result(run_, output, "teach", counts)


@app.command
def update(
    run_: flags.RunArgument,
    images: flags.ImagesArgument,
    more_images: flags.MoreImages = (),
    /,
    *,
    device: flags.Device = "auto",
    max_skipped: flags.MaxSkipped = None,
    output: flags.Output = flags.OUTPUT,
) -> None:
    """Add images to the clusters of a finished run, without training; clusters keep their numbers and names."""
    with Terminal(output.quiet, to_stderr=output.as_json) as terminal:
        # Without a warning, because `update` refuses an unfinished run.
        source = _images_for(run_, images, *more_images, may_be_empty=True)
        from deepcluster.runs.added import update as update_run
        from deepcluster.runtime.devices import choose_device

        done = update_run(run_, source, terminal, device=choose_device(device), max_skipped=max_skipped)
    if done.added or output.open_ or output.as_json:
        _print_result(run_, output, "update", {**asdict(done), "due": done.due})


@app.command
def promote(
    new: Annotated[Path, Parameter(name="NEW")],
    old: Annotated[Path, Parameter(name="OLD")],
    /,
    *,
    quiet: flags.Quiet = False,
) -> None:
    """Put a finished run in the place of another one, which is kept beside it.

    Args:
        new: A finished run folder; it moves.
        old: The run folder that it replaces.
    """
    with Terminal(quiet) as terminal:
        from deepcluster.runs.promote import promote as promote_run

        promote_run(new, old, terminal)


@app.command
def report(run_: flags.RunArgument, /, *, serve: bool = False, open_: flags.Open = False) -> None:
    """Look at a run, correct and sort it in a browser (--serve --open), or write report.html again, to pass on.

    Args:
        serve: Serve it to browsers on this machine; edits are applied at once, and a button sorts into folders.
    """
    _check_run(run_)
    # A signal to a server is no error, also before it serves.
    with Terminal(quiet=False) as terminal, signals.uninterrupted() if serve else nullcontext():
        from deepcluster.runs.page import report as report_run

        page = report_run(run_, progress=terminal.progress)
    if serve:
        from deepcluster.export import folders
        from deepcluster.runs.serve import redirecting
        from deepcluster.runs.serve import serve as serve_run

        with ExitStack() as stack:

            def show(address: str) -> None:
                say(f"{'Report':9} {address}")
                say(f"{'':9} Edits are applied at once. Ctrl-C or an hour without a request ends the server.")
                sys.stdout.flush()
                if open_:
                    _open(stack.enter_context(redirecting(run_, address)).as_uri(), address)

            serve_run(run_, folders, show)
        return
    say(str(page))
    if open_:
        _open(page.absolute().as_uri())


@app.command
def similar(
    run_: flags.RunArgument,
    image: flags.AnyPath,
    /,
    *,
    n: Annotated[int, Parameter(name=["-n", "--number"], validator=validators.Number(gte=1))] = 20,
    out: flags.OutOfTable = "-",
    device: flags.Device = "auto",
    overwrite: flags.Overwrite = False,
    quiet: flags.Quiet = False,
) -> None:
    """List the images of a run most similar to one image: path, cluster, name, similarity (cosine of the features).

    Args:
        image: An image file, or the path of an image in clusters.csv.
        n: Number of images.
    """
    from deepcluster.storage.run_folder import open_run

    _check_run(run_)
    if not os.path.lexists(image) and all(row["path"] != image for row in open_run(run_).read_clusters()):
        raise DataError(f"{short(image)} is neither a file nor a path in {run_ / 'clusters.csv'}: give one of these")
    target = None if out == "-" else _output(Path(out), run_, image, overwrite)
    with Terminal(quiet, to_stderr=True):
        from deepcluster.runs.predict import SIMILAR
        from deepcluster.runs.predict import similar as most_similar

        rows = ({**asdict(hit), "similarity": f"{hit.similarity:.6f}"} for hit in most_similar(run_, image, n, device))
        files.write_table(target, partial(write_csv, columns=SIMILAR, rows=rows))


@app.command
def evaluate(  # noqa: PLR0913 a parameter is a flag
    run_: flags.RunArgument,
    images: flags.AnyPath | None = None,
    more_images: flags.MoreImages = (),
    /,
    *,
    labels: flags.PathText | None = None,
    protocol: Literal["clustering", "knn", "linear"] = "clustering",
    train: flags.PathText | None = None,
    set_: flags.Assignments = None,
    seed: int = 0,
    device: flags.Device = "auto",
    quiet: flags.Quiet = False,
    as_json: flags.Json = False,
) -> None:
    """Score clusters and features against labels.

    Args:
        images: The images to score, as for fit; without it the images of the run.
        labels: folders (the labels of the source) or a CSV of path,label (default: the labels of the fit).
        protocol: Its options are in docs/protocols.md, for --set.
        train: Images that a protocol learns from, instead of the images of the run.
        seed: Seed of all random numbers.
    """
    kind = PROTOCOL_OPTIONS[protocol]
    options = read_options(kind, flags.read_assignments(set_))
    kind(**options)  # checks them together
    values: dict[str, Any] = {}
    with _session(images, quiet, to_stderr=as_json) as (terminal, shared):
        from deepcluster.images.files import find
        from deepcluster.images.given import check_labels_there

        _check_run(run_)
        if labels is not None:
            check_labels_there(labels)
        tests = None if images is None else find(images, *more_images)
        learnt = None if train is None else find(train)
        from deepcluster.runs.evaluate import EvaluationRequest, evaluate

        request = EvaluationRequest(protocol, tests, labels, learnt, options, seed, device)
        for name, value in evaluate(run_, request, display=terminal, **shared):
            values[name] = value
            text = f"{value:.4f}" if isinstance(value, float) else str(value)
            if is_main_rank() and not (as_json or quiet):
                say(f"{name:24} {text:>8}")
    if as_json and is_main_rank():
        print(json.dumps({"run": str(run_), "protocol": protocol, "values": values}, indent=2))


@app.command
def export(
    run_: flags.RunArgument,
    /,
    *,
    to: Literal["folders", "imagefolder", "parquet", "onnx"],
    out: flags.Out,
    image_flags: Annotated[flags.ImageExportFlags | None, Parameter(name="*")] = None,
    quiet: flags.Quiet = False,
) -> None:
    """Export a run: folders, data sets, a table, an ONNX graph. Images are linked or copied, never moved or changed.

    Args:
        to: Form of the result: a folder per cluster, a data set, a table, the model as a graph.
        out: The folder or file to make; it must not exist yet, unless --overwrite may replace it.
    """
    chosen: Mapping[str, Any] = image_flags or {}
    of_images = to in flags.IMAGE_EXPORTS
    if not of_images:
        refuse(chosen, f"--to {to} writes no images")
    _check_run(run_)
    if not chosen.get("dry_run") and not chosen.get("overwrite"):
        (files.check_no_folder if of_images else files.check_no_file)(out)
    with Terminal(quiet) as terminal:
        from deepcluster import export as exports

        getattr(exports, to)(run_, out, display=terminal, **chosen)


@app.command
def recipes(name: str | None = None, /, *, options: bool = False) -> None:
    """List the recipes, or print the options of one as TOML, with its departures from the published one.

    The choices of `auto` and `classic` depend on the images: `fit --dry-run --verbose` prints them.

    Args:
        options: List every option with its default (of v1), its values and its meaning.
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
    example = Facts(count=1_281_167 if published else 50_000, short_side=32, grey=False, n_clusters=10, device="cpu")
    plan = resolve(read_request({}, name), example)
    if name in PRESETS and not published:
        print(f"# The choices of {name} for 50,000 colour images of 32 px, 10 clusters, on a CPU:")
    if name in PRESETS:
        print("".join(f"# {line}\n" for line in plan.by_reason()), end="")
    print(to_toml(plan.recipe), end="")


@app.command
def fetch(
    name: Annotated[
        str,
        Parameter(help=" ".join(f"{it.name}: {it.description}." for it in PUBLISHED.values()) + " Or timm:NAME."),
    ] = "photos",
    /,
    *,
    file: Annotated[Path | None, Parameter(name="--from")] = None,
    quiet: flags.Quiet = False,
) -> None:
    """Download a published network for all later runs, into the cache of the Hugging Face Hub (HF_HOME).

    Args:
        file: Take this file instead, downloaded on another machine.
    """
    if name not in PUBLISHED and not name.startswith("timm:"):
        raise UsageError(f"no published network is called {short(name)}: choose {', '.join(PUBLISHED)} or timm:NAME")
    with Terminal(quiet) as terminal:
        if file is not None:
            from deepcluster.nets.network import build

            build(backbone_of(name), image_size=224, weights=str(file))  # an error if the file is for another network
            terminal.say("Weights", str(hub.keep_in_cache(name, file)))
            return
        about = PUBLISHED[name].description if name in PUBLISHED else "from the Hub"
        here = hub.local_file(name)
        terminal.say("Weights", f"{name} is on this machine already" if here else f"{name}: {about}")
        terminal.say("Weights", str(hub.fetch(name, terminal.progress)))


@app.command
def doctor(
    run_: Annotated[Path | None, Parameter(name="RUN", help="Print the state of this run instead.")] = None,
    /,
    *,
    as_json: flags.Json = False,
) -> None:
    """Print versions, device, threads, image formats and the published networks on this machine."""
    if run_ is not None:
        _check_run(run_)
        from deepcluster.runs.condition import condition

        facts = condition(run_)
    else:
        from deepcluster.images.decode import accepted_formats, reads_raw

        facts = {**versions()}
        try:
            from deepcluster.runtime.devices import choose_device, environment

            facts |= environment(choose_device("auto"))
        except (ImportError, OSError) as error:
            facts["torch"] = _explained(error)[1]
        facts |= {
            "formats": [*accepted_formats(), *(["RAW"] if reads_raw() else [])],
            "weights": [*filter(hub.local_file, PUBLISHED)],
        }
    if as_json:
        print(json.dumps(facts, indent=2, default=asdict))
        return
    for name, value in facts.items():
        shown = ", ".join(value) or "none" if isinstance(value, list) else "-" if value is None else value
        say(f"{name:17} {f'{value:,}' if type(value) is int else shown}")


# The help lists these in the order in which people need them, and then the others by name.
for number, verb in enumerate(("fit", "report", "export", "update", "predict")):
    app[verb].sort_key = number


# ---- helpers ----------------------------------------------------------------------------------------------------


def _print_options() -> None:
    groups = groupby(declared(Recipe).items(), lambda item: item[1].group)
    for i, (group, options) in enumerate(groups):
        print("\n" * (i > 0) + group)
        for name, option in options:
            default = json.dumps(round(option.default, 4) if isinstance(option.default, float) else option.default)
            print(f"  {name:20} {default:11} {option.values}\n      {option.help}")


@contextmanager
def _session(
    images: str | None, quiet: bool, *, to_stderr: bool, verbose: bool = False
) -> Iterator[tuple[Terminal, dict[str, Any]]]:
    """Yield a display that shows only on the main rank, and the keyword argument ``processes`` under torchrun.

    These processes join before anything is checked, so that an error of one ends all at once. A single process has no
    such argument: it checks first and imports torch later.
    """
    if world_size() > 1 and images == "-":
        raise UsageError("several processes cannot share standard input: write the paths to a .txt file, and give that")
    with Terminal(quiet or not is_main_rank(), to_stderr=to_stderr, verbose=verbose) as terminal:
        if world_size() == 1:
            yield terminal, {}
            return
        from deepcluster.runtime.processes import init_processes

        with init_processes() as processes:
            yield terminal, {"processes": processes}


def _check_run(run: Path) -> "RunRecord":
    """Return the record of a run. DiskError if there is no run."""
    from deepcluster.storage.run_folder import read_state

    return read_state(run, lambda folder: folder.read_record())


def _images_for(run: Path, images: str, *others: str, may_be_empty: bool = False) -> "Source | str":
    """Return images for the model of a run, or the file of features for a model that takes these."""
    from deepcluster.images.files import find
    from deepcluster.images.own_features import check_features_there

    if _check_run(run).backbone == NO_NETWORK:
        return check_features_there(images, *others)
    return find(images, *others, may_be_empty=may_be_empty)


def _output(path: Path, run: Path, images: "Source | str", overwrite: bool) -> Path:
    """Return ``path`` if a command that reads this run and these images may write it (the main rank does)."""
    if is_main_rank():
        files.check_output(path, overwrite=overwrite, inputs=lambda: _files_read(run, images))
    return path


def _files_read(run: Path, images: "Source | str") -> Iterator[Path]:
    from deepcluster.storage.run_folder import open_run
    from deepcluster.storage.state import own_files

    yield from (run / name for name in own_files(run))
    if isinstance(images, str):  # an image, perhaps by its path in the run, or features with their paths beside them
        path = Path(images)
        yield Path(open_run(run).read_record().location) / path
        yield from (path, path.parent / f"{path.stem}.csv", path.parent / f"{path.stem}.txt", *path.rglob("*.parquet"))
    else:
        yield Path(images.location)
        yield from {Path(images.origin(i).source) for i in range(len(images.paths))}  # files, arrays and shards


def _model(run: Path, device: str) -> "Model":
    from deepcluster.runtime.devices import choose_device
    from deepcluster.storage.model_files import load

    return load(run, choose_device(device))


def _print_result(run: Path, output: flags.Output, command: str, summary: Mapping[str, object] | None = None) -> None:
    """Print the result of a fit, recut, apply, teach or update; ``summary``: Of the command, for ``--json``."""
    from deepcluster.storage.run_folder import open_run

    folder = open_run(run)
    record = folder.read_json("run.json")
    metrics = folder.read_json("metrics.json") if folder.has("metrics.json") else {}
    page = folder.path / "report.html"
    if output.as_json:
        names = ("clusters", "images_count", "skipped_count", "rounds", "stability", "verdict")
        summary = summary or {name: record.get(name) for name in names} | {"metrics": metrics or None}
        print(json.dumps({"run": str(run), **summary}, indent=2))
    elif not output.quiet:
        lines: list[str] = []
        if command in ("fit", "recut"):  # edits and new images have no verdict of their own
            lines += _metric_lines({"clusters": record["clusters"], **metrics})
            lines += console.paragraph("Verdict", record["verdict"]).splitlines()
        following = [*_next_commands(folder.path, record, command)]
        following.append(f"open {page.absolute().as_uri()}   # the page as a file, to look at and to pass on")
        lines += [f"{heading:9} {line}" for heading, line in zip_longest(["Next"], following, fillvalue="")]
        for line in lines:
            say(line)
    if output.open_:
        _open(page.absolute().as_uri())


def _next_commands(folder: Path, record: Mapping[str, Any], command: str) -> Iterator[str]:
    run = shlex.quote(str(folder))
    others = [candidate["k"] for candidate in (record.get("candidates") or ())[1:]]
    yield f"deepcluster report {run} --serve --open   # look, correct and sort in a browser"
    if command == "fit" and others and not record.get("edits"):  # a recut would lose them
        yield f"deepcluster recut {run} -k {others[0]}   # another number of clusters"
    if command != "update" and record.get("backbone") != NO_NETWORK:
        yield f"deepcluster export {run} --to folders -o sorted   # a folder for every cluster"


def _metric_lines(metrics: Mapping[str, Any]) -> Iterator[str]:
    for prefix, heading in (("", "Metrics"), ("baseline_", "At start")):
        if f"{prefix}acc" in metrics:
            shown = "  ".join(f"{name.upper()} {metrics[prefix + name]:.3f}" for name in ("acc", "nmi", "ami", "ari"))
            about = "" if prefix else f"; NMI: {metrics['nmi_average']} mean; {metrics['labelled']:,} labels"
            yield f"{heading:9} {shown}  ({plural(metrics[f'{prefix}clusters'], 'cluster')}{about})"


def _open(page: str, address: str = "") -> None:
    """Show a page in the user's browser. ``address``: The page that it redirects to."""
    if not webbrowser.open(page):
        complain(f"no browser could be opened: open {address or page} yourself")


def _check_arguments(arguments: list[str]) -> None:
    """Raise UsageError if an argument is empty (such as "$UNSET"), or if several processes cannot share the command."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option = re.fullmatch(r"(--?[\w-]+)=", argument)
        if option or not argument:
            what = f"value of {option[1]}" if option else f"argument after {before or 'deepcluster'}"
            raise UsageError(f"the {what} is empty (a variable that is not set?): give it a value, or leave it out")
    name = next(iter(arguments), "-")
    if world_size() > 1 and name not in SHARED and not name.startswith("-"):
        raise UsageError(f"{name} does not share its work among processes: run it without torchrun")


def _report(text: str) -> None:
    """Print an error. Another rank waits first: if the main rank meets it too, torchrun ends the waiting one."""
    if is_main_rank():
        complain(f"error: {short(text, 2000)}")
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(RANK_WAIT_SECONDS)
    complain(f"[rank {os.environ['RANK']}] error: {short(text, 2000)}")


def _typed(arguments: Sequence[str]) -> str:
    """Return the command as it was typed, without the middle of a long list of images."""
    words = ["deepcluster", *arguments]
    if len(words) > MAX_WORDS:
        words[MAX_WORDS // 2 : -MAX_WORDS // 2] = ["..."]
    return shlex.join(words)


def run_command(arguments: list[str]) -> int:
    """Run one command, and return the exit code (docs/usage.md)."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    # One of the processes of torchrun warns.
    warnings.filterwarnings("always" if is_main_rank() else "ignore", category=DeepClusterWarning)
    warnings.showwarning = lambda message, *_, **__: complain(f"warning: {message}")
    try:
        with signals.stoppable(), log.logged(_typed(arguments)):
            _check_arguments(arguments)
            hub.check_environment()
            app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
            if unwritten := console.flush_streams():
                raise unwritten
    except Stopped as error:
        code, text = Stopped.exit_code, str(error)
        if is_main_rank():  # a signal to torchrun stops all
            complain(f"error: {text}")
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does
        return 0
    except Exception as error:
        if debug and not isinstance(error, cyclopts.CycloptsError):
            raise
        code, text = _explained(error)
        _report(text)
    else:
        return 0
    if "--json" in arguments and is_main_rank():
        with suppress(OSError):  # standard output itself may have failed
            print(json.dumps({"error": text, "code": code}))
    return code


def _explained(error: Exception) -> tuple[int, str]:
    if isinstance(error, cyclopts.UnknownCommandError) and os.path.lexists(path := (error.unused_tokens or [""])[0]):
        return UsageError.exit_code, f"{path} is no command: did you mean deepcluster fit {shlex.quote(path)}?"
    if isinstance(error, cyclopts.UnusedCliTokensError):
        extra = short(shlex.join(error.unused_tokens or []), 200)
        return UsageError.exit_code, f"too many arguments: {extra}. Several IMAGES stand together, before the options"
    if isinstance(error, cyclopts.CycloptsError):
        return UsageError.exit_code, str(error)
    if isinstance(error, DeepClusterError):
        return error.exit_code, str(error)
    if isinstance(error, OSError) and (unwritten := console.flush_streams()):
        return unwritten.exit_code, str(unwritten)
    if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
        return errors.OutOfMemoryError.exit_code, f"out of memory ({error}); try a smaller --image-size or --batch-size"
    if isinstance(error, OSError) and error.errno and isinstance(error.filename, str):
        # A path that cannot be used: too long a name, a file in place of a folder, ...
        problem = f"cannot use {error.filename} ({error.strerror})"
        return errors.DiskError.exit_code, f"{problem}: check what is there, or name another place"
    modules = (frame.f_globals["__name__"] for frame, _ in walk_tb(error.__traceback__))
    if "torch" not in sys.modules and "torch" in (getattr(error, "name", ""), *modules):
        return errors.ModelError.exit_code, f"torch cannot be imported ({errors.first_line(error)}): install it again"
    return 1, f"{type(error).__name__}: {error} (this is a bug; --debug shows where)"


def main() -> int:
    """Run the command of the command line, and return its exit code."""
    console.set_up_streams()
    app.console = console.PipeConsole()  # after set_up_streams, which checks the COLUMNS that give it its width
    code = run_command(sys.argv[1:])
    console.flush_streams()
    return code
