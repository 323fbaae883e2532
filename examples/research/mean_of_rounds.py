"""Average the weights of the last rounds of a run, and compare the features with those of the last round.

At a constant learning rate the weights of the rounds lie around a better point, and their mean is closer to it
(Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization", section 3). A run that
keeps its checkpoints has those of its last two rounds. The script prints the accuracy of 20 nearest neighbours on
test images, by the features as they are (as `deepcluster evaluate --protocol knn`) and half whitened.

deepcluster fit cifar10/train -k 10 --recipe classic --keep-checkpoints --set schedule=constant -o runs/cifar10
python examples/research/mean_of_rounds.py runs/cifar10 cifar10/train cifar10/test
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import normalize

import deepcluster
from deepcluster.clustering import whiten
from deepcluster.evaluation.common import weighted_votes
from deepcluster.images import find, read_once
from deepcluster.images.given import true_labels
from deepcluster.learning.features import extract

NEIGHBOURS, TEMPERATURE = 20, 0.1
STATISTICS_IMAGES, STATISTICS_BATCH = 10_000, 250


def weights_of(checkpoint: Path) -> dict[str, Tensor]:
    """Return the weights of the network in a checkpoint of a round."""
    tensors = load_file(checkpoint)
    return {key.removeprefix("network."): value for key, value in tensors.items() if key.startswith("network.")}


def mean_of(rounds: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of the weights of several rounds; what is no real number (a count of batches) is the last."""
    last = rounds[-1]
    return {
        name: torch.stack([weights[name] for weights in rounds]).mean(0) if value.is_floating_point() else value
        for name, value in last.items()
    }


def measure_statistics(network: nn.Module, images: Tensor, seed: int = 0) -> None:
    """Measure the statistics of batch normalisation anew: those of the rounds belong to other weights."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:STATISTICS_IMAGES]
    network.train()
    with torch.no_grad():
        for batch in order.split(STATISTICS_BATCH):
            network.features(images[batch] / 255)
    network.eval()


def neighbours(train: Tensor, classes: Tensor, test: Tensor, answers: Tensor) -> float:
    """Return the accuracy of the test rows by the votes of their nearest training rows, all of length 1."""
    votes = weighted_votes(train, classes, test, [NEIGHBOURS], TEMPERATURE, int(classes.max()) + 1)
    return (votes[0].argmax(1) == answers).double().mean().item()


def labelled(images: str, size: int) -> tuple[Tensor, list[str]]:
    """Return the images of a folder that has a folder for each class, and the classes."""
    source = find(images)
    store = read_once(source, size)
    labels = true_labels("folders", source)
    return store.images, [labels[i] for i in store.usable]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("train", help="images of the fit, in a folder for each class")
    parser.add_argument("test", help="other images, likewise")
    options = parser.parse_args()

    model = deepcluster.load(options.run)
    network = model.network
    train, names = labelled(options.train, model.store_size)
    test, test_names = labelled(options.test, model.store_size)
    numbers = {name: number for number, name in enumerate(sorted({*names, *test_names}))}
    classes, answers = (torch.tensor([numbers[name] for name in texts]) for texts in (names, test_names))

    rounds = [weights_of(checkpoint) for checkpoint in sorted((options.run / "checkpoints").glob("*.safetensors"))]
    for title, weights in (("last round", rounds[-1]), (f"mean of {len(rounds)}", mean_of(rounds))):
        network.load_state_dict(weights)
        if weights is not rounds[-1]:
            measure_statistics(network, train)
        features, test_features = (extract(network, images).float() for images in (train, test))
        whitened = whiten(features, features.shape[1], 0.5)
        as_they_are = neighbours(normalize(features), classes, normalize(test_features), answers)
        half = neighbours(whitened(features), classes, whitened(test_features), answers)
        print(f"{title:12} neighbours {as_they_are:.3f}  half whitened {half:.3f}", flush=True)


if __name__ == "__main__":
    main()
