"""The commands, and the printing of results and errors.

A command imports torch only after all checks that need none: arguments, paths, runs, the number of images.
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain, groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import cyclopts
from cyclopts import App, Parameter, validators

import deepcluster
from deepcluster.errors import (
    DataError,
    DeepClusterError,
    DeepClusterWarning,
    DiskError,
    OutOfMemoryError,
    Stopped,
    UsageError,
)
from deepcluster.evaluation.options import PROTOCOL_OPTIONS
from deepcluster.flags import (
    IMAGE_EXPORTS,
    Assignments,
    Device,
    FitFlags,
    ImageExportFlags,
    ImagesArgument,
    Json,
    NumberOfClusters,
    Open,
    OutOfTable,
    Overwrite,
    PathText,
    ProtocolFlags,
    Quiet,
    RecipeFlags,
    RunArgument,
    flag_names,
    read_assignments,
    read_n_clusters,
    short,
)
from deepcluster.nets.hub import PUBLISHED
from deepcluster.presets import PRESETS, Facts, check_groups, check_weights, options_of, resolve
from deepcluster.recipe import Recipe, declared, read_options, to_toml
from deepcluster.runtime import signals
from deepcluster.runtime.console import (
    PipeConsole,
    Printed,
    Terminal,
    complain,
    flush_streams,
    paragraph,
    say,
    set_up_streams,
)
from deepcluster.runtime.torchrun import is_main_rank, world_size

if TYPE_CHECKING:
    from deepcluster.images import Source
    from deepcluster.model import Model
    from deepcluster.runs.plan import Request
    from deepcluster.runs.predict import Prediction
    from deepcluster.runtime.processes import Processes
    from deepcluster.storage.run_folder import RunFolder
    from deepcluster.storage.run_record import RunRecord


app = App(
    name="deepcluster",
    version=deepcluster.__version__,
    help="From a folder of unlabelled images to clusters, features and a model that places new images.",
    help_format="plaintext",
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,
)
app.register_install_completion_command(help="Let the shell complete commands and options (bash, zsh, fish).")

RANK_WAIT_SECONDS = 20.0  # before another rank than the main rank prints an error
# As torch's allocators and oneDNN say it. (Without a descriptor it would be an operation that oneDNN lacks.)
NO_MEMORY = re.compile("can't allocate memory|out of memory|could not create a primitive(?! descriptor)")
SHARED = ("fit", "predict", "embed", "evaluate")  # commands that several processes do together


@app.command
def fit(
    images: ImagesArgument,
    /,
    *,
    flags: Annotated[FitFlags | None, Parameter(name="*")] = None,
    recipe_flags: Annotated[RecipeFlags | None, Parameter(name="*")] = None,
    set_: Assignments = None,
    open_: Open = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Cluster images: train a network on its own clusters; write clusters, features, model and report."""
    begun = time.perf_counter()
    flags = flags or FitFlags()
    options = read_options(Recipe, {**(recipe_flags or {}), **read_assignments(set_)})
    check_weights(options_of(flags.recipe, options)[1])
    flags.check()
    with _session(images, quiet, to_stderr=as_json) as (terminal, shared):
        source = _fit_source(images, flags, terminal)
        from deepcluster.runs.plan import Request

        request = Request(
            out=flags.out,
            n_clusters=read_n_clusters(flags.k),
            recipe=flags.recipe,
            options=options,
            device=flags.device,
            deterministic=flags.deterministic,
            seed=flags.seed,
            time_limit=flags.seconds,
            begun=begun,
            labels=flags.labels,
            overwrite=flags.overwrite,
            resume=flags.resume,
            verbose=flags.verbose,
            log=flags.log or "",
            command=shlex.join(["deepcluster", *sys.argv[1:]]),
        )
        if flags.dry_run:
            _print_plan(source, request, terminal)
            return
        from deepcluster.runs import fit as runs
        from deepcluster.runs.features import fit_features

        if isinstance(source, str):
            folder = fit_features(source, request, terminal)
        else:
            folder = runs.fit(source, request, terminal, sys.stdin, **shared)
    if is_main_rank():
        _print_result(folder, quiet, as_json, open_)


