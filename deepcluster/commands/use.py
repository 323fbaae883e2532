"""Commands that use a run and leave it as it is."""

import json
import os
from collections import Counter
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, validators

from deepcluster.commands.session import check_run, checked_output, images_for, model_of
from deepcluster.errors import DataError, UsageError
from deepcluster.recipes import flags
from deepcluster.recipes.flags import refuse
from deepcluster.runtime import signals
from deepcluster.runtime.console import Terminal, say
from deepcluster.runtime.tables import write_csv
from deepcluster.storage import files
from deepcluster.texts import a_few, plural, short


def predict(
    run_: flags.RunArgument,
    images: flags.ImagesArgument,
    more_images: flags.MoreImages = (),
    /,
    *,
    placing: flags.Placing = flags.Placing(),
    device: flags.Device = "auto",
    quiet: flags.Quiet = False,
) -> None:
    """Place images in the clusters of a run: a row per usable image; standard error names the others.

    Example:
        deepcluster predict runs/photos new/
    """
    out = placing.out
    max_skipped = placing.max_skipped
    with Terminal(quiet, to_stderr=True) as terminal:
        from deepcluster.storage.content import PREDICTIONS

        source = images_for(run_, images, *more_images, may_be_empty=True)
        target = None if out == "-" else checked_output(Path(out), run_, source, placing.overwrite)
        from deepcluster.runs.predict import placed_rows, predicted, write_lines

        model = model_of(run_, device)
        sizes: Counter[int] = Counter()  # by cluster
        skipped: list[dict[str, str]] = []
        predictions = predicted(model, source, skipped, max_skipped, display=terminal)
        rows = placed_rows(model, predictions, placing.reject, sizes)
        # Most errors occur in the first row, before anything is written; too many skipped images do at the end.
        first = list(islice(rows, 1 if max_skipped is None else None))
        terminal.say("Model", str(model.identity))
        rows = chain(first, rows)
        as_lines = partial(write_lines, rows=rows, skipped=skipped, model=model.identity)
        files.write_table(target, as_lines if placing.as_json else partial(write_csv, columns=PREDICTIONS, rows=rows))
        if target:
            names = [*model.names, ""]  # of -1, too
            counts = [f"{size:,} in {names[number] or f'cluster {number}'}" for number, size in sorted(sizes.items())]
            terminal.say("Done", f"{out}: {a_few([plural(sizes.total(), 'image'), *counts], 13)}")


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

    Example:
        deepcluster embed runs/photos new/ -o features.npy
    """
    if out.suffix != ".npy":
        raise UsageError(f"-o {out}: give a name ending in .npy")

    with Terminal(quiet, to_stderr=True) as terminal:
        source = images_for(run_, images, *more_images)
        outputs = (out, out.with_suffix(".csv"))
        features_file, paths_file = (checked_output(path, run_, source, overwrite) for path in outputs)
        from deepcluster.runs.predict import predicted

        model = model_of(run_, device)
        parts = [*predicted(model, source, [], display=terminal)]
    import numpy as np

    features = np.concatenate([part.reduced.numpy() for part in parts])
    paths = [{"path": path} for part in parts for path in part.paths]
    signals.check()
    with signals.uninterrupted():
        files.write_output(features_file, lambda file: np.save(file, features), binary=True)
        files.write_output(paths_file, lambda file: write_csv(file, ("path",), paths))


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

    Example:
        deepcluster similar runs/photos new/00.png -n 5
    """
    from deepcluster.storage.run_folder import open_run

    check_run(run_)
    if not os.path.lexists(image) and image not in open_run(run_).read_images().used.column("path"):
        raise DataError(f"{short(image)} is neither a file nor an image of {run_}: give one of these")
    target = None if out == "-" else checked_output(Path(out), run_, image, overwrite)
    with Terminal(quiet, to_stderr=True):
        from deepcluster.runs.predict import SIMILAR
        from deepcluster.runs.predict import similar as most_similar

        rows = most_similar(run_, image, n, device)
        files.write_table(target, partial(write_csv, columns=SIMILAR, rows=rows))


def evaluate(
    run_: flags.RunArgument,
    images: flags.AnyPath | None = None,
    more_images: flags.MoreImages = (),
    /,
    *,
    labels: flags.PathText | None = None,
    device: flags.Device = "auto",
    quiet: flags.Quiet = False,
    as_json: flags.Json = False,
) -> None:
    """Score clusters against labels: accuracy, NMI, AMI and ARI, with their level of chance.

    Args:
        images: The images to score, as for fit; without it the images of the run.
        labels: folders (the labels of the source) or a CSV of path,label (default: the labels of the fit).

    Example:
        deepcluster evaluate runs/photos --labels labels.csv
    """
    with Terminal(quiet, to_stderr=as_json) as terminal:
        from deepcluster.images.files import find
        from deepcluster.images.true_labels import check_labels_there

        check_run(run_)
        if labels is not None:
            check_labels_there(labels)
        source = None if images is None else find(images, *more_images)
        from deepcluster.runs.evaluate import evaluate

        values = evaluate(run_, source, labels, device=device, display=terminal)
        for name, value in values.items():
            text = f"{value:.4f}" if isinstance(value, float) else str(value)
            if not (as_json or quiet):
                say(f"{name:24} {text:>8}")
    if as_json:
        print(json.dumps({"run": str(run_), "values": values}, indent=2))


def export(
    run_: flags.RunArgument,
    /,
    *,
    to: Annotated[
        Literal["folders", "imagefolder", "keywords", "parquet", "onnx"],
        Parameter(converter=flags.read_form, n_tokens=1),
    ],
    out: flags.Out,
    sorting: flags.Sorting = flags.Sorting(),
    quiet: flags.Quiet = False,
) -> None:
    """Export a run: folders, data sets, tables, an ONNX graph. Images are linked or copied, never moved or changed.

    Args:
        to: Form of the result: a folder per cluster, a data set, keywords for exiftool, a table, the model as a graph.
        out: The folder or file to make; it must not exist yet, unless --overwrite may replace it.

    Example:
        deepcluster export runs/photos --to folders -o sorted/
    """
    of_images = to in flags.IMAGE_EXPORTS
    takes = ("images", "outliers") if to == "keywords" else ()
    if not of_images:
        others = {name: value for name, value in vars(sorting).items() if name not in takes}
        refused = (name for name, value in others.items() if value != getattr(flags.Sorting, name))
        refuse(refused, f"--to {to} writes no images")
    check_run(run_)
    if not sorting.dry_run and not sorting.overwrite:
        (files.check_no_folder if of_images else files.check_no_file)(out)
    with Terminal(quiet) as terminal:
        from deepcluster import export as exports

        getattr(exports, to)(run_, out, *([sorting] if of_images or takes else []), display=terminal)
