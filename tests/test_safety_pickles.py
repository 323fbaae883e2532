"""Ten files that run a program when they are unpickled: as weights, and in place of a model. None may run."""

import builtins
import copy
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from deepcluster.cli import run_command
from deepcluster.errors import ModelError
from deepcluster.nets.network import build
from deepcluster.nets.weights import read_state
from deepcluster.storage import model_files as models
from tests.tiny import change_groups, tiny_run, write_weights


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., object], *arguments: object):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def shell(canary: Path) -> Calls:
    return Calls(os.system, f"touch {canary}")


def evaluation(canary: Path) -> Calls:
    return Calls(builtins.eval, f"open({str(canary)!r}, 'w').close()")


def saved(content: object, path: Path, *, legacy: bool = False) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)


def in_a_zip(content: bytes, path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


def in_a_tar(content: bytes, path: Path) -> None:
    """As torch 0.1 wrote it; the first thing that is unpickled is ``storages``."""
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def by_hand(canary: Path) -> bytes:
    return f"cposix\nsystem\n(S'touch {canary}'\ntR.".encode()


Write = Callable[[Path, Path], object]
PAYLOADS: dict[str, Write] = {
    "zip.pt": lambda path, canary: saved(shell(canary), path),
    "legacy.pth": lambda path, canary: saved(evaluation(canary), path, legacy=True),
    "renamed.safetensors": lambda path, canary: saved(shell(canary), path),
    "packed.pt": lambda path, canary: in_a_zip(pickle.dumps(evaluation(canary), protocol=2), path),
    "old.tar": lambda path, canary: in_a_tar(pickle.dumps(shell(canary), protocol=2), path),
    "protocol0.pt": lambda path, canary: path.write_bytes(pickle.dumps(evaluation(canary), protocol=0)),
    "protocol2.bin": lambda path, canary: path.write_bytes(pickle.dumps(shell(canary), protocol=2)),
    "posix.pt": lambda path, canary: path.write_bytes(by_hand(canary)),
    "nested.pt": lambda path, canary: saved(
        {"state_dict": OrderedDict(a=torch.zeros(2), b={"c": [1, {"d": shell(canary)}]})}, path
    ),
    "newest.safetensors": lambda path, canary: path.write_bytes(pickle.dumps(evaluation(canary), protocol=5)),
}


@pytest.fixture
def traps(tmp_path) -> dict[Path, Path]:
    """file -> its canary, which appears when the file's program runs."""
    made = {}
    for name, write in PAYLOADS.items():
        path, canary = tmp_path / name, tmp_path / f"{name}.canary"
        write(path, canary)
        made[path] = canary
    return made


def run_them(path: Path) -> None:
    """What must never be done, whatever the file is called."""
    plain = path.with_suffix(".content")
    plain.write_bytes(path.read_bytes())
    with suppress(Exception):  # not all of them are whole beside their program
        torch.load(plain, weights_only=False)


def test_all_ten_traps_work(traps):
    """The negative control: without the guard every one of them runs its program."""
    assert len(traps) == 10
    for path, canary in traps.items():
        run_them(path)
        assert canary.exists(), path.name


def test_ten_of_ten_are_refused_as_weights(traps):
    for path, canary in traps.items():
        with pytest.raises(ModelError, match="cannot be read as weights") as caught:
            build("compact", image_size=32, weights=str(path))
        assert caught.value.exit_code == 4
        assert str(path) in str(caught.value)
        assert "weights_only" not in str(caught.value), "the advice to run what is in it"
        assert not canary.exists(), path.name


def test_ten_of_ten_are_refused_as_a_model(traps, tmp_path):
    run = tiny_run(tmp_path / "run")
    config = (run / "model" / "config.json").read_text()
    for path, canary in traps.items():
        write_weights(run / "model", path.read_bytes())
        with pytest.raises(ModelError, match=r"model.safetensors cannot be used"):
            models.load(run)
        (run / "model" / "config.json").write_bytes(path.read_bytes())
        with pytest.raises(ModelError, match=r"config.json cannot be used"):
            models.load(run)
        (run / "model" / "config.json").write_text(config)
        assert not canary.exists(), path.name


def test_a_pickle_in_json_is_text(tmp_path):
    canary = tmp_path / "canary"
    run = tiny_run(tmp_path / "run", names=(by_hand(canary).decode(), "b"))
    assert models.load(run).names[0].startswith("cposix")
    change_groups(run / "model", names=["", {"__reduce__": ["os.system", f"touch {canary}"]}])
    with pytest.raises(ModelError, match="names"):
        models.load(run)
    assert not canary.exists()


FORCED = """
import json, os, sys
from pathlib import Path
import torch
from deepcluster.cli import run_command
assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
control, images, run, *files = sys.argv[1:]
torch.load(control)  # by default torch now runs what is in a file
assert Path(control + ".canary").exists(), "the variable has no effect here"
codes = []
for file in files:
    options = ["-k", "2", "--backbone", "compact", "-o", file + ".run"]
    codes.append(run_command(["fit", images, "--weights", file, *options]))
    (Path(run) / "model" / "model.safetensors").write_bytes(Path(file).read_bytes())
    codes.append(run_command(["predict", run, images]))
print(json.dumps(codes))
"""


def test_the_variable_that_makes_torch_unsafe_changes_nothing(traps, photos, tmp_path):
    run = tiny_run(tmp_path / "run")
    control = tmp_path / "control.pt"
    saved(shell(tmp_path / "control.pt.canary"), control)
    done = subprocess.run(
        [sys.executable, "-c", FORCED, str(control), str(photos), str(run), *map(str, traps)],
        capture_output=True, text=True, env=os.environ | {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [4] * 20
    assert "Traceback" not in done.stderr
    assert not any(canary.exists() for canary in traps.values())


def test_a_compressed_checkpoint_is_refused(tmp_path, photos, capsys):
    """A kilobyte of it may be a gigabyte; torch itself would unpack it."""
    small, bomb = tmp_path / "small.pt", tmp_path / "bomb.pt"
    torch.save({"a": torch.zeros(1 << 20)}, small)
    with zipfile.ZipFile(small) as whole, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in whole.infolist():
            packed.writestr(entry.filename, whole.read(entry))
    assert bomb.stat().st_size < small.stat().st_size / 100
    assert torch.load(bomb, weights_only=True)["a"].shape == (1 << 20,)
    out = str(tmp_path / "run")
    assert run_command(["fit", str(photos), "-k", "2", "--backbone", "compact", "--weights", str(bomb), "-o", out]) == 4
    assert "compressed archive" in capsys.readouterr().err


def repeated(path: Path, times: int) -> None:
    """A checkpoint whose table of contents names its one stored record many times."""
    torch.save({f"k{i}": torch.zeros(1 << 16) for i in range(times)}, path.with_suffix(".whole"))
    first = None
    with zipfile.ZipFile(path.with_suffix(".whole")) as whole, zipfile.ZipFile(path, "w") as bomb:
        for name in whole.namelist():
            if first and "/data/" in name:
                entry = copy.copy(first)
                entry.filename = entry.orig_filename = name
                bomb.filelist.append(entry)
            else:
                bomb.writestr(name, whole.read(name))
                first = bomb.getinfo(name) if "/data/" in name else first


def test_a_record_that_is_there_many_times_is_refused_with_both_numbers(tmp_path, monkeypatch):
    path = tmp_path / "bomb.pt"
    repeated(path, 1)
    assert len(read_state(path)) == 1  # what torch itself writes is fine
    repeated(path, 24)
    assert path.stat().st_size < 1 << 19
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(ModelError, match=rf"{path.stat().st_size:,} bytes whose records claim 6,29\d,\d+"):
        read_state(path)


def test_weights_that_are_not_finite_are_a_fault_of_their_file(tmp_path, photos, capsys):
    state = build("compact", image_size=16).body.state_dict()
    name = next(name for name in state if name.endswith("running_var"))
    for value in (torch.nan, -torch.inf):
        state[name][-1] = value
        torch.save(state, tmp_path / "w.pt")
        options = ["--backbone", "compact", "--image-size", "16", "--weights", str(tmp_path / "w.pt")]
        assert run_command(["fit", str(photos), "-k", "2", *options, "-o", str(tmp_path / "run")]) == 4
        assert f"w.pt: {name} has numbers that are not finite" in capsys.readouterr().err


def test_weights_of_no_bytes_are_not_opened(tmp_path, monkeypatch):
    """So do the endless files of /proc look."""
    (tmp_path / "w.pt").touch()
    monkeypatch.setattr(Path, "open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(ModelError, match="the file is empty"):
        read_state(tmp_path / "w.pt")
