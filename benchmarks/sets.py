"""Clusters of many collections without training, beside UMAP and k-means of the same network's features.

    python benchmarks/sets.py CACHE FOLDER [FOLDER ...] [--seeds 0 1 2] [--most 3000] [--numbers | --mixes 40]

FOLDER has a folder a class and names the collection. CACHE keeps the features of each: whole images (224 px) and their
middles (160 px), by the installed network. results/collections.json gets a row for each collection and seed: NMI
(geometric mean) of the clusters of the plain command, and of UMAP(10) and k-means (pip install umap-learn), and the
share of the 10 nearest neighbours of the same kind.

--numbers writes results/numbers.json: the number of clusters that -k auto takes, with the other candidates, for the
collections (a sample of some 400 images of the larger ones) and for subsets of them: half the kinds and a third, three
draws each; and by these parts and the seed the share that is right within a factor of 1.5, that with a right candidate,
the root mean square error of log k, and the share whose guesses by all seeds are within a factor of 1.25; `alone` is
the guess without nouns. --mixes N writes results/mixes.json: the same for N mixes of 3 to 9 kinds of all collections, N
of 10 to 32 and N of 33 to 60.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from common import labelled, parser_of, paths_of, runs_of, save
from tables import cell
from torch import Tensor
from torch.nn import functional as F

from deepcluster.clustering.agreement import nmi
from deepcluster.clustering.whitening import Whitening
from deepcluster.groups.choose_k import plausible_numbers
from deepcluster.groups.cut import cut_features, nearest_clusters
from deepcluster.groups.graph import Layouts
from deepcluster.learning.features import CROP_SHARE, extract
from deepcluster.nets.names import PUBLISHED
from deepcluster.nets.network import Network, build
from deepcluster.nets.timm import nouns
from deepcluster.recipes.auto import ImageFacts
from deepcluster.recipes.build import reduction_of
from deepcluster.recipes.presets import read_request, resolve
from deepcluster.runtime.compute import Compute
from deepcluster.seeding import derive

LITE0 = PUBLISHED["photos-small"].backbone
SIDE = 224
NEIGHBOURS = 10
VIEWS = ("whole", "middle")


def installed() -> Network:
    """Return the installed network, whose features the cache keeps."""
    return build(LITE0, image_size=SIDE, weights="timm")


def cached(cache: Path, folder: Path, network: Network, most: int) -> dict[str, Any]:
    """Return the class numbers of a collection's images and their features, N x D, of each view."""
    file = cache / f"{folder.name}.pt"
    if not file.exists():
        sample = cache / f"{folder.name}.txt"
        sample.write_text("".join(f"{path}\n" for path in paths_of(folder, most)))
        images, labels, names = labelled(str(sample), 256)

        def seen(images: Tensor, side: int) -> Tensor:
            return extract(network, images, Compute.of(network, images, size=side, batch_size=64)).float()

        views = {"whole": seen(images, SIDE), "middle": seen(images, round(CROP_SHARE * SIDE))}
        torch.save({"labels": labels, "names": names, **views}, file)
    return load(file)


