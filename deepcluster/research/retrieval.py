"""Protocol ``retrieval``: the same building among thousands of images (Oxford and Paris buildings).

An image is described by R-MAC (Tolias, Sicre, Jegou, "Particular object retrieval with integral max-pooling of CNN
activations", ICLR 2016) of the maps of the last convolution; the ranking is scored as Philbin et al. 2007 do.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from deepcluster.clustering.whitening import whiten
from deepcluster.errors import DataError
from deepcluster.evaluation.common import NamedFigure, Once, anew
from deepcluster.evaluation.feature_maps import layers_of, maps_at
from deepcluster.evaluation.linear import as_numbers
from deepcluster.evaluation.options import RetrievalOptions
from deepcluster.images import Source, find
from deepcluster.images.decode import explain
from deepcluster.images.store import read_once
from deepcluster.nets.backbone import Network
from deepcluster.research.whole_images import whole
from deepcluster.runtime.console import Display, Silent
from deepcluster.seeding import generator

AT_A_TIME = 16  # images read before the network sees them
OVERLAP = 0.4  # of neighbouring regions of the first level
MOST_EXTRA = 6
CHANCES = 5  # random rankings whose mean is the chance level


@dataclass(frozen=True)
class Query:
    """A query, and the images that show the same building. Images are named by their files, without ``.jpg``.

    Attributes:
        name: Of the query.
        image: The image that it is part of.
        box: Left, top, right and bottom of that part, px.
        positive: Images that show the building.
        junk: Images that count neither as right nor as wrong.
    """

    name: str
    image: str
    box: tuple[float, float, float, float]
    positive: frozenset[str]
    junk: frozenset[str]


def dataset(folder: str) -> tuple[Source, list[Query]]:
    """The images (``*.jpg``) and queries below a folder, as Oxford and Paris come.

    The files of a query end in ``_query.txt``, ``_good.txt``, ``_ok.txt`` and ``_junk.txt``.

    Raises:
        DataError: There are none, or a file cannot be read.
    """
    root = Path(folder)
    queries = [_query(path) for path in sorted(root.rglob("*_query.txt"))]
    if not queries:
        raise DataError(
            f"{folder} has no *_query.txt: give the folder that has images and ground truth of Oxford or Paris"
        )
    source = images_below(folder)
    names = {Path(path).stem for path in source.paths}
    for query in queries:
        if query.image not in names:
            raise DataError(f"{folder}: there is no {query.image}.jpg, the image of the query {query.name}")
        if not query.positive & names:
            raise DataError(f"{folder}: of the query {query.name} there is no good or ok image")
    return source, queries


def images_below(folder: str) -> Source:
    """Every ``*.jpg`` below a folder."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise DataError(f"{folder} has no *.jpg: give a folder of images")
    return find(paths)


def _query(path: Path) -> Query:
    name = path.name.removesuffix("_query.txt")
    words = _words(path)
    try:
        image, (left, top, right, bottom) = words[0], map(float, words[1:5])
    except (IndexError, ValueError):
        raise DataError(
            f"{path}: it must be the name of an image and four numbers, and is {' '.join(words)!r}"
        ) from None

    def names(kind: str) -> frozenset[str]:
        file = path.with_name(f"{name}_{kind}.txt")
        return frozenset(_words(file)) if file.exists() else frozenset()

    # Here, and only here, the names of Oxford's images are preceded by that of the collection.
    return Query(
        name, image.removeprefix("oxc1_"), (left, top, right, bottom), names("good") | names("ok"), names("junk")
    )


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {explain(error)}") from None


def retrieval(
    network: Network,
    source: Source,
    queries: Sequence[Query],
    options: RetrievalOptions | None = None,
    *,
    whiten_by: Source | None = None,
    seed: int = 0,
    once: Once = anew,
    display: Display | None = None,
) -> Iterator[NamedFigure]:
    """Yield ``map``, the mean average precision over the queries, and ``chance``, that of random rankings.

    Args:
        network: In evaluation mode.
        source: The database of images.
        queries: What to look for.
        options: None: the defaults.
        whiten_by: Images whose regions the whitening is learnt from; None: the database's.
        seed: Seed of the random rankings.
        once: Remembers parts.
        display: Shows progress.
    """
    options, display = options or RetrievalOptions(), display or Silent()

    def chance() -> dict[str, float]:
        names = [Path(path).stem for path in source.paths]
        drawn = []
        for i in range(CHANCES):
            order = torch.randperm(len(names), generator=generator(seed, "ranking", i)).tolist()
            drawn += [average_precision([names[j] for j in order], query.positive, query.junk) for query in queries]
        return {"chance": sum(drawn) / len(drawn)}

    yield from {"images": len(source.paths), "queries": len(queries)}.items()
    yield from once("chance", chance).items()
    yield from once("retrieval", lambda: _score(network, source, queries, options, whiten_by, display)).items()


