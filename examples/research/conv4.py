"""Repeat a published row: DeepCluster from scratch with a small network on CIFAR-10, and a linear classifier.

Patacchiola and Storkey, "Self-Supervised Relational Reasoning for Representation Learning" (NeurIPS 2020,
arXiv 2006.05849) compare with DeepCluster. Settings as in their code, github.com/mpatacchiola/
self-supervised-relational-reasoning (methods/deepcluster.py, datamanager.py, train_linear_evaluation.py):

- Conv-4 (8, 16, 32 and 64 channels); a head of two layers, of which each epoch renews only the last;
- each epoch clusters 64 whitened features of length 1 into 100 clusters: k-means, the best of 5 starts;
- cross-entropy with weights 1 - n_k / N, batches of 128, Adam at .001 for 200 epochs, no sampler;
- views are random crops after 4 black pixels of padding, and mirror images;
- at the end, a linear layer on frozen features without views: Adam at .001, 100 epochs, test images.

Their code applies the views twice. The second time it stores normalised images in 8 bits, where values below 0 and
above 255 wrap around; features and test images do not wrap. ``--as-released`` does the same. Without it, the network
learns from views of the images, and clusters features of the images themselves.

    python examples/research/conv4.py cifar10/train cifar10/test runs/conv4 --seeds 1 2 3 --as-released

    python examples/research/conv4.py cifar10/train cifar10/test runs/conv4 --seeds 1 --recipe classic --epochs 24

The second command trains the same network by a recipe of this package, with settings of docs/reproduction.md, and
classifies its features likewise. Both continue stopped runs to the same result.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from sklearn.cluster import kmeans_plusplus
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam

from deepcluster import DeepCluster, load
from deepcluster.clustering import kmeans, whiten
from deepcluster.clustering.agreement import nmi
from deepcluster.images import find, read_once
from deepcluster.images.true_labels import true_labels
from deepcluster.learning.features import extract
from deepcluster.nets.network import Network
from deepcluster.records import Clustering
from deepcluster.runtime.devices import keep_freed_memory
from deepcluster.seeding import derive, generator, lent_global
from deepcluster.storage.files import write_whole

SIDE, PADDING, BATCH, HIDDEN, STARTS, ITERATIONS = 32, 4, 128, 256, 5, 30
MEAN, STD = torch.tensor([0.491, 0.482, 0.447]), torch.tensor([0.247, 0.243, 0.262])
EPOCHS_BETWEEN_CHECKPOINTS, EPOCHS_OF_CLASSIFIER = 5, 100


def conv4() -> nn.Sequential:
    """Return the network: four convolutions of 3 x 3, each followed by an average pooling."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 8), (8, 16), (16, 32), (32, 64)):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        pooling = nn.AdaptiveAvgPool2d(1) if outputs == 64 else nn.AvgPool2d(2)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(), pooling]
    return nn.Sequential(*layers, nn.Flatten())


def crops(images: Tensor, random: torch.Generator, border: Tensor | None = None) -> Tensor:
    """Return random crops of B x 3 x S x S bytes after padding, half of them mirrored.

    ``border``: The colour (3) of the padding. None: black.
    """
    count, channels, side, _ = images.shape
    padded = F.pad(images, (PADDING,) * 4)
    if border is not None:
        padded = border.view(1, channels, 1, 1).expand_as(padded).clone()
        padded[..., PADDING:-PADDING, PADDING:-PADDING] = images
    windows = padded.unfold(2, side, 1).unfold(3, side, 1)
    down, right = torch.randint(2 * PADDING + 1, (2, count), generator=random)
    views = windows[torch.arange(count), :, down, right]
    mirrored = torch.rand(count, generator=random) < 0.5
    views[mirrored] = views[mirrored].flip(3)
    return views


def normalised(images: Tensor) -> Tensor:
    """Return bytes as numbers of about mean 0 and deviation 1, channels-last."""
    pixels = images.float(memory_format=torch.channels_last)
    return pixels.div_(255).sub_(MEAN.view(3, 1, 1)).div_(STD.view(3, 1, 1))


