"""A network of your own: in the loop, with arrays of numpy, and in the estimator, which saves, loads and predicts.

python examples/own_network.py [ROUNDS]
"""

import sys
import tempfile

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import normalized_mutual_info_score
from torch import nn

from deepcluster import DeepCluster
from deepcluster.algorithm import alternate


def network() -> nn.Module:
    """Any module from images (N x 3 x S x S) to features (N x D) or maps, of which the means are taken."""
    torch.manual_seed(0)
    layers = [layer for ins, outs in ((3, 32), (32, 64), (64, 128)) for layer in convolution(ins, outs)]
    return nn.Sequential(*layers)


def convolution(ins: int, outs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(ins, outs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outs), nn.ReLU()


def main(rounds: int) -> None:
    digits = load_digits()
    grey = np.kron(digits.images / 16, np.ones((2, 2))).astype(np.float32)  # N x 16 x 16, in [0, 1]
    colours = np.repeat(grey[:, None], 3, axis=1)

    trained = network()  # in place
    for round in alternate(trained, colours, clusters=50, rounds=rounds, seed=0):
        print(f"round {round.index}: loss {round.loss:.3f} (chance {round.chance_loss:.2f})")

    # weights="none": the module is not trained so far; without it, it is used as it is, as a pretrained one.
    dc = DeepCluster(n_clusters=10, backbone=network(), weights="none", image_size=16, rounds=rounds).fit(grey)
    print(f"NMI {normalized_mutual_info_score(digits.target, dc.labels_):.3f}")
    with tempfile.TemporaryDirectory() as folder:
        dc.save(folder)  # numbers and no code, so that loading needs the module again
        again = DeepCluster.load(folder, backbone=network())
    print("loaded:", (again.predict(grey) == dc.labels_).all())


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