def load(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(file, weights_only=True)
    return content


def rows_of(content: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """Return rows of a collection, with the numbers of their classes."""
    labels = content["labels"][rows].unique(return_inverse=True)[1]
    return {"labels": labels, **{view: content[view][rows] for view in VIEWS}}


def sample_of(content: dict[str, Any], count: int) -> dict[str, Any]:
    """Return the same random sample of ``count`` images (0: all)."""
    rows = torch.randperm(len(content["labels"]), generator=torch.Generator().manual_seed(1))[: count or None]
    return rows_of(content, rows.sort()[0])


def certainty(network: Network, features: Tensor) -> float:
    assert network.classifier is not None
    return F.linear(features, *network.classifier).softmax(1).amax(1).mean().item()


def plainly_reduced(network: Network, content: dict[str, Any], k: int) -> Tensor:
    """Return the rows that the plain command would cut into ``k`` clusters."""
    whole = content["whole"]
    facts = ImageFacts(len(whole), SIDE, False, k, "photos-small", certainty(network, whole))
    recipe = resolve(read_request({}), facts).recipe
    chosen = torch.linspace(0, len(whole) - 1, min(len(whole), 1000), dtype=torch.float64).long()
    pairs = torch.stack([whole[chosen], content["middle"][chosen]])
    reduction = reduction_of(recipe, whole.shape[1], network.classifier)
    mapping: Whitening = reduction.fit(whole, pairs)
    return mapping(whole)


def neighbours(rows: Tensor, labels: Tensor) -> float:
    cosines = rows @ rows.T
    nearest = cosines.fill_diagonal_(-2).topk(NEIGHBOURS, 1).indices
    return (labels[nearest] == labels[:, None]).float().mean().item()


def rival(features: Tensor, k: int, seed: int) -> Any:
    from sklearn.cluster import KMeans
    from umap import UMAP

    rows = F.normalize(features).numpy()
    places = UMAP(n_components=10, min_dist=0.0, random_state=seed, n_jobs=1).fit_transform(rows)
    return KMeans(k, n_init=10, random_state=seed).fit_predict(places)


def scores(name: str, content: dict[str, Any], network: Network, seeds: list[int]) -> Iterator[dict[str, Any]]:
    """Yield the rows of the results; UMAP's figure is taken from there, if it is known."""
    known = {(row["images"], row["seed"]): row["umap_nmi"] for row in runs_of("collections")}
    labels = content["labels"]
    k = len(labels.unique())
    rows = plainly_reduced(network, content, k)
    images = f"{name}, {len(labels):,} of {k} kinds"
    for seed in seeds:
        umap = known.get((images, seed)) or round(nmi(labels, rival(content["whole"], k, seed)), 3)
        yield {
            "images": images,
            "seed": seed,
            "certainty": round(certainty(network, content["whole"]), 2),
            "neighbours": round(neighbours(rows, labels), 3),
            "nmi": round(nmi(labels, nearest_clusters(rows, cut_features(rows, k, seed=seed))), 3),
            "umap_nmi": umap,
        }


def mixes(contents: list[dict[str, Any]], network: Network, count: int, seeds: list[int]) -> Iterator[dict[str, Any]]:
    """Yield the candidates and the true number of kinds of mixes, each with up to 60 images of a kind."""
    kinds = [(i, kind) for i, content in enumerate(contents) for kind in range(len(content["names"]))]
    random = torch.Generator().manual_seed(7)
    for least, most in ((3, 9), (10, 32), (33, 60)):
        for _ in range(count):
            k = int(torch.randint(least, most + 1, (1,), generator=random))
            parts = []
            for choice in torch.randperm(len(kinds), generator=random)[:k].tolist():
                i, kind = kinds[choice]
                rows = torch.nonzero(contents[i]["labels"] == kind).flatten()
                parts.append((i, rows[torch.randperm(len(rows), generator=random)[:60]]))
            mixed = {view: torch.cat([contents[i][view][rows] for i, rows in parts]) for view in VIEWS}
            rows = plainly_reduced(network, mixed, k)
            for seed in seeds:
                case = {"mix": f"{least} to {most} kinds", "seed": seed, "kinds": k, "images": len(rows)}
                yield judged(network, mixed, rows, k, case)


def judged(network: Network, content: dict[str, Any], rows: Tensor, k: int, case: dict[str, Any]) -> dict[str, Any]:
    """Return the candidates of a run for ``k`` kinds, what is right of them, and the guess without nouns."""
    layouts, seed = Layouts(), derive(case["seed"], "groups")
    numbers, alone = (
        [candidate.k for candidate in plausible_numbers(rows, words, seed=seed, layouts=layouts)]
        for words in (nouns(LITE0, network.classifier, content["whole"]), [])
    )
    row = {**case, "guess": numbers[0], "candidates": numbers, "right": is_right(numbers[0], k),
           "any": max(is_right(number, k) for number in numbers), "error": round(math.log(numbers[0] / k), 3),
           "alone": alone[0], "alone_right": is_right(alone[0], k),
           "alone_error": round(math.log(alone[0] / k), 3)}  # fmt: skip
    print(row, flush=True)
    return row


def parts_of(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a collection as a whole, half its kinds and a third of them (at least 2), three draws each."""
    yield "whole", content
    kinds = len(content["labels"].unique())
    for part, share in (("half", 2), ("third", 3)):
        count = max(2, round(kinds / share))
        for draw in range(3):
            chosen = torch.randperm(kinds, generator=torch.Generator().manual_seed(100 * draw + count))[:count]
            rows = torch.isin(content["labels"], chosen)
            yield part, rows_of(content, rows)


def numbers(name: str, content: dict[str, Any], network: Network, seeds: list[int]) -> Iterator[dict[str, Any]]:
    """Yield the true number of kinds and the candidates for a collection and its subsets."""
    for part, subset in parts_of(content):
        k = len(subset["labels"].unique())
        rows = plainly_reduced(network, subset, k)
        images = f"{name if part == 'whole' else f'{part} of {name}'}, {len(rows)} of {k} kinds"
        for seed in seeds:
            yield judged(network, subset, rows, k, {"seed": seed, "images": images, "part": part})


def is_right(guess: int, k: int) -> int:
    return int(max(guess / k, k / guess) <= 1.5)


def shares(collections: str, runs: list[dict[str, Any]], seeds: list[int]) -> Iterator[dict[str, Any]]:
    """Yield the figures of the rows of :func:`numbers` or :func:`mixes`, by seed."""
    guesses = [[row["guess"] for row in runs if row["seed"] == seed] for seed in seeds]
    agreeing = [max(numbers) / min(numbers) <= 1.25 for numbers in zip(*guesses, strict=True)]
    for seed in seeds:
        rows = [row for row in runs if row["seed"] == seed]
        row = {"collections": f"{collections}, {len(rows)}", "seed": seed,
               "right_share": round(mean(row["right"] for row in rows), 3),
               "any_share": round(mean(row["any"] for row in rows), 3),
               "rms_error": round(math.sqrt(mean(row["error"] ** 2 for row in rows)), 3),
               "alone_share": round(mean(row["alone_right"] for row in rows), 3),
               "alone_error_rms": round(math.sqrt(mean(row["alone_error"] ** 2 for row in rows)), 3),
               "seeds_agree": round(mean(agreeing), 3)}  # fmt: skip
        print(row)
        yield row


def main() -> None:
    parser = parser_of(__doc__, seeds=(0, 1, 2))
    parser.add_argument("cache", type=Path)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--most", type=int, default=3000)
    parser.add_argument("--mixes", type=int, default=0)
    parser.add_argument("--numbers", action="store_true")
    arguments = parser.parse_args()
    arguments.cache.mkdir(exist_ok=True)
    network = installed()
    if arguments.mixes:
        contents = [cached(arguments.cache, folder, network, arguments.most) for folder in arguments.folders]
        guesses = [*mixes(contents, network, arguments.mixes, arguments.seeds)]
        kinds = {
            mix: [row for row in guesses if row["mix"] == mix] for mix in dict.fromkeys(row["mix"] for row in guesses)
        }
        kinds["10 to 60 kinds"] = [row for row in guesses if row["kinds"] >= 10]
        by_kinds = {mix: [*shares(mix, rows, arguments.seeds)] for mix, rows in kinds.items()}
        save("mixes", {"runs": guesses, "shares": by_kinds})
        return
    if arguments.numbers:
        runs: list[dict[str, Any]] = []
        for folder in arguments.folders:
            content = cached(arguments.cache, folder, network, arguments.most)
            sample = sample_of(content, 400 if len(content["labels"]) > 450 else 0)
            runs += numbers(folder.name, sample, network, arguments.seeds)
        parts = {part: [row for row in runs if row["part"] == part] for part in ("whole", "half", "third")}
        figures = {part: [*shares(part, rows, arguments.seeds)] for part, rows in {**parts, "all": runs}.items()}
        save("numbers", {"runs": runs, "shares": figures})
        return
    rows: list[dict[str, Any]] = []
    for folder in arguments.folders:
        content = cached(arguments.cache, folder, network, arguments.most)
        new = [*scores(folder.name, content, network, arguments.seeds)]
        rows += new
        figures = (f"{key} {cell([row[key] for row in new])}" for key in ("nmi", "umap_nmi"))
        print(f"{new[0]['images']} | certainty {new[0]['certainty']} | {' | '.join(figures)}", flush=True)
    over = [row["nmi"] - row["umap_nmi"] for row in rows]
    print(f"over UMAP and k-means: {mean(over):+.3f} in the mean")
    save("collections", {"runs": rows})


if __name__ == "__main__":
    main()
