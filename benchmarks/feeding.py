"""How fast do batches come? From files, and from the store: ours against torchvision's ImageFolder with a DataLoader.

    python benchmarks/feeding.py NAME PATH SIZE [NAME PATH SIZE ...] [--limit N] [--repeats 5]

PATH has a folder a class. Training: random crops (.08 to 1 of the area, sides 3:4 to 4:3) and flips of SIZE px.
Features: scaled to SIZE * 256 / 224 px, the centre. The first round has the reading or, with them, the listing of the
files; the others do not. Every batch is 128 images in float32, normalised, on the CPU (our network normalises itself;
here it is done as the loader does it). Ours are made in turn, theirs by the DataLoader itself or by 2 worker processes,
which live on between epochs; the faster is the opponent. The files are in the page cache. Both sides run in turn in one
process.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median

import torch
from common import save
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from deepcluster.images import find
from deepcluster.images.augment import Augmentation, fixed_view, random_views
from deepcluster.images.store import gather, read_once
from deepcluster.runtime.devices import keep_freed_memory

BATCH = 128
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WORKERS = (0, 2)


def training_batches(images: Tensor, size: int, random: torch.Generator) -> Iterator[Tensor]:
    for rows in torch.randperm(len(images), generator=random).split(BATCH):
        yield normalised(random_views(gather(images, rows), size, Augmentation(), random))


def feature_batches(images: Tensor, size: int) -> Iterator[Tensor]:
    for part in images.split(BATCH):
        yield normalised(fixed_view(part, size))


def normalised(views: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return torch.addcmul(-mean / std, views, 1 / std).contiguous(memory_format=torch.channels_last)


def loaders(folder: Path, size: int) -> dict[str, DataLoader[tuple[Tensor, Tensor]]]:
    """A DataLoader for training and one for features, with each number of workers."""
    end = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    found = {}
    for kind, begin in (
        ("training", [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]),
        ("features", [transforms.Resize(int(size * 256 / 224)), transforms.CenterCrop(size)]),
    ):
        images = ImageFolder(str(folder), transforms.Compose([*begin, *end]))
        for workers in WORKERS:
            found[f"{kind}, {workers} workers"] = DataLoader(
                images, BATCH, shuffle=kind == "training", num_workers=workers, persistent_workers=workers > 0
            )
    return found


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def consume(batches: Iterable[Tensor], count: int, size: int) -> None:
    seen = 0
    for batch in batches:
        assert batch.shape[1:] == (3, size, size) and batch.dtype == torch.float32
        seen += len(batch)
    assert seen == count, f"{seen} of {count} images came"


def measure(folder: Path, size: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each part of the work, ``repeats`` times after a round of warming up; and the number of images."""
    theirs, side = loaders(folder, size), int(size * 256 / 224)
    images = read_once(find(folder), side).images
    count, random = len(images), torch.Generator().manual_seed(0)
    assert count == len(ImageFolder(str(folder))), "an image cannot be decoded: the two sides would differ"

    def ours() -> dict[str, float]:
        return {
            "ours, reading": seconds(lambda: read_once(find(folder), side)),
            "ours, training": seconds(lambda: consume(training_batches(images, size, random), count, size)),
            "ours, features": seconds(lambda: consume(feature_batches(images, size), count, size)),
        }

    def others() -> dict[str, float]:
        return {
            "theirs, listing": seconds(lambda: ImageFolder(str(folder))),
            **{
                f"theirs, {name}": seconds(lambda loader=loader: consume((b for b, _ in loader), count, size))
                for name, loader in theirs.items()
            },
        }

    taken: dict[str, list[float]] = {}
    for repeat in range(-1, repeats):
        for side_of in (ours, others) if repeat % 2 else (others, ours):
            for name, value in side_of().items():
                if repeat >= 0:
                    taken.setdefault(name, []).append(round(value, 4))
    return taken | {"images": [count]}


def compare(taken: dict[str, list[float]]) -> dict[str, dict[str, float | str]]:
    """Images per second of both sides, their ratio, and the least and largest ratio of a repeat."""
    count, reading, listing = taken["images"][0], taken["ours, reading"], taken["theirs, listing"]
    none = [0.0] * len(reading)
    found: dict[str, dict[str, float | str]] = {}
    for kind in ("training", "features"):
        opponent = min(
            (f"{kind}, {workers} workers" for workers in WORKERS), key=lambda name: median(taken[f"theirs, {name}"])
        )
        for stage, before, theirs_before in (("first round", reading, listing), ("later rounds", none, none)):
            ours = [count / (a + b) for a, b in zip(before, taken[f"ours, {kind}"], strict=True)]
            theirs = [count / (a + b) for a, b in zip(theirs_before, taken[f"theirs, {opponent}"], strict=True)]
            ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
            found[f"{kind}, {stage}"] = {
                "ours_images_per_second": round(median(ours)),
                "theirs_images_per_second": round(median(theirs)),
                "opponent": opponent,
                "ratio": round(median(ours) / median(theirs), 2),
                "least_ratio": round(min(ratios), 2),
                "largest_ratio": round(max(ratios), 2),
            }
    return found


def copied(folder: Path, limit: int, place: Path) -> Path:
    """The folder itself, or copies of ``limit`` of its files, evenly over the sorted list."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if limit >= len(files):
        return folder
    for i in range(limit):
        file = files[i * len(files) // limit]
        (place / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place / file.relative_to(folder))
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="NAME PATH SIZE")
    parser.add_argument("--limit", type=int, default=10**9, help="images of a set, at most")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if len(options.sets) % 3:
        parser.error("give NAME PATH SIZE, once or more often")
    keep_freed_memory()  # as the command does; for both sides
    results = {}
    for name, path, size in zip(*(options.sets[start::3] for start in range(3)), strict=True):
        with tempfile.TemporaryDirectory() as place:
            taken = measure(copied(Path(path), options.limit, Path(place)), int(size), options.repeats)
        results[name] = {"size": int(size), "rates": compare(taken), "seconds": taken}
        print(f"{name}, {taken['images'][0]:,} images, {size} px; images per second, float32 and normalised")
        for title, row in results[name]["rates"].items():
            print(
                f"  {title:24} ours {row['ours_images_per_second']:>7,}  theirs {row['theirs_images_per_second']:>7,}"
                f" ({row['opponent'].partition(', ')[2]})"
                f"  ratio {row['ratio']:.2f} ({row['least_ratio']:.2f} .. {row['largest_ratio']:.2f})"
            )
    save("feeding", {"repeats": options.repeats, "limit": options.limit, "sets": results})


if __name__ == "__main__":
    main()
