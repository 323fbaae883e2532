"""What processes exchange, against what one process has at hand."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import deepcluster
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import DTYPES, Processes


def exchanged(processes: Processes, table: Tensor, sizes: list[int], wanted: list[Tensor]) -> dict[str, Tensor]:
    own = Partition.of(processes, sizes[processes.rank])
    rows = table[own.local]
    mine = wanted[processes.rank]
    values, places = own.put_rows(table[mine] + 100, wanted)
    return {
        "whole": own.all_gather(rows),
        "first": own.gather(rows),
        "at": own.index_select(rows, wanted[0]),
        "fetched": own.get_rows(rows, wanted),
        "values": values,
        "places": places + own.local.start,
    }


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_rows_get_to_where_they_are_wanted(ranks, data):
    count = data.draw(st.integers(1, 3))
    sizes = data.draw(st.lists(st.integers(0, 5), min_size=count, max_size=count).filter(any))
    kind = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.uint8, torch.int64, torch.bool]))
    tail = data.draw(st.sampled_from([(), (3,), (2, 2)]))
    total = sum(sizes)
    table = torch.arange(total * torch.Size(tail).numel()).view(total, *tail).to(kind)
    some = st.lists(st.integers(0, total - 1), max_size=6).map(lambda rows: torch.tensor(rows, dtype=torch.int64))
    wanted = [data.draw(some) for _ in range(count)]
    found = ranks[count](exchanged, table, sizes, wanted)
    for rank, each in enumerate(found):
        begin = sum(sizes[:rank])
        assert torch.equal(each["whole"], table)
        assert torch.equal(each["first"], table if rank == 0 else table[:0])
        assert torch.equal(each["at"], table[wanted[0]])
        assert torch.equal(each["fetched"], table[wanted[rank]])
    # Every value arrives once, at the process that has its row, those of one process in their order.
    arrived = [
        (row, value) for each in found for row, value in zip(each["places"].tolist(), each["values"], strict=True)
    ]
    assert sorted(row for row, _ in arrived) == sorted(torch.cat(wanted).tolist())
    assert all(torch.equal(value, (table + 100)[row]) for row, value in arrived)
    for rank, each in enumerate(found):
        begin = sum(sizes[:rank])
        assert all(begin <= row < begin + sizes[rank] for row in each["places"].tolist())


def told(processes: Processes, values: list[int]) -> tuple[object, ...]:
    own = torch.tensor([values[processes.rank]])
    return (
        processes.all_reduce(own).item(),
        processes.any(values[processes.rank] > 2),
        processes.all_gather_json(values[processes.rank]),
        processes.gather_json(values[processes.rank]),
        processes.broadcast_json(lambda: values[processes.rank]),
        list(processes.part(7)),
    )


@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_all_are_told(ranks, count):
    values = [1, 2, 3][:count]
    found = ranks[count](told, values)
    assert [each[0] for each in found] == [sum(values)] * count
    assert [each[1] for each in found] == [count == 3] * count
    assert [each[2] for each in found] == [values] * count
    assert [each[3] for each in found] == [values if rank == 0 else [] for rank in range(count)]
    assert [each[4] for each in found] == [1] * count
    assert [thing for each in found for thing in each[5]] == list(range(7))


VALUE = {"": None, "flags": [True, False], "path": "b\udcff/\u00e4\n", "whole": 2**70, "none": []}
FLOATS = [0.1, -0.0, 1e-320, float("inf"), 2 / 3]


def worded(processes: Processes) -> tuple[object, ...]:
    own = {**VALUE, "rank": processes.rank}
    return processes.all_gather_json(own), processes.gather_json(FLOATS), processes.broadcast_json(lambda: own)


def test_json_comes_through_as_it_was(ranks):
    for rank, (every, at_first, first) in enumerate(ranks[3](worded)):
        assert every == [{**VALUE, "rank": each} for each in range(3)]
        assert repr(at_first) == repr([FLOATS] * 3 if rank == 0 else [])
        assert first == {**VALUE, "rank": 0}


def tensors_of_first(processes: Processes, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return processes.broadcast_tensors(lambda: tensors if processes.is_main else {"never": torch.ones(1)})


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(-1).view(torch.uint8)


def test_tensors_of_the_first(ranks):
    tensors = {str(dtype): torch.arange(6).view(2, 3).to(dtype) for dtype in DTYPES.values()}
    tensors |= {"number": torch.tensor(3), "none": torch.empty(0, 4), "nan": torch.tensor([float("nan"), -0.0])}
    tensors["turned"] = torch.arange(6.0).view(2, 3).T
    for found in ranks[2](tensors_of_first, tensors):
        assert list(found) == list(tensors)
        for name, each in tensors.items():
            assert (found[name].dtype, found[name].shape) == (each.dtype, each.shape)
            assert torch.equal(bits(found[name]), bits(each))


class Evil:
    """Its pickle says: call print when you are read."""

    def __reduce__(self) -> tuple[object, ...]:
        return exec, ("import deepcluster; deepcluster.ran = True",)


def rogue(processes: Processes, data: bytes) -> str:
    if processes.rank == 1:
        own = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        sizes = processes._sizes(own)
        processes.all_to_all(own.repeat(2), [len(own)] * 2, sizes)
        return ""
    try:
        processes.all_gather_json([1, 2, 3])
    except ValueError as error:
        return type(error).__name__
    return "nothing"


def test_a_pickle_from_another_process_is_no_json(ranks):
    said = ranks[2](rogue, pickle.dumps(Evil()))
    assert said[0] in ("JSONDecodeError", "UnicodeDecodeError")
    assert not hasattr(deepcluster, "ran")
