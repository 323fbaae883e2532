"""What does a whole round cost, against its floor and against the published procedure?

    python benchmarks/round.py NAME IMAGES BACKBONE SIZE STORE_SIZE [--limit N] [--clusters K] [--repeats R]

ours: a round of `alternate` from the second on (features, whitening, k-means, training), in the faster precision.
floor: the same network forward over N and forward and backward over N, in the same precision, on views that lie ready
in memory: no images, no clustering, no optimizer; freed memory is kept, as in ours. published: the procedure of the
paper's code on today's libraries, written for this comparison: ImageFolder and DataLoader (2 workers) decode every
image twice a round, one transform at a time; faiss whitens and clusters; lists of lists of images; a sampler in Python;
float32. published bf16: the same with the network in channels-last and bfloat16, to see what the precision does.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from contenders import Contender, race, ratio, serve
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 128
# A little more speed is not worth eight bits, nor a choice that the noise of a measurement could turn.
CLEARLY_FASTER = 1.25
PIXELS = 128 * 32**2  # in a trial batch: enough to keep all threads at work
STATE: dict[str, Any] = {}  # what a contender keeps from one round to the next


def settings(of: dict[str, Any], *, keep: bool) -> tuple[list[Path], Any, torch.dtype]:
    """The images, the network and the precision that all contenders share."""
    from deepcluster.nets.backbone import build
    from deepcluster.runtime.devices import keep_freed_memory

    if keep:
        keep_freed_memory()  # as the command does
    kinds = (".jpg", ".jpeg", ".png", ".bmp")
    paths = sorted(path for path in Path(of["images"]).rglob("*") if path.suffix.lower() in kinds)
    paths = [paths[i] for i in np.random.default_rng(0).permutation(len(paths))[: of["limit"] or None]]
    network = build(of["backbone"], image_size=of["size"], seed=0).to(memory_format=torch.channels_last)
    return sorted(paths), network, fastest_precision(network, of["size"])


def fastest_precision(network: Any, size: int) -> torch.dtype:
    """bfloat16 or float32, by the time of training steps on a small batch; the network is left as it was."""
    from deepcluster.runtime.devices import has_bf16

    if not has_bf16(torch.device("cpu")):
        return torch.float32
    count = max(1, min(BATCH, max(8, PIXELS // size**2)))
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    training = network.training
    network.eval()
    share = seconds_of(network, images, torch.bfloat16) / seconds_of(network, images, torch.float32)
    network.train(training)
    network.zero_grad(set_to_none=True)
    return torch.bfloat16 if share * CLEARLY_FASTER < 1 else torch.float32


def seconds_of(network: Any, images: Tensor, dtype: torch.dtype) -> float:
    """The faster of two training steps, after one that warms up."""

    def step() -> float:
        begin = time.perf_counter()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            features = network.features(images)
        features.float().sum().backward()
        return time.perf_counter() - begin

    step()
    return min(step(), step())


# ---- ours -----------------------------------------------------------------------------------------------------------


def ours(warming: bool, **of: Any) -> dict[str, Any]:
    if not STATE:
        from deepcluster.algorithm import alternate
        from deepcluster.images import find
        from deepcluster.images.augment import Augmentation
        from deepcluster.images.store import read_once
        from deepcluster.learning import Learning

        paths, network, dtype = settings(of, keep=True)
        store = read_once(find(paths), of["store_size"])
        views = [Augmentation(crop=(0.3, 1.0), colour=0.4, grey=0.1)]
        STATE["rounds"] = alternate(
            network, store.images, clusters=of["clusters"], rounds=1000, size=of["size"], patience=1000,
            learning=Learning(
                batch_size=BATCH, views=views, dtype=dtype, reuse_features=of.get("features") == "memory"
            ),
        )  # fmt: skip
    begin = time.perf_counter()
    round = next(STATE["rounds"])
    parts = ("features_seconds", "clustering_seconds", "training_seconds")
    return {"seconds": time.perf_counter() - begin, **{name: getattr(round, name) for name in parts}}


def from_memory(warming: bool, **of: Any) -> dict[str, Any]:
    return ours(warming, features="memory", **of)


# ---- the floor ------------------------------------------------------------------------------------------------------


def floor(warming: bool, **of: Any) -> dict[str, Any]:
    if not STATE:
        paths, network, dtype = settings(of, keep=True)
        random = torch.Generator().manual_seed(0)
        network.new_head(of["clusters"], random)
        views = torch.rand(min(len(paths), 4096), 3, of["size"], of["size"], generator=random)
        views = views.contiguous(memory_format=torch.channels_last)
        STATE.update(network=network, dtype=dtype, views=views, count=len(paths))
    network, dtype, count = STATE["network"], STATE["dtype"], STATE["count"]
    labels = torch.zeros(BATCH, dtype=torch.int64)

    def batches() -> Iterator[Tensor]:
        for begin in range(0, count, BATCH):
            begin %= len(STATE["views"])
            yield STATE["views"][begin : begin + BATCH]

    begin = time.perf_counter()
    network.eval()
    with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        for views in batches():
            network.features(views)
    middle = time.perf_counter()
    network.train()
    for views in batches():
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = network(views)
        F.cross_entropy(logits.float(), labels[: len(views)]).backward()
        network.zero_grad()
    end = time.perf_counter()
    return {"seconds": end - begin, "features_seconds": middle - begin, "training_seconds": end - middle}


# ---- the published procedure ----------------------------------------------------------------------------------------


class PseudoLabelled(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Image files with the number of their cluster, opened and transformed one by one."""

    def __init__(self, samples: list[tuple[str, int]], transform: Any):
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from torchvision.datasets.folder import default_loader

        path, label = self.samples[index]
        return self.transform(default_loader(path)), label


