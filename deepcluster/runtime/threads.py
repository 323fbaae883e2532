"""Threads: as many as there are cores, results in order, and one torch thread in each."""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from typing import Any, TypeVar

import torch
from threadpoolctl import ThreadpoolController

from deepcluster.runtime.machine import control_groups

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
    """Return the libraries of threads. An import since the last call may have loaded another one."""
    return ThreadpoolController()


_lock = threading.Lock()
_limits: list[Any] = []  # limits of BLAS, one for each thread inside one_thread: the first restores the numbers


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch in this thread, and numpy's BLAS in the process, to one thread.

    Several threads may be inside; the last one restores BLAS. A new thread whose first torch operation falls inside
    keeps one thread.
    """
    threads = torch.get_num_threads()
    with _lock:
        _limits.append(_libraries(len(sys.modules)).limit(limits=1, user_api="blas"))
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)  # this thread's, and that of new ones
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
