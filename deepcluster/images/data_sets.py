"""Data sets by the name of a library: scikit-learn's digits, and torchvision's."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.errors import DataError
from deepcluster.images.arrays import from_array, from_dataset
from deepcluster.images.source import Source
from deepcluster.texts import one_line


def from_sklearn(name: str) -> Source:
    """Return the digits of scikit-learn, the only data set that it installs as images."""
    if name != "digits":
        raise DataError(f"unknown data set sklearn:{one_line(name)}: only sklearn:digits is available")
    from sklearn.datasets import load_digits  # takes a second

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return from_array(grey, "digits", "sklearn:digits", digits.target)


def from_torchvision(name: str) -> Source:
    """Return a data set of torchvision as its class gives it by default, downloaded once into the cache folder."""
    from torchvision import datasets  # noqa: TID251 (torchvision:NAME)

    titles = {title.lower(): title for title in datasets.__all__}
    if name.lower() not in titles:
        raise DataError(f"unknown data set torchvision:{one_line(name)}: torchvision:CIFAR10 is one, for example")
    title = titles[name.lower()]
    cache = cache_folder(title)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        dataset = getattr(datasets, title)(str(cache), download=True)
    except Exception as error:  # the classes raise many kinds
        raise DataError(
            f"torchvision:{title} cannot be downloaded into {one_line(str(cache))}: {one_line(str(error))}. Check the"
            " connection and type the same again, or make the data set in Python: DeepCluster().fit(DATASET)"
        ) from error
    return from_dataset(dataset, title, f"torchvision:{title}", _class_names(dataset))


def cache_folder(name: str) -> Path:
    """Return the folder that a torchvision data set is downloaded to."""
    return Path(os.environ.get("DEEPCLUSTER_CACHE_DIR") or "~/.cache/deepcluster").expanduser() / name


def _class_names(dataset: Any) -> tuple[str, ...] | None:
    """Return the classes of the images, by name if there are names; None if an image may have several."""
    values = next((getattr(dataset, name) for name in ("targets", "labels", "_labels") if hasattr(dataset, name)), ())
    if np.ndim(values) != 1 or len(values) != len(dataset):
        return None
    names = getattr(dataset, "classes", None)
    return tuple(str(names[int(value)] if names else value) for value in np.asarray(values).tolist())
