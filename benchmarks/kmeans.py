"""How fast are k-means and whitening? Ours against faiss and scikit-learn.

    python benchmarks/kmeans.py IMAGES [--case N,K,REPEATS,ITERATIONS ...]
    python benchmarks/kmeans.py IMAGES --whiten [--case WIDTH,REPEATS ...]

Data: 512 features of an untrained ResNet-18 for the images (64 px). k-means takes them PCA-whitened to 256 dimensions,
rows of length 1; more rows than images are copies with noise of .7 of a row's length. All contenders start from the
same centroids, and run the iterations and one assignment.

--whiten: fit, map and normalise all rows; wider features are a random layer of ReLU units on top. The error is the
largest difference between the covariance of the mapped rows, by float64 and divided by its mean variance, and the
identity.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import save
from contenders import Contender, best_coretype, forget_peak_memory, peak_memory, race, serve, summary

Matrix = npt.NDArray[np.float32]
Map = Callable[[Matrix], Matrix]
DIMS = 256
CASES = {"cluster": ("50000,100,7,20", "50000,1000,5,20", "200000,1000,3,20"), "whiten": ("512,7", "4096,3")}


def measured(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return the result of ``work``, its seconds and the extra memory (MB)."""
    before = forget_peak_memory()
    begin = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - begin
    return result, {"seconds": round(seconds, 4), "extra_mb": round((peak_memory() - before) / 1e6, 1)}


# ---- k-means --------------------------------------------------------------------------------------------------------


def timed(folder: str, warming: bool, cluster: Callable[[Matrix, Matrix], tuple[Any, Any]]) -> dict[str, float]:
    """Return the measures and the objective (float64) of cluster(x, start) -> (labels, centroids)."""
    x, start = np.load(f"{folder}/x.npy"), np.load(f"{folder}/start.npy")
    if warming:
        cluster(x[:5000], start[:50])
        return {}
    (labels, centroids), measures = measured(lambda: cluster(x, start))
    parts = [slice(i, i + 8192) for i in range(0, len(x), 8192)]
    objective = sum(float(np.square(x[part].astype("d") - centroids[labels[part]]).sum()) for part in parts)
    return {**measures, "objective": objective}


def ours(folder: str, warming: bool, iterations: int) -> dict[str, float]:
    import torch

    from deepcluster.clustering import kmeans
    from deepcluster.runtime.devices import keep_freed_memory

    keep_freed_memory()  # as the command does

    def cluster(x: Matrix, start: Matrix) -> tuple[Any, Any]:
        clustering = kmeans(x, len(start), start=torch.from_numpy(start), iterations=iterations)
        return clustering.labels.numpy(), clustering.centroids.numpy()

    return timed(folder, warming, cluster)


def with_faiss(folder: str, warming: bool, iterations: int) -> dict[str, float]:
    import faiss

    def cluster(x: Matrix, start: Matrix) -> tuple[Any, Any]:
        # Without subsampling, which faiss does by default from 256 rows a centroid on.
        kmeans = faiss.Kmeans(x.shape[1], len(start), niter=iterations, max_points_per_centroid=10**9)
        kmeans.train(x, init_centroids=start)
        return kmeans.index.search(x, 1)[1][:, 0], kmeans.centroids

    return timed(folder, warming, cluster)


