"""Models and weights of strangers, and damaged runs: a command ends with one line, the right exit code, little memory.

Images of strangers: tests/images/test_decode.py, test_shards.py and test_faults_images.py. The first table is
every such file times every kind of harm. The tables after it are of files that somebody wrote: their digests fit.
"""

import builtins
import copy
import errno
import io
import json
import os
import pickle
import random
import shutil
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from deepcluster.errors import DataError, DiskError, ModelError, NonFiniteError, OutOfMemoryError
from deepcluster.images.decode import pillow_limits
from deepcluster.images.files import LIBRARIES
from deepcluster.nets.names import MODULE, backbone_of
from deepcluster.nets.network import build
from deepcluster.nets.weights import read_weights
from deepcluster.recipes.options import DECLARED
from deepcluster.runtime import machine
from deepcluster.runtime.bounded import MAX_JSON
from deepcluster.storage import files as whole_files
from deepcluster.storage import model_files as models
from deepcluster.storage.content import FILES
from deepcluster.storage.files import write_whole
from deepcluster.storage.model_config import BACKBONE
from fuzz import decode as fuzz_decode
from fuzz import harness
from fuzz import model as fuzz_model
from fuzz.harness import peak_memory
from tests.helpers import tiny
from tests.helpers.runs import change_record, contents, rows, small_fit

CONFIG, WEIGHTS, CLUSTERS = (
    f"run/model/{name}" for name in ("config.json", "model.safetensors", "clusters.safetensors")
)
PREDICT, REPORT, RECUT = "predict {run} {image}", "report {run}", "recut {run} -k 2 -q"
FIT = "fit {photos} -k 2 --backbone compact --image-size 16 --rounds 0 -q -o {here}/out"
# The command that reads a file, and its exit code if that file is unusable.
READERS = {
    **dict.fromkeys((CONFIG, WEIGHTS, CLUSTERS), (PREDICT, 4)),
    **{f"run/{name}": (REPORT, 5) for name in (
        "run.json", "images.csv", "duplicates.csv", "map.npy", "nouns.csv", "thumbnails.webp",
    )},
    "run/features.npy": (RECUT, 5),
    "run/residuals.npy": (RECUT, 5),
    "run/recipe.toml": (RECUT, 2),
    "w.pt": (f"{FIT} --weights {{file}}", 4),
    "w.safetensors": (f"{FIT} --weights {{file}}", 4),
}  # fmt: skip
SPARE = {name for name, file in FILES.items() if file.spare}


class Place:
    """A folder with a small run and a file of every other kind; all of it is as it was after a refused command."""

    def __init__(self, whole: Path, here: Path, photos: Path, ends: Callable[..., str]):
        self.whole, self.here, self.photos, self.ends = whole, here, photos, ends
        self.run, self.model = here / "run", here / "run" / "model"
        self.make()

    def make(self) -> None:
        shutil.rmtree(self.here, ignore_errors=True)
        shutil.copytree(self.whole, self.here)

    def command(self, name: str, *codes: int) -> str:
        """Run the command that reads a file, which ends with one of the codes; return what it says."""
        image = next(self.photos.rglob("*.png"))
        values = {"run": self.run, "file": self.here / name, "image": image, "photos": self.photos, "here": self.here}
        before = peak_memory(anew=True)
        said = self.ends(READERS[name][0].format(**values).split(), *codes)
        assert peak_memory() - before < 500e6, "it takes much memory"
        lines = said.splitlines()
        assert all(line.isprintable() and len(line) < 1000 for line in lines)
        assert sum(not line.startswith(("skipped ", "warning: ")) for line in lines) <= 1
        return said

    def refused(self, name: str, *codes: int) -> str:
        said = self.command(name, *(codes or [READERS[name][1]]))
        error = said.splitlines()[-1]
        assert error.startswith("error: ") and Path(name).name in said, said
        advice = ("--overwrite", "allow_pickle", "weights_only")
        assert not any(word in error for word in advice), "it destroys, or executes, what is there"
        return said


