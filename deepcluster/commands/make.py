"""Commands that make a run, change it or look at it."""

import json
import re
import sys
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

from deepcluster.commands.session import check_run, checked_output, images_for, open_page, print_result, session, typed
from deepcluster.errors import DiskError, UsageError
from deepcluster.recipes import flags
from deepcluster.recipes.presets import check_clusters, check_weights, read_request
from deepcluster.runtime import signals
from deepcluster.runtime.bounded import is_run
from deepcluster.runtime.console import Terminal, say
from deepcluster.runtime.machine import is_main_rank
from deepcluster.runtime.tables import UTF_8_MARK, write_csv
from deepcluster.storage import files
from deepcluster.storage.edits_file import read_edits
from deepcluster.texts import one_line

if TYPE_CHECKING:
    from deepcluster.images import Source


def fit(
    images: flags.ImagesArgument | None = None,
    more_images: flags.MoreImages = (),
    /,
    *,
    fit_flags: flags.FitFlags = flags.FitFlags(),
    recipe_flags: Annotated[flags.RecipeFlags | None, Parameter(name="*")] = None,
    set_: Annotated[flags.Assignments, Parameter(group=flags.NETWORK)] = None,
    output: flags.Output = flags.Output(),
) -> None:
    """Cluster images; write the clusters, features, a model and a report.

    Example:
        deepcluster fit photos/ -o runs/photos
    """
    recipe = read_request({**(recipe_flags or {}), **flags.read_assignments(set_)}, fit_flags.recipe)
    check_weights(recipe.all_options)
    fit_flags.check(dry_run=output.dry_run)
    verbose = fit_flags.verbose or output.dry_run
    with session(images, output.quiet, to_stderr=output.as_json, verbose=verbose) as (terminal, shared):
        source = _fit_source(fit_flags, output.dry_run, terminal, images, *more_images)
        from deepcluster.fitting.values import Request

        request = Request(**{**vars(fit_flags), "recipe": recipe, "command": typed(sys.argv[1:])})
        if output.dry_run:
            from deepcluster.fitting.forecast import dry_run

            resolved = dry_run(source, request, terminal)
            print("\n" + resolved if fit_flags.verbose else "", end="")
            return
        from deepcluster.fitting import fit as fitting

        folder = fitting.fit(source, request, terminal, **shared)
    if is_main_rank():
        print_result(folder.path, output, "fit")


def _fit_source(
    fit_flags: flags.FitFlags, dry_run: bool, terminal: Terminal, images: str | None, *others: str
) -> "Source | str":
    """Return the images, or the file of features, after all checks that need no torch."""
    from deepcluster.images.files import LIBRARIES, find
    from deepcluster.images.own_features import check_features_there
    from deepcluster.images.source import WHAT_TO_TYPE
    from deepcluster.images.true_labels import check_labels_there
    from deepcluster.storage.run_folder import check_free

    try:
        Path.cwd()  # as torch asks at the first optimizer step
    except FileNotFoundError:
        raise DiskError(
            "the current folder no longer exists: change to another one, and type the command again"
        ) from None
    if fit_flags.out is not None and not dry_run:
        check_free(fit_flags.out, overwrite=fit_flags.overwrite, resume=fit_flags.resume)
    if fit_flags.labels is not None:
        check_labels_there(fit_flags.labels)
    if fit_flags.like is not None:
        check_run(fit_flags.like)
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
    check_clusters(fit_flags.n_clusters, len(source.paths))
    terminal.say("Images", f"{len(source.paths):,} in {source.location}{_others(source) if dry_run else ''}")
    return source


def _others(source: "Source") -> str:
    """Return the number of files that are no images, by their suffixes, as the end of a line; "" if there are none."""
    from deepcluster.images.decode import SUFFIXES
    from deepcluster.images.raw import reads_raw
    from deepcluster.images.source import RAW_SUFFIXES

    known = (*SUFFIXES, "", *(RAW_SUFFIXES if reads_raw() else ()))
    others = sum(Path(file).suffix.lower() not in known for file in source.files())
    return f", {len(source.paths) - others:,} of them images by their names" if others else ""


