"""Small images that have clusters: made here, so that no test needs a file from elsewhere."""

import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

KINDS = ("bars", "blob", "checks")


def draw(kind: str, random: np.random.Generator, size: int = 24) -> np.ndarray:
    """One size x size x 3 image of a kind: random place and colours, with noise."""
    y, x = np.mgrid[:size, :size] / size
    phase = random.uniform(0, 1, 2)
    shape = {
        "bars": np.sin(2 * np.pi * (3 * x + phase[0])) > 0,
        "blob": (x - 0.35 - 0.3 * phase[0]) ** 2 + (y - 0.35 - 0.3 * phase[1]) ** 2 < 0.07,
        "checks": (np.sin(2 * np.pi * (2 * x + phase[0])) * np.sin(2 * np.pi * (2 * y + phase[1]))) > 0,
    }[kind]
    dark, light = random.uniform(20, 90, 3), random.uniform(150, 240, 3)
    pixels = np.where(shape[..., None], light, dark) + random.normal(0, 8, (size, size, 3))
    return pixels.clip(0, 255).astype(np.uint8)


def drawings(count: int, size: int = 24, seed: int = 0) -> tuple[torch.Tensor, list[int]]:
    """``count`` images of each kind as uint8 N x 3 x S x S, and their kinds."""
    random = np.random.default_rng(seed)
    pixels = np.stack([draw(kind, random, size) for kind in KINDS for _ in range(count)])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), [i for i in range(len(KINDS)) for _ in range(count)]


def save_drawings(folder: Path, count: int, size: int = 24, seed: int = 0) -> Path:
    """:func:`drawings` as PNG files, in a sub-folder for each kind."""
    images, kinds = drawings(count, size, seed)
    for i, (image, kind) in enumerate(zip(images.permute(0, 2, 3, 1).numpy(), kinds, strict=True)):
        (folder / str(kind)).mkdir(exist_ok=True, parents=True)
        Image.fromarray(image).save(folder / str(kind) / f"{i:02}.png")
    return folder


def few_digits(patch: pytest.MonkeyPatch, count: int = 400) -> None:
    """Let scikit-learn have only so many digits, as its function gives them and in its table."""
    from sklearn.datasets import load_digits  # takes half a second

    digits, loadtxt = load_digits(), np.loadtxt
    few = type(digits)(data=digits.data[:count], images=digits.images[:count], target=digits.target[:count])
    patch.setattr(np, "loadtxt", lambda *args, **options: loadtxt(*args, **options)[:count])
    patch.setattr("sklearn.datasets.load_digits", lambda: few)


def pack(shard: Path, members: Mapping[str, Path]) -> Path:
    """Write a tar archive of files by the names of its members."""
    shard.parent.mkdir(exist_ok=True)
    with tarfile.open(shard, "w") as tar:
        for name, path in members.items():
            tar.add(path, name)
    return shard


def colour(i: int) -> tuple[int, int, int]:
    return (i * 37 % 256, i * 91 % 256, i % 256)


def write_image(file: Path, i: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("xb") as stream:
        Image.new("RGB", (4 + i % 3, 4), colour(i)).save(stream, "PNG")


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))
