"""How fast are k-means and whitening? Ours against faiss and scikit-learn.

    python benchmarks/kmeans.py IMAGES --case N,K,REPEATS,ITERATIONS ...
    python benchmarks/kmeans.py IMAGES --whiten --case WIDTH,REPEATS ...

Data: 512 features of an untrained ResNet-18 for the images (64 px). k-means takes them PCA-whitened to 256 dimensions,
rows of length 1; more rows than images are copies with noise of .7 of a row's length. All contenders start from the
same centroids, and run the iterations and one assignment.

--whiten: fit, map and normalise all rows; wider features are a random layer of ReLU units on top. The error is the
largest difference between the covariance of the mapped rows, by float64 and divided by its mean variance, and the
identity.
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import parser_of, save
from contenders import Task, best_coretype, peak_memory, race, summary

Matrix = npt.NDArray[np.float32]
Map = Callable[[Matrix], Matrix]
DIMS = 256


def measured(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return the result of ``work``, its seconds and the extra memory (MB)."""
    before = peak_memory(anew=True)
    begin = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - begin
    return result, {"seconds": round(seconds, 4), "extra_mb": round((peak_memory() - before) / 1e6, 1)}


# ---- k-means --------------------------------------------------------------------------------------------------------


def timed(
    cluster: Callable[[Matrix, Matrix, int], tuple[Any, Any]], *, folder: str, warming: bool, iterations: int
) -> dict[str, float]:
    """Return the measures and the objective (float64) of cluster(x, start, iterations) -> (labels, centroids)."""
    x, start = np.load(f"{folder}/x.npy"), np.load(f"{folder}/start.npy")
    if warming:
        cluster(x[:5000], start[:50], iterations)
        return {}
    (labels, centroids), measures = measured(lambda: cluster(x, start, iterations))
    parts = [slice(i, i + 8192) for i in range(0, len(x), 8192)]
    objective = sum(float(np.square(x[part].astype("d") - centroids[labels[part]]).sum()) for part in parts)
    return {**measures, "objective": objective}


def ours(**task: Any) -> dict[str, float]:
    from deepcluster.runtime.devices import keep_freed_memory

    keep_freed_memory()  # as the command does, before it has rows
    return timed(our_kmeans, **task)


def our_kmeans(x: Matrix, start: Matrix, iterations: int) -> tuple[Any, Any]:
    import torch

    from deepcluster.clustering import kmeans

    clustering = kmeans(x, len(start), start=torch.from_numpy(start), iterations=iterations)
    return clustering.labels.numpy(), clustering.centroids.numpy()


def with_faiss(x: Matrix, start: Matrix, iterations: int) -> tuple[Any, Any]:
    import faiss

    # Without subsampling, which faiss does by default from 256 rows a centroid on.
    kmeans = faiss.Kmeans(x.shape[1], len(start), niter=iterations, max_points_per_centroid=10**9)
    kmeans.train(x, init_centroids=start)
    return kmeans.index.search(x, 1)[1][:, 0], kmeans.centroids


