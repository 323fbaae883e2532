"""A second device for a machine that has none: tensors that say they are elsewhere (on torch's ``meta``) and compute on
the CPU. An operation on tensors of two devices fails as it does on a GPU, and every wait for the device is counted."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from deepcluster.learning import features, training

ELSEWHERE = torch.device("meta")
# What a GPU does with tensors of the CPU: copies, and row numbers in brackets.
MIXED = ("copy_.default", "index.Tensor", "index_put_.default", "_index_put_impl_.default", "index_put.default")


class Elsewhere(Tensor):
    """A tensor on the second device; ``inside`` are its numbers."""

    inside: Tensor

    @staticmethod
    def __new__(cls, inside: Tensor) -> "Elsewhere":
        tensor = Tensor._make_wrapper_subclass(
            cls, inside.shape, strides=inside.stride(), storage_offset=inside.storage_offset(), dtype=inside.dtype,
            device=ELSEWHERE,
        )  # fmt: skip
        tensor.inside = inside
        return tensor

    def __init__(self, inside: Tensor):
        pass

    def tolist(self) -> Any:
        return self.inside.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, Counter())


class _Device(TorchDispatchMode):
    def __init__(self, waits: Counter[str]):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self.waits)


def _run(func: Any, args: Any, kwargs: Any, waits: Counter[str]) -> Any:
    name, device = func.__name__, kwargs.get("device")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    far = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    near = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and tensor.dim()]
    if far and near and name not in MIXED:
        raise RuntimeError(f"{name}: tensors on two devices")
    if (
        name.startswith("index_put")
        and isinstance(args[0], Elsewhere) != isinstance(args[2], Elsewhere)
        and args[2].dim()
    ):
        raise RuntimeError(f"{name}: values on another device")
    is_far = bool(far) if device is None else torch.device(device).type == ELSEWHERE.type
    if is_far and kwargs.get("generator") is not None:
        raise RuntimeError(f"{name}: a generator of the CPU for a tensor on another device")
    if far and name == "_adaptive_avg_pool2d.default" and any(map(int.__mod__, args[0].shape[-2:], args[1])):
        raise RuntimeError("Adaptive pool MPS: input sizes must be divisible by output sizes")
    args_inside, kwargs_inside = tree_map(lambda x: x.inside if isinstance(x, Elsewhere) else x, (args, kwargs))
    if device is not None:
        kwargs_inside["device"] = torch.device("cpu")
    leaves = name == "_local_scalar_dense.default" or (name == "_to_copy.default" and not is_far)
    counts = name in ("nonzero.default", "bincount.default", "unique_consecutive.default", "_unique2.default")
    copied = name == "copy_.default" and isinstance(args[1], Elsewhere) and not isinstance(args[0], Elsewhere)
    if copied or (far and (leaves or counts)):
        waits[name] += 1
    result = func(*args_inside, **kwargs_inside)
    if args and isinstance(result, Tensor) and result is args_inside[0]:
        return args[0]
    if name == "copy_.default":
        return args[0]
    is_far = isinstance(args[0], Elsewhere) if name in MIXED else is_far
    return tree_map(lambda x: Elsewhere(x) if isinstance(x, Tensor) else x, result) if is_far else result


@contextmanager
def second_device() -> Iterator[Counter[str]]:
    """Inside, ``ELSEWHERE`` is a device that computes; yields how often something waited for it, by operation."""
    waits: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch, _Device(waits):
        patch.setattr(torch, "autocast", lambda *arguments, **options: nullcontext())
        for module in (features, training):  # a thread would not know of the device
            patch.setattr(module, "prefetched", lambda work, tasks, device: map(work, tasks))
        yield waits
