"""Processes that wait for work: a function of a test module, run in all of them as in one run under torchrun (gloo)."""

import os
import pickle
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from deepcluster.processes import ALONE, Processes

WAIT = 120.0  # seconds for an answer: more is a hang


def _serve(pipe: Any, store: str, rank: int, count: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=timedelta(60))
    while True:
        try:
            work, arguments = pickle.loads(pipe.recv_bytes())
        except EOFError:
            os._exit(0)
        try:
            answer = ("done", work(Processes(rank, count), *arguments))
        except Exception:
            answer = ("failed", traceback.format_exc())
        pipe.send_bytes(pickle.dumps(answer))


class Ranks:
    """``count`` processes of one thread each; a call runs a function in all and returns what each of them returns."""

    def __init__(self, count: int):
        self.count = count
        if count == 1:
            return
        context = multiprocessing.get_context("spawn")
        self.folder = tempfile.TemporaryDirectory()
        pairs = [context.Pipe() for _ in range(count)]
        self.pipes = [ours for ours, _ in pairs]
        store = str(Path(self.folder.name) / "store")
        self.processes = [
            context.Process(target=_serve, args=(theirs, store, rank, count), daemon=True)
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process in self.processes:
            process.start()
        for _, theirs in pairs:
            theirs.close()

    def __call__(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        if self.count == 1:
            return [work(ALONE, *arguments)]
        for pipe in self.pipes:
            pipe.send_bytes(pickle.dumps((work, arguments)))
        answers = []
        for pipe in self.pipes:
            assert pipe.poll(WAIT), "the processes hang"
            answers.append(pickle.loads(pipe.recv_bytes()))
        failures = [value for word, value in answers if word == "failed"]
        assert not failures, failures[0]
        return [value for _, value in answers]

    def end(self) -> None:
        for process in self.processes if self.count > 1 else ():
            process.kill()
            process.join()


@contextmanager
def all_ranks(*counts: int) -> Iterator[dict[int, Ranks]]:
    """Processes for each of the ``counts``, by their number."""
    found = {count: Ranks(count) for count in counts}
    try:
        yield found
    finally:
        for each in found.values():
            each.end()
