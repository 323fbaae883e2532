"""Devices, threads, the floating-point precision, and transfers of tensors."""

import ctypes
import os
import platform
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache, partial
from typing import Any, TypeVar

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor
from torch.utils._pytree import tree_leaves

from deepcluster.errors import UsageError
from deepcluster.runtime.machine import control_groups, local_world_size, versions

CPU = torch.device("cpu")
ROWS_SHARE = 0.4  # of a device's memory, for the rows to be clustered: a training step needs some as well


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of this name; ``auto`` is cuda, else mps, else cpu.

    A process of several on a machine takes the GPU of its own number. UsageError if there is no such device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    kind = name.partition(":")[0]
    if not available.get(kind):
        there = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise UsageError(f"device {name}: this machine has {there}; auto chooses")
    local = os.environ.get("LOCAL_RANK") if name == "cuda" or (kind == "cuda" and local_world_size() > 1) else None
    if local is not None and int(local) >= torch.cuda.device_count():
        raise UsageError(
            f"device cuda: process {local} of this machine finds {torch.cuda.device_count()} GPUs: start as many"
            " processes as there are GPUs (--nproc-per-node)"
        )
    return torch.device(name if local is None else f"cuda:{local}")


def has_bf16(device: torch.device) -> bool:
    """Return whether matrix products in bfloat16 are native, and so faster than in float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


@contextmanager
def working_on(device: torch.device, *, deterministic: bool = False) -> Iterator[None]:
    """Make ``device`` the current GPU of this thread, and restore all settings at the end.

    A fixed workspace makes cuBLAS deterministic. On a CPU everything is, and nothing is set. ``deterministic``: Use
    torch's deterministic kernels; if there is none, torch warns.
    """
    with ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
            if "CUBLAS_WORKSPACE_CONFIG" not in os.environ:
                os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
                stack.callback(os.environ.pop, "CUBLAS_WORKSPACE_CONFIG", None)
        if deterministic and device.type != "cpu":
            # The winner of cuDNN's benchmark depends on the device's other work; filling memory only takes time.
            stack.enter_context(_setting(torch.backends.cudnn, deterministic=True, benchmark=False))
            stack.enter_context(_setting(torch.utils.deterministic, fill_uninitialized_memory=False))
            stack.callback(torch.set_deterministic_debug_mode, torch.get_deterministic_debug_mode())
            torch.set_deterministic_debug_mode("warn")
        yield


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 with 24 bits on a GPU too, instead of the 11 of TF32, torch's default in convolutions."""
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    with _setting(convolutions, fp32_precision="ieee"), _setting(torch.backends.cuda.matmul, fp32_precision="ieee"):
        yield


