"""Features of real images with true labels, kept in files: frozen, and as a run adapts them.

    python benchmarks/cached_features.py CACHE NAME=IMAGES [NAME=IMAGES ...] --weights FILE
                                         [--sides 64 96 144 224] [--rounds 3] [--seeds 0 1 2]

IMAGES has a folder a class; `sklearn:digits` has its labels too. Each side gives CACHE/NAME-SIDE.pt; with --rounds each
seed gives CACHE/NAME-SIDE-sSEED.pt. The benchmark of the judgements reads them with :func:`load`.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from common import labelled
from torch import Tensor

from deepcluster.build import learning_rate, network_of, rounds_of
from deepcluster.learning.features import extract
from deepcluster.learning.training import averaged
from deepcluster.nets.network import Network, build
from deepcluster.presets import Facts, read_request, resolve
from deepcluster.runtime.compute import Compute

LITE0 = "timm:tf_efficientnet_lite0"


@dataclass(frozen=True)
class Cached:
    """Features of N images.

    labels: int64, N.
    rounds: The features (float32, N x D) before training, and those of the result after each round.
    """

    labels: Tensor
    rounds: list[Tensor]


def load(file: Path) -> Cached:
    content = torch.load(file, weights_only=True)
    return Cached(content["labels"], content["rounds"] if "rounds" in content else [content["whole"]])  # of sets.py


def features(network: Network, images: Tensor, side: int) -> Tensor:
    return extract(network, images, Compute.of(network, images, size=side, batch_size=64)).float()


def adapted(images: Tensor, side: int, weights: str, rounds: int, classes: int, seed: int) -> Iterator[Tensor]:
    """Yield the features of the result after each round of ``auto``: of the mean of the weights before and after."""
    grey = bool((images[:200, :1] == images[:200]).all())
    facts = Facts(len(images), max(side, 96), grey, classes, "cpu")
    options = {"backbone": LITE0, "weights": weights, "image_size": side, "rounds": rounds}
    recipe = resolve(read_request(options), facts).recipe
    network = network_of(recipe, seed, torch.device("cpu"))
    before = {name: value.clone() for name, value in network.body.state_dict().items()}
    for _ in rounds_of(network, images, recipe, lambda time: learning_rate(recipe, time, rounds), seed):
        with averaged(network.body, before, recipe.average):
            result = features(network, images, side)
        yield result


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
    for name, source in (given.split("=", 1) for given in arguments.images):
        for side in arguments.sides:
            # With room for crops.
            images, labels, classes = labelled(source, side if side <= 64 else round(side * 256 / 224))
            file = arguments.cache / f"{name}-{side}.pt"
            if not file.exists():
                network = build(LITE0, image_size=side, weights=arguments.weights)
                torch.save({"labels": labels, "rounds": [features(network, images, side)]}, file)
                print(file, flush=True)
            before = load(file).rounds[0]
            for seed in arguments.seeds if arguments.rounds else ():
                file = arguments.cache / f"{name}-{side}-s{seed}.pt"
                if not file.exists():
                    rounds = adapted(images, side, arguments.weights, arguments.rounds, len(classes), seed)
                    torch.save({"labels": labels, "rounds": [before, *rounds]}, file)
                    print(file, flush=True)


if __name__ == "__main__":
    main()