def _fit_source(images: str, flags: FitFlags, terminal: Terminal) -> "Source | str":
    """Return the images, or the name of the file of features, after all checks that need no torch."""
    from deepcluster.images.features_in import check_features_there
    from deepcluster.images.find import check_labels_there, find, is_named
    from deepcluster.storage.run_folder import check_free

    if flags.out is not None and not flags.dry_run:
        check_free(flags.out, overwrite=flags.overwrite, resume=flags.resume)
    if flags.labels is not None:
        check_labels_there(flags.labels)
    if flags.features:
        check_features_there(images)
        return images
    if is_named(images):
        terminal.say("Loading", images)
    source = find(images, stdin=sys.stdin)
    check_groups(read_n_clusters(flags.k), len(source.paths))
    terminal.say("Images", f"{len(source.paths):,} in {source.location}")
    return source


def _print_plan(source: "Source | str", request: "Request", terminal: Terminal) -> None:
    from deepcluster.runs.forecast import dry_run

    recipe = dry_run(source, request, terminal)
    if request.verbose:
        print("\n" + to_toml(recipe), end="")


@app.command
def predict(
    run_: RunArgument,
    images: ImagesArgument,
    /,
    *,
    out: OutOfTable = "-",
    reject: Annotated[
        bool, Parameter(help="Cluster -1 for images far from every cluster, or in one marked as junk.")
    ] = False,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Annotated[bool, Parameter(name="--json", help="Lines of JSON instead of CSV.")] = False,
) -> None:
    """Put images into the clusters of a run: a row for each usable image, the others named on standard error."""
    with _session(images, quiet, to_stderr=True) as (terminal, shared):
        source = _images_for(run_, images)
        target = None if out == "-" else _output(Path(out), run_, images, overwrite)
        from deepcluster.report.text import count
        from deepcluster.storage.run_folder import PREDICTIONS

        sizes: Counter[int] = Counter()  # by cluster
        rows = _placed(_predictions(run_, source, device, terminal, shared, target), reject, sizes)
        first = list(islice(rows, 1))  # most errors come up here, before anything is written
        if not is_main_rank():  # its share is computed, and the main rank writes
            return
        _write_table(target, PREDICTIONS, chain(first, rows), as_json=as_json)
        if target:
            in_each = ", ".join(f"{size:,} in {number}" for number, size in sorted(sizes.items())[:12])
            more = ", ..." if len(sizes) > 12 else ""
            terminal.say("Done", f"{out}: {count(sizes.total(), 'image')}, by cluster {in_each}{more}")


@app.command
def embed(
    run_: RunArgument,
    images: ImagesArgument,
    /,
    *,
    out: Annotated[Path, Parameter(name=["-o", "--out"], help="The .npy file to write; paths go to a .csv beside it.")],
    device: Device = "auto",
    overwrite: Annotated[bool, Parameter(help="Replace the file at -o, and the .csv beside it.")] = False,
    quiet: Quiet = False,
) -> None:
    """Write the reduced features of images: float32, a row for each usable image, in the order of the .csv beside."""
    if out.suffix != ".npy":
        raise UsageError(f"-o {out}: give a name ending in .npy")

    with _session(images, quiet, to_stderr=True) as (terminal, shared):
        source = _images_for(run_, images)
        features_file, paths_file = (_output(path, run_, images, overwrite) for path in (out, out.with_suffix(".csv")))
        targets = (features_file, paths_file)
        parts = [part for _, part in _predictions(run_, source, device, terminal, shared, *targets)]
    if not is_main_rank():
        return
    import numpy as np

    from deepcluster.images.csv_files import write_csv
    from deepcluster.storage.files import write_output

    features = np.concatenate([part.reduced.numpy() for part in parts])
    paths = [{"path": path} for part in parts for path in part.paths]
    signals.check()
    with signals.uninterrupted():
        write_output(features_file, lambda file: np.save(file, features), binary=True)
        write_output(paths_file, lambda file: write_csv(file, ("path",), paths))


