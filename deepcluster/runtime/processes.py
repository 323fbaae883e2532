"""The processes that share a run under torchrun: who they are, and what they exchange. Plain torch.distributed.

Every method of :class:`Processes` is called by all of them, in the same order, and waits for the others. What goes
round is JSON or the numbers of tensors. Torch's collectives for objects (``all_gather_object``, ...) would unpickle
what they receive, and so run the code of whoever is in the group.
"""

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.nn.parallel import DistributedDataParallel

from deepcluster.errors import DeepClusterError, LostError, Stopped, Unsaid, UsageError

Value = TypeVar("Value")  # what JSON gives back as it was: no tuples, keys of text

# How long one waits for another, which may be deep in a k-means or in the last cut. It is no sign of trouble: of a
# process that ends the others hear at once, as its connections close, and of a machine that is silent torchrun does.
PATIENCE = timedelta(days=7)
WORD = 2.0  # seconds in which a process that fails says so to the others
LOOK = 1.0  # seconds between two looks at whether the launcher is alive
MOST_TEXT = 1 << 30  # bytes of JSON from one process: ten million digests of images are 700 MB
DTYPES = {
    str(dtype): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Processes:
    """``count`` processes, of which this one is number ``rank``. The first of them, number 0, writes and speaks."""

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.count == 1

    def share(self, things: int) -> range:
        """The part of ``things`` things that is this one's: parts lie one behind the other and differ by at most 1."""
        return range(self.rank * things // self.count, (self.rank + 1) * things // self.count)

    def sum(self, x: Tensor) -> Tensor:
        """The sum of everybody's ``x``, of one shape and type; the same bits for all."""
        if self.alone:
            return x
        total = x.clone()
        dist.all_reduce(total)
        return total

    def gather(self, x: Tensor) -> list[Tensor]:
        """Everybody's ``x``, of one shape and type. One's own keeps its gradient; those of the others have none."""
        if self.alone:
            return [x]
        found = [torch.empty_like(x, requires_grad=False) for _ in range(self.count)]
        dist.all_gather(found, x.detach().contiguous())
        found[self.rank] = x
        return found

    def any(self, flag: bool) -> bool:
        return flag if self.alone else bool(self.sum(torch.tensor([int(flag)])).item())

    def every(self, value: Value) -> list[Value]:
        """What each of them has, in their order: a JSON value."""
        if self.alone:
            return [value]
        own = _encoded(value)
        sizes = self._sizes(own)
        return _decoded(self.exchange(own.repeat(self.count), [len(own)] * self.count, sizes), sizes)

    def every_at_first(self, value: Value) -> list[Value]:
        """The same for the first alone; the others get an empty list."""
        if self.alone:
            return [value]
        own, nobody = _encoded(value), [0] * self.count
        sizes = self._sizes(own)
        if not self.leads:
            self.exchange(own, [len(own), *nobody[1:]], nobody)
            return []
        return _decoded(self.exchange(own, [len(own), *nobody[1:]], sizes), sizes)

    def first(self, make: Callable[[], Value]) -> Value:
        """What the first of them makes, and nobody else does: a JSON value."""
        if self.alone:
            return make()
        own = _encoded(make()) if self.leads else _room(0)
        size = torch.tensor([len(own)])
        dist.broadcast(size, 0)
        sizes = _checked(size.tolist())
        data = own if self.leads else _room(sizes[0])
        dist.broadcast(data, 0)
        value: Value = _decoded(data, sizes)[0]
        return value

    def first_tensors(self, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors that the first of them makes, and nobody else does; on the CPU."""
        if self.alone:
            return dict(make())
        own = {name: each.cpu().contiguous() for name, each in make().items()} if self.leads else {}
        kinds: dict[str, Any] = {name: [str(each.dtype), [*each.shape]] for name, each in own.items()}
        found = {}
        for name, (dtype, shape) in self.first(lambda: kinds).items():
            kind = DTYPES.get(dtype)
            if kind is None or not all(type(side) is int and side >= 0 for side in shape):
                raise ValueError(f"another process sent no tensor: {dtype} {shape}")
            data = own[name].view(-1).view(torch.uint8) if self.leads else _room(math.prod(shape) * kind.itemsize)
            dist.broadcast(data, 0)
            found[name] = own[name] if self.leads else data.view(kind).view(shape)
        return found

    def _sizes(self, own: Tensor) -> list[int]:
        """How many bytes each of them has."""
        found = torch.zeros(self.count, dtype=torch.int64)
        found[self.rank] = len(own)
        return _checked(self.sum(found).tolist())

    def exchange(self, rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
        """Rows for each of them, one behind the other, ``send`` of them each; returns what is for this one, ``receive``
        rows from each, in their order. All have rows of one shape and type, those without any included."""
        if self.alone:
            return rows
        width = rows.shape[1:].numel() * rows.element_size()
        flat = rows.contiguous().view(-1).view(torch.uint8)  # gloo does not know every type, but moves all bytes
        found = torch.empty(sum(receive) * width, dtype=torch.uint8, device=rows.device)
        dist.all_to_all_single(found, flat, [each * width for each in receive], [each * width for each in send])
        return found.view(rows.dtype).view(sum(receive), *rows.shape[1:])

    def parallel(self, module: nn.Module) -> nn.Module:
        """``module`` with the mean of everybody's gradients; the buffers of the first count."""
        if self.alone:
            return module
        # Where it looks for unused parameters, torch never puts the gradients into another order after the first step:
        # sums over three processes and more depend on it, and a resumed training has a first step of its own.
        return DistributedDataParallel(module, find_unused_parameters=self.count > 2, gradient_as_bucket_view=True)

    def same_buffers(self, module: nn.Module) -> None:
        """Give ``module`` the buffers that the first one has (running means of batch normalisation)."""
        if not self.alone:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)


ALONE = Processes()


def _room(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8)


def _encoded(value: object) -> Tensor:
    """``value`` as JSON; ASCII, so that names of files that are no UTF-8 come through, and every float exactly."""
    data = bytearray(json.dumps(value).encode())
    if len(data) > MOST_TEXT:
        raise ValueError(f"{len(data):,} bytes for the other processes, more than the {MOST_TEXT:,} that go round")
    return torch.frombuffer(data, dtype=torch.uint8)


def _checked(sizes: list[int]) -> list[int]:
    if not all(0 < size <= MOST_TEXT for size in sizes):
        raise ValueError(f"another process announces {max(sizes):,} bytes; at most {MOST_TEXT:,} are taken")
    return sizes


def _decoded(data: Tensor, sizes: list[int]) -> list[Value]:
    return [json.loads(part.numpy().tobytes()) for part in data.split(sizes)]


def launched() -> int:
    """How many processes torchrun has started; 1 where it was not used."""
    try:
        return max(1, int(os.environ.get("WORLD_SIZE", "1")))
    except ValueError:
        raise UsageError(f"WORLD_SIZE={os.environ['WORLD_SIZE']} in the environment is no number: unset it") from None


def together() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched() > 1 else 1


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that torchrun has started, for as long as the context lasts; this one alone where it did not.

    An error in one ends all: the first to have one raises it; the others, which lose their connection to it, raise
    Unsaid with the same exit code, or LostError where it ended without a word. A process whose launcher has gone ends.
    """
    if launched() == 1:
        yield ALONE
        return
    _end_with_launcher()
    if together() == launched() and Path("/sys/class/net/lo").exists():
        # Gloo, which asks nobody for a password, would listen where the name of this machine leads.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
        board = _board()
    except (ValueError, dist.DistError) as error:
        raise UsageError(f"the processes did not find each other ({_line(error)}): start them by torchrun") from None
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    except BaseException as error:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it to those that a killed one leaves
        raise _worded(error, board) from error
    dist.destroy_process_group()


def _board() -> Store:
    """Where the processes leave a word: the store that torchrun, or the first of them, keeps."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store: Store = dist.TCPStore(  # type: ignore[attr-defined]
        host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=10)
    )
    return PrefixStore(f"deepcluster/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _worded(error: BaseException, board: Store) -> BaseException:
    """What to raise here for ``error``: one process alone is to speak of what has happened."""
    code = error.exit_code if isinstance(error, DeepClusterError | Stopped) else 1
    code = Stopped.exit_code if isinstance(error, KeyboardInterrupt) else code
    lost = _is_loss(error)
    try:
        until = time.monotonic() + WORD
        while lost and time.monotonic() < until and not board.check(["said"]):
            time.sleep(0.05)
        own = f"{os.environ.get('RANK')}/{code}"
        said = board.compare_set("said", "", own).decode()
    except (RuntimeError, dist.DistError):  # the store has gone, and with it whoever started this
        return (
            LostError("the launcher of this run has ended, and so do its processes; --resume goes on")
            if lost
            else error
        )
    if said != own:
        return Unsaid(int(said.rpartition("/")[2]))
    if lost:
        return LostError("another process of this run has ended without a word, and so do all; --resume goes on")
    return error


def _is_loss(error: BaseException) -> bool:
    """Whether it says that another process cannot be reached any more."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError)
        and not isinstance(error, DeepClusterError)
        and any(sign in text for sign in ("gloo", "connection closed", "connection reset", "nccl"))
    )


def _end_with_launcher() -> None:
    """End this process soon after the one that started it: an orphan would write into a run that goes on elsewhere."""
    launcher = os.getppid()

    def look() -> None:
        while os.getppid() == launcher:
            time.sleep(LOOK)
        os._exit(LostError.exit_code)

    threading.Thread(target=look, daemon=True).start()


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
