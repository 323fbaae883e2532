"""Place new images by hand with the model of a run: what `deepcluster predict` does, on your own arrays.

python examples/use_the_model.py runs/digits
"""

import sys

import torch
from sklearn.datasets import load_digits

import deepcluster
from deepcluster.images import find, read_once


def main(run: str) -> None:
    model = deepcluster.load(run)
    pixels = (load_digits().images[:20] * (255 / 16)).astype("uint8")
    store = read_once(find(pixels), model.store_size)
    placement = model.placement(model.transform(store.images))
    for row, (cluster, distance) in enumerate(zip(placement.cluster, placement.distance, strict=True)):
        print(f"image {row}: cluster {int(cluster)}, distance {float(distance):.3f}")
    print("images per cluster:", torch.bincount(placement.cluster, minlength=model.cut.count).tolist())


if __name__ == "__main__":
    main(sys.argv[1])