@app.command
def recut(
    run_: RunArgument,
    /,
    *,
    k: NumberOfClusters,
    open_: Open = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Cut the features of a run into another number of groups, without training; clusters get new numbers."""
    n_clusters = read_n_clusters(k)
    record = _check_run(run_)
    if record.images_count is not None:
        check_groups(n_clusters, record.images_count)
    with Terminal(quiet, to_stderr=as_json) as terminal:
        from deepcluster.runs.recut import recut as recut_run

        folder = recut_run(run_, n_clusters, terminal)
    _print_result(folder, quiet, as_json, open_)


@app.command
def apply(
    run_: RunArgument,
    edits: Annotated[Path | None, Parameter(help="The edits.json that the report made.")] = None,
    /,
    *,
    undo: Annotated[bool, Parameter(help="Take back the last apply or recut.")] = False,
    open_: Open = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Merge, split, name and mark clusters and move images as edits.json says; numbers stay, and `predict` follows."""
    if (edits is None) is not undo:
        raise UsageError("give an edits.json to apply, or --undo to take the last one back" + " (not both)" * undo)
    _check_run(run_)
    from deepcluster.storage.edits_file import read_edits

    wanted = None if edits is None else read_edits(edits)
    with Terminal(quiet, to_stderr=as_json) as terminal:
        from deepcluster.runs.recut import apply as apply_run
        from deepcluster.runs.recut import undo as undo_run

        folder = undo_run(run_, terminal) if wanted is None else apply_run(run_, wanted, terminal)
    _print_result(folder, quiet, as_json, open_)


@app.command
def update(
    run_: RunArgument,
    images: ImagesArgument,
    /,
    *,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Add images to a finished run without training: they get places in its clusters, which keep numbers and names."""
    from deepcluster.storage.run_folder import open_run

    with Terminal(quiet, to_stderr=as_json) as terminal:
        source = _images_for(run_, images)
        from deepcluster.runs.update import update as update_run
        from deepcluster.runtime.devices import choose_device

        done = update_run(run_, source, terminal, device=choose_device(device), stdin=sys.stdin)
    if as_json:
        print(json.dumps({"run": str(run_), **asdict(done)}, indent=2))
    else:
        _print_result(open_run(run_), quiet, as_json)


@app.command
def report(run_: RunArgument, /, *, open_: Open = False) -> None:
    """Write the report.html of a run again."""
    _check_run(run_)
    with Terminal(quiet=False):
        from deepcluster.runs.page import report as report_run

        page = report_run(run_)
    say(str(page))
    if open_:
        _open(page)


@app.command
def similar(
    run_: RunArgument,
    image: Annotated[
        PathText, Parameter(help="An image file, or the path of an image in clusters.csv.", allow_leading_hyphen=True)
    ],
    /,
    *,
    n: Annotated[int, Parameter(name=["-n", "--number"], help="How many.", validator=validators.Number(gte=1))] = 20,
    out: OutOfTable = "-",
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Find the images of a run that are most like one: path, cluster, name, similarity (the cosine of the features)."""
    from deepcluster.storage.run_folder import open_run

    _check_run(run_)
    if not os.path.lexists(image) and all(row["path"] != image for row in open_run(run_).read_clusters()):
        raise DataError(f"{short(image)} is no file, and no path in {run_ / 'clusters.csv'}: name one of these")
    target = None if out == "-" else _output(Path(out), run_, image, overwrite)
    with Terminal(quiet, to_stderr=True):
        from deepcluster.runs.predict import SIMILAR
        from deepcluster.runs.predict import similar as most_similar

        found = most_similar(run_, image, n, device)
        _write_table(target, SIMILAR, ({**asdict(one), "similarity": f"{one.similarity:.6f}"} for one in found))


@app.command
def evaluate(
    run_: RunArgument,
    images: Annotated[
        PathText | None,
        Parameter(help="What is scored, as for fit; without it the images of the run.", allow_leading_hyphen=True),
    ] = None,
    /,
    *,
    labels: Annotated[
        PathText | None, Parameter(help="folders (what comes with the source) or a CSV of path,label.")
    ] = None,
    protocol: Annotated[
        Literal["clustering", "knn", "linear", "few"],
        Parameter(help="See docs/protocols.md."),
    ] = "clustering",
    train: Annotated[
        PathText | None, Parameter(help="Images that a protocol learns from, instead of those of the run.")
    ] = None,
    flags: Annotated[ProtocolFlags | None, Parameter(name="*")] = None,
    set_: Assignments = None,
    seed: Annotated[int, Parameter(help="All random numbers depend on it.")] = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score clusters and features against labels. The last figures are kept in the run folder."""
    kind = PROTOCOL_OPTIONS[protocol]
    options = read_options(kind, {**(flags or {}), **read_assignments(set_)})
    kind(**options)  # checks them together
    values = {}
    with _session(images, quiet, to_stderr=as_json) as (terminal, shared):
        from deepcluster.images.find import check_labels_there, check_there

        _check_run(run_)
        for text in filter(None, (images, train)):
            check_there(text)
        if labels is not None:
            check_labels_there(labels)
        from deepcluster.runs.evaluate import EvaluationRequest, evaluate

        request = EvaluationRequest(
            protocol=protocol, images=images, labels=labels, train=train, options=options, seed=seed, device=device
        )
        for name, value in evaluate(run_, request, display=terminal, stdin=sys.stdin, **shared):
            values[name] = value
            if is_main_rank() and not (as_json or quiet):
                say(f"{name:24} {value:.4f}" if isinstance(value, float) else f"{name:24} {value}")
    if as_json and is_main_rank():
        print(json.dumps({"run": str(run_), "protocol": protocol, "values": values}, indent=2))


@app.command
def export(
    run_: RunArgument,
    /,
    *,
    to: Annotated[
        Literal["folders", "imagefolder", "parquet", "onnx"],
        Parameter(help="What to make: images sorted into folders, a data set, a table, or a graph."),
    ],
    out: Annotated[Path, Parameter(name=["-o", "--out"], help="The folder or file to make; it must not be there yet.")],
    flags: Annotated[ImageExportFlags | None, Parameter(name="*")] = None,
    quiet: Quiet = False,
) -> None:
    """Make something else of a run. Images are linked or copied, never moved, and originals are never changed."""
    from deepcluster.storage.files import check_no_file, check_no_folder

    of_images = to in IMAGE_EXPORTS
    if flags and not of_images:
        names = ("keep_metadata" if value is False else name for name, value in flags.items())
        raise UsageError(f"--to {to} writes no images: leave out {flag_names(names)}")
    _check_run(run_)
    if not (flags and flags.get("dry_run")):
        (check_no_folder if of_images else check_no_file)(out)
    with Terminal(quiet) as terminal:
        from deepcluster import export as exports

        getattr(exports, to)(run_, out, display=terminal, **(flags or {}))


@app.command
def recipes(
    name: str | None = None,
    /,
    *,
    options: Annotated[
        bool, Parameter(help="List every option: the default (of v1), what it may be, what it is for.")
    ] = False,
) -> None:
    """List the recipes, or print the options of one as TOML, with how it departs from what was published.

    What `auto` and `classic` choose depends on the images: --dry-run."""
    if options:
        _print_options()
        return
    if name is None:
        for preset, make in PRESETS.items():
            print(f"{preset:13} {' '.join((make.__doc__ or '').replace('``', '').split())}")
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
    file: Annotated[
        Path | None,
        Parameter(name="--from", help="A file that was downloaded elsewhere, for machines without a connection."),
    ] = None,
    list_: Annotated[
        bool, Parameter(name="--list", help="List the published networks with licence and origin.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Download a published network for all later runs, into the cache of the Hugging Face Hub (HF_HOME)."""
    if list_:
        for published in PUBLISHED.values():
            print(f"{published.name:13} {published.description}")
        return
    if name not in PUBLISHED and not name.startswith("timm:"):
        raise UsageError(f"no published network is called {short(name)}: choose {', '.join(PUBLISHED)} or timm:NAME")
    from deepcluster.nets.hub import backbone_of, fetch, keep_in_cache, local_file

    with Terminal(quiet) as terminal:
        if file is not None:
            from deepcluster.nets.network import build

            build(backbone_of(name), image_size=224, weights=str(file))  # an error if it is not of this network
            terminal.say("Weights", str(keep_in_cache(name, file)))
            return
        about = PUBLISHED[name].description if name in PUBLISHED else "from the Hub"
        terminal.say("Weights", f"{name} is on this machine already" if local_file(name) else f"{name}: {about}")
        terminal.say("Weights", str(fetch(name, terminal.progress)))


@app.command
def doctor(*, as_json: Json = False) -> None:
    """Print what a run depends on: versions, device, threads, image formats, published networks that are here."""
    from deepcluster.images.decode import accepted_formats
    from deepcluster.nets.hub import local_file
    from deepcluster.runtime.devices import choose_device, environment

    facts = {
        **environment(choose_device("auto")),
        "formats": list(accepted_formats()),
        "weights": [*filter(local_file, PUBLISHED)],
    }
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        print(f"{name:14} {', '.join(value) or 'none' if isinstance(value, list) else value}")


# ---- helpers ----------------------------------------------------------------------------------------------------


def _print_options() -> None:
    groups = groupby(declared(Recipe).items(), lambda item: item[1].group)
    for i, (group, options) in enumerate(groups):
        print("\n" * (i > 0) + group)
        for name, option in options:
            default = json.dumps(round(option.default, 4) if isinstance(option.default, float) else option.default)
            print(f"  {name:20} {default:11} {option.values}\n      {option.help}")


@contextmanager
def _session(images: str | None, quiet: bool, *, to_stderr: bool) -> "Iterator[tuple[Terminal, dict[str, Processes]]]":
    """Yield a display that shows only on the main rank, and the keyword argument ``processes`` under torchrun.

    These processes join before anything is checked, so that an error of one ends all at once. A process alone has no
    such argument: it checks first and imports torch later.
    """
    if world_size() > 1 and images == "-":
        raise UsageError("several processes cannot share standard input: write the paths to a .txt file, and give that")
    with Terminal(quiet or not is_main_rank(), to_stderr=to_stderr) as terminal:
        if world_size() == 1:
            yield terminal, {}
            return
        from deepcluster.runtime.processes import init_processes

        with init_processes() as processes:
            yield terminal, {"processes": processes}


def _check_run(run: Path) -> "RunRecord":
    """Return the record of a run, with a warning if its result is preliminary. DiskError if there is no run."""
    from deepcluster.records import PRELIMINARY
    from deepcluster.storage.run_folder import read_state

    record = read_state(run, lambda folder: folder.read_record())
    if record.result == PRELIMINARY:
        warnings.warn(
            f"the result in {run} is preliminary, after {record.rounds} rounds: going on replaces it, with any"
            " edits (the command of the fit with --resume goes on)",
            DeepClusterWarning,
            stacklevel=2,
        )
    return record


def _images_for(run: Path, images: str) -> "Source | str":
    """Return images for the model of a run; those on standard input are read later, part by part."""
    from deepcluster.images import find
    from deepcluster.images.features_in import check_features_there
    from deepcluster.nets.sizes import FEATURES

    record = _check_run(run)
    if record.backbone == FEATURES:
        check_features_there(images)
        return images
    return images if images == "-" else find(images)


def _output(path: Path, run: Path, images: str, overwrite: bool) -> Path:
    """Return ``path`` if a command that reads this run and these images may write it (the main rank does)."""
    from deepcluster.storage.files import check_output

    if is_main_rank():
        check_output(path, overwrite=overwrite, inputs=lambda: files_read(run, images))
    return path


def files_read(run: Path, images: str) -> Iterator[Path]:
    """Yield the files that `predict` and `similar` read, if their names are known before; those of ``-`` are not."""
    from deepcluster.images.find import find
    from deepcluster.images.shards import files_of, is_pattern
    from deepcluster.images.source import is_run
    from deepcluster.nets.sizes import FEATURES
    from deepcluster.storage.run_folder import open_run
    from deepcluster.storage.state import own_files

    record = open_run(run).read_record() if is_run(run) else None
    yield from (run / name for name in own_files(run))
    place = Path(images)
    if is_pattern(images) and not os.path.lexists(place):
        yield from files_of(place).values()
    elif images != "-" and os.path.lexists(place):
        yield place
        if record and record.backbone == FEATURES:  # the paths of features lie beside them
            yield from map(place.with_suffix, (".csv", ".txt"))
            return
        source = find(place)
        if source.file is not None:
            yield from source.files()
        elif place.is_dir():
            yield from place.rglob("*.tar")
    elif record:  # the path of an image in the run, relative to the folder of its images or of their list
        location = Path(record.location)
        yield from (folder / place for folder in (location, location.parent))
        yield from (Path(row["source"]) for row in open_run(run).read_added() if row["path"] == images)


def _predictions(
    run_: Path,
    images: "Source | str",
    device: str,
    terminal: Terminal,
    shared: "dict[str, Processes]",
    *targets: Path | None,
) -> Iterator[tuple["Model", "Prediction"]]:
    """Yield the model of a run with its predictions, part by part; name unusable images on standard error.

    Raises:
        UsageError: One of the images is one of the ``targets``, which are still to be written.
    """
    from deepcluster.runs.predict import predict
    from deepcluster.runtime.devices import choose_device
    from deepcluster.storage.files import check_no_input
    from deepcluster.storage.model_files import load

    model = load(run_, choose_device(device))
    for part in predict(model, images, display=terminal, stdin=sys.stdin, **shared):
        for path, reason in part.skipped:
            complain(f"skipped {path}: {reason}")
        for target in filter(None, targets if images == "-" else ()):
            for path in (*part.paths, *(path for path, _ in part.skipped)):
                check_no_input(target, Path(path))
        yield model, part


def _placed(
    predictions: "Iterable[tuple[Model, Prediction]]", reject: bool, sizes: Counter[int]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of `predict`, and count the images of each cluster in ``sizes``."""
    from deepcluster.runs.predict import placement_rows

    for model, part in predictions:
        placements = placement_rows(model, model.place(part.reduced), part.residuals, reject=reject)
        for path, row in zip(part.paths, placements, strict=True):
            sizes[row["cluster"]] += 1
            yield {"path": path, **row}
        sys.stdout.flush()


def _write_table(
    target: Path | None, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, as_json: bool = False
) -> None:
    """Write rows as CSV, or each as a line of JSON, to a file or (None) to standard output."""
    from deepcluster.storage.files import write_output

    if target:
        write_output(target, lambda file: _write_rows(file, columns, rows, as_json))
    else:
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="")  # type: ignore[union-attr]
        _write_rows(Printed(sys.stdout) if sys.stdout.isatty() else sys.stdout, columns, rows, as_json)


def _write_rows(file: Any, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], as_json: bool) -> None:
    from deepcluster.images.csv_files import write_csv

    if as_json:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    else:
        write_csv(file, columns, rows)


def _print_result(folder: "RunFolder", quiet: bool, as_json: bool, open_: bool = False) -> None:
    """Print the result of a fit, recut, apply or update: for a person, or as one object of JSON."""
    record = folder.read_json("run.json", {"verdict": str})
    metrics = folder.read_json("metrics.json") if folder.has("metrics.json") else {}
    page = folder.path / "report.html"
    if as_json:
        names = ("clusters", "images_count", "skipped_count", "rounds", "stability", "verdict")
        summary = {name: record.get(name) for name in names}
        print(json.dumps({"run": str(folder.path), **summary, "metrics": metrics or None}, indent=2))
    elif not quiet:
        with folder.as_disk_errors():
            lines = [*_metric_lines(metrics)]
        for line in lines:
            say(line)
        print(paragraph("Verdict", record["verdict"]))
        say(f"{'Files':9} {folder.path / 'clusters.csv'}  {page}")
        say(f"{'Next':9} open {page.absolute().as_uri()}")
        for command in _next_commands(record, shlex.quote(str(folder.path))):
            say(f"{'':9} {command}")
        say(f"{'Run':9} {folder.path}")
    if open_:
        _open(page)


def _metric_lines(metrics: Mapping[str, Any]) -> Iterator[str]:
    for prefix, heading in (("", "Metrics"), ("baseline_", "At start")):
        if f"{prefix}acc" in metrics:
            shown = "  ".join(f"{name.upper()} {metrics[prefix + name]:.3f}" for name in ("acc", "nmi", "ami", "ari"))
            average, labelled = metrics["nmi_average"], metrics["labelled"]
            yield f"{heading:9} {shown}  (NMI: {average} mean; {labelled:,} labels)"


def _next_commands(record: Mapping[str, Any], run: str) -> list[str]:
    """Return commands for the next step: no recut after edits, because it would lose them."""
    recut = [] if record.get("edits") else [f"deepcluster recut {run} -k N"]
    return [f"deepcluster predict {run} NEW_IMAGES", *recut]


def _open(page: Path) -> None:
    """Show a page in the user's browser."""
    if not webbrowser.open(page.absolute().as_uri()):
        complain(f"no browser could be opened: open {page.absolute().as_uri()} yourself")


def _check_filled(arguments: list[str]) -> None:
    """Raise UsageError if an argument is empty, as "$UNSET" in a script: no file or folder has such a name."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option = re.fullmatch(r"(--?[\w-]+)=", argument)
        if option or not argument:
            what = f"value of {option[1]}" if option else f"argument after {before or 'deepcluster'}"
            raise UsageError(f"the {what} is empty (a variable that is not set?): give it a value, or leave it out")


def _not_shared(arguments: list[str]) -> str:
    """Return the command if every process of torchrun would do all of it, and "" if they share it."""
    name = next(iter(arguments), "-")
    if name == "fit" and "--features" in arguments:
        return "fit --features"
    return "" if name in SHARED or name.startswith("-") else name


def _report(text: str) -> None:
    """Print an error. Another rank waits first: if the main rank meets it too, torchrun ends the waiting one."""
    if is_main_rank():
        complain(f"error: {short(text, 2000)}")
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(RANK_WAIT_SECONDS)
    complain(f"[rank {os.environ['RANK']}] error: {short(text, 2000)}")


def run_command(arguments: list[str]) -> int:
    """Run one command, and return the exit code (docs/usage.md)."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    # One of the processes of torchrun warns.
    warnings.filterwarnings("always" if is_main_rank() else "ignore", category=DeepClusterWarning)
    warnings.showwarning = lambda message, *_, **__: complain(f"warning: {message}")
    try:
        with signals.stoppable():
            _check_filled(arguments)
            if world_size() > 1 and (alone := _not_shared(arguments)):
                raise UsageError(f"{alone} does not share its work among processes: run it without torchrun")
            app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
            if unwritten := flush_streams():
                raise unwritten
    except Stopped as error:
        if is_main_rank():  # a signal to torchrun stops all
            complain(f"error: {error}")
        return Stopped.exit_code
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does
        return 0
    except Exception as error:
        if debug and not isinstance(error, cyclopts.CycloptsError):
            raise
        code, text = _explained(error)
        _report(text)
        return code
    return 0


def _explained(error: Exception) -> tuple[int, str]:
    """Return the exit code and the message for an error of a command."""
    if isinstance(error, cyclopts.CycloptsError):
        return UsageError.exit_code, str(error)
    if isinstance(error, DeepClusterError):
        return error.exit_code, str(error)
    if isinstance(error, OSError) and (unwritten := flush_streams()):
        return unwritten.exit_code, str(unwritten)
    if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
        return OutOfMemoryError.exit_code, f"out of memory ({error}); try a smaller --image-size or --batch-size"
    if isinstance(error, OSError) and error.errno and isinstance(error.filename, str):
        # A path that cannot be used: too long a name, a file in place of a folder, ...
        problem = f"cannot use {error.filename} ({error.strerror})"
        return DiskError.exit_code, f"{problem}: check what is there, or name another place"
    return 1, f"{type(error).__name__}: {error} (this is a bug; --debug shows where)"


def main() -> int:
    """Run the command of the command line, and return its exit code."""
    set_up_streams()
    app.console = PipeConsole()  # after set_up_streams, which checks the COLUMNS that give it its width
    code = run_command(sys.argv[1:])
    flush_streams()
    return code
