"""k-means against faiss in turns, in one process: random rows of length 1, float32, the same start.

    OMP_NUM_THREADS=1 python benchmarks/kmeans_turns.py [--case N,K,ITERATIONS,TURNS ...]

Processor time, so that other work on the machine matters less. For a processor without AVX-512 set the variables that
benchmarks/README.md names.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import faiss
import numpy as np
import torch

from deepcluster.clustering import kmeans

WIDTH = 256


def seconds(cluster: Callable[[], float]) -> tuple[float, float]:
    """Processor time, and the objective."""
    begin = time.process_time()
    objective = cluster()
    return time.process_time() - begin, objective


def race(count: int, k: int, iterations: int, turns: int) -> str:
    rows = np.random.default_rng(0).standard_normal((count, WIDTH), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    start = rows[np.random.default_rng(1).permutation(count)[:k]].copy()

    def ours() -> float:
        first = torch.from_numpy(start)
        return kmeans(torch.from_numpy(rows), k, start=first, iterations=iterations, precision="fp32").inertia

    def theirs() -> float:
        other = faiss.Kmeans(WIDTH, k, niter=iterations, max_points_per_centroid=10**9, min_points_per_centroid=1)
        other.train(rows, init_centroids=start)
        return float(other.index.search(rows, 1)[0].sum())

    pairs = [(seconds(ours), seconds(theirs)) for _ in range(turns)]
    ratios = [one[0] / other[0] for one, other in pairs]
    return (
        f"{count} x {WIDTH}, K = {k}: ours {median(one[0] for one, _ in pairs):.2f} s,"
        f" faiss {median(other[0] for _, other in pairs):.2f} s, ratio {median(ratios):.2f}"
        f" ({min(ratios):.2f} to {max(ratios):.2f}), objective {pairs[0][0][1] / pairs[0][1][1]:.6f} of faiss's"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = ["50000,100,20,7", "50000,1000,5,5", "200000,1000,3,3"]
    parser.add_argument("--case", nargs="+", default=cases, help="N,K,ITERATIONS,TURNS")
    torch.set_num_threads(1)
    for case in parser.parse_args().case:
        print(race(*map(int, case.split(","))), flush=True)


if __name__ == "__main__":
    main()
