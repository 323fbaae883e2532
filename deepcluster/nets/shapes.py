"""Networks without values: their shapes, and the memory that they would take."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode


class _NoRandomNumbers(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else kwargs.get("tensor")
        if getattr(func, "__name__", "").endswith(("normal_", "uniform_")) and first.is_meta:
            return first
        return func(*args, **kwargs)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Inside, networks are built on torch's meta device: no memory for the weights, and no time.

    Random numbers are skipped: they have no value there, and the first one imports torch's compiler (2 s). So does a
    forward pass: give ``build`` the ``feature_dim``.
    """
    with torch.device("meta"), _NoRandomNumbers():
        yield


def working_memory(body: nn.Module, size: int) -> int:
    """A lower bound of the bytes that one image of ``size`` px takes in a network that does not learn.

    That is the largest sum of a layer's input and output. Computed on the meta device; the first call takes 2 s.
    """
    most = 3 * size * size  # values

    def look(layer: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal most
        if isinstance(output, Tensor):
            taken = 0 if getattr(layer, "inplace", False) else sum(x.numel() for x in inputs if isinstance(x, Tensor))
            most = max(most, output.numel() + taken)

    shapes = {name: value.to("meta") for name, value in [*body.named_parameters(), *body.named_buffers()]}
    hooks = [layer.register_forward_hook(look) for layer in body.modules() if not list(layer.children())]
    training = body.training
    body.eval()
    try:
        with torch.no_grad():
            functional_call(body, shapes, (torch.zeros(1, 3, size, size, device="meta"),))
    finally:
        body.train(training)
        for hook in hooks:
            hook.remove()
    return 4 * most
