"""The processes of a run under torchrun, and their collectives, on torch.distributed.

Every method of :class:`Processes` is a collective: all ranks call it, in the same order. Values travel as JSON, tensors
as their bytes. Torch's collectives for objects (``all_gather_object``, ...) would unpickle received bytes, and so
run code sent by any process of the group.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from deepcluster.errors import DeepClusterError, LostError, UsageError, first_line
from deepcluster.runtime.machine import is_main_rank, local_world_size, world_size

Value = TypeVar("Value")  # values that JSON gives back unchanged: no tuples, string keys only

# Generous, because the main rank may be busy for hours (k-means, final cut). A crashed rank is noticed at once, as its
# sockets close; a dead machine, by torchrun.
COLLECTIVE_TIMEOUT = timedelta(days=7)
PARENT_POLL_SECONDS = 1.0  # between checks that the launcher is alive


@dataclass(frozen=True)
class Processes:
    """The ranks of a run. Rank 0, the main rank, writes files and prints."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @cached_property
    def alone(self) -> bool:
        return self.world_size == 1

    @property
    def seed_index(self) -> tuple[int, ...]:
        """Return the index of a generator with which every rank draws its own numbers."""
        return () if self.alone else (self.rank,)

    def part(self, count: int) -> range:
        """Return this rank's part of ``count`` items: consecutive parts, whose sizes differ by at most 1."""
        return range(self.rank * count // self.world_size, (self.rank + 1) * count // self.world_size)

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum of ``x`` over all ranks, on which it has one shape and dtype; the same bits on all."""
        if self.alone:
            return x
        total = x.clone()
        dist.all_reduce(total)
        return total

    def all_gather(self, x: Tensor) -> list[Tensor]:
        """Return the ``x`` of all ranks, of one shape and dtype. This rank's alone keeps its gradient."""
        if self.alone:
            return [x]
        gathered = [torch.empty_like(x, requires_grad=False) for _ in range(self.world_size)]
        dist.all_gather(gathered, x.detach().contiguous())
        gathered[self.rank] = x
        return gathered

    def any(self, flag: bool) -> bool:
        return flag if self.alone else bool(self.all_reduce(torch.tensor([int(flag)])).item())

    def all_gather_json(self, value: Value) -> list[Value]:
        """Return the ``value`` of all ranks, by rank."""
        if self.alone:
            return [value]
        # ASCII, so that names that are no UTF-8 come through, and every float exactly.
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [int(size) for size in self.all_gather(torch.tensor([len(data)]))]
        parts = self.all_gather(F.pad(data, (0, max(sizes) - len(data))))
        return [json.loads(part[:size].numpy().tobytes()) for part, size in zip(parts, sizes, strict=True)]

    def broadcast_json(self, make: Callable[[], Value]) -> Value:
        """Return the value of ``make`` on the main rank, the only one that calls it."""
        values: list[Any] = self.all_gather_json(make() if self.is_main else None)
        value: Value = values[0]
        return value

    def broadcast_tensors(self, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors of ``make`` on the main rank, the only one that calls it; on the CPU."""
        if self.alone:
            return dict(make())
        sent = {name: tensor.cpu().contiguous() for name, tensor in make().items()} if self.is_main else {}
        data = torch.frombuffer(bytearray(save(sent)), dtype=torch.uint8)
        size = self.broadcast_json(lambda: len(data))
        data = data if self.is_main else torch.empty(size, dtype=torch.uint8)
        dist.broadcast(data, 0)
        return sent if self.is_main else load(data.numpy().tobytes())

    def all_to_all(self, rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
        """Return the rows that other ranks ``send`` to this one, in the order of these ranks.

        ``rows`` has the rows for rank 0 first, then for rank 1, and so on; of one shape and dtype on all ranks, also
        on a rank that sends none. ``send`` and ``receive`` are the numbers of rows for and from all ranks.
        """
        if self.alone:
            return rows
        width = rows.shape[1:].numel() * rows.element_size()
        flat = rows.contiguous().view(-1).view(torch.uint8)  # gloo does not know every type, but moves all bytes
        received = torch.empty(sum(receive) * width, dtype=torch.uint8, device=rows.device)
        dist.all_to_all_single(received, flat, [count * width for count in receive], [count * width for count in send])
        return received.view(rows.dtype).view(sum(receive), *rows.shape[1:])

    def data_parallel(self, module: nn.Module) -> nn.Module:
        """Return ``module`` with gradients averaged over the ranks, and the main rank's buffers."""
        if self.alone:
            return module
        # While it looks for unused parameters, torch keeps the gradients in one order; otherwise it changes that after
        # the first step. Sums over three ranks or more depend on it, and a resumed training has its own first step.
        return DistributedDataParallel(module, find_unused_parameters=self.world_size > 2, gradient_as_bucket_view=True)

    def broadcast_buffers(self, module: nn.Module) -> None:
        """Give ``module`` the main rank's buffers (running means of batch normalisation)."""
        if not self.alone:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)


ALONE = Processes()


@contextmanager
def init_processes() -> Iterator[Processes]:
    """Yield the processes that torchrun has started, for as long as the context lasts; without torchrun this one alone.

    An error in one ends all: the others lose their connection to it, and raise LostError. A process whose launcher has
    gone ends.
    """
    if world_size() == 1:
        yield ALONE
        return
    _end_with_launcher()
    if local_world_size() == world_size() and Path("/sys/class/net/lo").exists():
        # Gloo, which asks nobody for a password, would listen at the address of this machine.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # Compiled code waits for the other ranks, and runs no handler of Python: there, a signal ends the process at once.
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=COLLECTIVE_TIMEOUT
        )
    except (ValueError, dist.DistError) as error:
        raise UsageError(f"the processes did not meet ({first_line(error)}): start them by torchrun") from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    except BaseException as error:
        if is_main_rank() and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it to the others if one is killed
        if _is_lost_connection(error):
            raise LostError("another process of this run has ended, so all end; --resume continues the run") from error
        raise
    dist.destroy_process_group()


def _is_lost_connection(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError)
        and not isinstance(error, DeepClusterError)
        and any(sign in text for sign in ("gloo", "connection closed", "connection reset", "nccl"))
    )


def _end_with_launcher() -> None:
    """End this process soon after its launcher: an orphan would write into a run that goes on elsewhere."""
    launcher = os.getppid()

    def look() -> None:
        while os.getppid() == launcher:
            time.sleep(PARENT_POLL_SECONDS)
        os._exit(LostError.exit_code)

    threading.Thread(target=look, daemon=True).start()