def wrapped(images: Tensor) -> Tensor:
    """Return 255 times the normalised images modulo 256, as bytes."""
    return torch.cat([(normalised(part) * 255).long().to(torch.uint8) for part in images.split(1000)])


def features_of(body: nn.Module, images: Tensor, view: Callable[[Tensor], Tensor] = Tensor.detach) -> Tensor:
    """Return the features (N x 64) of the images, or of a view of each."""
    body.eval()
    with torch.no_grad():
        return torch.cat([body(normalised(view(batch))) for batch in images.split(BATCH)])


def clusters_of(features: Tensor, k: int, seed: int) -> Clustering:
    """Return the k-means of least inertia of the whitened features."""
    rows = whiten(features, features.shape[1])(features)
    draws = (derive(seed, "start", number) % 2**32 for number in range(STARTS))
    starts = (kmeans_plusplus(rows.numpy(), k, random_state=draw)[0] for draw in draws)
    runs = (kmeans(rows, k, start=torch.from_numpy(start), iterations=ITERATIONS) for start in starts)
    return min(runs, key=lambda clustering: clustering.inertia)


class Training:
    """Network, head and optimizer of one seed. An epoch depends on them, its number and the seed alone."""

    def __init__(self, images: Tensor, clusters: int, seed: int, *, as_released: bool = False):
        self.images, self.clusters, self.seed, self.as_released = images, clusters, seed, as_released
        with lent_global(seed, "network"):
            body = conv4().to(memory_format=torch.channels_last)
            layers = nn.Linear(64, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.LeakyReLU(), nn.Linear(HIDDEN, clusters)
        self.body, self.head = body, nn.Sequential(*layers)
        self.network = nn.Sequential(self.body, self.head)
        self.optimizer = Adam(self.network.parameters(), lr=0.001, fused=True)
        self.epoch, self.labels = 0, torch.zeros(len(images), dtype=torch.int64)
        if as_released:
            self.wrapped, self.border = wrapped(images), wrapped(torch.zeros(1, 3, 1, 1))

    def state(self) -> dict[str, Any]:
        weights = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {"epoch": self.epoch, "labels": self.labels, **weights}

    def load(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.labels = state["epoch"], state["labels"]
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])

    def views(self, numbers: Tensor, random: torch.Generator) -> Tensor:
        """Return the views (bytes) of a batch of images."""
        if self.as_released:
            return crops(crops(self.wrapped[numbers], random, self.border), random)
        return crops(self.images[numbers], random)

    def step(self) -> float:
        """Cluster the features, train for one epoch, and return the mean loss."""
        random = generator(self.seed, "epoch", self.epoch)
        views = [partial(crops, random=random)] if self.as_released else []
        features = features_of(self.body, self.images, *views)
        clustering = clusters_of(features, self.clusters, derive(self.seed, "k-means", self.epoch))
        self.labels, weights = clustering.labels, 1 - clustering.sizes / len(self.images)

        last = self.head[-1]
        nn.init.normal_(last.weight, std=0.01, generator=random)
        nn.init.zeros_(last.bias)
        self.network.train()
        total = 0.0
        for batch in torch.randperm(len(self.images), generator=random).split(BATCH):
            outputs = self.network(normalised(self.views(batch, random)))
            loss = F.cross_entropy(outputs, self.labels[batch], weights)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item() * len(batch)
        self.epoch += 1
        return total / len(self.images)


def epochs_of(training: Training, count: int, checkpoint: Path, classes: Tensor) -> Iterator[int]:
    """Train up to epoch ``count``, from the checkpoint if it exists. Yield the epoch at first and after each.

    ``classes``: They score the pseudo-labels.
    """
    if checkpoint.is_file():
        training.load(torch.load(checkpoint, weights_only=True))
    yield training.epoch
    while training.epoch < count:
        begin, before = time.process_time(), training.labels
        loss = training.step()
        agreement = f"before {nmi(before, training.labels):.3f}, classes {nmi(classes, training.labels):.3f}"
        seconds = f"{time.process_time() - begin:.0f} s of a processor"
        print(f"seed {training.seed}  epoch {training.epoch}  loss {loss:.3f}  nmi: {agreement}  {seconds}", flush=True)
        if training.epoch % EPOCHS_BETWEEN_CHECKPOINTS == 0 or training.epoch == count:
            write_whole(checkpoint, partial(torch.save, training.state()), binary=True)
        yield training.epoch


