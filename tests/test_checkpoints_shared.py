"""Checkpoints of several processes: each writes its rows, and any number of them goes on from these."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deepcluster.errors import DeepClusterWarning, DiskError
from deepcluster.records import Clustering, State, Trained, Work
from deepcluster.runtime.partition import Partition
from deepcluster.runtime.processes import Processes
from deepcluster.storage import run_folder as files
from deepcluster.storage.checkpoint import Checkpoints, restored
from deepcluster.storage.files import write_tensors
from deepcluster.storage.safe_read import json_sha256

SIZES = {1: (11,), 2: (7, 4), 3: (2, 0, 9)}  # rows of each rank; one may have none


def state(steps: int | None = 4, round: int = 2) -> State:
    """One of all images."""
    random = torch.Generator().manual_seed(3)
    labels = [torch.randint(k, (11,), generator=random) for k in (3, 5)]
    reduced, memory = torch.randn(11, 4, generator=random), torch.randn(11, 6, generator=random)
    clusterings = tuple(
        Clustering(each, torch.randn(k, 4, generator=random), torch.bincount(each, minlength=k), 1.5, 7, 0)
        for each, k in zip(labels, (3, 5), strict=True)
    )
    trained = None if steps is None else Trained(steps, torch.tensor(0.5), torch.tensor(0.2, dtype=torch.float64))
    work = Work(reduced, clusterings, float("nan"), 0.25, 0.5, (1.0, 2.0), trained)
    return State(round, torch.stack(labels, 1), 1, memory, (torch.randn(2, generator=random),), work)


def local(whole: State, partition: Partition) -> State:
    """The state on a rank, whose loss so far is a quarter of its number and a half."""
    own = partition.local
    assert whole.work is not None and whole.memory is not None
    work = replace(whole.work, reduced=whole.work.reduced[own])
    if work.trained:
        work = replace(work, trained=replace(work.trained, epoch_loss=torch.tensor(0.5 + partition.processes.rank / 4)))
    return replace(whole, memory=whole.memory[own], work=work)


def writing(processes: Processes, folder: Path, *steps: int | None) -> None:
    partition = Partition(processes, SIZES[processes.world_size])
    checkpoints = Checkpoints(folder, processes=processes)
    if processes.is_main:
        checkpoints.add("start", {"reduced": torch.eye(3)})
    for each in steps:
        checkpoints.write(local(state(each), partition), {"weight": torch.ones(2)}, {"elapsed": 1.5}, partition)


def reading(processes: Processes, folder: Path) -> dict[str, Tensor]:
    partition = Partition(processes, SIZES[processes.world_size])
    found = Checkpoints(folder, processes=processes).latest()
    assert (found is not None) is processes.is_main
    if found:
        assert found.parts["start"]["reduced"].equal(torch.eye(3)) and found.network["weight"].equal(torch.ones(2))
        assert found.about == {"elapsed": 1.5} and found.round == 2
    return tensors(restored(found, partition))


def tensors(found: State) -> dict[str, Tensor]:
    assert found.work and found.work.trained and found.previous is not None and found.memory is not None
    values = {"previous": found.previous, "memory": found.memory, "reduced": found.work.reduced}
    values |= {"epoch_loss": found.work.trained.epoch_loss, "loss": found.work.trained.loss}
    for i, each in enumerate(found.work.clusterings):
        values |= {f"labels.{i}": each.labels, f"centroids.{i}": each.centroids, f"sizes.{i}": each.sizes}
    return values | {f"momentum.{i}": each for i, each in enumerate(found.momentum)}


@pytest.mark.parametrize("then", [1, 2, 3])
@pytest.mark.parametrize("now", [1, 2, 3])
def test_what_some_write_any_number_read(ranks, tmp_path, then, now):
    folder = tmp_path / "checkpoints"
    ranks[then](writing, folder, 4)
    names = {path.name for path in folder.glob("000002-*.safetensors")}
    assert names == {f"000002-00000004{f'-{rank}' if rank else ''}.safetensors" for rank in range(then)}
    whole = tensors(state())
    for rank, found in enumerate(ranks[now](reading, folder)):
        partition = Partition(Processes(rank, now), SIZES[now])
        for name, value in whole.items():
            if name == "epoch_loss":
                wanted = 0.5 + rank / 4 if then == now else 0.5 + sum(range(then)) / then / 4
                assert found[name].shape == () and found[name].item() == pytest.approx(wanted)
            else:
                assert torch.equal(found[name], value[partition.local] if name in ("memory", "reduced") else value), (
                    name
                )


def test_a_rank_writes_no_more_than_its_rows(ranks, tmp_path):
    """And the main rank no more than its own and what is the same on all."""
    for count in (1, 2):
        ranks[count](writing, tmp_path / str(count), 4)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "2").glob("000002*.safetensors")}
    alone = (tmp_path / "1" / "000002-00000004.safetensors").stat().st_size
    row = 4 * (4 + 6) + 8 * (2 + 2)
    assert alone - sizes["000002-00000004.safetensors"] == pytest.approx(4 * row, abs=64)
    assert sizes["000002-00000004-1.safetensors"] < 4 * row + 700  # its header


def test_old_ones_are_removed_with_the_rows_of_all(ranks, tmp_path):
    folder = tmp_path / "checkpoints"
    ranks[3](writing, folder, None, 2, 4, 6)
    steps = {path.stem.split("-")[1] for path in folder.glob("0*")}
    assert steps == {"00000004", "00000006"} and len(list(folder.glob("*.safetensors"))) == 7
    ranks[2](writing, folder, 6)
    assert {path.name for path in folder.glob("000002-00000006*")} == {
        f"000002-00000006{end}" for end in (".json", ".safetensors", "-1.safetensors")
    }


@pytest.mark.parametrize("damage", ["lost", "changed"])
def test_without_the_rows_of_one_there_is_the_one_before(ranks, tmp_path, damage):
    folder = tmp_path / "checkpoints"
    ranks[3](writing, folder, 2, 4)
    path = folder / "000002-00000004-2.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    if damage == "lost":
        path.unlink()
    reason = {"lost": "is missing", "changed": "has changed since it was written"}[damage]
    for count in (1, 2, 3):
        for warned, step in ranks[count](_found, folder):
            assert step == "000002-00000002.safetensors"
            assert f"{path.name} {reason}" in warned and "going on from 000002-00000002" in warned


def _found(processes: Processes, folder: Path) -> tuple[str, str]:
    with pytest.warns(DeepClusterWarning) as warned:
        found = Checkpoints(folder, processes=processes).latest()
    return str(warned[0].message), found.rows[0].name if found else "000002-00000002.safetensors"


def test_the_one_that_a_run_goes_on_from_stays_until_there_is_another(ranks, tmp_path, monkeypatch):
    """Its rows would lie in other files for another number of processes, and a kill between them would be its end."""
    folder = tmp_path / "checkpoints"
    ranks[2](writing, folder, 4)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    checkpoints = Checkpoints(folder)
    found = checkpoints.latest()
    assert found is not None
    checkpoints.write(restored(found, Partition.single(11)), found.network, {})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    checkpoints.write(state(5), found.network, {})
    assert Checkpoints(folder).latest().rows == (folder / "000002-00000005.safetensors",)  # type: ignore[union-attr]


def test_those_of_before_are_read(ranks, tmp_path):
    """Version 1: the main rank wrote all rows, and the losses of the ranks side by side."""
    folder = tmp_path / "checkpoints"
    ranks[1](writing, folder, 4)
    old = Checkpoints(folder).latest()
    assert old is not None
    path = folder / "000002-00000004.safetensors"
    content = {
        **tensors(restored(old, Partition.single(11))),
        "network.weight": torch.ones(2),
        "epoch_loss": torch.tensor([0.5, 0.75]),
    }
    value = json.loads((folder / "000002-00000004.json").read_text())
    value |= {"schema_version": 1, "files": value["files"] | {path.stem: write_tensors(path, content)}}
    del value["sha256"]
    path.with_suffix(".json").write_text(json.dumps(value | {"sha256": json_sha256(value)}))
    found = ranks[2](reading, folder)
    assert [each["epoch_loss"].item() for each in found] == [0.5, 0.75]
    assert torch.equal(torch.cat([each["reduced"] for each in found]), tensors(state())["reduced"])
    assert reading(Processes(), folder)["epoch_loss"].item() == 0.625


def _apart(processes: Processes, folder: Path) -> str:
    """As on two machines without a common disk."""
    path = folder / str(processes.rank) / "run"
    try:
        with files.shared_lock(path, processes, make=True) as run:
            files.check_shared(run, processes)
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
