"""k-NN and a linear classifier on the features of a run: can near images, or a plane, tell the labels of test images?

Neighbours vote with the weight exp(cosine / .07), as in Wu, Xiong, Yu and Lin, "Unsupervised Feature Learning via
Non-Parametric Instance Discrimination", CVPR 2018, section 3.4. Both learn from features.npy and the labels of the fit
(fit --labels). The paper takes the network's own features: --own TRAIN computes those of the run's images.

python examples/research/probes.py runs/cifar10 cifar10/test
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

import deepcluster
from deepcluster.images import find, read_once
from deepcluster.learning import extract
from deepcluster.runtime.compute import Compute

TEMPERATURE = 0.07


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("test", help="images to score, a folder per class")
    parser.add_argument("--own", metavar="TRAIN", help="the images of the run: learn the network's own features")
    parser.add_argument("--neighbours", type=int, nargs="*", default=[20, 200])
    parser.add_argument("-c", type=float, default=1.0, help="C of scikit-learn's LogisticRegression")
    options = parser.parse_args()
    model = deepcluster.load(options.run)

    def read(place: str) -> tuple[np.ndarray, list[str]]:
        source = find(place)
        store = read_once(source, model.store_size)
        if options.own is None:
            features = model.transform(store.images).numpy()
        else:
            compute = Compute.of(model.network, store.images, size=model.image_size, batch_size=model.batch_size)
            features = normalize(extract(model.network.eval(), store.images, compute).numpy())
        return features, [(source.labels or [""] * len(source.paths))[i] for i in store.usable]

    if options.own is None:
        with (options.run / "clusters.csv").open(encoding="utf-8", newline="") as file:
            labels = [row["label"] for row in csv.DictReader(file) if row["status"] == "ok"]
        train = np.load(options.run / "features.npy")[np.array(labels) != ""]
        classes = [label for label in labels if label]
    else:
        train, classes = read(options.own)
    test, truth = read(options.test)
    for k in options.neighbours:
        votes = KNeighborsClassifier(
            min(k, len(train)), metric="cosine", algorithm="brute", weights=lambda far: np.exp(-far / TEMPERATURE)
        )
        print(f"top1_k{k:<18} {votes.fit(train, classes).score(test, truth):.4f}", flush=True)
    plane = make_pipeline(StandardScaler(), LogisticRegression(C=options.c, max_iter=1000)).fit(train, classes)
    print(f"top1_linear{'':13} {plane.score(test, truth):.4f}")


if __name__ == "__main__":
    main()
