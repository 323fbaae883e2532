"""Tensors in files: mapped, of known shapes and types."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deepcluster.runtime.bounded import check_file, sha256
from deepcluster.runtime.machine import check_fits

if TYPE_CHECKING:
    from torch import Tensor, dtype

MAX_TENSORS = 1 << 40  # bytes


def read_tensors(path: Path, digest: str | None = None) -> "dict[str, Tensor]":
    """Return the tensors of a safetensors file, mapped and not yet read, if the file has this SHA-256 (None: any).

    Raises OSError, ValueError or SafetensorError with the reason, or OutOfMemoryError.
    """
    from safetensors.torch import load_file  # imports torch

    check_file(path, MAX_TENSORS)
    check_fits(str(path), path.stat().st_size, "use a machine with more memory")
    tensors = load_file(path)  # checks that the header describes exactly this file, before the digest reads all of it
    if digest is not None and digest != sha256(path):
        raise ValueError("changed since it was written, by its SHA-256")
    return tensors


def check_tensors(
    tensors: "Mapping[str, Tensor]",
    shapes: Mapping[str, Sequence[str | int]],
    types: "Mapping[str, dtype]",
    **sizes: int,
) -> None:
    """Check that a file has exactly these tensors, of these ``shapes`` and (if not float32) ``types``.

    An axis is a number, or a name that stands for one size above 0 wherever it is used; ``sizes`` are known already.
    Raises ValueError with the reason.
    """
    from torch import float32

    for name, axes in shapes.items():
        if name not in tensors:
            raise ValueError(f"{name} is missing")
        dtype = tensors[name].dtype
        shape = tuple(tensors[name].shape)
        sizes = {**dict(zip(map(str, axes), shape, strict=False)), **sizes}
        expected = tuple(axis if isinstance(axis, int) else sizes.get(axis) or axis for axis in axes)
        kind = types.get(name, float32)
        if (dtype, shape) != (kind, expected):
            raise ValueError(f"{name} is {dtype} {shape} instead of {kind} ({', '.join(map(str, expected))})")
    if unknown := sorted(tensors.keys() - shapes.keys()):
        raise ValueError(f"unknown tensor {unknown[0][:80]!a}")
