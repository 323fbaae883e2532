"""Change a step of the method: another clustering (step 4) and another loss (step 5).

python examples/change_a_step.py [ROUNDS]
"""

import sys

import numpy as np
import torch
from sklearn.cluster import AgglomerativeClustering
from sklearn.datasets import load_digits
from sklearn.metrics import normalized_mutual_info_score
from torch.nn import functional as F

from deepcluster.algorithm import alternate
from deepcluster.clustering import kmeans
from deepcluster.learning import CrossEntropy, Learning
from deepcluster.nets import build


def ward(rows, clusters, previous, *, seed, round, partition):
    """Step 4: k-means that starts from Ward's tree, instead of from random images."""
    tree = AgglomerativeClustering(clusters[0]).fit(rows.numpy())
    return (kmeans(rows, clusters[0], start=torch.from_numpy(tree.labels_)),)


class SmoothedLoss(CrossEntropy):
    """Step 5: pseudo-labels are wrong now and then, so train on .9 of each and .1 of all others (label smoothing)."""

    def __call__(self, outputs, cluster_weight, processes):
        views = len(outputs.logits) // len(outputs.labels)
        labels, count = outputs.labels[:, 0].repeat(views), views * len(outputs.drawn)
        loss = F.cross_entropy(outputs.logits.float(), labels, label_smoothing=0.1, reduction="sum") / count
        return loss, loss  # the loss to minimise, and the figure to report


def main(rounds: int) -> None:
    digits = load_digits()
    images = np.kron(digits.images / 16, np.ones((2, 2)))[:, None].repeat(3, axis=1).astype(np.float32)
    network = build("compact", image_size=16, seed=0)
    learning = Learning(epochs=3, batch_size=128, loss=SmoothedLoss())
    for round in alternate(network, images, clusters=50, rounds=rounds, clustering=ward, learning=learning):
        nmi = normalized_mutual_info_score(digits.target, round.clustering.labels)
        print(f"round {round.index}: loss {round.loss:.3f}, NMI of the pseudo-labels to the digits {nmi:.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
