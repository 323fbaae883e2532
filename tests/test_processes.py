"""What processes exchange, against what one process has at hand; and how the end of one ends all."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepcluster.processes import Processes
from deepcluster.shares import shares


def exchanged(processes: Processes, table: Tensor, sizes: list[int], wanted: list[Tensor]) -> dict[str, Tensor]:
    own = shares(processes, sizes[processes.rank])
    rows = table[own.own]
    mine = wanted[processes.rank]
    values, places = own.deliver(table[mine] + 100, wanted)
    return {
        "whole": own.whole(rows),
        "first": own.at_first(rows),
        "back": own.from_first(table if processes.leads else None),
        "at": own.at(rows, wanted[0]),
        "fetched": own.fetch(rows, wanted),
        "values": values,
        "places": places + own.own.start,
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
        assert torch.equal(each["back"], table[begin : begin + sizes[rank]])
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
        processes.sum(own).item(),
        processes.any(values[processes.rank] > 2),
        processes.every(values[processes.rank]),
        processes.every_at_first(values[processes.rank]),
        processes.first(lambda: values[processes.rank]),
        list(processes.share(7)),
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
