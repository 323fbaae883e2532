"""Groups of cached features by several reductions and cuts: NMI to the true labels, and which reduction to take.

    python benchmarks/cut.py CACHE NAME [NAME ...] [--round 0] [--images 0 300 600 1500] [--seeds 0 1 2] [--grid]

NAME is a file that `cached_features.py` made, without its ending. `ours` is the cut of the package as its model places
the images. The rival is UMAP to 10 dimensions and k-means on the features as the network gives them (umap-learn).
--grid tries every reduction and chooses one for each set by the mean of all other sets (leave one out).
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean

import torch
from cached_features import load
from common import spread
from torch import Tensor
from torch.nn import functional as F

from deepcluster.clustering.agreement import nmi
from deepcluster.clustering.kmeans import best_of
from deepcluster.clustering.whitening import whiten
from deepcluster.groups.cut import cut_features, nearest_groups

CHOSEN = (True, 256, 0.25)  # roots, dimensions, whitening: those of `auto` with the installed network
GRID = [(root, dims, strength) for root in (False, True) for dims in (64, 128, 256) for strength in (0, 0.25, 0.5)]
Reduction = tuple[bool, int, float]
Way = Callable[[int], Tensor]


def rival(features: Tensor, k: int) -> Way:
    from umap import UMAP

    rows = F.normalize(features).numpy()

    def run(seed: int) -> Tensor:
        places = UMAP(n_components=10, min_dist=0.0, random_state=seed, n_jobs=1).fit_transform(rows)
        return best_of(10, torch.from_numpy(places).float(), k, seed).labels

    return run


def ours(features: Tensor, k: int, reduction: Reduction = CHOSEN) -> Way:
    root, dims, strength = reduction
    rows = whiten(features, dims, strength, root=root)(features)

    def run(seed: int) -> Tensor:
        groups = cut_features(rows, k, seed=seed)
        return nearest_groups(rows, groups)

    return run


def ways(features: Tensor, k: int, *, grid: bool) -> Iterator[tuple[str, Way]]:
    rows = F.normalize(features)
    yield "UMAP(10), k-means", rival(features, k)
    yield "k-means", lambda seed: best_of(10, rows, k, seed).labels
    for reduction in GRID if grid else [CHOSEN]:
        yield f"ours {reduction}", ours(features, k, reduction)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--round", type=int, default=0)
    parser.add_argument("--images", type=int, nargs="+", default=[0], help="0: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--grid", action="store_true")
    arguments = parser.parse_args()
    gains: dict[str, dict[str, float]] = {}  # by way and set, over the rival
    for name in arguments.names:
        cached = load(arguments.cache / f"{name}.pt")
        for count in arguments.images:
            rows = torch.randperm(len(cached.labels), generator=torch.Generator().manual_seed(1))
            rows = rows[: count or None].sort().values
            labels, features = cached.labels[rows], cached.rounds[arguments.round][rows]
            k, least = len(labels.unique()), 0.0
            for way, run in ways(features, k, grid=arguments.grid):
                begin = time.process_time()
                scores = [nmi(labels, run(seed)) for seed in arguments.seeds]
                seconds = (time.process_time() - begin) / len(scores)
                least = least or mean(scores)
                gains.setdefault(way, {})[f"{name}/{len(rows)}"] = mean(scores) - least
                print(f"{name} | {len(rows)} | {way} | {spread(scores)} | {seconds:.1f} s", flush=True)
    for way, by_set in gains.items():
        print(f"{way}: {mean(by_set.values()):+.3f} over the rival, worst {min(by_set.values()):+.3f}")
    candidates = {way: by_set for way, by_set in gains.items() if way.startswith("ours")}
    for left_out in gains["k-means"] if arguments.grid else ():
        best = max(candidates, key=lambda way: mean(v for name, v in candidates[way].items() if name != left_out))
        print(f"left out {left_out}: {best}, {candidates[best][left_out]:+.3f}")


if __name__ == "__main__":
    main()