def with_sklearn(folder: str, warming: bool, iterations: int) -> dict[str, float]:
    import warnings

    from sklearn.cluster import KMeans

    def cluster(x: Matrix, start: Matrix) -> tuple[Any, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kmeans = KMeans(len(start), init=start, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd").fit(x)
        return kmeans.labels_, kmeans.cluster_centers_

    return timed(folder, warming, cluster)


def search_rate(folder: str, warming: bool) -> dict[str, float]:
    """Return the seconds of one flat search by faiss, which tell the kernels of its OpenBLAS."""
    import faiss

    x = np.ascontiguousarray(np.load(f"{folder}/x.npy", mmap_mode="r")[:16384, :512])
    index = faiss.IndexFlatL2(x.shape[1])
    index.add(x[:1000])
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        index.search(x, 1)
        seconds.append(time.perf_counter() - begin)
    return {"seconds": min(seconds)}


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


def timed_whitening(folder: str, warming: bool, fit: Callable[[Matrix], tuple[Map, Map]]) -> dict[str, float]:
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


def our_whitening(folder: str, warming: bool) -> dict[str, float]:
    import torch

    from deepcluster.clustering import whiten

    def fit(x: Matrix) -> tuple[Map, Map]:
        fitted = whiten(torch.from_numpy(x), DIMS)
        return lambda y: fitted(torch.from_numpy(y), unit=False).numpy(), lambda y: fitted(torch.from_numpy(y)).numpy()

    return timed_whitening(folder, warming, fit)


def faiss_whitening(folder: str, warming: bool) -> dict[str, float]:
    import faiss

    def fit(x: Matrix) -> tuple[Map, Map]:
        fitted = faiss.PCAMatrix(x.shape[1], DIMS, -0.5)
        fitted.train(x)

        def reduce(y: Matrix) -> Matrix:
            reduced = fitted.apply(y)
            faiss.normalize_L2(reduced)
            return reduced

        return fitted.apply, reduce

    return timed_whitening(folder, warming, fit)


def sklearn_whitening(folder: str, warming: bool) -> dict[str, float]:
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import normalize

    def fit(x: Matrix) -> tuple[Map, Map]:
        fitted = PCA(DIMS, whiten=True, svd_solver="covariance_eigh").fit(x)
        return fitted.transform, lambda y: normalize(fitted.transform(y), copy=False)

    return timed_whitening(folder, warming, fit)


def widen(features: Matrix, width: int) -> Matrix:
    """Return ``width`` random ReLU units on top of the standardised features, or the features if they are as wide."""
    if features.shape[1] == width:
        return features
    random = np.random.default_rng(0)
    standard = (features - features.mean(0)) / (features.std(0) + 1e-6)
    weight = random.standard_normal((features.shape[1], width), np.float32) / features.shape[1] ** 0.5
    return np.maximum(standard @ weight, 0, dtype=np.float32)


# ---- the comparison -------------------------------------------------------------------------------------------------

# "faiss" runs at its best: compare() adds the environment.
CLUSTERING = {"ours": ours, "faiss": with_faiss, "faiss as shipped": with_faiss, "sklearn": with_sklearn}
WHITENING = {"ours": our_whitening, "faiss": faiss_whitening, "sklearn": sklearn_whitening}
FUNCTIONS: dict[str, Callable[..., dict[str, float]]] = {
    function.__name__: function for function in (*CLUSTERING.values(), *WHITENING.values(), search_rate)
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
    network = build("timm:resnet18", image_size=64, seed=0).to(memory_format=torch.channels_last)
    network.train()
    with torch.no_grad():
        for part in store.images[torch.randperm(len(store.images))[:2500]].split(250):
            network.features(part.float() / 255)
    compute = Compute.of(network, store.images, batch_size=250, dtype=torch.bfloat16)
    return np.asarray(extract(network, store.images, compute).float().numpy())


def compare(functions: dict[str, Any], repeats: int, folder: str, **task: Any) -> dict[str, Any]:
    best = best_coretype(__file__, "search_rate", folder=folder)
    contenders = {name: Contender(function.__name__, {}) for name, function in functions.items()}
    contenders["faiss"] = Contender(functions["faiss"].__name__, {"OPENBLAS_CORETYPE": best} if best else {})
    table = summary(race(__file__, contenders, repeats, folder=folder, **task))
    return {"repeats": repeats, "faiss_coretype": best or "unset", **table}


def main() -> None:
    if serve(FUNCTIONS):
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("--whiten", action="store_true")
    parser.add_argument("--case", action="append", help="N,K,REPEATS,ITERATIONS, or WIDTH,REPEATS")
    arguments = parser.parse_args()
    features = features_of(arguments.images)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in arguments.case or CASES["whiten" if arguments.whiten else "cluster"]:
            numbers = list(map(int, case.split(",")))
            if arguments.whiten:
                width, repeats = numbers
                np.save(f"{folder}/x.npy", widen(features, width))
                title = f"{len(features)} x {width} to {DIMS}"
                results[title] = compare(WHITENING, repeats, folder)
            else:
                rows, k, repeats, iterations = numbers
                prepare(features, rows, k, Path(folder))
                results[f"{rows} x 256, K={k}"] = compare(CLUSTERING, repeats, folder, iterations=iterations)
            print(list(results)[-1], flush=True)
    save("whitening" if arguments.whiten else "kmeans", {"cases": results})


if __name__ == "__main__":
    main()