def by_recipe(recipe: str, folder: str, seed: int, rounds: int, average: float, run: Path) -> Network:
    """Return the network after training by a recipe of this package, with its option ``average``."""
    with lent_global(seed, "network"):
        body = conv4()
    estimator = DeepCluster(
        n_clusters=10, recipe=recipe, backbone=body, weights="none", image_size=SIDE, rounds=rounds, random_state=seed,
        options={"schedule": "constant", "crop_min": 0.2, "tolerance": 0, "average": average}, verbose=1,
    )  # fmt: skip
    estimator.fit(folder, run=run, resume=run.is_dir())
    return load(run, backbone=body).network


def linear_accuracy(train: Tensor, classes: Tensor, test: Tensor, answers: Tensor, seed: int) -> float:
    """Return the share of test rows that a linear layer classifies correctly after training on other rows."""
    random = generator(seed, "classifier")
    with lent_global(seed, "classifier"):
        layer = nn.Linear(train.shape[1], int(classes.max()) + 1)
    optimizer = Adam(layer.parameters(), lr=0.001, fused=True)
    for _ in range(EPOCHS_OF_CLASSIFIER):
        for batch in torch.randperm(len(train), generator=random).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(layer(train[batch]), classes[batch]).backward()
            optimizer.step()
    return (layer(test).argmax(1) == answers).double().mean().item()


def labelled(folder: str) -> tuple[Tensor, Tensor]:
    """Return the images (N x 3 x 32 x 32 bytes) of a folder that has a folder for each class, and the classes."""
    source = find(folder)
    store = read_once(source, SIDE)
    labels = true_labels("folders", source)
    numbers = {name: number for number, name in enumerate(sorted(set(labels)))}
    return store.images, torch.tensor([numbers[labels[i]] for i in store.usable])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", help="images in a folder for each class; the classes only score")
    parser.add_argument("test", help="other images, likewise")
    parser.add_argument("out", type=Path, help="folder for the checkpoints")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--evaluate-every", type=int, default=50, metavar="EPOCHS")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--as-released", action="store_true", help="views as the released code makes them")
    way.add_argument("--recipe", help="train by a recipe of this package instead, --epochs rounds")
    parser.add_argument("--average", type=float, default=1.0, help="weight of the last round's weights in their mean")
    options = parser.parse_args()
    keep_freed_memory()
    (images, classes), (test, answers) = labelled(options.train), labelled(options.test)
    options.out.mkdir(parents=True, exist_ok=True)

    accuracies = []
    for seed in options.seeds:

        def score(epoch: int, features: Callable[[Tensor], Tensor], seed: int = seed) -> float:
            accuracy = linear_accuracy(features(images).float(), classes, features(test).float(), answers, seed)
            print(f"seed {seed}  epoch {epoch}  linear accuracy {accuracy:.4f}", flush=True)
            return accuracy

        if options.recipe:
            run = options.out / f"{options.recipe}-{seed}"
            network = by_recipe(options.recipe, options.train, seed, options.epochs, options.average, run)
            accuracies.append(score(options.epochs, partial(extract, network)))
            continue
        training = Training(images, options.clusters, seed, as_released=options.as_released)
        checkpoint = options.out / f"seed-{seed}.pt"
        for epoch in epochs_of(training, options.epochs, checkpoint, classes):
            if epoch % options.evaluate_every == 0 or epoch == options.epochs:
                accuracy = score(epoch, partial(features_of, training.body))
        accuracies.append(accuracy)
    print(f"linear accuracy, mean of {len(accuracies)}: {mean(accuracies):.4f}")


if __name__ == "__main__":
    main()
