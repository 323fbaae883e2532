"""The loop in your own code: iterate over the rounds, look at their figures, stop when you like.

python examples/own_loop.py [ROUNDS]
"""

import math
import sys

import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from deepcluster.algorithm import alternate, conclude
from deepcluster.clustering import Reduction
from deepcluster.clustering.agreement import scores
from deepcluster.groups.cut import cut_features, placement_of
from deepcluster.images import Augmentation
from deepcluster.learning import Learning
from deepcluster.nets import build


def main(rounds: int) -> None:
    digits = load_digits()
    grey = torch.from_numpy(digits.images).float().unsqueeze(1) * (255 / 16)
    images = F.interpolate(grey, (16, 16), mode="bicubic").clamp(0, 255).byte().expand(-1, 3, -1, -1)

    network = build("compact", image_size=16, seed=0)
    views = [Augmentation(crop=(0.5, 1.2), stretch=1.2, flip=0.0, rotation=15)]
    reduction, learning = Reduction(whitening=0.5), Learning(epochs=3, batch_size=128, views=views)
    for round in alternate(network, images, clusters=50, rounds=rounds, reduction=reduction, learning=learning):
        changed = "-" if math.isnan(round.changed) else f"{round.changed:.0%}"  # the first round changes nothing
        print(f"round {round.index}: loss {round.loss:.3f}, {changed} of the images changed cluster")
        if round.change < 0.05:
            break

    result = conclude(network, images, clusters=50, reduction=reduction)
    cut = cut_features(result.reduced, 10)
    placement = placement_of(result.reduced, cut, result.clustering.centroids)
    agreement = scores(digits.target, placement.cluster)  # the first use of the labels
    print("  ".join(f"{name} {value:.3f}" for name, value in agreement.items()))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
