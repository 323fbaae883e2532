"""How fast is k-means? Ours against faiss, scikit-learn and plain torch, from the same start.

    python benchmarks/kmeans.py IMAGES [--case N,K,REPEATS,ITERATIONS ...] [--only NAME ...]

Data: features of an untrained ResNet-18 for the images (64 px), PCA-whitened to 256 dimensions, rows of length 1. More
rows than images are copies with noise of .7 of a row's length. Every contender runs the iterations and one assignment.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from contenders import Contender, best_coretype, forget_peak_memory, peak_memory, race, ratio, serve
from image_features import Matrix, load_or_make

CASES = ("50000,100,7,20", "50000,1000,5,20", "200000,1000,3,20", "320000,10000,1,20")


def timed(folder: str, warming: bool, cluster: Callable[[Matrix, Matrix], tuple[Any, Any]]) -> dict[str, float]:
    """Seconds and extra memory (MB) of cluster(x, start) -> (labels, centroids), and its objective, by float64."""
    x, start = np.load(f"{folder}/x.npy"), np.load(f"{folder}/start.npy")
    if warming:
        cluster(x[:5000], start[:50])
        return {}
    before = forget_peak_memory()
    begin = time.perf_counter()
    labels, centroids = cluster(x, start)
    seconds = time.perf_counter() - begin
    extra = peak_memory() - before
    parts = [slice(i, i + 8192) for i in range(0, len(x), 8192)]
    objective = sum(float(np.square(x[part].astype("d") - centroids[labels[part]]).sum()) for part in parts)
    return {"seconds": round(seconds, 4), "extra_mb": round(extra / 1e6, 1), "objective": objective}


def ours(folder: str, warming: bool, iterations: int) -> dict[str, float]:
    import torch

    from deepcluster.clustering import kmeans

    def cluster(x: Matrix, start: Matrix) -> tuple[Any, Any]:
        found = kmeans(x, len(start), start=torch.from_numpy(start), iterations=iterations)
        return found.labels.numpy(), found.centroids.numpy()

    return timed(folder, warming, cluster)


def with_faiss(folder: str, warming: bool, iterations: int) -> dict[str, float]:
    import faiss

    def cluster(x: Matrix, start: Matrix) -> tuple[Any, Any]:
        # Without subsampling, which faiss does by default from 256 rows a centroid on.
        found = faiss.Kmeans(x.shape[1], len(start), niter=iterations, max_points_per_centroid=10**9)
        found.train(x, init_centroids=start)
        return found.index.search(x, 1)[1][:, 0], found.centroids

    return timed(folder, warming, cluster)


def with_sklearn(folder: str, warming: bool, iterations: int) -> dict[str, float]:
    import warnings

    from sklearn.cluster import KMeans

    def cluster(x: Matrix, start: Matrix) -> tuple[Any, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = KMeans(len(start), init=start, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd").fit(x)
        return found.labels_, found.cluster_centers_

    return timed(folder, warming, cluster)


def plain_torch(folder: str, warming: bool, iterations: int) -> dict[str, float]:
    import torch

    def nearest(x: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
        halves = centroids.square().sum(1) / 2
        return torch.cat([torch.addmm(halves, part, centroids.T, alpha=-1).argmin(1) for part in x.split(4096)])

    def cluster(x: Matrix, start: Matrix) -> tuple[Any, Any]:
        rows, centroids = torch.from_numpy(x), torch.from_numpy(start)
        for _ in range(iterations):
            labels = nearest(rows, centroids)
            sums = torch.zeros_like(centroids).index_add_(0, labels, rows)
            sizes = torch.bincount(labels, minlength=len(centroids)).unsqueeze(1)
            centroids = torch.where(sizes > 0, sums / sizes, centroids)
        return nearest(rows, centroids).numpy(), centroids.numpy()

    return timed(folder, warming, cluster)


def gemm(folder: str, warming: bool, iterations: int) -> dict[str, float]:
    """The best rate (GFLOP/s) of this process at 1024 x 256 x K, float32, with both threads at work."""
    import torch
    from torch.nn import functional as F

    from deepcluster.clustering.matmul import product

    k = len(np.load(f"{folder}/start.npy", mmap_mode="r"))

    def best(rows: torch.Tensor, weight: torch.Tensor, offset: torch.Tensor) -> int:
        ours = product(weight, offset)
        calls: list[Callable[[], object]] = [
            lambda: ours(rows),
            lambda: F.linear(rows, weight, offset),
            lambda: np.matmul(rows.numpy(), weight.numpy().T),
        ]
        seconds = []
        for call in calls * 40:
            begin = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begin)
        return round(2 * len(rows) * weight.numel() / min(seconds) / 1e9)

    return {"gflops_fp32": best(torch.randn(1024, 256), torch.randn(k, 256), torch.randn(k))}


def search_rate(folder: str, warming: bool, iterations: int) -> dict[str, float]:
    """Seconds of one flat search by faiss: which kernels does its OpenBLAS choose?"""
    import faiss

    x, start = np.load(f"{folder}/x.npy", mmap_mode="r")[:16384], np.load(f"{folder}/start.npy")
    index = faiss.IndexFlatL2(x.shape[1])
    index.add(start)
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        index.search(np.ascontiguousarray(x), 1)
        seconds.append(time.perf_counter() - begin)
    return {"seconds": min(seconds)}


CONTENDERS = {
    "ours": Contender("ours", {}),
    "faiss": Contender("faiss", {}),  # at its best: main() adds the environment
    "faiss as shipped": Contender("faiss", {}),
    "sklearn": Contender("sklearn", {}),
    "torch": Contender("torch", {}),
}
FUNCTIONS = {
    "ours": ours, "faiss": with_faiss, "sklearn": with_sklearn, "torch": plain_torch,
    "gemm": gemm, "search_rate": search_rate,
}  # fmt: skip


def prepare(features: Matrix, rows: int, k: int, folder: Path) -> None:
    import torch

    from deepcluster.clustering import whiten

    x = torch.from_numpy(features)
    reduced = whiten(x, 256)(x)
    random = torch.Generator().manual_seed(0)
    copies = reduced[torch.arange(rows) % len(reduced)]
    if rows > len(reduced):
        noise = torch.randn(copies.shape, generator=random) * (0.7 / 256**0.5)
        noise[: len(reduced)] = 0
        copies = torch.nn.functional.normalize(copies + noise)
    np.save(folder / "x.npy", copies.numpy())
    np.save(folder / "start.npy", copies[torch.randperm(rows, generator=random)[:k]].numpy())


def main() -> None:
    if serve(FUNCTIONS):
        return
    from common import save

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("--name", default="kmeans", help="of the file of results")
    parser.add_argument("--case", action="append", help="N,K,REPEATS,ITERATIONS")
    parser.add_argument("--only", nargs="*", default=list(CONTENDERS))
    parser.add_argument("--features", type=Path, help="keep the features of the images in this file")
    arguments = parser.parse_args()
    features = load_or_make(arguments.images, arguments.features)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case in arguments.case or CASES:
            rows, k, repeats, iterations = map(int, case.split(","))
            prepare(features, rows, k, folder)
            results[f"{rows} x 256, K={k}"] = compare(folder, rows, k, repeats, iterations, arguments.only)
    save(arguments.name, {"cases": results})


def compare(folder: Path, rows: int, k: int, repeats: int, iterations: int, only: list[str]) -> dict[str, Any]:
    where = {"folder": str(folder), "iterations": iterations}
    print(f"{rows} x 256, K={k}, {iterations} iterations")
    best = best_coretype(__file__, "search_rate", **where)
    contenders = {**CONTENDERS, "faiss": Contender("faiss", {"OPENBLAS_CORETYPE": best} if best else {})}
    runs = race(__file__, {name: contenders[name] for name in only}, repeats, **where)
    (peak,) = race(__file__, {"gemm": Contender("gemm", {})}, 1, **where)["gemm"]
    table = {}
    for name, results in runs.items():
        seconds = [result["seconds"] for result in results]
        row: dict[str, Any] = {
            "seconds": median(seconds),
            "spread": [min(seconds), max(seconds)],
            "extra_mb": max(result["extra_mb"] for result in results),
            "gflops": round(2 * rows * 256 * k * (iterations + 1) / median(seconds) / 1e9),
            "objective": results[0]["objective"],
        }
        if "ours" in runs:
            row["ours against it"] = ratio([result["seconds"] for result in runs["ours"]], seconds)
        if "faiss" in runs:
            row["objective_over_faiss_percent"] = round(100 * (row["objective"] / runs["faiss"][0]["objective"] - 1), 4)
        table[name] = row
        print(f"{name:18s}", row, flush=True)
    if "ours" in table:
        table["ours"]["fraction_of_best_gemm"] = round(table["ours"]["gflops"] / peak["gflops_fp32"], 3)
    return {"repeats": repeats, "iterations": iterations, "faiss_coretype": best or "unset", "gemm": peak, **table}


if __name__ == "__main__":
    main()
