"""How long does a round take, against its floor and the published procedure? And a pass of a network without training?

    python benchmarks/round.py round NAME IMAGES BACKBONE SIZE STORE_SIZE [--limit N] [--clusters K] [--repeats R]
    python benchmarks/round.py pass [NETWORK ...] [--size 144] [--images 128] [--repeats 7] [--threads 1]

round. ours: a round of `alternate` from the second on (features, whitening, k-means, training). floor: the same network
forward over N and forward and backward over N, in the same precision, on views in memory: no images, no clustering, no
optimizer. published: the procedure of the paper's code on today's libraries, written for this comparison: ImageFolder
and DataLoader (2 workers) decode every image twice a round, one transform at a time; faiss whitens and clusters; lists
of lists of images; a sampler in Python; float32. published bf16: the same in channels-last and bfloat16.

pass. Features of stored uint8 images by ``extract``, which a run and ``predict`` use; by plain torch in batches of 64;
and by onnxruntime in batches of 64, 8 and 4, of which the fastest counts. With one thread the time of the processor is
taken, which other programs disturb least; with more, the time of the clock.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from common import parser_of, paths_of, save
from contenders import Task, race, summary
from torch import Tensor, nn
from torch.nn import functional as F

from deepcluster.algorithm import alternate
from deepcluster.export.onnx import silent
from deepcluster.images import find
from deepcluster.images.store import read_once
from deepcluster.images.views import Augmentation, fixed_view
from deepcluster.learning import Learning
from deepcluster.learning.features import extract
from deepcluster.learning.training import network_precision
from deepcluster.nets.network import build
from deepcluster.nets.timm import channels_last
from deepcluster.runtime.compute import Compute, Stopwatch
from deepcluster.runtime.devices import keep_freed_memory

BATCH, PASS_BATCH = 128, 64
STATE: dict[str, Any] = {}  # of a contender, from one round to the next


def settings(of: dict[str, Any], *, keep: bool) -> tuple[list[Path], Any, torch.dtype]:
    """Return the images, the network and the precision that all contenders share."""
    if keep:
        keep_freed_memory()  # as the command does
    network = build(of["backbone"], image_size=of["size"], seed=0).to(memory_format=torch.channels_last)
    return paths_of(of["images"], of["limit"]), network, network_precision(network, torch.device("cpu"))


# ---- ours -----------------------------------------------------------------------------------------------------------


def ours(**of: Any) -> dict[str, Any]:
    if not STATE:
        paths, network, dtype = settings(of, keep=True)
        store = read_once(find(paths), of["store_size"])
        views = [Augmentation(crop=(0.3, 1.0), colour=0.4, grey=0.1)]
        STATE["watch"] = Stopwatch()
        STATE["rounds"] = alternate(
            network, store.images, clusters=of["clusters"], rounds=1000, patience=1000,
            learning=Learning(batch_size=BATCH, views=views, reuse_features=of.get("features") == "memory"),
            compute=Compute.of(
                network, store.images, size=of["size"], batch_size=BATCH, dtype=dtype, progress=STATE["watch"]
            ),
        )  # fmt: skip
    STATE["watch"].start()
    next(STATE["rounds"])
    seconds = STATE["watch"].seconds()
    return {"seconds": sum(seconds.values()), **{f"{step}_seconds": value for step, value in seconds.items()}}


# ---- the floor ------------------------------------------------------------------------------------------------------


def floor(**of: Any) -> dict[str, Any]:
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


def published(dtype: str = "float32", **of: Any) -> dict[str, Any]:
    import faiss
    from torchvision import transforms
    from torchvision.datasets.folder import default_loader

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

    def loader(samples: list[tuple[str, int]], steps: list[Any], sampler: Any = None) -> Any:
        transform = transforms.Compose(steps)

        def read(batch: list[tuple[str, int]]) -> tuple[Tensor, Tensor]:  # one image after the other, in a worker
            views = torch.stack([transform(default_loader(path)) for path, _ in batch])
            return views, torch.tensor([label for _, label in batch])

        return torch.utils.data.DataLoader(
            samples, BATCH, sampler=sampler, num_workers=2, collate_fn=read, multiprocessing_context="fork"
        )

    begin = time.perf_counter()
    network.eval()
    features = np.zeros((0, 0), np.float32)
    with torch.no_grad(), halves:
        for i, (views, _) in enumerate(loader([(path, 0) for path in paths], central)):
            batch = body(views).float().numpy()
            if i == 0:
                features = np.zeros((len(paths), batch.shape[1]), np.float32)
            features[i * BATCH : i * BATCH + len(batch)] = batch
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


CONTENDERS: dict[str, Task] = {
    "ours": ours,
    "ours, memory": partial(ours, features="memory"),
    "floor": floor,
    "published": published,
    "published bf16": partial(published, dtype="bfloat16"),
}


# ---- a pass of a network that does not learn -----------------------------------------------------------------------


class Features(nn.Module):
    """From images as they are stored to features."""

    def __init__(self, network: Any, size: int):
        super().__init__()
        self.network, self.size = network, size

    def forward(self, images: Tensor) -> Tensor:
        return self.network.features(fixed_view(images, self.size))


def exported(module: Features, images: Tensor, threads: int) -> Any:
    import onnxruntime

    with silent():
        program = torch.onnx.export(
            module, (images[:2],), input_names=["images"], opset_version=18, dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("N")},), verbose=False,
        )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    content = program.model_proto.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def measured(name: str, size: int, count: int, repeats: int, threads: int) -> dict[str, float]:
    """Return images a second for each way."""
    side = size * 8 // 7
    images = torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(0)).byte()
    session = exported(Features(build(name, image_size=size), size).eval(), images, threads)
    network = channels_last(build(name, image_size=size).eval())
    features = Features(network, size)

    @torch.no_grad()
    def by_torch() -> Tensor:
        return torch.cat([features(part) for part in images.split(PASS_BATCH)])

    def by_onnxruntime(batch: int) -> Tensor:
        parts = [session.run(None, {"images": part.numpy()})[0] for part in images.split(batch)]
        return torch.cat([torch.from_numpy(part) for part in parts])

    ways: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: extract(network, images, Compute.of(network, images, size=size, batch_size=PASS_BATCH)),
        "torch": by_torch,
        **{f"onnxruntime {batch}": partial(by_onnxruntime, batch) for batch in (64, 8, 4)},
    }
    expected = ways["torch"]()
    clock = time.process_time if threads == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for way, run in ways.items():
        apart = (run() - expected).abs().max() / expected.abs().max()
        assert apart < 1e-3, (way, apart)
    for _ in range(repeats):
        for way, run in ways.items():
            begin = clock()
            run()
            seconds[way].append(clock() - begin)
    best = min((way for way in ways if way.startswith("onnx")), key=lambda way: median(seconds[way]))
    ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds[best], strict=True)]
    result = {way: round(count / median(values), 1) for way, values in seconds.items()}
    return result | {"ours / onnxruntime": round(median(ratios), 2)}


def compare_rounds(arguments: argparse.Namespace) -> None:
    of = {name: getattr(arguments, name) for name in ("images", "backbone", "size", "store_size", "limit", "clusters")}
    table = summary(race(CONTENDERS, arguments.repeats, **of))
    save(f"round_{arguments.name}", {**of, "batch": BATCH, "repeats": arguments.repeats, **table})


def compare_passes(arguments: argparse.Namespace) -> None:
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    rows = {}
    for name in arguments.networks:
        rows[name] = measured(name, arguments.size, arguments.images, arguments.repeats, arguments.threads)
        print(name, rows[name], flush=True)
    shown = {name: getattr(arguments, name) for name in ("size", "images", "repeats", "threads")}
    save(f"pass_{arguments.size}", {**shown, "images_per_second": rows})


def main() -> None:
    parser = parser_of(__doc__)
    questions = parser.add_subparsers(required=True)
    command = questions.add_parser("round")
    command.set_defaults(compare=compare_rounds)
    for name in ("name", "images", "backbone"):
        command.add_argument(name)
    for name in ("size", "store_size"):
        command.add_argument(name, type=int)
    command.add_argument("--limit", type=int, help="number of images, a random sample (default: all)")
    command.add_argument("--clusters", type=int, default=100)
    command.add_argument("--repeats", type=int, default=5)
    command = questions.add_parser("pass")
    command.set_defaults(compare=compare_passes)
    command.add_argument("networks", nargs="*", default=["timm:tf_efficientnet_lite0"])
    command.add_argument("--size", type=int, default=144)
    command.add_argument("--images", type=int, default=128)
    command.add_argument("--repeats", type=int, default=7)
    command.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    arguments.compare(arguments)


if __name__ == "__main__":
    main()
