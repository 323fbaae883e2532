"""Features of real images for the benchmarks of the mathematics: those of an untrained ResNet-18."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]


def load_or_make(images: str, file: Path | None) -> Matrix:
    """N x 512 features of the images, from ``file`` where it exists; else they are made, and kept there."""
    if file is not None and file.exists():
        return np.asarray(np.load(file))
    features = make(images)
    if file is not None:
        np.save(file, features)
    return features


def make(images: str) -> Matrix:
    """N x 512 features of an untrained ResNet-18 whose batch normalisation has seen 2,500 of the images."""
    import torch

    from deepcluster.images import find
    from deepcluster.images.store import read_once
    from deepcluster.learning.features import extract
    from deepcluster.nets.backbone import build

    store = read_once(find(images), 64)
    network = build("timm:resnet18", image_size=64, seed=0).to(memory_format=torch.channels_last)
    network.train()
    with torch.no_grad():
        for part in store.images[torch.randperm(len(store.images))[:2500]].split(250):
            network.features(part.float() / 255)
    return extract(network, store.images, size=64, batch_size=250, dtype=torch.bfloat16).float().numpy()
