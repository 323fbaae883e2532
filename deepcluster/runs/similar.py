"""The images of a run that are most like one image."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from deepcluster.clustering.blocks import nearest
from deepcluster.errors import UsageError
from deepcluster.images import find
from deepcluster.images.decode import one_line
from deepcluster.model import Model
from deepcluster.runs.at_hand import folder_of, name_in_run
from deepcluster.runs.predict import predict
from deepcluster.runs.rows import read_run
from deepcluster.runtime.devices import choose_device
from deepcluster.storage.run_folder import RunFolder, open_run, read_state

COLUMNS = ("path", "cluster", "name", "similarity")


@dataclass(frozen=True)
class Similar:
    """An image of a run, and its similarity to the image of the query: the cosine of their features."""

    path: str
    cluster: int
    name: str
    similarity: float


def similar(run: Path, image: str, n: int = 20, device: str = "auto") -> list[Similar]:
    """Return the images of a run that are most like an image, most similar first.

    Args:
        run: The run folder.
        image: An image file, or the path of an image in clusters.csv; one of the run is not among the result.
        n: Number of images.
        device: Device of the network, for an image that the run does not have.

    Raises:
        DataError: The image cannot be read.
        UsageError: It is not one image.
    """
    _, model, rows = read_state(run, read_run)
    row = row_of(open_run(run), rows.paths, image)
    if row is None:
        model.network.to(choose_device(device))
        scores, numbers = nearest(_features(model, image), n, rows.reduced)
    else:
        scores, numbers = nearest(rows.reduced[row : row + 1], n + 1, rows.reduced)
        others = numbers != row  # one that is the same to the last bit may come before it
        scores, numbers = scores[others].unsqueeze(0), numbers[others].unsqueeze(0)
    chosen = numbers[0, :n].tolist()
    clusters = model.place(rows.reduced[chosen]).cluster.tolist()
    return [
        Similar(rows.paths[number], cluster, model.names[cluster], score)
        for number, cluster, score in zip(chosen, clusters, scores[0].tolist(), strict=False)
    ]


def row_of(folder: RunFolder, paths: Sequence[str], image: str) -> int | None:
    """Return the row of the image that ``image`` names, as a file or by its path; None if it is no image of the run."""
    names = [image]
    if os.path.lexists(image):  # another file may have the name of one in the run
        there = Path(os.path.abspath(image))  # noqa: PTH100 (without following links)
        names = [str(there), name_in_run(there, folder_of(folder.read_record().location))]
    return next((paths.index(name) for name in reversed(names) if name in paths), None)


def _features(model: Model, image: str) -> Tensor:
    if model.of_features:
        raise UsageError(f"{one_line(image)} is no path in clusters.csv: a run of features sees no other images")
    source = find(image)
    if len(source.paths) != 1:
        raise UsageError(f"{one_line(image)} has {len(source.paths):,} images: name one")
    (prediction,) = predict(model, source)
    return prediction.reduced