def _score(
    network: Network,
    source: Source,
    queries: Sequence[Query],
    options: RetrievalOptions,
    whiten_by: Source | None,
    display: Display,
) -> dict[str, float]:
    described = _Describing(network, options, display)
    regions, names = described.all_of(source, "database")
    learnt = regions if whiten_by is None else described.all_of(whiten_by, "whitening")[0]
    whitening = whiten(torch.cat(learnt), options.dims)

    def aggregated(vectors: Tensor) -> Tensor:
        return F.normalize(whitening(vectors).sum(0), dim=0)

    database = torch.stack([aggregated(vectors) for vectors in regions])
    row_of = {name: row for row, name in enumerate(names)}
    precisions = []
    for query in queries:
        if options.crop:
            vector = aggregated(described.query(source, query))
        elif query.image in row_of:
            vector = database[row_of[query.image]]
        else:
            raise DataError(f"{query.image}.jpg, the image of the query {query.name}, cannot be used")
        order = (database @ vector).argsort(descending=True, stable=True).tolist()
        precisions.append(average_precision([names[i] for i in order], query.positive, query.junk))
    skipped = len(source.paths) - len(names)
    return {"skipped": skipped, "dims": database.shape[1], "map": sum(precisions) / len(precisions)}


@dataclass(frozen=True)
class _Describing:
    """Turns images into vectors of their regions, by the last maps of a network."""

    network: Network
    options: RetrievalOptions
    display: Display

    def all_of(self, source: Source, phase: str) -> tuple[list[Tensor], list[str]]:
        """The vectors of each usable image, and its name."""
        vectors: list[Tensor] = []
        names: list[str] = []
        done = 0
        for part in source.parts(AT_A_TIME):
            for name, image, _ in self._read(part):
                vectors.append(self._regions(image))
                names.append(name)
            done += len(part.paths)
            self.display.progress(phase, done, len(source.paths))
        if not vectors:
            raise DataError(f"none of the {len(source.paths)} images of {source.location} can be used")
        return vectors, names

    def query(self, source: Source, query: Query) -> Tensor:
        """The vectors of the box of a query."""
        (row,) = [i for i, path in enumerate(source.paths) if Path(path).stem == query.image][:1]
        for _, image, scale in self._read(source.part(row, row + 1)):
            left, top, right, bottom = (round(scale * edge) for edge in query.box)
            cropped = image[:, max(0, top) : max(top + 1, bottom), max(0, left) : max(left + 1, right)]
            if cropped.numel():
                return self._regions(cropped)
        raise DataError(
            f"{source.paths[row]}, the image of the query {query.name}, cannot be used, or its box is outside"
        )

    def _read(self, part: Source) -> Iterator[tuple[str, Tensor, float]]:
        """The name of each usable image, its pixels (uint8, 3 x H x W), and the factor by which it was scaled."""
        side = self.options.image_size
        wholes, extents = whole(part, side)
        store = read_once(wholes, side, none_is_fine=True)
        for image, i in zip(store.images, store.kept, strict=True):
            height, width = extents[i].tolist()
            scale = min(height, width) / part.short_side(i) if part.short_side else 1.0
            yield Path(part.paths[i]).stem, image[:, :height, :width], scale

    def _regions(self, image: Tensor) -> Tensor:
        with torch.no_grad():
            views = as_numbers(image.unsqueeze(0).to(self.network.mean.device))
            maps = maps_at(self.network, layers_of(self.network)[-1], views)[0]
        return region_vectors(maps, self.options.levels).float().cpu()


def region_vectors(maps: Tensor, levels: int) -> Tensor:
    """The maximum of each channel in each of R regions of C x H x W maps: R x C, rows of length 1."""
    parts = [
        maps[:, y : y + side, x : x + side].amax((1, 2)) for y, x, side in regions(maps.shape[1], maps.shape[2], levels)
    ]
    return F.normalize(torch.stack(parts))


def regions(height: int, width: int, levels: int) -> list[tuple[int, int, int]]:
    """(top, left, side) of R-MAC's squares, evenly spread.

    At level l they are 2 min(H, W) / (l + 1) wide, with l of them along the shorter side. Along the longer side there
    are as many more as make those of level 1 overlap by about 40 %.
    """
    short, long = sorted((height, width))
    extra = 0
    if long > short:
        extra = min(range(1, MOST_EXTRA + 1), key=lambda n: abs(1 - (long - short) / (n * short) - OVERLAP))
    squares = []
    for level in range(1, levels + 1):
        side = max(1, 2 * short // (level + 1))
        rows, columns = (level + (extra if length == long > short else 0) for length in (height, width))
        squares += [(y, x, side) for y in _spread(height, side, rows) for x in _spread(width, side, columns)]
    return squares


def _spread(length: int, side: int, count: int) -> list[int]:
    return [int((length - side) * i / (count - 1)) for i in range(count)] if count > 1 else [0]


def average_precision(ranking: Sequence[str], positive: Collection[str], junk: Collection[str]) -> float:
    """The area under precision over recall by trapezia, from precision 1 at recall 0, without junk.

    As the program that comes with Oxford Buildings computes it (Philbin et al. 2007). Positives that the ranking lacks
    count as missed.
    """
    area, recall, precision = 0.0, 0.0, 1.0
    hits = 0
    for rank, name in enumerate((name for name in ranking if name not in junk), 1):
        hits += name in positive
        new_recall, new_precision = hits / len(positive), hits / rank
        area += (new_recall - recall) * (precision + new_precision) / 2
        recall, precision = new_recall, new_precision
    return area
