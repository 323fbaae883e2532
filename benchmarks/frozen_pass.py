"""How fast are the features of a network that does not learn? Ours, plain torch's, and onnxruntime's.

    python benchmarks/frozen_pass.py [--size 224] [--images 512] [--repeats 5]

All take the same stored uint8 images of the embedded network's size to features, in turns, on one thread; the time is
that of the processor. Plain torch takes 64 images at a time, onnxruntime 64, 8 and 4: the fastest counts.
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
from deepcluster.images.views import fixed_view
from deepcluster.learning.features import extract
from deepcluster.nets.network import Network, build
from deepcluster.nets.timm import channels_last
from deepcluster.place import Place
from deepcluster.runtime.devices import keep_freed_memory

NAME = "timm:tf_efficientnet_lite0"


class Features(nn.Module):
    def __init__(self, network: Network, size: int):
        super().__init__()
        self.network, self.size = network, size

    def forward(self, images: Tensor) -> Tensor:
        return self.network.features(fixed_view(images, self.size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"size": 224, "images": 512, "repeats": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    side = args.size * 8 // 7
    images = torch.randint(0, 256, (args.images, 3, side, side), generator=torch.Generator().manual_seed(0)).byte()
    with silent():
        program = torch.onnx.export(
            Features(build(NAME, image_size=args.size), args.size).eval(), (images[:2],), input_names=["images"],
            opset_version=18, dynamo=True, dynamic_shapes=({0: torch.export.Dim("N")},), verbose=False,
        )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options)
    network = channels_last(build(NAME, image_size=args.size).eval())
    plain = Features(network, args.size)
    place = Place.of(network, images, size=args.size, batch_size=64)

    def by_torch() -> Tensor:
        with torch.no_grad():
            return torch.cat([plain(batch) for batch in images.split(64)])

    def by_onnxruntime(count: int) -> Tensor:
        return torch.cat(
            [torch.from_numpy(session.run(None, {"images": part.numpy()})[0]) for part in images.split(count)]
        )

    ways: dict[str, Callable[[], Tensor]] = {"ours": lambda: extract(network, images, place), "torch": by_torch}
    ways |= {f"onnxruntime {count}": lambda count=count: by_onnxruntime(count) for count in (64, 8, 4)}
    expected, seconds = by_torch(), {way: list[float]() for way in ways}
    for way, run in ways.items():
        apart = (run() - expected).abs().max() / expected.abs().max()
        assert apart < 1e-3, (way, apart)
    for _ in range(args.repeats):
        for way, run in ways.items():
            begin = time.process_time()
            run()
            seconds[way].append(time.process_time() - begin)
    best = min((way for way in ways if "onnx" in way), key=lambda way: median(seconds[way]))
    ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds[best], strict=True)]
    speeds = {way: round(args.images / median(values), 1) for way, values in seconds.items()}
    speeds["ours / onnxruntime"] = round(median(ratios), 2)
    print(speeds)
    save(f"pass_{args.size}", {**vars(args), "networks": [NAME], "images_per_second": {NAME: speeds}})


if __name__ == "__main__":
    main()
