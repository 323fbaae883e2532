"""Image retrieval on Oxford and Paris Buildings with the network of a run: mean average precision, as in the paper.

Every image becomes one vector by R-MAC (Tolias, Sicre, Jegou, "Particular object retrieval with integral max-pooling of
CNN activations", ICLR 2016) of the last feature maps. The whitening is learnt from the second folder, or else from the
database itself. Junk is taken out of a ranking, and its area is computed as Philbin et al. 2007 do.

python examples/research/retrieval.py runs/imagenet oxford5k/ --whiten paris6k/
"""

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from linear import layers_of, maps_at
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import deepcluster
from deepcluster.clustering import whiten
from deepcluster.images import find

OVERLAP = 0.4  # of neighbouring regions of the first level
MAX_EXTRA = 6  # regions along the longer side


def read(path: Path) -> Image.Image | None:
    """Return the image; print why and return None if it is damaged, as some of Paris are."""
    try:
        return find([path]).read(0)
    except (OSError, ValueError) as error:
        print(f"skipped {path.name}: {error}")
        return None


def region_vectors(network: nn.Module, image: Image.Image, scale: float, levels: int) -> Tensor:
    """Return the maximum of each channel in each of R regions of a scaled image: R x C, rows of length 1."""
    width, height = (max(1, round(scale * side)) for side in image.size)
    pixels = np.array(image.resize((width, height), Image.Resampling.BICUBIC))
    views = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        maps = maps_at(network, [*layers_of(network).values()][-1], views)[0]
    squares = regions(maps.shape[1], maps.shape[2], levels)
    return F.normalize(torch.stack([maps[:, y : y + side, x : x + side].amax((1, 2)) for y, x, side in squares]))


def regions(height: int, width: int, levels: int) -> list[tuple[int, int, int]]:
    """Return (top, left, side) of R-MAC's squares, evenly spread.

    At level l they are 2 min(H, W) / (l + 1) wide, with l of them along the shorter side. Along the longer side there
    are as many more as make those of level 1 overlap by about 40 %.
    """
    short, long = sorted((height, width))
    extra = 0
    if long > short:
        extra = min(range(1, MAX_EXTRA + 1), key=lambda n: abs(1 - (long - short) / (n * short) - OVERLAP))
    squares = []
    for level in range(1, levels + 1):
        side = max(1, 2 * short // (level + 1))
        rows, columns = (level + (extra if length == long > short else 0) for length in (height, width))
        squares += [(y, x, side) for y in spread(height, side, rows) for x in spread(width, side, columns)]
    return squares


def spread(length: int, side: int, count: int) -> list[int]:
    return [int((length - side) * i / (count - 1)) for i in range(count)] if count > 1 else [0]


def average_precision(ranking: Sequence[str], positive: Collection[str], junk: Collection[str]) -> float:
    """Return the area under precision over recall by trapezia, from precision 1 at recall 0, without junk."""
    area, recall, precision, hits = 0.0, 0.0, 1.0, 0
    for rank, name in enumerate((name for name in ranking if name not in junk), 1):
        hits += name in positive
        new_recall, new_precision = hits / len(positive), hits / rank
        area += (new_recall - recall) * (precision + new_precision) / 2
        recall, precision = new_recall, new_precision
    return area


def words(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").split() if file.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("database", type=Path, help="folder with *.jpg and the ground truth, *_query.txt and so on")
    parser.add_argument("--whiten", type=Path, help="folder of images to learn the whitening from")
    parser.add_argument("--image-size", type=int, default=1024, help="longer side of an image, px")
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--dims", type=int, default=512)
    options = parser.parse_args()
    network = deepcluster.load(options.run).network.eval()

    def described(folder: Path) -> dict[str, Tensor]:
        images = ((path, read(path)) for path in sorted(folder.rglob("*.jpg")))
        return {
            path.stem: region_vectors(network, image, options.image_size / max(image.size), options.levels)
            for path, image in images
            if image
        }

    database = described(options.database)
    learnt = described(options.whiten) if options.whiten else database
    whitening = whiten(torch.cat([*learnt.values()]), options.dims)

    def aggregated(vectors: Tensor) -> Tensor:
        return F.normalize(whitening(vectors).sum(0), dim=0)

    names, rows = [*database], torch.stack([aggregated(vectors) for vectors in database.values()])
    files = {path.stem: path for path in options.database.rglob("*.jpg")}
    precisions = []
    for query in sorted(options.database.rglob("*_query.txt")):
        name, *box = words(query)  # Oxford's ground truth, and only this, has its collection before the name
        image = read(files[name.removeprefix("oxc1_")])
        if image is None:
            raise SystemExit(f"{query}: its image cannot be used")
        part = image.crop([round(float(edge)) for edge in box])
        vectors = region_vectors(network, part, options.image_size / max(image.size), options.levels)
        ranking = [names[i] for i in (rows @ aggregated(vectors)).argsort(descending=True, stable=True).tolist()]
        good, ok, junk = (words(Path(str(query).replace("_query", f"_{kind}"))) for kind in ("good", "ok", "junk"))
        precisions.append(average_precision(ranking, {*good, *ok}, {*junk}))
    print(f"{len(names)} images, {len(precisions)} queries, {rows.shape[1]} dimensions: map {np.mean(precisions):.4f}")


if __name__ == "__main__":
    main()