@pytest.fixture(scope="module")
def whole(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's images are nowhere, so that a report takes no time."""
    here = tmp_path_factory.mktemp("whole") / "here"
    run = Path(shutil.copytree(finished, here / "run"))
    change_record(run, base=str(here / "nowhere"))
    (run / "nouns.csv").write_text("path,noun,probability\n" + "a,b,0.5\n" * 31)  # cut in half, it ends inside a line
    state = build("compact", image_size=16).body.state_dict()
    torch.save(state, here / "w.pt")
    save_file(state, here / "w.safetensors")
    return here


@pytest.fixture
def place(whole: Path, tmp_path: Path, photos: Path, ends: Callable[..., str]) -> Place:
    return Place(whole, tmp_path / "here", photos, ends)


# ---- every file, every harm ------------------------------------------------------------------------------------------


Change = Callable[[Path], object]


def put(content: bytes) -> Change:
    return lambda path: path.write_bytes(content)


def instead(make: Change) -> Change:
    return lambda path: (path.unlink(), make(path))


def at_random(seed: int, path: Path) -> None:
    path.write_bytes(harness.changed([path.read_bytes()], random.Random(seed)))


DAMAGE: dict[str, Change] = {
    "empty": put(b""),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "text": put(b"hello"),
    "missing": Path.unlink,
}
HARMS: dict[str, Change] = {
    **DAMAGE,
    "zeros": put(bytes(1000)),
    "deep": put(b"[" * 200_000),
    "no UTF-8": put(b"\xff"),
    "300 GB": lambda path: os.truncate(path, 300 << 30),
    "FIFO": instead(os.mkfifo),
    "folder": instead(Path.mkdir),
    "device": instead(lambda path: path.symlink_to("/dev/zero")),
    "loop": instead(lambda path: path.symlink_to(path)),
    **{f"change {i}": partial(at_random, i) for i in range(2)},
}


def expected(name: str, harm: str) -> tuple[int, ...]:
    code = READERS[name][1]
    if harm.startswith("change") and name not in (WEIGHTS, CLUSTERS):
        return (0, code, OutOfMemoryError.exit_code, NonFiniteError.exit_code)
    if harm == "300 GB" and name != CONFIG:
        return (4, 6)
    if harm == "missing" and Path(name).name in SPARE:
        return (0,)
    return (code,)


@pytest.mark.parametrize("name", READERS)
def test_any_harm_ends_in_one_line_that_names_the_file(place: Place, name: str) -> None:
    place.command(name, 0)
    place.make()
    file, before = place.here / name, contents(place.here)
    sound = file.read_bytes()
    is_mine = name.startswith("run/") and name not in (CONFIG, WEIGHTS, CLUSTERS)  # only damaged by accident
    for harm, change in (DAMAGE if is_mine else HARMS).items():
        change(file)
        codes = expected(name, harm)
        if 0 in codes:
            place.command(name, *codes)
            place.make()
            continue
        place.refused(name, *codes)
        file.rmdir() if file.is_dir() else file.unlink(missing_ok=True)
        file.write_bytes(sound)
        assert contents(place.here) == before, harm


@pytest.mark.parametrize("changes", [100, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("script", [fuzz_decode, fuzz_model])
def test_what_is_whole_is_accepted_and_changes_do_no_harm(script, changes, monkeypatch):
    monkeypatch.setattr(fuzz_decode.decoding, "MAX_PIXELS", fuzz_decode.MAX_PIXELS)
    chance, seeds, accepted = random.Random(0), script.seeds(), 0
    with pillow_limits():
        assert script.one(seeds[0])
        before = harness.peak_memory(anew=True)
        for _ in range(changes):
            begin = time.monotonic()
            accepted += script.one(harness.changed(seeds, chance))
            assert time.monotonic() - begin < 60
    assert 0 < accepted < 0.75 * changes  # most changes are found, and not all are harmless by chance
    assert harness.peak_memory() - before < 500e6


# ---- files that run a program when they are unpickled ----------------------------------------------------------------


class Program:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path):
        self.call = builtins.eval, (f"open({str(canary)!r}, 'w').close()",)

    def __reduce__(self):
        return self.call


def in_a_tar(content: bytes, path: Path) -> None:
    """As torch 0.1 wrote it; the first thing that is unpickled is ``storages``."""
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


PAYLOADS: dict[str, Callable[[Path, Path], object]] = {
    "zip": lambda path, canary: torch.save(Program(canary), path),
    "legacy": lambda path, canary: torch.save(Program(canary), path, _use_new_zipfile_serialization=False),
    "tar": lambda path, canary: in_a_tar(pickle.dumps(Program(canary), protocol=2), path),
    "protocol 0": lambda path, canary: path.write_bytes(pickle.dumps(Program(canary), protocol=0)),
    "array": lambda path, canary: np.save(path.open("wb"), np.array([Program(canary)], object), allow_pickle=True),
}


@pytest.mark.filterwarnings("ignore:Environment variable TORCH_FORCE")
@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_pickle_is_executed(place: Place, payload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a variable makes torch execute what is in a file."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    canary, control = place.here.parent / "canary", place.here.parent / "control"
    PAYLOADS[payload](control, canary)
    with suppress(Exception):  # not all of them are whole beside their program
        np.load(control, allow_pickle=True) if payload == "array" else torch.load(control)
    assert canary.exists(), "the negative control: the program works"
    canary.unlink()
    for name in (name for name in READERS if Path(name).suffix in (".npy", ".pt", ".safetensors")):
        file = place.here / name
        sound = file.read_bytes()
        PAYLOADS[payload](file, canary)
        if name in (WEIGHTS, CLUSTERS):
            tiny.change_config(place.model)
        place.refused(name)
        assert not canary.exists(), name
        file.write_bytes(sound)
        if name in (WEIGHTS, CLUSTERS):
            tiny.change_config(place.model)


def compressed(path: Path) -> None:
    """A checkpoint that somebody has compressed: torch reads it."""
    torch.save({"a": torch.zeros(1 << 20)}, small := path.with_suffix(".small"))
    with zipfile.ZipFile(small) as archive, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in archive.infolist():
            packed.writestr(entry.filename, archive.read(entry))
    assert torch.load(path, weights_only=True)["a"].shape == (1 << 20,)


def repeated(path: Path, times: int = 24) -> None:
    """A checkpoint whose table of contents names its first stored record for all of its tensors."""
    whole = path.with_suffix(".whole")
    torch.save({f"k{i}": torch.zeros(1 << 16) for i in range(times)}, whole)
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(path, "w") as bomb:
        first, *others = (name for name in archive.namelist() if "/data/" in name)
        for name in {*archive.namelist()} - {*others}:
            bomb.writestr(name, archive.read(name))
        for name in others:
            entry = copy.copy(bomb.getinfo(first))
            entry.filename = entry.orig_filename = name
            bomb.filelist.append(entry)


@pytest.mark.parametrize(("make", "words"), [(compressed, ""), (repeated, r"\d{2},\d{3}")])
def test_a_small_file_that_grows_is_refused_before_it_is_unpacked(make: Change, words: str, tmp_path: Path) -> None:
    """As SECURITY.md says."""
    make(file := tmp_path / "a.pt")
    with pytest.raises(ModelError, match=rf"a\.pt.*{words}"):
        read_weights(file)


# ---- a stranger's model, with the right digests ----------------------------------------------------------------------


def network(name: Any, size: Any = tiny.SIZE) -> dict[str, Any]:
    architecture = {"name": name, "image_size": size, "sobel": False}
    return {"image_size": size, "store_size": size, "architecture": architecture}


ONE = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
HEADERS = {
    "no header": bytes(8),
    "2^63 bytes": tiny.safetensors_bytes(b"{}", length=2**63),
    "above the limit": tiny.safetensors_bytes(b"{}" + b" " * (MAX_JSON + 1)),
    "longer than the file": tiny.safetensors_bytes(b"{}", length=100),
    "a shape of 10^18": tiny.safetensors_bytes(ONE.replace(b"[2]", b"[1000000000,1000000000]"), bytes(8)),
    "a hole": tiny.safetensors_bytes(ONE, bytes(16)),
}


def tensors(**changes: Any) -> Change:
    return lambda path: tiny.change_tensors(path.parent, path.name, **changes)


def config(**values: Any) -> Change:
    return lambda path: tiny.change_config(path.parent, **values)


def signed(content: bytes) -> Change:
    return lambda path: tiny.write_weights(path.parent, content)


STRANGE: dict[str, dict[str, Change]] = {
    CONFIG: {
        "another value": lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"batch_size": 9})),
        "481 GB of constants": config(**network("timm:maxvit_nano_rw_256", 8192)),  # they grow with the image
        "much memory": put(b"[" + b"{}," * (MAX_JSON // 3 - 1) + b"1]"),
        "a billion pixels": config(**network("compact", 10**9)),
        "image size above the store size": config(**network("compact", 32) | {"store_size": 16}),
        **{f"backbone {name[:30]}": config(**network(name)) for name in (
            "timm:hf-hub:user/name", "timm:local-dir:/etc", "timm:../../x", "timm:", "timm:a+hf-hub:b/c", "compact\n",
            "hf-hub:user/name", "https://example.org/x.safetensors", "", "x" * 100_000, "timm:no_such_network",
        )},
    },
    WEIGHTS: {
        "a tensor too many": tensors(body__extra=torch.zeros(2)),
        "no fine centroids": tensors(fine_centroids=lambda value: value[:0]),
        "a negative limit": tensors(outliers__limit=lambda value: torch.full_like(value, -1)),
        "one half": tensors(outliers__means=lambda value: value[:1], outliers__directions=lambda value: value[:1]),
        **{name: signed(header) for name, header in HEADERS.items()},
        "weights of another network": config(**network("alexnet", 224)),
        "constants of the same size": config(**network("timm:maxvit_nano_rw_256", 256)),
    },
    CLUSTERS: {
        "no clusters": tensors(cluster_of=lambda value: value[:0], centroids=lambda value: value[:0]),
        "a cluster of a billion": tensors(cluster_of=lambda value: value + 10**9),
        "a negative cluster": tensors(cluster_of=lambda value: value - 1),
        "a word that nobody knows": tensors(said=torch.tensor([[0, 9, 0]])),
        "answers of another shape": tensors(said=torch.zeros(3, dtype=torch.int64)),
        "no header": lambda path: save_file(load_file(path), path),
        "no JSON": lambda path: save_file(load_file(path), path, {"about": "names"}),
        "no table": lambda path: save_file(load_file(path), path, {"about": "[1]"}),
        "names as numbers": tensors(names=[1, 2, 3]),
        "another run": tensors(run="another"),
        "another change": lambda path: path.write_bytes(path.read_bytes().replace(b"number", b"numbre", 1)),
    },
}  # fmt: skip


@pytest.mark.parametrize(("name", "change"), [(name, change) for name in STRANGE for change in STRANGE[name]])
def test_what_a_stranger_wrote_ends_in_one_line_and_changes_nothing(place: Place, name: str, change: str, monkeypatch):
    """A config is refused before a network is built, unless only building it, without its weights, can tell."""
    STRANGE[name][change](place.here / name)
    before = contents(place.here)
    if name == CONFIG and change not in ("481 GB of constants", "backbone timm:no_such_network"):
        monkeypatch.setattr(models, "build", lambda **_: pytest.fail("it was built"))
    place.refused(name)
    assert contents(place.here) == before


ODD_VALUES = (None, True, -1, 0.5, 10**9, 10**4000, "x", [], {})


def odd_tables(table: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A table with an odd value in any place, without a key that must be there, or with one that nobody knows."""
    for key in table.keys() - {"run", "date", "version", "weights_sha256", "config_sha256"}:
        yield from (table | {key: odd} for odd in ODD_VALUES if odd is not True or not isinstance(table[key], bool))
        yield {name: value for name, value in table.items() if name != key}
    yield table | {"weights": "timm"}


def test_a_config_with_any_odd_value_is_refused(place: Place) -> None:
    path = place.here / CONFIG
    config = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(config.items())), indent=1))
    models.load(place.model)  # neither order nor blanks are values
    inside = ({**config, "architecture": table} for table in odd_tables(config["architecture"]))
    for odd in (*odd_tables(config), *inside):
        tiny.sign(place.model, odd)
        with pytest.raises(ModelError, match=path.name):
            models.load(place.model)
    for key in config:  # a digest must be there
        path.write_text(json.dumps({name: value for name, value in config.items() if name != key}))
        with pytest.raises(ModelError, match=path.name):
            models.load(place.model)


# Any number of fine centroids and of directions is right.
FREE_AXES = {("fine_centroids", 0), ("outliers.directions", 2)}


def odd_tensors(name: str, value: torch.Tensor) -> Iterator[torch.Tensor | None]:
    """None, and a tensor with another number of axes, another type, one number less along an axis, or not finite."""
    yield from (None, value[None], value.double() if value.is_floating_point() else value.float())
    for axis, size in enumerate(value.shape):
        if (name, axis) not in FREE_AXES:
            yield value.narrow(axis, 1, size - 1).contiguous()
    if value.is_floating_point():
        yield value * torch.nan


@pytest.mark.parametrize("name", [WEIGHTS, CLUSTERS])
def test_a_model_with_any_odd_tensor_is_refused(place: Place, name: str) -> None:
    path = place.here / name
    sound = path.read_bytes()
    for key, value in load_file(path).items():
        if key.startswith("body.") and not key.startswith("body.0."):
            continue  # as those of the first layer
        for odd in odd_tensors(key, value.clone()):
            path.write_bytes(sound)
            tiny.change_tensors(place.model, path.name, **{key.replace(".", "__"): odd})
            with pytest.raises(ModelError, match=path.name):
                models.load(place.model)


def test_every_name_of_timm_and_of_a_recipe_may_stand_in_a_model() -> None:
    import timm

    names = [f"timm:{name}" for name in timm.list_models() + timm.list_pretrained()]
    names += [backbone_of(name) for name in DECLARED["backbone"].choices if name != MODULE]
    assert len(names) > 1000 and all(map(BACKBONE.fullmatch, names))


def test_weights_too_large_for_numbers_are_told_of(place: Place) -> None:
    """Finite weights whose features are not: no table of NaN comes of them."""
    tiny.change_tensors(place.model, body__0__0__weight=torch.full((16, 3, 3, 3), 3e38))
    place.command(WEIGHTS, NonFiniteError.exit_code)


# ---- a stranger's run: odd values in its tables, and nothing that is written, followed or downloaded elsewhere -------


@pytest.fixture
def run(place: Place) -> Path:
    return place.run


def test_what_memory_cannot_hold_is_refused_before_it_is_read(run, photos, monkeypatch, ends):
    monkeypatch.setattr(machine, "available", lambda: 2e9)
    os.truncate(run / "model" / "model.safetensors", 300 << 30)
    said = ends(["predict", run, photos], 6)
    assert "model.safetensors" in said and "322.1 GB" in said


def test_links_in_a_run_are_replaced_or_refused_and_not_followed(run, tmp_path, photos, ends):
    (target := tmp_path / "elsewhere").mkdir()
    for name in sorted(FILES.keys() - {"recipe.toml", "nouns.csv"}):  # a recut reads these
        if "/" not in name:
            shutil.move(run / name, target / name) if (run / name).exists() else (target / name).write_text("mine")
            (run / name).symlink_to(target / name)
    before, log = contents(target), (target / "log.txt").read_text()
    ends(["recut", run, "-k", "3"], 0)
    written = ["clusters.csv", "cluster_summary.csv", "metrics.json", "report.html", "result.json"]
    assert not any((run / name).is_symlink() for name in written)
    ends(["fit", photos, "-o", run, *small_fit("--rounds", "0"), "--overwrite"], 0)
    assert not any(path.is_symlink() for path in run.rglob("*"))
    assert contents(target) == before and (target / "log.txt").read_text() == log
    shutil.move(run / "model", target)  # a link in place of the model is refused
    (run / "model").symlink_to(target / "model")
    before = contents(target)
    ends(["recut", run, "-k", "2"], 5)
    assert contents(target) == before


def test_a_strangers_record_does_not_download(run, monkeypatch, tmp_path, ends):
    images = [
        row | {"source": "torchvision:CIFAR10", "member": str(i)} for i, row in enumerate(rows(run / "images.csv"))
    ]
    tiny.writable(run).write_rows("images.csv", images)
    monkeypatch.setenv("DEEPCLUSTER_CACHE_DIR", str(tmp_path / "cache"))
    download = Mock(side_effect=DataError("no connection"))
    monkeypatch.setitem(LIBRARIES, "torchvision", download)
    ends(["report", run], 0)
    download.assert_not_called()
    (tmp_path / "cache" / "CIFAR10").mkdir(parents=True)  # somebody asked for it before
    ends(["report", run], 0)
    download.assert_called_once_with("CIFAR10")


def test_a_scratch_file_is_never_the_target_of_a_link(tmp_path, monkeypatch):
    """Nobody can foresee its name; and if somebody did, it is made as a new file or not at all."""
    target, scratch = tmp_path / "target", tmp_path / ".scratch"
    scratch.symlink_to(target)
    monkeypatch.setattr(whole_files, "scratch_name", lambda _: scratch)
    scratch.write_text("hello")  # the negative control: a plain write follows the link
    with pytest.raises(DiskError, match=os.strerror(errno.EEXIST)):
        write_whole(tmp_path / "a", lambda file: file.write("other"))
    assert target.read_text() == "hello" and scratch.is_symlink() and not (tmp_path / "a").exists()
