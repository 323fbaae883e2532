"""How fast and how exact is PCA-whitening? Ours against faiss and scikit-learn: fit, map, L2-normalise all rows.

    python benchmarks/whitening.py IMAGES [--case WIDTH,REPEATS ...] [--features FILE]

Data: 512 features of an untrained ResNet-18 for the images; wider ones are a random layer of ReLU units on top of them.
The error is the largest difference between the covariance of the mapped rows, by float64 and divided by its mean
variance, and the identity.
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

DIMS = 256
CASES = ("512,7", "4096,3")
Map = Callable[[Matrix], Matrix]


def timed(folder: str, warming: bool, fit: Callable[[Matrix], tuple[Map, Map]]) -> dict[str, float]:
    """Seconds and extra memory (MB) of fitting and mapping; fit(x) -> the whitening, and the same with L2 behind it."""
    x = np.load(f"{folder}/x.npy")
    if warming:
        part = x[:2000, :512]
        fit(part)[1](part)
        return {}
    before = forget_peak_memory()
    begin = time.perf_counter()
    whiten, reduce = fit(x)
    reduced = reduce(x)
    seconds = time.perf_counter() - begin
    extra = peak_memory() - before - reduced.nbytes
    whitened = whiten(x)
    parts = [whitened[i : i + 8192].astype(np.float64) for i in range(0, len(x), 8192)]
    mean = sum(part.sum(0) for part in parts) / len(x)
    gram = sum((part - mean).T @ (part - mean) for part in parts) / (len(x) - 1)
    gram /= np.trace(gram) / DIMS  # faiss divides by the square root of N - 1 too
    error = float(np.abs(gram - np.eye(DIMS)).max())
    return {"seconds": round(seconds, 4), "extra_mb": round(extra / 1e6), "error": error}


def ours(folder: str, warming: bool) -> dict[str, float]:
    import torch

    from deepcluster.clustering import whiten

    def fit(x: Matrix) -> tuple[Map, Map]:
        fitted = whiten(torch.from_numpy(x), DIMS)
        return lambda y: fitted.project(torch.from_numpy(y)).numpy(), lambda y: fitted(torch.from_numpy(y)).numpy()

    return timed(folder, warming, fit)


def with_faiss(folder: str, warming: bool) -> dict[str, float]:
    import faiss

    def fit(x: Matrix) -> tuple[Map, Map]:
        fitted = faiss.PCAMatrix(x.shape[1], DIMS, -0.5)
        fitted.train(x)

        def reduce(y: Matrix) -> Matrix:
            reduced = fitted.apply(y)
            faiss.normalize_L2(reduced)
            return reduced

        return fitted.apply, reduce

    return timed(folder, warming, fit)


def with_sklearn(folder: str, warming: bool) -> dict[str, float]:
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import normalize

    def fit(x: Matrix) -> tuple[Map, Map]:
        fitted = PCA(DIMS, whiten=True, svd_solver="covariance_eigh").fit(x)
        return fitted.transform, lambda y: normalize(fitted.transform(y), copy=False)

    return timed(folder, warming, fit)


def covariance(folder: str, warming: bool) -> dict[str, float]:
    """Seconds of faiss on 512 of the columns: which kernels does its OpenBLAS choose?"""
    import faiss

    x = np.ascontiguousarray(np.load(f"{folder}/x.npy", mmap_mode="r")[:16384, :512])
    begin = time.perf_counter()
    faiss.PCAMatrix(x.shape[1], DIMS, -0.5).train(x)
    return {"seconds": time.perf_counter() - begin}


FUNCTIONS = {"ours": ours, "faiss": with_faiss, "sklearn": with_sklearn, "covariance": covariance}


def widen(features: Matrix, width: int) -> Matrix:
    """``width`` random ReLU units on top of the standardised features, or the features where they are as wide."""
    if features.shape[1] == width:
        return features
    random = np.random.default_rng(0)
    standard = (features - features.mean(0)) / (features.std(0) + 1e-6)
    weight = random.standard_normal((features.shape[1], width), np.float32) / features.shape[1] ** 0.5
    return np.maximum(standard @ weight, 0, dtype=np.float32)


def main() -> None:
    if serve(FUNCTIONS):
        return
    from common import save

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("--name", default="whitening", help="of the file of results")
    parser.add_argument("--case", action="append", help="WIDTH,REPEATS")
    parser.add_argument("--features", type=Path, help="keep the features of the images in this file")
    arguments = parser.parse_args()
    features = load_or_make(arguments.images, arguments.features)
    results: dict[str, Any] = {}
    for case in arguments.case or CASES:
        width, repeats = map(int, case.split(","))
        with tempfile.TemporaryDirectory() as folder:
            np.save(f"{folder}/x.npy", widen(features, width))
            print(f"{len(features)} x {width} to {DIMS}")
            best = best_coretype(__file__, "covariance", folder=folder)
            contenders = {
                "ours": Contender("ours", {}),
                "faiss": Contender("faiss", {"OPENBLAS_CORETYPE": best} if best else {}),
                "sklearn": Contender("sklearn", {}),
            }
            runs = race(__file__, contenders, repeats, folder=folder)
        seconds = {name: [run["seconds"] for run in results] for name, results in runs.items()}
        results[f"{len(features)} x {width} to {DIMS}"] = table = {
            name: {
                "seconds": median(seconds[name]),
                "spread": [min(seconds[name]), max(seconds[name])],
                "ours against it": ratio(seconds["ours"], seconds[name]),
                "extra_mb": max(run["extra_mb"] for run in runs[name]),
                "error": max(run["error"] for run in runs[name]),
            }
            for name in contenders
        }
        for name, row in table.items():
            print(f"{name:10s}", row, flush=True)
    save(arguments.name, {"cases": results})


if __name__ == "__main__":
    main()