def recut(run_: flags.RunArgument, /, *, k: flags.NumberOfClusters, output: flags.Output = flags.Output()) -> None:
    """Make another number of clusters from a run's features, without training; clusters get new numbers.

    Example:
        deepcluster recut runs/photos -k 20
    """
    record = check_run(run_)
    if record.images_count is not None:
        check_clusters(k, record.images_count)
    with Terminal(output.quiet, to_stderr=output.as_json) as terminal:
        from deepcluster.runs import recut as recutting

        made = recutting.recut(run_, k, terminal, dry_run=output.dry_run)
    print_result(run_, output, "recut", made.to_json())


def apply(
    run_: flags.RunArgument,
    edits: Path | None = None,
    /,
    *,
    undo: bool = False,
    redo: bool = False,
    output: flags.Output = flags.Output(),
) -> None:
    """Apply edits: merge, split, name and mark clusters, move images; other clusters keep their numbers.

    Args:
        edits: A JSON file with edits; the served report (report RUN --serve) needs none.
        undo: Take back the last apply, recut or teach; --undo 3 the last three, --undo all every one since the fit.
        redo: Make the last change that was taken back again; --redo 3 three of them, --redo all every one.

    Example:
        deepcluster apply runs/photos --undo
    """
    word = "" if edits is None else str(edits)
    is_step = re.fullmatch("|all|[0-9]{1,9}", word) if undo or redo else edits
    if not is_step or (undo and redo):
        raise UsageError("give a FILE of edits, or --undo or --redo with a number of changes or all (one of these)")
    check_run(run_)
    wanted = None if undo or redo or edits is None else read_edits(edits)
    with Terminal(output.quiet, to_stderr=output.as_json) as terminal:
        from deepcluster.runs import apply as editing
        from deepcluster.runs import change

        if wanted is None:
            changes = None if word == "all" else int(word or 1)
            made = change.undo(run_, terminal, changes, forward=redo, dry_run=output.dry_run)
        else:
            made = editing.apply(run_, wanted, terminal, dry_run=output.dry_run)
    print_result(run_, output, "apply", made.to_json())


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

    A drawn image that you have answered before has that name. If you keep the name, the answer teaches from now on.

    Args:
        n: Number of images.
        drawn: Draw the images at random: their answers tell how many of all images are in the right cluster.

    Example:
        deepcluster ask runs/photos -o answers.csv
    """
    check_run(run_)
    target = None if out == "-" else checked_output(Path(out), run_, "", overwrite)
    with Terminal(quiet=True, to_stderr=True):
        from deepcluster.runs import teach as teaching

        rows = [asdict(question) for question in teaching.ask(run_, n, drawn=drawn)]
        if as_json:
            print(json.dumps(rows, indent=2))
            if target is None:
                return
        cells = ({**row, "likely": " ".join(map(str, row["likely"])), "drawn": int(row["drawn"])} for row in rows)
        write = partial(write_csv, columns=teaching.COLUMNS, rows=cells)
        files.write_table(target, write, start=UTF_8_MARK)


def teach(run_: flags.RunArgument, answers: Path | None = None, /, *, output: flags.Output = flags.Output()) -> None:
    """Teach the run by your answers: the other images follow. Cluster numbers do not change. Undo: apply RUN --undo.

    Args:
        answers: A CSV file of path and name (a new one makes a new cluster) or cluster, such as that of ask, filled in;
            or a sorted folder, such as that of export --to folders: images that you moved to other folders count, and
            folders that you renamed; without it, the answers of the run count again, if other changes followed them.

    Example:
        deepcluster teach runs/photos sorted/
    """
    check_run(run_)
    with Terminal(output.quiet, to_stderr=output.as_json) as terminal:
        from deepcluster.runs import teach as teaching

        if answers and answers.is_dir():
            from deepcluster.export.read_back import teach_folder

            made = teach_folder(run_, answers, terminal, dry_run=output.dry_run)
        else:
            listed = teaching.read_answers(answers, terminal) if answers else ()
            made = teaching.teach(run_, listed, terminal, dry_run=output.dry_run)
    preview = made.to_json()
    quality = made.change.run.quality
    counts = {"changed": preview["changed"], "changes": preview["changes"], "quality": quality}
    print_result(run_, output, "teach", preview, counts)


def update(
    run_: flags.RunArgument,
    images: flags.ImagesArgument | None = None,
    more_images: flags.MoreImages = (),
    /,
    *,
    reject: bool = False,
    device: flags.Device = "auto",
    max_skipped: flags.MaxSkipped = None,
    output: flags.Output = flags.Output(),
) -> None:
    """Add images to the clusters of a finished run, without training; clusters keep their numbers and names.

    Args:
        reject: Give no cluster (-1) to new outliers; an answer about one places it.

    Example:
        deepcluster update runs/photos new/ --reject
    """
    if images is None:
        location = one_line(check_run(run_).base)
        raise UsageError(f"IMAGES is missing: give the folder of the new images (those of the fit were in {location})")
    with Terminal(output.quiet, to_stderr=output.as_json) as terminal:
        # Without a warning, because `update` refuses an unfinished run.
        source = images_for(run_, images, *more_images, may_be_empty=True)
        from deepcluster.runs.update import update as update_run
        from deepcluster.runtime.devices import choose_device

        chosen = choose_device(device)
        done = update_run(
            run_, source, terminal, device=chosen, max_skipped=max_skipped, reject=reject, dry_run=output.dry_run
        )
    summary = {**asdict(done), "due": done.due}
    preview = summary | summary.pop("preview")
    if done.added or output.open_ or output.as_json:
        print_result(run_, output, "update", preview, summary)


def promote(
    new: Annotated[Path, Parameter(name="NEW")],
    old: Annotated[Path, Parameter(name="OLD")],
    /,
    *,
    force: bool = False,
    quiet: flags.Quiet = False,
) -> None:
    """Put a finished run in the place of another one, which is kept beside it.

    Args:
        new: A finished run folder; it moves.
        old: The run folder that it replaces.
        force: Go on, although names of its clusters are lost.

    Example:
        deepcluster promote runs/twelve runs/photos --force
    """
    with Terminal(quiet) as terminal:
        from deepcluster.runs.promote import promote as promote_run

        promote_run(new, old, terminal, force=force)


def report(run_: flags.RunArgument, /, *, serve: bool = False, open_: flags.Open = False) -> None:
    """Look at a run, correct and sort it in a browser (--serve --open), or write report.html again, to pass on.

    Args:
        serve: Serve it to browsers on this machine; edits are applied at once, and a button sorts into folders.

    Example:
        deepcluster report runs/photos --serve --open
    """
    check_run(run_)
    # A signal to a server is no error, also before it serves.
    with Terminal(quiet=False) as terminal, signals.uninterrupted() if serve else nullcontext():
        from deepcluster.runs.views import report as report_run

        page = report_run(run_, progress=terminal.progress)
    if serve:
        from deepcluster.export import folders
        from deepcluster.export.read_back import by_folder
        from deepcluster.runs.serve import redirecting
        from deepcluster.runs.serve import serve as serve_run

        with ExitStack() as stack:

            def show(address: str) -> None:
                say(f"{'Report':9} {address}")
                say(f"{'':9} Edits are applied at once. Ctrl-C or an hour without a request ends the server.")
                sys.stdout.flush()
                if open_:
                    open_page(stack.enter_context(redirecting(run_, address)).as_uri(), address)

            serve_run(run_, folders, by_folder, show)
        return
    say(str(page))
    if open_:
        open_page(page.absolute().as_uri())
