"""Change a step of the method: another clustering (step 4) and another loss (step 5).

python examples/change_a_step.py [ROUNDS [RUN]]
"""

import sys

import numpy as np
from sklearn.cluster import AgglomerativeClustering
from sklearn.datasets import load_digits
from sklearn.metrics import normalized_mutual_info_score
from torch.nn import functional as F
from torch.optim import AdamW

from deepcluster import DeepCluster
from deepcluster.algorithm import alternate
from deepcluster.clustering import as_clustering
from deepcluster.learning import CrossEntropy, Learning
from deepcluster.nets import build


def ward(rows, clusters, previous, *, seed, round):
    """Step 4: Ward's tree instead of k-means."""
    labels = (AgglomerativeClustering(k).fit_predict(rows.cpu().numpy()) for k in clusters)  # may be on a GPU
    return tuple(as_clustering(one, rows) for one in labels)


class SmoothedLoss(CrossEntropy):
    """Step 5, for one clustering: label smoothing, because some pseudo-labels are wrong."""

    def __call__(self, outputs, cluster_weight, processes):
        views = len(outputs.logits) // len(outputs.labels)
        labels = outputs.labels[:, 0].repeat(views)  # ignored: -100, which fills up a batch
        loss = F.cross_entropy(outputs.logits.float(), labels, label_smoothing=0.1, reduction="sum")
        loss = loss / (views * len(outputs.drawn) / processes.world_size)  # gradients are averaged over the ranks
        return loss, loss  # the objective, and the figure of round.loss


def in_a_run(images, rounds, run):
    """The same steps and an optimizer in a run: a folder with report.html, checkpoints and a model."""
    steps = {"clustering": ward, "loss": SmoothedLoss(), "optimizer": AdamW}
    return DeepCluster(recipe="classic", rounds=rounds, lr=0.001, **steps).fit(images, run=run)


def main(rounds: int, run: str | None = None) -> None:
    digits = load_digits()
    images = np.kron(digits.images / 16, np.ones((2, 2)))[:, None].repeat(3, axis=1).astype(np.float32)
    network = build("compact", image_size=16, seed=0)
    learning = Learning(epochs=3, batch_size=128, loss=SmoothedLoss())
    for round in alternate(network, images, clusters=50, rounds=rounds, clustering=ward, learning=learning):
        nmi = normalized_mutual_info_score(digits.target, round.clustering.labels)
        print(f"round {round.index}: loss {round.loss:.3f}, NMI of the pseudo-labels to the digits {nmi:.3f}")
    if run:
        in_a_run(images, rounds, run)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5, *sys.argv[2:])
