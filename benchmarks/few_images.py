"""The groups of few images: random samples of the digits, ten groups, the features of the untrained compact network.

With up to 20 images for each group there are no more pseudo-labels than groups. Beside the groups of a run it scores
the last k-means, which was the groups up to now.

    python benchmarks/few_images.py
"""

import argparse
import statistics

import numpy as np
import torch
from common import save
from sklearn.datasets import load_digits

from deepcluster.algorithm import conclude
from deepcluster.clustering.agreement import nmi
from deepcluster.clustering.steps import Reduction
from deepcluster.groups.cut import as_groups, place
from deepcluster.images import find
from deepcluster.images.store import read_once
from deepcluster.nets.backbone import build
from deepcluster.presets import Facts, resolve
from deepcluster.runs.groups import groups_of

K = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=16, help="random samples")
    seeds = parser.parse_args().seeds
    images = read_once(find("sklearn:digits"), 16).images
    labels = load_digits().target
    network = build("compact", image_size=16)
    rows = []
    for count in (100, 200, 300):
        recipe = resolve("auto", {}, Facts(count, 8, True, K, "cpu")).recipe
        scores: dict[str, list[float]] = {"groups of a run": [], "last k-means": []}
        for seed in range(seeds):
            chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
            reduction = Reduction(whitening=recipe.whitening)
            found = conclude(network, images[chosen], clusters=recipe.pseudo_labels, reduction=reduction, seed=seed)
            groups = groups_of(found.reduced, found.clustering, K, seed, recipe)
            for name, each in (("groups of a run", groups), ("last k-means", as_groups(found.clustering))):
                placed = place(found.reduced, each, found.clustering.centroids).cluster
                scores[name].append(nmi(labels[chosen.numpy()], placed))
        rows.append(
            {"images": count, "pseudo_labels": recipe.pseudo_labels}
            | {f"{name}, NMI": round(statistics.mean(each), 3) for name, each in scores.items()}
            | {f"{name}, std": round(float(np.std(each, ddof=1)), 3) for name, each in scores.items()}
        )
        print(rows[-1], flush=True)
    save("few_images", {"seeds": seeds, "rows": rows})


main()
