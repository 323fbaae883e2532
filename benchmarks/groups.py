"""Groups of frozen features, without any training: NMI to the class folders by several ways to cut them.

    python benchmarks/groups.py photos/ more/ --networks timm:tf_efficientnet_lite0=lite0.safetensors

With several networks their features stand side by side. Where umap-learn is installed, it is compared with, too.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import spread
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional as F

from deepcluster.clustering.agreement import nmi
from deepcluster.clustering.whitening import whiten
from deepcluster.groups.choose_k import candidates
from deepcluster.groups.consensus import consensus_cut
from deepcluster.groups.cut import cut, place
from deepcluster.groups.neighbour_graph import normalised_cut
from deepcluster.images import find
from deepcluster.images.labels import true_labels
from deepcluster.images.store import read_once
from deepcluster.learning.features import extract
from deepcluster.nets.backbone import build


def features_of(images: str, networks: list[str], size: int, cache: Path | None) -> tuple[list[Tensor], Tensor]:
    """The features of each network (N x D), and the number of each image's class."""
    source = find(images)
    store = read_once(source, round(size * 256 / 224))
    labels = true_labels("folders", source)
    kinds = sorted(set(labels))
    found = []
    for each in networks:
        name, _, weights = each.partition("=")
        file = cache and cache / f"{Path(images).name}-{name.replace(':', '-')}-{size}.pt"
        if file and file.exists():
            found.append(torch.load(file, weights_only=True))
            continue
        network = build(name, image_size=size, weights=weights or "timm")
        found.append(extract(network, store.images, size=size, batch_size=64).float())
        if file:
            torch.save(found[-1], file)
    return found, torch.tensor([kinds.index(labels[i]) for i in store.kept])


def reduced(features: list[Tensor]) -> Tensor:
    """Half whitened, each part of length 1, without square roots (option ``root``)."""
    return F.normalize(torch.cat([whiten(part, 128, 0.5)(part) for part in features], 1))


def contenders(features: list[Tensor], k: int) -> dict[str, Callable[[int], Tensor]]:
    plain = torch.cat([F.normalize(part) for part in features], 1).numpy()
    rows = reduced(features)

    def kmeans(x: object, seed: int) -> Tensor:
        return torch.from_numpy(KMeans(k, n_init=10, random_state=seed).fit_predict(x)).long()

    def ours(seed: int, **how: Callable[..., Tensor]) -> Tensor:
        return place(rows, cut(rows, k, seed=seed, **how), rows[:1]).cluster

    found = {
        "k-means": lambda seed: kmeans(plain, seed),
        "normalised cut": lambda seed: ours(seed, parts_of=normalised_cut),
        "consensus": lambda seed: ours(seed, parts_of=consensus_cut),
    }
    try:
        from umap import UMAP
    except ImportError:
        return found

    def umap(seed: int) -> Tensor:
        return kmeans(UMAP(n_components=10, min_dist=0.0, random_state=seed, n_jobs=1).fit_transform(plain), seed)

    return {"UMAP(10), k-means": umap, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+")
    parser.add_argument("--networks", nargs="+", required=True, metavar="NAME[=FILE]")
    parser.add_argument("--size", type=int, default=144)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cache", type=Path, help="a folder that keeps the features")
    arguments = parser.parse_args()
    for images in arguments.images:
        features, labels = features_of(images, arguments.networks, arguments.size, arguments.cache)
        k = len(labels.unique())
        for name, run in contenders(features, k).items():
            begin = time.process_time()
            scores = [nmi(labels, run(seed)) for seed in arguments.seeds]
            seconds = (time.process_time() - begin) / len(scores)
            print(f"{images} | {name} | {spread(scores)} | {seconds:.1f} s", flush=True)
        numbers = [each.k for each in candidates(reduced(features))]
        print(f"{images} | -k auto | {numbers} of {k}", flush=True)


if __name__ == "__main__":
    main()