@contextmanager
def _setting(owner: object, **values: object) -> Iterator[None]:
    """Set attributes of ``owner``, and restore them at the end."""
    before = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def moved(x: Tensor, device: torch.device) -> Tensor:
    """Return ``x`` on ``device``; to a GPU through pinned memory, without waiting for the copy."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def holds_rows(device: torch.device, rows: int, width: int) -> bool:
    """Return whether ``device`` has float64, and room to cluster ``rows`` x ``width`` numbers.

    The total memory counts, not the free one, so that two runs decide alike.
    """
    if device.type == "cuda":
        return 4 * rows * width <= ROWS_SHARE * torch.cuda.get_device_properties(device).total_memory
    return device.type != "mps"


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next tensors instead of returning it to the system (glibc only).

    The system would zero a page anew at every optimizer step. A step takes .97 (compact, 32 px) to .75
    (EfficientNet-Lite0, 112 px) of its time on 2 cores. The setting is one of the whole process.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        m_trim_threshold, m_mmap_threshold = -1, -3
        mallopt(m_mmap_threshold, 1 << 30)
        mallopt(m_trim_threshold, 2**31 - 1)


def environment(device: torch.device, processes: int = 1, *, deterministic: bool = False) -> dict[str, str | int]:
    """Return all that a result may depend on besides its options: versions, hardware, threads, processes, kernels."""
    return {
        **versions(),
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "processes": processes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "bf16": "native" if has_bf16(device) else "no",
        "kernels": "deterministic" if deterministic or device.type == "cpu" else "fastest",
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


# ---- threads --------------------------------------------------------------------------------------------------------


Task = TypeVar("Task")
Value = TypeVar("Value")


def cores() -> int:
    """Return the number of cores that this process may use, also by the quota of a container or service."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in control_groups("cpu"):
        with suppress(OSError, ValueError):  # "max" if there is no quota
            quota, period = map(int, (group / "cpu.max").read_text().split())
            count = min(count, max(1, -(-quota // period)))
    return count


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[Task], Value], tasks: Iterable[Task], ahead: int
) -> Iterator[Value]:
    """Yield work(task) for all tasks in order, with at most ``ahead`` of them started and not yet taken."""
    waiting: deque[Future[Value]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(work, task))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:  # after an error the rest is not needed
            future.cancel()


@contextmanager
def pool_of(count: int, *, single: bool = False) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of ``count`` threads; ``single``: torch computes with one thread in each of them.

    If the context is left by an exception, it does not wait for them.
    """
    pool = ThreadPoolExecutor(count, initializer=partial(torch.set_num_threads, 1) if single else None)
    done = False
    try:
        yield pool
        done = True
    finally:
        pool.shutdown(wait=done, cancel_futures=True)


@lru_cache(1)  # because it takes some milliseconds
def _libraries(_modules: int) -> ThreadpoolController:
    """Return the libraries of threads, looked up again if a module was imported since, which may bring one."""
    return ThreadpoolController()


_lock = threading.Lock()
_limits: list[Any] = []  # of BLAS, for each thread in one_thread: the first has the numbers before


@contextmanager
def one_thread() -> Iterator[None]:
    """Have torch in this thread, and numpy's BLAS in all threads, compute with one thread; as before again outside.

    Several threads may be inside: the last one restores BLAS's numbers. A thread that computes for the first time
    meanwhile keeps one.
    """
    own = torch.get_num_threads()
    with _lock:
        _limits.append(_libraries(len(sys.modules)).limit(limits=1, user_api="blas"))
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(own)  # this thread's, and that of new ones
        with _lock:
            before = _limits.pop()
            if not _limits:
                before.restore_original_limits()


def in_threads(work: Callable[[Task], Value], tasks: Iterable[Task]) -> list[Value]:
    """Return work(task) for all tasks, a task by one thread, and as many at a time as torch has threads.

    torch's own threads, and BLAS's, meet at a barrier after every operation: for small ones, two gained 5 % over one.
    """
    threads = torch.get_num_threads()
    with one_thread(), pool_of(threads, single=True) as pool:
        return [*in_order(pool, work, tasks, ahead=2 * threads)]


def made_ahead(work: Callable[[Task], Value], tasks: Iterable[Task], device: torch.device) -> Iterator[Value]:
    """Yield work(task) for all tasks in order, the next one made while this one is used on ``device``.

    In turn on the CPU: all its cores are at work already, and a thread beside them made an optimizer step 3 to 8 %
    slower (measured on 2 cores: 32 px and 112 px), while making a batch takes 1 to 3 % of it. On a GPU by Nvidia the
    batches have a stream of their own, so that their copies do not wait for the step under way.
    """
    if device.type == "cpu":
        yield from map(work, tasks)
    elif device.type == "cuda":
        yield from _on_a_stream(work, tasks, device)
    else:
        with pool_of(1) as pool:
            yield from in_order(pool, work, tasks, ahead=2)


def _on_a_stream(work: Callable[[Task], Value], tasks: Iterable[Task], device: torch.device) -> Iterator[Value]:
    stream = torch.cuda.Stream(device)
    used: deque[torch.cuda.Event] = deque()

    def make(task: Task) -> tuple[Value, torch.cuda.Event]:
        # Nobody waits for the GPU while it works, so the tasks made must not run away from the tasks used.
        while len(used) > 1:
            used.popleft().synchronize()
        with torch.cuda.stream(stream):
            return work(task), stream.record_event()

    with pool_of(1) as pool:
        for made, ready in in_order(pool, make, tasks, ahead=2):
            current = torch.cuda.current_stream(device)
            current.wait_event(ready)
            for part in tree_leaves(made):
                if isinstance(part, Tensor) and part.is_cuda:
                    part.record_stream(current)  # its memory is not for the next batch before this stream is through
            yield made
            used.append(current.record_event())
