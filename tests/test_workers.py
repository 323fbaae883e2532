import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from deepcluster.runtime.devices import in_order, made_ahead, one_thread, pool_of


def test_results_come_in_the_order_of_the_tasks():
    def work(task: int) -> int:
        time.sleep(0.002 * (task % 3 == 0))
        return task**2

    with ThreadPoolExecutor(3) as pool:
        assert list(in_order(pool, work, range(20), ahead=5)) == [task**2 for task in range(20)]
        assert list(in_order(pool, work, [], ahead=5)) == []


def test_no_more_than_ahead_are_begun_and_not_taken():
    begun = []
    with ThreadPoolExecutor(4) as pool:
        taken = in_order(pool, begun.append, range(50), ahead=3)
        for count in range(1, 10):
            next(taken)
            time.sleep(0.002)
            assert len(begun) <= count + 2


@pytest.mark.parametrize(("device", "ahead"), [("mps", True), ("cpu", False)])
def test_the_next_is_made_while_this_one_is_used_on_a_gpu(device, ahead):
    made = threading.Event()

    def make(task: int) -> int:
        if task == 1:
            made.set()
        return task

    results = made_ahead(make, range(5), torch.device(device))
    assert next(results) == 0
    assert made.wait(timeout=5 if ahead else 0.05) == ahead
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


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_threads_are_one_inside_and_as_before_outside():
    np.ones((2, 2)) @ np.ones((2, 2))
    before, blas_before = torch.get_num_threads(), blas_threads()
    torch.set_num_threads(2)
    try:
        with one_thread(), pool_of(3) as pool:
            assert list(pool.map(lambda _: torch.get_num_threads(), range(6))) == [1] * 6
            assert blas_threads() == {1}
        assert torch.get_num_threads() == 2
        with pytest.raises(KeyError), one_thread():
            raise KeyError
        assert torch.get_num_threads() == 2
        with ThreadPoolExecutor(1) as pool:  # threads begun later are not concerned
            assert pool.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)
    assert blas_threads() == blas_before
