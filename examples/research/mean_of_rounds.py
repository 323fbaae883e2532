"""Average the weights of the last rounds of a run, and compare the features with those of the last round.

At a constant learning rate the weights of the rounds lie around a better point, and their mean is closer to it
(Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization", section 3). A run that
keeps its checkpoints has those of its last two rounds. The script prints the accuracy of 20 nearest neighbours on
test images, by the features as they are (as `deepcluster evaluate --protocol knn`) and half whitened.

deepcluster fit cifar10/train -k 10 --recipe classic --keep-checkpoints --set schedule=constant -o runs/cifar10
python examples/research/mean_of_rounds.py runs/cifar10 cifar10/train cifar10/test
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize
from torch.optim.swa_utils import AveragedModel, update_bn

import deepcluster
from deepcluster.clustering import whiten
from deepcluster.evaluation import KnnOptions
from deepcluster.evaluation.common import weighted_votes
from deepcluster.images import find, read_once
from deepcluster.images.given import true_labels
from deepcluster.learning.features import extract
from deepcluster.nets.network import Network

NEIGHBOURS = 20
STATISTICS_IMAGES, BATCH = 10_000, 250


def weights_of(checkpoint: Path) -> dict[str, Tensor]:
    """Return the weights of the network in a checkpoint of a round."""
    tensors = load_file(checkpoint)
    return {key.removeprefix("network."): value for key, value in tensors.items() if key.startswith("network.")}


def mean_of(network: Network, checkpoints: Sequence[Path], images: Tensor, seed: int = 0) -> Network:
    """Return a network with the mean of the weights of several rounds; ``network`` then has those of the last one.

    The statistics of batch normalisation are measured anew, because those of the rounds belong to other weights.
    """
    averaged = AveragedModel(network)
    for checkpoint in checkpoints:
        network.load_state_dict(weights_of(checkpoint))
        averaged.update_parameters(network)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:STATISTICS_IMAGES]
    batches = ((images[batch] / 255 - network.mean) / network.std for batch in order.split(BATCH))
    update_bn(batches, averaged.module.body)
    return averaged.module


def neighbours(train: Tensor, classes: Tensor, test: Tensor, answers: Tensor) -> float:
    """Return the accuracy of the test rows by the votes of their nearest training rows, all of length 1."""
    votes = weighted_votes(train, classes, test, [NEIGHBOURS], KnnOptions().temperature, int(classes.max()) + 1)
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

    checkpoints = sorted((options.run / "checkpoints").glob("*.safetensors"))
    mean = mean_of(network, checkpoints, train)
    for title, one in (("last round", network), (f"mean of {len(checkpoints)}", mean)):
        features, test_features = (extract(one, images).float() for images in (train, test))
        whitened = whiten(features, features.shape[1], 0.5)
        as_they_are = neighbours(normalize(features), classes, normalize(test_features), answers)
        half = neighbours(whitened(features), classes, whitened(test_features), answers)
        print(f"{title:12} neighbours {as_they_are:.3f}  half whitened {half:.3f}", flush=True)


if __name__ == "__main__":
    main()
