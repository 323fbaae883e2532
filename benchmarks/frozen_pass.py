"""How fast are the features of a network that does not learn? Ours, plain torch, and onnxruntime.

    python benchmarks/frozen_pass.py [NETWORK ...] [--size 144] [--images 128] [--repeats 7] [--threads 1]

Each takes the same stored uint8 images to features, with the same weights: ours by ``extract``, which a run and
``predict`` use; plain torch by the network in evaluation mode, in batches of 64 in channels-last order; onnxruntime by
the exported graph, in batches of 64 and of 8, of which the faster counts. They run in turn. With one thread the time of
the processor is taken, which other programs on the machine disturb least; with more, the time of the clock.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import onnxruntime
import torch
from common import save
from torch import Tensor, nn

from deepcluster.export.onnx import silent
from deepcluster.images.augment import fixed_view
from deepcluster.learning.features import extract
from deepcluster.nets.backbone import Network, build
from deepcluster.nets.memory_format import channels_last
from deepcluster.runtime.devices import keep_freed_memory

BATCH = 64


class Features(nn.Module):
    def __init__(self, network: Network, size: int):
        super().__init__()
        self.network, self.size = network, size

    def forward(self, images: Tensor) -> Tensor:
        return self.network.features(fixed_view(images, self.size))


def plain(network: Network, images: Tensor, size: int) -> Tensor:
    with torch.no_grad():
        batches = [
            fixed_view(batch, size).contiguous(memory_format=torch.channels_last) for batch in images.split(BATCH)
        ]
        return torch.cat([network.features(batch) for batch in batches])


def exported(network: Network, images: Tensor, size: int, threads: int) -> onnxruntime.InferenceSession:
    module = Features(network, size).eval().to(memory_format=torch.contiguous_format)
    with silent():
        program = torch.onnx.export(
            module, (images[:2],), input_names=["images"], opset_version=18, dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("N")},), verbose=False,
        )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    content = program.model_proto.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def measure(name: str, size: int, count: int, repeats: int, threads: int) -> dict[str, float]:
    side = size * 8 // 7
    images = torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(0)).byte()
    session = exported(build(name, image_size=size), images, size, threads)
    network = channels_last(build(name, image_size=size).eval())

    def by_onnxruntime(batch: int) -> Tensor:
        parts = [session.run(None, {"images": part.numpy()})[0] for part in images.split(batch)]
        return torch.cat([torch.from_numpy(part) for part in parts])

    ways: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: extract(network, images, size=size, batch_size=BATCH),
        "torch": lambda: plain(network, images, size),
        "onnxruntime 64": lambda: by_onnxruntime(64),
        "onnxruntime 8": lambda: by_onnxruntime(8),
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
    best = min(("onnxruntime 64", "onnxruntime 8"), key=lambda way: median(seconds[way]))
    ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds[best], strict=True)]
    result = {way: round(count / median(values), 1) for way, values in seconds.items()}
    return result | {"ours / onnxruntime": round(median(ratios), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["timm:tf_efficientnet_lite0"])
    parser.add_argument("--size", type=int, default=144)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    rows = {}
    for name in args.networks:
        rows[name] = measure(name, args.size, args.images, args.repeats, args.threads)
        print(name, rows[name], flush=True)
    save(f"frozen_pass_{args.threads}", {**vars(args), "images_per_second": rows})


if __name__ == "__main__":
    main()