def published(warming: bool, dtype: str = "float32", **of: Any) -> dict[str, Any]:
    import faiss
    from torchvision import transforms

    if not STATE:
        paths, network, _ = settings(of, keep=False)
        if dtype == "float32":
            network = network.to(memory_format=torch.contiguous_format)
        optimizer = torch.optim.SGD(network.body_parameters(), lr=0.05, momentum=0.9, weight_decay=1e-5)
        STATE.update(paths=[str(path) for path in paths], network=network, optimizer=optimizer)
    network, paths, size = STATE["network"], STATE["paths"], of["size"]
    normal = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    central = [transforms.Resize(of["store_size"]), transforms.CenterCrop(size), transforms.ToTensor(), normal]
    random = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), transforms.ToTensor(), normal]
    halves = torch.autocast("cpu", torch.bfloat16, enabled=dtype != "float32")
    body: nn.Module = network.body  # normalisation is in the transforms, as published

    def loader(samples: list[tuple[str, int]], transform: list[Any], sampler: Any = None) -> Any:
        data = PseudoLabelled(samples, transforms.Compose(transform))
        return torch.utils.data.DataLoader(data, batch_size=BATCH, sampler=sampler, num_workers=2)

    begin = time.perf_counter()
    network.eval()
    features = np.zeros((0, 0), np.float32)
    with torch.no_grad(), halves:
        for i, (views, _) in enumerate(loader([(path, 0) for path in paths], central)):
            found = body(views).float().numpy()
            if i == 0:
                features = np.zeros((len(paths), found.shape[1]), np.float32)
            features[i * BATCH : i * BATCH + len(found)] = found
    extracted = time.perf_counter()

    pca = faiss.PCAMatrix(features.shape[1], min(256, features.shape[1]), -0.5)
    pca.train(features)
    reduced = pca.apply(features)
    reduced /= np.linalg.norm(reduced, axis=1)[:, np.newaxis]
    clustering = faiss.Clustering(reduced.shape[1], of["clusters"])
    clustering.niter, clustering.max_points_per_centroid = 20, 10_000_000
    index = faiss.IndexFlatL2(reduced.shape[1])
    clustering.train(reduced, index)
    nearest = index.search(reduced, 1)[1]
    lists: list[list[int]] = [[] for _ in range(of["clusters"])]
    for i in range(len(paths)):
        lists[nearest[i][0]].append(i)
    clustered = time.perf_counter()

    samples = [(paths[image], cluster) for cluster, images in enumerate(lists) for image in images]
    at = {image: i for i, image in enumerate(image for images in lists for image in images)}
    occupied = [images for images in lists if images]
    draw, drawn = np.random.default_rng(0), list[int]()
    for images in occupied:
        drawn += [at[image] for image in draw.choice(images, len(paths) // len(occupied) + 1)]
    draw.shuffle(drawn)
    network.new_head(of["clusters"], torch.Generator().manual_seed(0))
    head_optimizer = torch.optim.SGD(network.head.parameters(), lr=0.05, weight_decay=1e-5)
    network.train()
    for views, labels in loader(samples, random, drawn[: len(paths)]):
        with halves:
            logits = network.classify(body(views))
        loss = F.cross_entropy(logits.float(), labels)
        STATE["optimizer"].zero_grad()
        head_optimizer.zero_grad()
        loss.backward()
        STATE["optimizer"].step()
        head_optimizer.step()
    end = time.perf_counter()
    return {
        "seconds": end - begin, "features_seconds": extracted - begin, "clustering_seconds": clustered - extracted,
        "training_seconds": end - clustered,
    }  # fmt: skip


def published_bf16(warming: bool, **of: Any) -> dict[str, Any]:
    return published(warming, dtype="bfloat16", **of)


FUNCTIONS = {
    "ours": ours, "ours, memory": from_memory, "floor": floor, "published": published, "published bf16": published_bf16,
}  # fmt: skip


def main() -> None:
    if serve(FUNCTIONS):
        return
    from common import save

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("images")
    parser.add_argument("backbone")
    parser.add_argument("size", type=int)
    parser.add_argument("store_size", type=int)
    parser.add_argument("--limit", type=int, default=0, help="a random sample of so many images")
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=list(FUNCTIONS))
    arguments = parser.parse_args()
    of = {name: getattr(arguments, name) for name in ("images", "backbone", "size", "store_size", "limit", "clusters")}
    runs = race(__file__, {name: Contender(name, {}) for name in arguments.only}, arguments.repeats, **of)
    table: dict[str, Any] = {}
    for name, results in runs.items():
        seconds = [result["seconds"] for result in results]
        table[name] = {
            "seconds": round(median(seconds), 2),
            "spread": [round(min(seconds), 2), round(max(seconds), 2)],
            "parts": {
                part.removesuffix("_seconds"): round(median(result[part] for result in results), 2)
                for part in results[0]
                if part.endswith("_seconds")
            },
            "ours against it": ratio([result["seconds"] for result in runs["ours"]], seconds),
        }
        print(f"{name:15s}", table[name], flush=True)
    save(f"round_{arguments.name}", {**of, "batch": BATCH, "repeats": arguments.repeats, **table})


if __name__ == "__main__":
    main()