def with_sklearn(x: Matrix, start: Matrix, iterations: int) -> tuple[Any, Any]:
    import warnings

    from sklearn.cluster import KMeans

    with warnings.catch_warnings(action="ignore"):
        kmeans = KMeans(len(start), init=start, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd").fit(x)
    return kmeans.labels_, kmeans.cluster_centers_


def prepare(features: Matrix, rows: int, k: int, folder: Path) -> None:
    """Write the reduced features and the centroids that all start from."""
    import torch

    from deepcluster.clustering import whiten

    x = torch.from_numpy(features)
    reduced = whiten(x, DIMS)(x)
    random = torch.Generator().manual_seed(0)
    copies = reduced[torch.arange(rows) % len(reduced)]
    if rows > len(reduced):
        noise = torch.randn(copies.shape, generator=random) * (0.7 / DIMS**0.5)
        noise[: len(reduced)] = 0
        copies = torch.nn.functional.normalize(copies + noise)
    np.save(folder / "x.npy", copies.numpy())
    np.save(folder / "start.npy", copies[torch.randperm(rows, generator=random)[:k]].numpy())


# ---- whitening ------------------------------------------------------------------------------------------------------


def timed_whitening(fit: Callable[[Matrix], tuple[Map, Map]], *, folder: str, warming: bool) -> dict[str, float]:
    """Return the measures and the error of fit(x) -> the whitening, and the same with L2 behind it."""
    x = np.load(f"{folder}/x.npy")
    if warming:
        part = x[:2000, :512]
        fit(part)[1](part)
        return {}

    def work() -> tuple[Map, Matrix]:
        whiten, reduce = fit(x)
        return whiten, reduce(x)

    (whiten, reduced), measures = measured(work)
    measures["extra_mb"] = round(measures["extra_mb"] - reduced.nbytes / 1e6)
    whitened = whiten(x)
    parts = [whitened[i : i + 8192].astype(np.float64) for i in range(0, len(x), 8192)]
    mean = sum(part.sum(0) for part in parts) / len(x)
    gram = sum((part - mean).T @ (part - mean) for part in parts) / (len(x) - 1)
    gram /= np.trace(gram) / DIMS  # faiss divides by the square root of N - 1 too
    error = float(np.abs(gram - np.eye(DIMS)).max())
    return {**measures, "error": error}


def our_whitening(x: Matrix) -> tuple[Map, Map]:
    import torch

    from deepcluster.clustering import whiten

    fitted = whiten(torch.from_numpy(x), DIMS)
    return lambda y: fitted(torch.from_numpy(y), unit=False).numpy(), lambda y: fitted(torch.from_numpy(y)).numpy()


def faiss_whitening(x: Matrix) -> tuple[Map, Map]:
    import faiss

    fitted = faiss.PCAMatrix(x.shape[1], DIMS, -0.5)
    fitted.train(x)

    def reduce(y: Matrix) -> Matrix:
        reduced = fitted.apply(y)
        faiss.normalize_L2(reduced)
        return reduced

    return fitted.apply, reduce


def sklearn_whitening(x: Matrix) -> tuple[Map, Map]:
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import normalize

    fitted = PCA(DIMS, whiten=True, svd_solver="covariance_eigh").fit(x)
    return fitted.transform, lambda y: normalize(fitted.transform(y), copy=False)


def widen(features: Matrix, width: int) -> Matrix:
    """Return ``width`` random ReLU units on top of the standardised features, or the features if they are as wide."""
    if features.shape[1] == width:
        return features
    random = np.random.default_rng(0)
    standard = (features - features.mean(0)) / (features.std(0) + 1e-6)
    weight = random.standard_normal((features.shape[1], width), np.float32) / features.shape[1] ** 0.5
    return np.maximum(standard @ weight, 0, dtype=np.float32)


# ---- the comparison -------------------------------------------------------------------------------------------------

# "faiss" runs at its best: compare() sets its core type.
CLUSTERING: dict[str, Task] = {
    "ours": ours,
    "faiss": partial(timed, with_faiss),
    "faiss as shipped": partial(timed, with_faiss),
    "sklearn": partial(timed, with_sklearn),
}
WHITENING: dict[str, Task] = {
    "ours": partial(timed_whitening, our_whitening),
    "faiss": partial(timed_whitening, faiss_whitening),
    "sklearn": partial(timed_whitening, sklearn_whitening),
}


def features_of(images: str) -> Matrix:
    """Return N x 512 features of an untrained ResNet-18 whose batch normalisation has seen 2,500 images."""
    import torch

    from deepcluster.images import find
    from deepcluster.images.store import read_once
    from deepcluster.learning.features import extract
    from deepcluster.nets.network import build
    from deepcluster.runtime.compute import Compute

    store = read_once(find(images), 64)
    random = torch.Generator().manual_seed(0)
    network = build("timm:resnet18", image_size=64, seed=0).to(memory_format=torch.channels_last)
    network.train()
    with torch.no_grad():
        for part in store.images[torch.randperm(len(store.images), generator=random)[:2500]].split(250):
            network.features(part.float() / 255)
    compute = Compute.of(network, store.images, batch_size=250, dtype=torch.bfloat16)
    return np.asarray(extract(network, store.images, compute).float().numpy())


def compare(contenders: dict[str, Task], repeats: int, **task: Any) -> dict[str, Any]:
    best = best_coretype(contenders["faiss"], **task)
    table = summary(race(contenders, repeats, {"faiss": best}, **task))
    return {"repeats": repeats, "faiss_coretype": best or "unset", **table}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("images")
    parser.add_argument("--whiten", action="store_true")
    parser.add_argument("--case", action="append", required=True, help="N,K,REPEATS,ITERATIONS, or WIDTH,REPEATS")
    arguments = parser.parse_args()
    features = features_of(arguments.images)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in arguments.case:
            numbers = list(map(int, case.split(",")))
            if arguments.whiten:
                width, repeats = numbers
                np.save(f"{folder}/x.npy", widen(features, width))
                title = f"{len(features)} x {width} to {DIMS}"
                results[title] = compare(WHITENING, repeats, folder=folder)
            else:
                rows, k, repeats, iterations = numbers
                prepare(features, rows, k, Path(folder))
                results[f"{rows} x 256, K={k}"] = compare(CLUSTERING, repeats, folder=folder, iterations=iterations)
            print(list(results)[-1], flush=True)
    save("whitening" if arguments.whiten else "kmeans", {"cases": results})


if __name__ == "__main__":
    main()
