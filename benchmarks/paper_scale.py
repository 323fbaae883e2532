"""Does the paper's clustering fit one machine? 1.28 million rows of 256 features on disk, 10,000 clusters.

    python benchmarks/paper_scale.py [--rows N] [--clusters K] [--iterations I] [--precision auto|fp32]

The rows are a synthetic mixture: 20,000 directions, noise as long as they are, length 1. They lie in a file that is
mapped into memory. Memory is what the process has for itself (anonymous, sampled every 50 ms) beyond what it had
before: the pages of the file belong to the system, which takes them back when it needs them.
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

from deepcluster.clustering import kmeans


def mixture(file: Path, rows: int, width: int = 256, parts: int = 20_000) -> None:
    random = np.random.default_rng(0)
    centres = random.standard_normal((parts, width), np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    array = np.lib.format.open_memmap(file, "w+", np.float32, (rows, width))
    for begin in range(0, rows, 1 << 16):
        part = array[begin : begin + (1 << 16)]
        noise = random.standard_normal(part.shape, np.float32) / width**0.5
        part[:] = centres[random.integers(parts, size=len(part))] + noise
        part /= np.linalg.norm(part, axis=1, keepdims=True)


class Peak:
    """The most anonymous memory (bytes) between ``with`` and its end."""

    def __enter__(self) -> "Peak":
        self.before = self.bytes = self.now()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.over.wait(0.05):
            self.bytes = max(self.bytes, self.now())

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    @staticmethod
    def now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def main() -> None:
    from common import save

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_281_167)
    parser.add_argument("--clusters", type=int, default=10_000)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--precision", default="auto")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "features.npy"
        mixture(file, arguments.rows)
        x = np.load(file, mmap_mode="r")
        kmeans(torch.randn(20_000, 256), 100)  # the libraries are loaded before the measurement begins
        with Peak() as peak:
            begin = time.perf_counter()
            found = kmeans(
                x, arguments.clusters, iterations=arguments.iterations, precision=arguments.precision, seed=0
            )
            seconds = time.perf_counter() - begin
        result = {
            "rows": arguments.rows,
            "clusters": arguments.clusters,
            "iterations": arguments.iterations,
            "precision": arguments.precision,
            "seconds": round(seconds, 1),
            "peak_memory_over_features_mb": round((peak.bytes - peak.before) / 1e6),
            "features_mb": round(file.stat().st_size / 1e6),
            "gflops": round(2 * x.size * arguments.clusters * (arguments.iterations + 1) / seconds / 1e9),
            "mean_squared_distance": found.inertia / arguments.rows,
            "smallest": int(found.sizes.min()),
            "largest": int(found.sizes.max()),
            "reseeded": found.reseeded,
        }
    print(result)
    save("paper_scale", result)


if __name__ == "__main__":
    main()
