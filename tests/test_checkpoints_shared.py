"""Checkpoints of several processes: each writes its rows, and any number of them goes on from these."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deepcluster.errors import DeepClusterWarning, DiskError
from deepcluster.records import State
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import Processes
from deepcluster.storage import run_folder as files
from deepcluster.storage.checkpoint import Checkpoints, restored

SIZES = {1: (11,), 2: (7, 4), 3: (2, 0, 9)}  # rows of each rank; one may have none


def state(round: int = 2) -> State:
    """One of all images."""
    random = torch.Generator().manual_seed(3)
    previous = torch.stack([torch.randint(k, (11,), generator=random) for k in (3, 5)], 1)
    features, momentum = torch.randn(11, 6, generator=random), torch.randn(2, generator=random)
    return State(round, previous, 1, features, (momentum, torch.empty(0)))


def writing(processes: Processes, folder: Path, *rounds: int) -> None:
    """Write checkpoints, each rank with its rows of the features."""
    own = Partition(processes, SIZES[processes.world_size]).local
    checkpoints = Checkpoints(folder, processes=processes)
    for each in rounds:
        whole = state(each)
        checkpoints.write(replace(whole, features=whole.features[own]), {"weight": torch.ones(2)}, {"elapsed": 1.5})


def reading(processes: Processes, folder: Path) -> State:
    partition = Partition(processes, SIZES[processes.world_size])
    found = Checkpoints(folder, processes=processes).latest()
    assert (found is not None) is processes.is_main
    assert found is None or found.about == {"elapsed": 1.5}
    restored_state, network = restored(found, partition)
    assert network["weight"].equal(torch.ones(2)) and network.keys() == {"weight"}
    return restored_state


@pytest.mark.parametrize("then", [1, 2, 3])
@pytest.mark.parametrize("now", [1, 2, 3])
def test_what_some_write_any_number_read(ranks, tmp_path, then, now):
    folder = tmp_path / "checkpoints"
    ranks[then](writing, folder, 2)
    names = {path.name for path in folder.glob("*.safetensors")}
    assert names == {f"000002{f'-{rank}' if rank else ''}.safetensors" for rank in range(then)}
    whole = state()
    for rank, found in enumerate(ranks[now](reading, folder)):
        own = Partition(Processes(rank, now), SIZES[now]).local
        assert (found.round, found.settled) == (2, 1)
        assert torch.equal(found.previous, whole.previous) and torch.equal(found.features, whole.features[own])
        assert all(map(torch.equal, found.momentum, whole.momentum))


def test_a_rank_writes_no_more_than_its_rows(ranks, tmp_path):
    """And the main rank no more than its own and what is the same on all."""
    for count in (1, 2):
        ranks[count](writing, tmp_path / str(count), 2)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "2").glob("*.safetensors")}
    alone = (tmp_path / "1" / "000002.safetensors").stat().st_size
    row = 4 * 6
    assert alone - sizes["000002.safetensors"] == pytest.approx(4 * row, abs=64)
    assert sizes["000002-1.safetensors"] < 4 * row + 100  # its header


def test_old_ones_are_removed_with_the_rows_of_all(ranks, tmp_path):
    folder = tmp_path / "checkpoints"
    ranks[3](writing, folder, 1, 2, 3, 4)
    assert {path.stem[:6] for path in folder.iterdir()} == {"000003", "000004"}
    assert len(list(folder.glob("*.safetensors"))) == 6
    ranks[2](writing, folder, 4)
    assert {path.name for path in folder.glob("000004*")} == {
        f"000004{end}" for end in (".json", ".safetensors", "-1.safetensors")
    }


@pytest.mark.parametrize("damage", ["lost", "changed"])
def test_without_the_rows_of_one_there_is_the_one_before(ranks, tmp_path, damage):
    folder = tmp_path / "checkpoints"
    ranks[3](writing, folder, 1, 2)
    path = folder / "000002-2.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    if damage == "lost":
        path.unlink()
    reason = {"lost": "is missing", "changed": "has changed since it was written"}[damage]
    for count in (1, 2, 3):
        for warned, round in ranks[count](_found, folder):
            assert round == 1
            assert f"{path.name} {reason}" in warned and "going on from 000001" in warned


def _found(processes: Processes, folder: Path) -> tuple[str, int]:
    with pytest.warns(DeepClusterWarning) as warned:
        found = Checkpoints(folder, processes=processes).latest()
    return str(warned[0].message), found.values["round"] if found else 1


def _apart(processes: Processes, folder: Path) -> str:
    """As on two machines without a common disk."""
    path = folder / str(processes.rank) / "run"
    try:
        with files.shared_lock(path, processes, make=True):
            files.check_shared(path, processes)
    except DiskError as error:
        return str(error)
    return "one folder"


def test_a_folder_that_not_all_see_is_refused(ranks, tmp_path):
    (tmp_path / "0").mkdir()
    (tmp_path / "1").symlink_to(tmp_path / "0")
    assert ranks[2](_apart, tmp_path) == ["one folder"] * 2
    (tmp_path / "1").unlink()
    shutil.rmtree(tmp_path / "0" / "run")
    assert all("the processes do not see one folder" in said for said in ranks[2](_apart, tmp_path))
