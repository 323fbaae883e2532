"""Step 4 by the neighbour graph: k-means of the graph's embedding instead of the features, and what training gains.

python examples/research/graph_clusters.py IMAGES SEED ...    (sklearn:digits, or a folder with a folder for each class)
"""

import sys
from statistics import mean

import torch
from sklearn.metrics import normalized_mutual_info_score
from torch.nn import functional as F

from deepcluster import DeepCluster
from deepcluster.clustering import as_clustering
from deepcluster.clustering.kmeans import best_of
from deepcluster.groups.graph import embedding, neighbour_ties
from deepcluster.images import find
from deepcluster.images.given import true_labels


def by_graph(rows, clusters, previous, *, seed, round, partition):
    """Step 4: equal rows share a place; the graph has no sample, so this is for some ten thousand images at most."""
    rows_of_all = F.normalize(partition.all_gather(rows).float().cpu())
    distinct, position = torch.unique(rows_of_all, dim=0, return_inverse=True)
    places = torch.from_numpy(embedding(neighbour_ties(distinct), 5, seed))
    return tuple(
        as_clustering(best_of(10, places, k, seed).labels[position], rows, partition=partition) for k in clusters
    )


def main(images: str, seeds: list[int]) -> None:
    truth = true_labels("folders", find(images))
    settings = {"before training": {"rounds": 0}, "k-means": {}, "graph": {"clustering": by_graph}}
    for name, options in settings.items():
        scores = []
        for seed in seeds:
            fit = DeepCluster(n_clusters=10, recipe="classic", random_state=seed, **options).fit(images)
            scores.append(normalized_mutual_info_score(truth, fit.labels_, average_method="geometric"))
        print(f"{name:16} NMI {mean(scores):.3f}", *(f"{score:.3f}" for score in scores), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], [int(seed) for seed in sys.argv[2:]] or [0])
