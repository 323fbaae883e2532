"""The estimator on your own images: fit, look at the clusters, change their number, place new images, save and load.

python examples/estimator.py [FOLDER [ROUNDS]]    (a folder of images; without one, scikit-learn's digits)
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path

from sklearn.datasets import load_digits

from deepcluster import DeepCluster


def main(folder: str | None, rounds: int | None) -> None:
    # uint8, N x 8 x 8; N x H x W x 3, N x 3 x H x W, a list of paths or a Dataset would do as well.
    images = folder or (load_digits().images * (255 / 16)).astype("uint8")
    dc = DeepCluster(n_clusters=10, rounds=rounds, random_state=0, verbose=1).fit(images)
    print("images in each cluster:", dict(sorted(Counter(dc.labels_.tolist()).items())))
    print(f"features: {dc.embedding_.shape}, inertia {dc.inertia_:.1f} after {dc.n_iter_} rounds")
    for path, cluster in list(zip(dc.paths_, dc.labels_, strict=True))[:5]:
        print(f"image {path}: cluster {cluster}")

    new = [folder + "/" + path for path in dc.paths_[:3]] if folder else images[:3]
    print("clusters of new images:", dc.predict(new).tolist())
    print("their features:", dc.transform(new).shape)

    dc.recut(25)  # no training
    print(f"now {dc.n_clusters_} clusters; the first images are in {dc.predict(new).tolist()}")

    with tempfile.TemporaryDirectory() as place:
        print("report:", dc.report(Path(place) / "report.html").stat().st_size, "bytes")
        dc.save(Path(place) / "model")
        again = DeepCluster.load(Path(place) / "model")
        print("loaded:", again.predict(new).tolist())


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None, int(sys.argv[2]) if len(sys.argv) > 2 else None)
