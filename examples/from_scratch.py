"""DeepCluster (Caron et al., ECCV 2018) on one page: numpy and torch, and the handwritten digits of scikit-learn.

    python examples/from_scratch.py [ROUNDS]

Each function is one step of the paper. Nothing comes from the package, whose tests compare its steps with these.
"""

import sys
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

CLUSTERS, DIMS, EPOCHS, BATCH = 30, 16, 2, 64
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 1e-5


def backbone() -> nn.Module:
    """Step 1: return a convnet without its classification layer, with random weights."""

    def block(channels: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    stages = [*block(1, 16), *block(16, 32), nn.MaxPool2d(2), *block(32, 64), nn.MaxPool2d(2), *block(64, 64)]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def features(network: nn.Module, images: Tensor) -> Tensor:
    """Step 2: return the features of all images, by one pass in evaluation mode."""
    network.eval()
    with torch.no_grad():
        return torch.cat([network(batch) for batch in images.split(256)])


def whiten(x: Tensor, dims: int) -> Tensor:
    """Step 3: PCA, whitening and L2 normalisation."""
    centred = x.double() - x.double().mean(0)
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(x))
    largest = variances.argsort(descending=True)[:dims]
    largest = largest[variances[largest] > 1e-6 * variances.max()]  # the others are rounding errors
    rows = centred @ directions[:, largest] / variances[largest].sqrt()
    return (rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)).float()


def kmeans(x: Tensor, centroids: Tensor, iterations: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Step 4: return the pseudo-labels y_i = argmin_k ||x_i - c_k||^2 (equation 2) and the centroids."""
    centroids = centroids.clone()
    for _ in range(iterations):
        labels = torch.cdist(x, centroids).argmin(1)
        for k in range(len(centroids)):
            members = x[labels == k]
            # An empty cluster starts again from the features of a random image.
            centroids[k] = members.mean(0) if len(members) else x[torch.randint(len(x), (), generator=random)]
    return torch.cdist(x, centroids).argmin(1), centroids


def uniform_sample(labels: Tensor, draws: int, random: torch.Generator) -> Tensor:
    """Return ``draws`` images, as many of each pseudo-label as of any other (section 3.3)."""
    members = [torch.nonzero(labels == k).flatten() for k in labels.unique()]
    clusters = torch.arange(draws) % len(members)
    chosen = []
    for k, rows in enumerate(members):
        quota = int((clusters == k).sum())
        order = rows[torch.randperm(len(rows), generator=random)]
        chosen.append(order.repeat(-(-quota // len(rows)))[:quota])
    images = torch.cat(chosen)
    return images[torch.randperm(draws, generator=random)]


def optimizer_step(
    network: nn.Module, head: nn.Module, optimizers: Sequence[torch.optim.Optimizer], images: Tensor, labels: Tensor
) -> float:
    """Take one step of SGD on the cross-entropy of the pseudo-labels (equation 1), and return the loss."""
    loss = cross_entropy(head(network(images)), labels)
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return loss.item()


def shifted(images: Tensor, random: torch.Generator) -> Tensor:
    """Return the images moved by up to a pixel: the random crops of the paper, for images of 8 px."""
    down, right = torch.randint(-1, 2, (2,), generator=random).tolist()
    return torch.roll(images, (down, right), (2, 3))


def train(
    network: nn.Module, body_optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, seed: int
) -> float:
    """Step 5: train with a new linear classifier on top, and return the mean loss."""
    random = torch.Generator().manual_seed(seed)
    head = nn.Linear(64, CLUSTERS)
    nn.init.normal_(head.weight, std=0.01, generator=random)
    nn.init.zeros_(head.bias)
    optimizers = [body_optimizer, torch.optim.SGD(head.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)]
    network.train()
    losses = []
    for batch in uniform_sample(labels, EPOCHS * len(images), random).split(BATCH):
        losses.append(optimizer_step(network, head, optimizers, shifted(images[batch], random), labels[batch]))
    return float(np.mean(losses))


def nmi(one: Tensor, other: Tensor) -> float:
    """Return the normalised mutual information of two assignments (section 4.1)."""
    joint = torch.zeros(int(one.max()) + 1, int(other.max()) + 1, dtype=torch.float64)
    joint.index_put_((one, other), torch.tensor(1.0, dtype=torch.float64), accumulate=True)
    joint /= joint.sum()
    entropy = [-float((p[p > 0] * p[p > 0].log()).sum()) for p in (joint, joint.sum(0), joint.sum(1))]
    return (entropy[1] + entropy[2] - entropy[0]) / max(1e-12, (entropy[1] * entropy[2]) ** 0.5)


def draw(curve: list[float]) -> None:
    """Draw the NMI of each round, the paper's figure 2a: a plot if matplotlib is installed, otherwise four bars."""
    try:
        from matplotlib import pyplot
    except ImportError:
        for index in np.unique(np.linspace(0, len(curve) - 1, 4).round().astype(int)):
            print(f"round {index:2}: {'#' * round(50 * curve[index])} {curve[index]:.3f}")
        return
    pyplot.plot(curve, ".-")
    pyplot.xlabel("round")
    pyplot.ylabel("NMI to the digits")
    pyplot.savefig("from_scratch.svg")
    print("NMI of each round: from_scratch.svg")


def main(rounds: int = 10, seed: int = 0) -> None:
    digits = load_digits()
    images = torch.tensor(digits.images[:, None] / 8 - 1, dtype=torch.float32)
    truth = torch.tensor(digits.target)
    torch.manual_seed(seed)  # for the network's initial weights
    network, before, curve = backbone(), None, []
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY)
    for index in range(rounds):  # step 6: repeat
        random = torch.Generator().manual_seed(1000 * seed + index)
        reduced = whiten(features(network, images), DIMS)
        start = reduced[torch.randperm(len(reduced), generator=random)[:CLUSTERS]]
        labels, _ = kmeans(reduced, start, 20, random)
        loss = train(network, optimizer, images, labels, 1000 * seed + index)
        settled = nmi(labels, before) if before is not None else 0.0
        curve.append(nmi(labels, truth))
        print(f"round {index}: loss {loss:.2f}, NMI to the last {settled:.3f}, to the digits {curve[-1]:.3f}")
        before = labels
    # Step 7: the result has the number of clusters that the user wants; a new image goes to the nearest centroid.
    reduced, random = whiten(features(network, images), DIMS), torch.Generator().manual_seed(seed)
    labels, _ = kmeans(reduced, reduced[torch.randperm(len(reduced), generator=random)[:10]], 50, random)
    print(f"result: NMI of 10 clusters to the digits {nmi(labels, truth):.3f}")
    draw(curve)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
