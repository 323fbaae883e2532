import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from deepcluster.runtime.devices import in_order, made_ahead, one_thread, pool_of


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


@pytest.mark.parametrize(("device", "ahead"), [("mps", True), ("cpu", False)])
def test_the_next_is_made_while_this_one_is_used_on_a_gpu(device, ahead):
    made = [threading.Event() for _ in range(5)]
    results = made_ahead(lambda task: made[task].set() or task, range(5), torch.device(device))
    assert next(results) == 0
    assert made[1].wait(timeout=5 if ahead else 0.05) == ahead
    assert list(results) == [1, 2, 3, 4]


def test_an_error_stops_the_rest():
    done = []

    def work(task: int) -> None:
        if task == 1:
            raise ValueError("task 1")
        done.append(task)
        time.sleep(0.01)

    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="task 1"):
        list(in_order(pool, work, range(100), ahead=50))
    assert len(done) < 10


def test_threads_are_one_inside_and_as_before_outside():
    def blas_threads() -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    np.ones((2, 2)) @ np.ones((2, 2))
    before, blas_before = torch.get_num_threads(), blas_threads()
    torch.set_num_threads(2)
    try:
        with one_thread(), pool_of(3) as pool:
            assert list(pool.map(lambda _: torch.get_num_threads(), range(6))) == [1] * 6
            assert blas_threads() == {1}
        with pytest.raises(KeyError), one_thread():
            raise KeyError
        assert torch.get_num_threads() == 2
        with ThreadPoolExecutor(1) as pool:  # threads begun later are not concerned
            assert pool.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)
    assert blas_threads() == blas_before
