"""Threads: as many as the quota allows, results in order, one torch thread in each."""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from unittest.mock import Mock

import pytest
import torch

from deepcluster.runtime import threads
from deepcluster.runtime.threads import in_order, one_thread, pool_of


def test_a_quota_limits_the_cores(tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text("50000 100000\n")  # half a core
    monkeypatch.setattr(threads, "control_groups", lambda controller: [tmp_path / "none", tmp_path])
    assert threads.cores() == 1


def test_results_come_in_order_and_no_more_than_ahead_are_begun_and_not_taken():
    begun = []

    def work(task: int) -> int:
        begun.append(task)
        time.sleep(0.002 * (task % 3 == 0))
        return task**2

    with ThreadPoolExecutor(4) as pool:
        for count, result in enumerate(in_order(pool, work, range(20), ahead=3)):
            assert result == count**2 and len(begun) <= count + 3
            time.sleep(0.002)
    assert len(begun) == 20


def test_the_last_of_several_threads_restores_the_numbers_of_all(monkeypatch, request):
    def number_of_a_new_thread() -> int:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.get_num_threads).result()

    blas = Mock()
    monkeypatch.setattr(threads, "_libraries", blas)
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(2)
    restored = blas.return_value.limit.return_value.restore_original_limits
    with ThreadPoolExecutor(1) as other:
        outer = one_thread()
        other.submit(outer.__enter__).result()
        with pytest.raises(KeyError), one_thread(), pool_of(3, single=True) as pool:
            assert {torch.get_num_threads(), *pool.map(lambda _: torch.get_num_threads(), range(6))} == {1}
            raise KeyError
        assert (torch.get_num_threads(), restored.call_count) == (2, 0)
        other.submit(outer.__exit__, None, None, None).result()
    assert (number_of_a_new_thread(), restored.call_count) == (2, 1)
