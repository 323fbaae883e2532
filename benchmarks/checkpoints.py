"""What does a checkpoint cost? Time to write one (with its digest, synced to the disk) and to read it, and its size.

python benchmarks/checkpoints.py [--repeats 7]
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from common import save

from deepcluster.nets.backbone import build
from deepcluster.records import State
from deepcluster.storage.checkpoint import Checkpoints

# name: backbone, image size, images, numbers of an image in the memory
CASES = {
    "digits, auto": ("compact", 16, 1_797, 128),
    "CIFAR-10, auto": ("compact", 24, 50_000, 128),
    "3,000 photographs, EfficientNet-Lite0": ("timm:tf_efficientnet_lite0", 108, 3_000, 0),
    "AlexNet, 10,000 pseudo-labels": ("alexnet", 224, 100_000, 0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    results = {}
    for name, (backbone, size, count, width) in CASES.items():
        network = build(backbone, image_size=size)
        momentum = tuple(torch.randn_like(each) for each in network.body_parameters())
        memory = torch.randn(count, width) if width else None
        state = State(3, torch.arange(count), 0, memory, momentum)
        writing, reading = [], []
        for _ in range(repeats):
            with tempfile.TemporaryDirectory(dir=".") as folder:
                checkpoints = Checkpoints(Path(folder))
                begin = time.perf_counter()
                checkpoints.write(state, network.state_dict(), {})
                writing.append(time.perf_counter() - begin)
                begin = time.perf_counter()
                assert checkpoints.latest() is not None
                reading.append(time.perf_counter() - begin)
                megabytes = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6
        results[name] = {"megabytes": round(megabytes, 1), "writing": writing, "reading": reading}
        shown = (f"{statistics.median(each):.3f} s ({min(each):.3f} to {max(each):.3f})" for each in (writing, reading))
        print(f"{name:40}{megabytes:8.1f} MB   write {'   read '.join(shown)}")

    save("checkpoints", {"results": results})


main()
