"""Data sets by the name that a library gives them: scikit-learn's digits, and torchvision's."""

import difflib
import inspect
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
    """Return the training split of a torchvision data set, downloaded once into the cache folder."""
    from torchvision import datasets  # noqa: TID251 (torchvision:NAME)

    general = ("VisionDataset", "DatasetFolder", "ImageFolder")
    makers = {title: getattr(datasets, title) for title in datasets.__all__ if title not in general}
    classes = {title.lower(): title for title, kind in makers.items() if inspect.isclass(kind)}
    title = classes.get(name.lower())
    if title is None:
        near = difflib.get_close_matches(name.lower(), classes, n=3, cutoff=0.5)
        hint = " or ".join(f"torchvision:{classes[match]}" for match in near) or "torchvision:CIFAR10, for example"
        raise DataError(f"unknown data set torchvision:{one_line(name)}: did you mean {hint}?")
    cache = cache_folder(title)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        dataset = makers[title](**_training_part(makers[title], cache))
    except Exception as error:  # the classes raise many kinds
        raise DataError(
            f"torchvision:{title} cannot be downloaded into {cache}: {one_line(str(error))}. Check the connection and "
            "type the same again, or download it on another machine and copy that folder here"
        ) from error

    return from_dataset(dataset, title, f"torchvision:{title}", _targets(dataset))


def cache_folder(name: str) -> Path:
    """Return the folder that a torchvision data set is downloaded to."""
    return Path(os.environ.get("DEEPCLUSTER_CACHE_DIR") or "~/.cache/deepcluster").expanduser() / name


def _training_part(kind: type, root: Path) -> dict[str, object]:
    """Return the arguments for the training images that the class accepts."""
    if kind.__name__ == "EMNIST":  # it hides its arguments behind **kwargs, and ``split`` means something else there
        return {"root": str(root), "split": "balanced", "train": True, "download": True}
    accepted = inspect.signature(kind).parameters
    chosen: dict[str, object] = {"root": str(root), "download": True, "train": True}
    if "split" in accepted and not str(accepted["split"].default).startswith("train"):
        chosen["split"] = "train"
    return {name: value for name, value in chosen.items() if name in accepted}


def _targets(dataset: Any) -> tuple[str, ...] | None:
    """Return the classes of the images, by name if there are names; None if an image may have several."""
    for attribute in ("targets", "labels", "_labels"):
        values = getattr(dataset, attribute, None)
        if values is None or len(values) != len(dataset) or np.ndim(values) != 1:
            continue
        targets = np.asarray(values)
        names = getattr(dataset, "classes", None)
        if names and targets.dtype.kind in "iu" and targets.min() >= 0 and targets.max() < len(names):
            texts = [", ".join(map(str, name)) if isinstance(name, tuple | list) else str(name) for name in names]
            return tuple(texts[target] for target in targets.tolist())
        return tuple(map(str, targets.tolist()))
    return None
