"""A run that one process or several make of the same images, and what must be equal in it."""

from pathlib import Path

import numpy as np

from tests.helpers.runs import SAME, rows

OPTIONS = {"rounds": 3, "epochs": 2, "image_size": 12, "batch_size": 16, "pseudo_labels": 8, "backbone": "compact"}


def pixels(count: int = 40) -> np.ndarray:
    random = np.random.default_rng(0)
    images = random.integers(0, 40, (count, 12, 12, 3), dtype=np.uint8)
    for image, kind in zip(images, np.arange(count) % 4, strict=True):
        image[kind * 3 : kind * 3 + 3] += 150
    return images


def files_of(folder: Path) -> dict[str, object]:
    files: dict[str, object] = {name: (folder / name).read_bytes() for name in SAME if (folder / name).exists()}
    history = rows(folder / "history.csv")
    return files | {"history": [{k: v for k, v in row.items() if "second" not in k} for row in history]}
