"""From a folder of photographs to clusters that you can look at, search and use: a model for your first script.

python examples/photographs.py photos/ [CLUSTERS] [ROUNDS]     makes runs/photographs-N
"""

import sys
from pathlib import Path

import numpy as np

from deepcluster import DeepCluster


def main(photos: str, clusters: int | None, rounds: int | None) -> None:
    # Starts from the pretrained network that comes with the install.
    dc = DeepCluster(n_clusters=clusters or "auto", rounds=rounds, random_state=0, verbose=1)
    dc.fit(photos, run=unused("runs/photographs"))
    print(f"{len(dc.paths_)} photographs in {dc.n_clusters_} clusters, {len(dc.skipped_)} unusable files")

    # Rows of length 1: the product of two is their similarity, at most 1.
    paths, features = dc.paths_, dc.embedding_
    for cluster in range(dc.n_clusters_):
        members = np.flatnonzero(dc.labels_ == cluster)
        typical = members[np.argmax(features[members] @ features[members].mean(0))]
        print(f"cluster {cluster}: {len(members)} photographs, the most typical is {paths[typical]!a}")

    alike = np.argsort(features @ features[0])[::-1][1:4]
    print(f"most like {paths[0]!a}: {', '.join(ascii(paths[i]) for i in alike)}")

    new = [str(Path(photos) / path) for path in paths[:3]]  # any other photographs as well
    print("clusters of three photographs:", dc.predict(new).tolist())
    print("the report:", dc.run_ / "report.html")


def unused(name: str) -> str:
    """Return a name for a new run folder."""
    return next(path for i in range(10**6) if not Path(path := f"{name}-{i}").exists())


if __name__ == "__main__":
    numbers = [int(text) for text in sys.argv[2:]]
    main(sys.argv[1], *numbers, *[None] * (2 - len(numbers)))
