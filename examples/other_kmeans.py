"""k-means of another library for the pseudo-labels of a run (step 4): faiss on any machine, cuML on an NVIDIA GPU.

python examples/other_kmeans.py photos/ runs/photos   # pip install faiss-cpu
"""

import sys

import numpy as np

from deepcluster import DeepCluster
from deepcluster.clustering import as_clustering


def by_faiss(rows, clusters, previous, *, seed, round):
    import faiss

    x = np.ascontiguousarray(rows.cpu().numpy(), np.float32)
    labels = []
    for k in clusters:
        kmeans = faiss.Kmeans(x.shape[1], k, niter=20, seed=seed + round)
        kmeans.train(x)
        labels.append(kmeans.assign(x)[1])
    return tuple(as_clustering(one, rows) for one in labels)


def by_cuml(rows, clusters, previous, *, seed, round):
    """Written by the documentation of cuML 25; not run, because it needs a GPU."""
    from cuml.cluster import KMeans

    fits = (KMeans(n_clusters=k, max_iter=20, random_state=seed + round, output_type="numpy") for k in clusters)
    return tuple(as_clustering(kmeans.fit_predict(rows), rows) for kmeans in fits)


if __name__ == "__main__":
    options = {"weights": "none", "epochs": 1, "image_size": 32}  # a network from scratch: it learns the pseudo-labels
    DeepCluster(clustering=by_faiss, rounds=2, verbose=1, **options).fit(sys.argv[1], run=sys.argv[2])
