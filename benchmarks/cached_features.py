"""Features of real images with true labels, kept in files: frozen, and as a run adapts them.

    python benchmarks/cached_features.py CACHE NAME=IMAGES [NAME=IMAGES ...] --weights FILE
                                         [--sides 64 96 144 224] [--rounds 3] [--seeds 0 1 2]

IMAGES has a folder a class; `sklearn:digits` has its labels too. Each side gives CACHE/NAME-SIDE.pt; with --rounds each
seed gives CACHE/NAME-SIDE-sSEED.pt. The benchmarks of the cut and of the judgements read them with :func:`load`.
"""

import argparse
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from deepcluster.images import find
from deepcluster.images.given import true_labels
from deepcluster.images.store import Store, read_once
from deepcluster.learning.features import extract
from deepcluster.nets.network import build
from deepcluster.place import Place
from deepcluster.presets import Facts, resolve
from deepcluster.runs.build import learning_rate, network_of, rounds_of

LITE0 = "timm:tf_efficientnet_lite0"


@dataclass(frozen=True)
class Cached:
    """Features of N images.

    labels: int64, N.
    rounds: The features (float32, N x D) before training, and those of the result after each round.
    seconds: Of all threads: for reading, for the first pass, and for each round with its pass.
    """

    labels: Tensor
    rounds: list[Tensor]
    seconds: list[float]


def load(file: Path) -> Cached:
    return Cached(**torch.load(file, weights_only=True))


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def read(images: str, side: int) -> tuple[Store, Tensor]:
    """The stored images with room for crops, and the number of each one's class."""
    source = find(images)
    store = read_once(source, side if side <= 64 else round(side * 256 / 224))
    labels = true_labels("folders", source)
    kinds = sorted(set(labels))
    return store, torch.tensor([kinds.index(labels[i]) for i in store.kept])


def frozen(store: Store, side: int, weights: str) -> Tensor:
    network = build(LITE0, image_size=side, weights=weights)
    return extract(network, store.images, Place.of(network, store.images, size=side, batch_size=64)).float()


def adapted(
    store: Store, side: int, weights: str, rounds: int, classes: int, grey: bool, seed: int
) -> Iterator[Tensor]:
    """Features of the result after each round of ``auto``: of the mean of the weights before and after."""
    facts = Facts(len(store.images), max(side, 96), grey, classes, "cpu")
    options = {"backbone": LITE0, "weights": weights, "image_size": side, "rounds": rounds}
    recipe = resolve("auto", options, facts).recipe
    network = network_of(recipe, seed, torch.device("cpu"))
    before = {name: value.clone() for name, value in network.body.state_dict().items()}
    for _ in rounds_of(network, store.images, recipe, lambda time: learning_rate(recipe, time, rounds), seed):
        after = {name: value.clone() for name, value in network.body.state_dict().items()}
        mean = {
            name: torch.lerp(before[name], value, recipe.average) if value.is_floating_point() else value
            for name, value in after.items()
        }
        network.body.load_state_dict(mean)
        yield extract(network, store.images, Place.of(network, store.images, size=side, batch_size=64)).float()
        network.body.load_state_dict(after)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("images", nargs="+", metavar="NAME=IMAGES")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--sides", type=int, nargs="+", default=[224])
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    arguments.cache.mkdir(exist_ok=True)
    for name, images in (given.split("=", 1) for given in arguments.images):
        for side in arguments.sides:
            times = [cpu_seconds()]
            file = arguments.cache / f"{name}-{side}.pt"
            store, labels = read(images, side)
            times.append(cpu_seconds())
            before = load(file).rounds[0] if file.exists() else frozen(store, side, arguments.weights)
            times.append(cpu_seconds())
            spent = [after - begin for begin, after in pairwise(times)]
            if not file.exists():
                torch.save({"labels": labels, "rounds": [before], "seconds": spent}, file)
                print(name, side, tuple(before.shape), [round(value, 1) for value in spent], flush=True)
            grey = bool((store.images[:200, :1] == store.images[:200]).all())
            for seed in arguments.seeds if arguments.rounds else ():
                file = arguments.cache / f"{name}-{side}-s{seed}.pt"
                if file.exists():
                    continue
                rounds, seconds, begin = [before], list(spent), cpu_seconds()
                steps = adapted(store, side, arguments.weights, arguments.rounds, len(labels.unique()), grey, seed)
                for features in steps:
                    rounds.append(features)
                    seconds.append(cpu_seconds() - begin)
                    begin = cpu_seconds()
                torch.save({"labels": labels, "rounds": rounds, "seconds": seconds}, file)
                print(name, side, seed, [round(value, 1) for value in seconds], flush=True)


if __name__ == "__main__":
    main()
