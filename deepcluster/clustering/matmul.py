"""Matrix products in which a row's result depends on that row alone, by the fastest kernel that torch has here."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

Product = Callable[[Tensor], Tensor]  # rows (M x d) to rows @ weight.T + offset (M x K)

# With one to three rows MKL, oneDNN and OpenBLAS use other kernels, which round differently (measured, d of 8 to 2048).
LEAST_ROWS = 16


def product(weight: Tensor, offset: Tensor) -> Product:
    """The map x -> x @ weight.T + offset for a weight (K x d) and an offset (K) of one type on one device."""
    onednn = weight.device.type == "cpu" and weight.dtype == torch.float32 and _onednn_pays()
    if onednn:
        weight, offset = weight.to_mkldnn(), offset.to_mkldnn()

    def multiply(rows: Tensor) -> Tensor:
        filled = F.pad(rows, (0, 0, 0, LEAST_ROWS - len(rows))) if len(rows) < LEAST_ROWS else rows
        found = F.linear(filled.to_mkldnn(), weight, offset).to_dense() if onednn else F.linear(filled, weight, offset)
        return found[: len(rows)]

    return multiply


@cache
def _onednn_pays() -> bool:
    """Tell whether float32 products go to oneDNN: on processors with AVX-512.

    torch gives them to MKL, which takes its AVX2 path on those by AMD, at half the speed. A rule decides, and not a
    trial of their speed, because the two round differently.
    """
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
