"""Matrix products in which a row's result depends on that row alone, by the fastest kernel that torch has here."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from deepcluster.runtime.threads import one_thread

Product = Callable[[Tensor], Tensor]  # rows (M x d) to rows @ weight.T + offset (M x K)

# With one to three rows MKL, oneDNN and OpenBLAS use other kernels, which round differently (measured, d of 8 to 2048).
LEAST_ROWS = 16
# Numbers of a weight. To put one into oneDNN's order takes .2 ms, however small it is, and saves .01 to .1 ms a call;
# the bits are the same. The groups of a few images take hundreds of products: a tenth of their time.
SMALL = 1 << 12
# Of sums of 256 products of standard normal numbers, up to 80 large: two right kernels differ by 5e-5 in float32.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1.0}


def product(weight: Tensor, offset: Tensor) -> Product:
    """The map x -> x @ weight.T + offset for a weight (K x d) and an offset (K) of one type on one device."""
    make = (
        _onednn if weight.device.type == "cpu" and weight.dtype in TOLERANCE and _onednn_pays(weight.dtype) else _plain
    )
    return _filled_up(make(weight, offset))


def _filled_up(multiply: Product) -> Product:
    def of(rows: Tensor) -> Tensor:
        missing = LEAST_ROWS - len(rows)
        return multiply(rows) if missing <= 0 else multiply(F.pad(rows, (0, 0, 0, missing)))[: len(rows)]

    return of


def _plain(weight: Tensor, offset: Tensor) -> Product:
    return lambda rows: F.linear(rows, weight, offset)


def _onednn(weight: Tensor, offset: Tensor) -> Product:
    """By oneDNN, with the weight put into its order once and not at every call, where that pays.

    On processors by AMD torch gives float32 products to MKL, which takes its AVX2 path there: 2.2 times slower than
    oneDNN on a Zen 5. These functions are not public, hence the look in ``_onednn_pays``.
    """
    packed = weight.contiguous()
    if weight.numel() > SMALL:
        packed = torch.ops.mkldnn._reorder_linear_weight(packed)
    return lambda rows: torch.ops.mkldnn._linear_pointwise(rows, packed, offset, "none", [], "")


@cache
def _onednn_pays(dtype: torch.dtype) -> bool:
    """Whether oneDNN's product is there and right, on a processor with AVX-512: without that MKL's is the faster one.

    By a rule and not by a trial of their speed, as the two round differently. Once a process.
    """
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    random = torch.Generator().manual_seed(0)
    shapes = ((256, 256), (512, 256), (512,))
    rows, weight, offset = (torch.randn(*shape, generator=random).to(dtype) for shape in shapes)
    plain = _plain(weight, offset)
    with one_thread():
        try:
            error = (_onednn(weight, offset)(rows) - plain(rows)).float().abs().max().item()
        except (AttributeError, RuntimeError):  # torch no longer has these functions, or was built without oneDNN
            return False
        return error <= TOLERANCE[dtype]
