"""New images through the model of a run."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from deepcluster.clustering.blocks import nearest
from deepcluster.errors import UsageError
from deepcluster.images import Images, find
from deepcluster.images.own_features import read_features
from deepcluster.images.source import check_skipped, nothing_readable
from deepcluster.model import Model, Prediction
from deepcluster.records import Identity
from deepcluster.runs.images import name_in_run
from deepcluster.runs.run import placement_columns, read_run
from deepcluster.runtime.console import Display, Silent, complain
from deepcluster.runtime.devices import choose_device
from deepcluster.storage.content import COLUMNS, Row, Table
from deepcluster.storage.run_folder import open_run
from deepcluster.texts import one_line


def predict(
    model: Model,
    images: Images,
    *,
    display: Display = Silent(),
    none_is_fine: bool = False,
) -> Iterator[Prediction]:
    """Run images through a model. A batch is yielded before the next one is read.

    Raises DataError, at the end, if none of the files was usable, but for ``none_is_fine``.
    """
    if model.of_features:
        features, source = read_features(images)
        yield Prediction(source.paths, *model.measure_features(features), ())
        return
    tried = used = 0
    reasons: list[tuple[str, str]] = []
    source = find(images)
    for part in source.parts(model.batch_size):
        prediction = model.read(part)
        tried = tried + len(part.paths)
        used = used + len(prediction.paths)
        reasons += prediction.skipped[: 3 - len(reasons)]
        display.progress("images", tried, tried)
        yield prediction
    if not used and (source.skipped or tried) and not (none_is_fine and tried):
        raise nothing_readable(source.location, tried, reasons)


def predicted(
    model: Model, images: Images, skipped: list[dict[str, str]], max_skipped: int | None = None, **options: Any
) -> Iterator[Prediction]:
    """Yield predictions part by part; name unusable images on standard error, and append them to ``skipped``."""
    for part in predict(model, images, **options):
        for path, reason in part.skipped:
            skipped.append({"path": path, "reason": reason})
            complain(f"skipped {path}: {reason}")
        yield part
    check_skipped(skipped, max_skipped)


def placed_rows(model: Model, predictions: Iterable[Prediction], reject: bool, sizes: Counter[int]) -> Iterator[Row]:
    """Yield the rows of `predict`, and count the images by cluster in ``sizes``."""
    for part in predictions:
        columns = placement_columns(model, model.placement(part.reduced), part.residuals, reject=reject)
        sizes.update(columns["cluster"])
        yield from Table.of_columns({"path": part.paths, **columns})
        sys.stdout.flush()


def write_lines(
    file: Any, rows: Iterable[Mapping[str, Any]], skipped: Sequence[Mapping[str, str]], model: Identity
) -> None:
    """Write an object per line: the predictions as they come, then the files that were ``skipped`` meanwhile."""
    names = {"run": model.run, "model": model.digest}
    for row in rows:
        values = {column.name: column.value(row[column.name]) for column in COLUMNS if column.name in row}
        file.write(json.dumps({"status": "ok", **values, **names}) + "\n")
    for row in skipped:
        file.write(json.dumps({"status": "skipped", **row, **names}) + "\n")


# ---- the images of a run that are most like one image ------------------------------------------------------------

SIMILAR = ("path", "cluster", "name", "similarity")


def similar(run: Path, image: str, n: int = 20, device: str = "auto") -> list[Row]:
    """Return rows of the ``n`` images of a run most like ``image`` (by the cosine of their features), without itself.

    It is a file, read by the network on ``device``, or a path in the run. Raises DataError if it cannot be read,
    UsageError if it is not one image.
    """
    of_run = read_run(open_run(run), takes_images=True)
    model, rows = of_run.model, of_run.rows
    row = row_of(Path(of_run.record.base), rows.paths, image)
    query = _features(model, image, device) if row is None else rows.reduced[row : row + 1]
    scores, numbers = nearest(query, n + 1, rows.reduced)
    pairs = zip(numbers[0].tolist(), scores[0].tolist(), strict=True)
    score_of = {number: score for number, score in pairs if number != row}  # an image with the same bits may precede it
    chosen = [*score_of][:n]
    names = of_run.names
    cells = (
        (rows.paths[number], str(int(of_run.clusters[number])), names[number], f"{score_of[number]:.6f}")
        for number in chosen
    )
    return [dict(zip(SIMILAR, row, strict=True)) for row in cells]


def row_of(base: Path, paths: Sequence[str], image: str) -> int | None:
    """Return the row of the image that ``image`` names, as a file or by its path; None if it is no image of the run."""
    names = [image]
    if os.path.lexists(image):  # another file may have the name of one in the run
        file = Path(os.path.abspath(image))  # noqa: PTH100 (without following links)
        names = [str(file), name_in_run(file, base)]
    return next((paths.index(name) for name in reversed(names) if name in paths), None)


def _features(model: Model, image: str, device: str) -> Tensor:
    if model.of_features:
        raise UsageError(f"{one_line(image)} is no path in clusters.csv: a run of features sees no other images")
    source = find(image)
    if len(source.paths) != 1:
        raise UsageError(f"{one_line(image)} has {len(source.paths):,} images: name one")
    model.network.to(choose_device(device))
    (prediction,) = predict(model, source)
    return prediction.reduced
