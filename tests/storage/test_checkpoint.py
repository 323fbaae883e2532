"""Checkpoints: damage is found, the one before is taken, and nothing that is not finite is written."""

import random
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from deepcluster.errors import DeepClusterWarning, ModelError, NonFiniteError
from deepcluster.records import State
from deepcluster.storage.checkpoint import Checkpoint, Checkpoints, restored
from tests.helpers.runs import contents
from tests.helpers.tiny import flipped


def state_in(checkpoint: Checkpoint | None) -> State:
    assert checkpoint is not None
    return restored(checkpoint)[0]


def a_state(round: int) -> State:
    return State(
        round, torch.arange(6)[:, None] % 3, 1, torch.randn(6, 4), {"state": torch.randn(2), "none": torch.empty(0)}
    )


@pytest.fixture
def checkpoints(tmp_path) -> Checkpoints:
    folder = Checkpoints(tmp_path / "checkpoints")
    network = {"weight": torch.randn(5, 3), "counter": torch.tensor(7)}
    for round in (1, 2):
        folder.write(a_state(round), network, {"weights": [0.5], "elapsed": 3.0})
    return folder


def check_found(folder: Checkpoints, path: Path, contents: list[bytes]) -> None:
    """Each of the contents in place of a file of the later checkpoint is damage: there is only the one before."""
    before = path.read_bytes()
    for content in contents:
        path.write_bytes(content)
        with pytest.warns(DeepClusterWarning, match="000001"):
            assert state_in(folder.latest()).round == 1
    path.write_bytes(before)


def test_flipped_bits_and_truncations_are_found(checkpoints):
    chance = random.Random(0)
    for path in checkpoints.folder.glob("000002.*"):
        content = path.read_bytes()
        places = [(chance.randrange(len(content)), chance.randrange(8)) for _ in range(50)]
        check_found(checkpoints, path, [flipped(content, place, bit) for place, bit in places])
        check_found(checkpoints, path, [content[: chance.randrange(len(content) - 1)] for _ in range(25)])


def test_damaged_ones_do_not_push_out_those_written_after_them(checkpoints):
    """Three are there when a run is killed before the oldest is removed; the last two are damaged."""
    first = {path: path.read_bytes() for path in checkpoints.folder.glob("000001.*")}
    checkpoints.write(a_state(3), {"weight": torch.ones(2)}, {})
    for path in checkpoints.folder.glob("*.json"):
        path.write_text("{")
    for path, content in first.items():
        path.write_bytes(content)
    with pytest.warns(DeepClusterWarning, match="000001"):
        checkpoints.latest()
    checkpoints.write(a_state(2), {"weight": torch.ones(2)}, {})
    assert sorted(path.stem for path in checkpoints.folder.glob("*.json")) == ["000001", "000002"]
    assert state_in(checkpoints.latest()).round == 2


def test_a_users_files_are_no_checkpoints(checkpoints):
    for name in ("1.json", "000002-12.json"):
        (checkpoints.folder / name).write_text("mine")
    checkpoints.write(a_state(3), {"weight": torch.ones(2)}, {})
    assert state_in(checkpoints.latest()).round == 3
    assert sorted(path.stem for path in checkpoints.folder.glob("*.json")) == ["000002", "000002-12", "000003", "1"]


def test_an_old_one_that_is_in_use_is_removed_later(checkpoints, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", Mock(side_effect=OSError(16, "Device or resource busy")))
        checkpoints.write(a_state(3), {"weight": torch.ones(2)}, {})
    assert len([*checkpoints.folder.glob("*.json")]) == 3
    checkpoints.write(a_state(4), {"weight": torch.ones(2)}, {})
    assert sorted(path.stem for path in checkpoints.folder.glob("*.json")) == ["000003", "000004"]


def test_without_a_whole_checkpoint_all_reasons_are_named(checkpoints):
    for path in checkpoints.folder.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(ModelError, match=r"000002: .*000001\.safetensors"):
        checkpoints.latest()


def test_what_is_not_finite_is_not_written(checkpoints):
    before = contents(checkpoints.folder)
    with pytest.raises(NonFiniteError, match=r"network\.weight"):
        checkpoints.write(a_state(3), {"weight": torch.tensor([1.0, float("nan")])}, {})
    assert contents(checkpoints.folder) == before
