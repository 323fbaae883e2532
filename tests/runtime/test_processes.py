"""Requests of a process to torch. With other processes: tests/whole/test_several_processes.py."""

import os
from unittest.mock import Mock

import pytest

from deepcluster.runtime import processes
from deepcluster.runtime.processes import Processes, init_processes


@pytest.mark.parametrize(("local_size", "interface"), [("2", "lo"), ("1", None)])
def test_the_processes_of_one_machine_meet_on_the_loopback_interface(local_size, interface, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": local_size, "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(processes, "_end_with_launcher", lambda: None)
    for name in ("init_process_group", "get_rank", "get_world_size", "destroy_process_group"):
        monkeypatch.setattr(processes.dist, name, Mock(return_value=2))
    with init_processes():
        assert os.environ.get("GLOO_SOCKET_IFNAME") == interface
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)


@pytest.mark.parametrize("count", [2, 3])
def test_the_order_of_the_gradients_of_three_processes_stays(count, monkeypatch):
    monkeypatch.setattr(processes, "DistributedDataParallel", wrapper := Mock())
    Processes(0, count).data_parallel(Mock())
    assert wrapper.call_args.kwargs["find_unused_parameters"] == (count > 2)
