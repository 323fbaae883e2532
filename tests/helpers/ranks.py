"""Processes that wait for work: a function of a test module, run in all of them as in one run under torchrun (gloo)."""

import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from deepcluster.runtime.processes import ALONE, Processes
from tests.helpers.commands import forkserver

WAIT = 300.0  # seconds for an answer: more is a hang (a fit took 80 where eight processes shared a core)


@dataclass(frozen=True)
class OneIdle(Processes):
    """Processes that share all rows among the ranks other than ``idle``, as if its images could not be read."""

    idle: int = 0

    def part(self, count: int) -> range:
        others = self.world_size - 1
        return (
            range(0) if self.rank == self.idle else Processes(self.rank - (self.rank > self.idle), others).part(count)
        )


def _serve(pipe: Any, store: str, rank: int, count: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=timedelta(60))
    while True:
        try:
            work, arguments, idle = pickle.loads(pipe.recv_bytes())
        except EOFError:
            os._exit(0)
        processes = Processes(rank, count) if idle is None else OneIdle(rank, count, idle)
        try:
            answer = ("done", work(processes, *arguments))
        except Exception:
            answer = ("failed", traceback.format_exc())
        pipe.send_bytes(pickle.dumps(answer))


class Ranks:
    """``count`` processes of one thread each; a call runs a function in all and returns what each of them returns.

    With ``idle``, the rank of this number has no rows.
    They start with the first call, and anew with the one after a failure, which may leave some of them waiting.
    """

    def __init__(self, count: int):
        self.count = count
        self.processes: list[Any] = []

    def _start(self) -> None:
        context = forkserver()
        self.folder = tempfile.TemporaryDirectory()
        pairs = [context.Pipe() for _ in range(self.count)]
        self.pipes = [ours for ours, _ in pairs]
        store = str(Path(self.folder.name) / "store")
        self.processes = [
            context.Process(target=_serve, args=(theirs, store, rank, self.count), daemon=True)
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process in self.processes:
            process.start()
        for _, theirs in pairs:
            theirs.close()

    def __call__(self, work: Callable[..., Any], *arguments: Any, idle: int | None = None) -> list[Any]:
        if self.count == 1:
            return [work(ALONE, *arguments)]
        if not self.processes:
            self._start()
        try:
            return self._answers(pickle.dumps((work, arguments, idle)))
        except BaseException:
            self.end()
            raise

    def _answers(self, question: bytes) -> list[Any]:
        for pipe in self.pipes:
            pipe.send_bytes(question)
        answers: dict[Any, Any] = {}
        while len(answers) < len(self.pipes):
            ready = wait([pipe for pipe in self.pipes if pipe not in answers], WAIT)
            assert ready, "the processes hang"
            for pipe in ready:
                word, answers[pipe] = pickle.loads(pipe.recv_bytes())
                assert word == "done", answers[pipe]  # at once: the others may wait for this one
        return [answers[pipe] for pipe in self.pipes]

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self.processes = []
