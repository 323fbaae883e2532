"""Batches that are made while the device works."""

import threading
from contextlib import nullcontext
from unittest.mock import Mock

import pytest
import torch

from deepcluster.runtime.ahead import prefetched
from tests.helpers.ranks import WAIT


@pytest.mark.parametrize(("device", "ahead"), [("mps", True), ("cpu", False)])
def test_the_next_is_made_while_this_one_is_used_on_a_gpu(device, ahead):
    made = [threading.Event() for _ in range(5)]
    results = prefetched(lambda task: made[task].set() or task, range(5), torch.device(device))
    assert next(results) == 0
    assert made[1].wait(timeout=WAIT if ahead else 0.05) == ahead
    assert list(results) == [1, 2, 3, 4]


def test_a_gpu_waits_for_a_batch_and_batches_do_not_run_away_from_it(monkeypatch):
    making, using, begun = Mock(), Mock(), []
    making.record_event.side_effect = range(8)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: making)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: using)
    for task in prefetched(lambda task: begun.append(task) or task, range(8), torch.device("cuda:0")):
        assert using.wait_event.call_args.args == (task,) and len(begun) <= task + 3
    assert begun == [*range(8)]
    assert using.record_event().synchronize.call_count >= 3
