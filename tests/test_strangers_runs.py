"""A stranger's run folder: odd values in its tables, and nothing that is written, followed or downloaded elsewhere."""

import csv
import dataclasses
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from io import BytesIO
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from deepcluster.errors import DataError, DiskError, OutOfMemoryError
from deepcluster.images.files import LIBRARIES
from deepcluster.nets.network import build
from deepcluster.nets.weights import working_memory
from deepcluster.runs import rows as run_rows
from deepcluster.runtime import machine, plain_files
from deepcluster.storage import files as whole
from deepcluster.storage import model_files as models
from deepcluster.storage import run_folder as files
from deepcluster.storage.files import write_whole
from deepcluster.storage.state import MODEL, NAMES
from tests.helpers.runs import change_record, contents, rows, small_fit
from tests.tiny import change_config, change_groups, tiny_model, tiny_run, writable


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy in a folder of its own, whose images are nowhere: a report without pictures takes no time."""
    run = Path(shutil.copytree(finished, tmp_path / "here" / "run"))
    change_record(run, location="python:array")
    return run


def npy(array: np.ndarray) -> bytes:
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


def claiming(shape: str, descr: str = "<f4") -> bytes:
    """An .npy file whose header says something else than what is in it."""
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (117 - len(header)) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)


HEADER = ",".join(files.CLUSTERS).encode()
DAMAGED = {
    "features.npy": {
        "too few rows": npy(np.zeros((47, 4), np.float32)),
        "other columns": npy(np.zeros((48, 2), np.float32)),
        "float64": npy(np.zeros((48, 4))),
        "no axis": npy(np.float32(1)),
        "10^18 numbers": claiming("(1000000000, 1000000000)"),
        "a shape that is a program": claiming("(__import__('os').getpid(), 4)"),
        "an unknown type": claiming("(4, 4)", "hello"),
    },
    "run.json": {"seed is a truth": b'{"images": "a", "location": "-", "seed": true, "rounds": 0}'},
    "clusters.csv": {
        "another header": b"a,b\n1,2\n",
        "a long row": HEADER + b"\n" + b"1," * 20 + b"\n",
        "a column twice": HEADER + b",path\n" + b"1," * 9 + b"1\n",
        "an open quote": HEADER + b'\n"x.png,ok,0,,0,0,0,0,\n',
        "a huge cell": HEADER + b"\n" + b"x" * 1_000_000 + b",ok,0,,0,0,0,0,\n",
        "another cluster": HEADER + b"\nx.png,ok,77,,0,0,0,0,\n",
    },
}


@pytest.mark.parametrize(("name", "damage"), [(name, damage) for name in DAMAGED for damage in DAMAGED[name]])
def test_a_file_that_is_not_of_the_run(run, ends, name, damage):
    (run / name).write_bytes(DAMAGED[name][damage])
    assert name in ends(["recut", run, "-k", "2"], 5)


def test_features_that_are_not_finite(run, ends):
    features = np.load(run / "features.npy", allow_pickle=False)
    features[5, 0] = np.nan
    np.save(run / "features.npy", features)
    assert "not finite" in ends(["recut", run, "-k", "2"], 5)


def test_a_sorted_table_is_found(run, ends):
    header, *lines = (run / "clusters.csv").read_text().splitlines(keepends=True)
    (run / "clusters.csv").write_text(header + "".join(sorted(lines, key=lambda line: line.split(",")[2])))
    for arguments in (["recut", run, "-k", "3"], ["report", run]):
        assert "changed since it was written" in ends(arguments, 5)


ODD = ["", "-1", "nan", "1e999", "5e-324", "9" * 5000, "²", "\0", "=1+1", "\U0001d7d8", "\udcff", "x" * 100_000]
ODD_RECORDS = [
    {"seconds": "long"},
    {"seconds": 10**400},
    {"verdict": {"a": 1}},
    {"command": 5},
    {"images_count": None},
    {"clusters": {"a": [1]}},
    {"location": "\0"},
    {"location": "a" * 10_000},
    {"images": "x" * 100_000},
]


@pytest.mark.parametrize("name", ["clusters.csv", "cluster_summary.csv", "history.csv", "skipped.csv"])
def test_odd_cells(run, ends, name):
    """A line for a person, and never a traceback; the digest of clusters.csv is made to fit."""
    header, *cells = csv.reader((run / name).open(newline=""))
    cells = cells or [["x"] * len(header)]
    for column in range(len(header)):
        for value in ODD[column % 3 :: 3]:
            changed = [header, [*cells[0][:column], value, *cells[0][column + 1 :]], *cells[1:]]
            with (run / name).open("w", newline="", errors="surrogateescape") as file:
                csv.writer(file).writerows(changed)
            if name == "clusters.csv":
                change_record(run, rows=files.rows_sha256([dict(zip(header, row, strict=True)) for row in changed[1:]]))
            said = ends(["report", run], 0, 5)
            assert not said or str(run) in said or name in said


def test_odd_values_of_a_record(run, ends):
    sound = (run / "run.json").read_text()
    for changes in ODD_RECORDS:
        change_record(run, **changes)
        assert ends(["report", run], 0, 5).count("\n") <= 1, changes
        (run / "run.json").write_text(sound)


@pytest.mark.parametrize("most", ["MOST_CSV", "MOST_SMALL_CSV"])
def test_a_table_above_the_limit(run, ends, monkeypatch, most):
    with (run / "history.csv").open("a") as file:
        file.write("0,,,,,,,,,,,,,\n" * 100)
    monkeypatch.setattr(files, most, 1000)
    said = ends(["report", run], 5)
    assert "more than the 1,000 that are read" in said and ("history.csv" in said) is (most == "MOST_SMALL_CSV")


def test_a_line_above_the_limit(run, ends, monkeypatch):
    monkeypatch.setattr(plain_files, "LONGEST_LINE", 1000)
    os.truncate(run / "skipped.csv", 2000)
    assert "skipped.csv is damaged (a line of more than 1,000 characters)" in ends(["report", run], 5)


def test_tensors_that_memory_cannot_hold_are_refused_before_they_are_read(run, photos, monkeypatch, ends):
    os.truncate(run / "model" / "model.safetensors", 300 << 30)
    monkeypatch.setattr(machine, "available", lambda: 8e9)
    assert "model.safetensors takes 322.1 GB, and 8.0 GB are free" in ends(["predict", run, photos], 6)


def test_large_images_are_refused_before_the_memory_is_taken(tmp_path, photos, monkeypatch, ends):
    run = tiny_run(tmp_path / "run")
    architecture = {"name": "compact", "image_size": 8192, "sobel": False}
    change_config(run / "model", image_size=8192, store_size=8192, architecture=architecture)
    monkeypatch.setattr(machine, "available", lambda: 2e9)
    said = ends(["predict", run, photos], 6)
    assert "a batch of 1 image of 8,192 px in this model takes 4.3 GB, and 2.0 GB are free" in said
    model = dataclasses.replace(tiny_model(), image_size=2048, store_size=2048, batch_size=256)
    with pytest.raises(OutOfMemoryError, match=r"a batch of 256 images of 2,048 px .* takes 274\.9 GB"):
        model.transform(["no such file.png"])


@pytest.mark.parametrize("name", ["compact", "timm:test_resnet"])
def test_the_least_memory_by_hand(name):
    """For the compact network: the first convolution (16 channels; halved from 64 px on), normalised."""
    least = working_memory(build(name, image_size=64).body, 1024)
    assert 4 * 2 * 16 * 512**2 <= least <= 4 * 2 * 64 * 512**2


PATHS = [
    "../x", "../../x", "..", ".", "/", "/etc/x", "//x", "~/x", "$HOME/x", "a/../../x", "./../x", "..\\x", "C:\\x",
    "C:/x", "C:x", "\\\\host\\share\\x", "file:///tmp/x", "/dev/stdout", "/proc/self/cwd/x", "x\0y", "x\ny", "-o",
    "--overwrite", "|touch x", "$(touch x)", "`touch x`", "%2e%2e/x", "..%2fx", "\uff0e\uff0e/x", "CON",
]  # fmt: skip


@pytest.fixture
def outside(run, monkeypatch) -> Iterator[None]:
    """A folder around the run with a file that must not change, and in which nothing may appear."""
    around = run.parents[1]
    monkeypatch.chdir(run.parent)
    for folder in (around, run.parent):
        (folder / "x").write_text("mine")
    yield
    assert {path.name for path in around.iterdir()} == {"x", "here"}
    assert {path.name for path in run.parent.iterdir()} <= {"x", "run", "out.csv", "out.npy"}
    assert (around / "x").read_text() == (run.parent / "x").read_text() == "mine"
    assert {path.name for path in run.iterdir()} <= {*NAMES, "model", "checkpoints", ".deepcluster"}
    assert {f"model/{path.name}" for path in (run / "model").iterdir()} == MODEL - {"model/table.json"}


def test_30_paths_as_the_place_of_the_images(run, outside, monkeypatch, ends):
    monkeypatch.setattr(run_rows, "find", lambda location: None)  # "/" would be searched
    for path in PATHS:
        change_record(run, location=path, images=path, command=path)
        ends(["report", run], 0)


def test_30_paths_as_names_of_images_and_clusters(run, outside, photos, ends):
    table = rows(run / "clusters.csv")
    for row, path in zip(table, PATHS, strict=False):
        row["path"] = row["label"] = path
    writable(run).write_rows("clusters.csv", files.CLUSTERS, table)
    change_record(run, rows=files.rows_sha256(table))
    for path in PATHS[:2]:
        change_groups(run / "model", names=[path, path, path])
        ends(["predict", run, photos, "-o", "out.csv", "--overwrite"], 0)
        ends(["embed", run, photos, "-o", "out.npy", "--overwrite"], 0)
    ends(["recut", run, "-k", "3"], 0)


def linked(run: Path, target: Path) -> None:
    """Each file of the run moved to ``target``, and a link to it in its place."""
    target.mkdir()
    for name in sorted(NAMES - {"recipe.toml", "nouns.csv", files.ADDED}):  # a recut reads these
        if "/" not in name:
            shutil.move(run / name, target / name) if (run / name).exists() else (target / name).write_text("mine")
            (run / name).symlink_to(target / name)


def test_links_in_a_run_are_replaced_and_not_followed(run, tmp_path, photos, ends):
    linked(run, tmp_path / "elsewhere")
    before, log = contents(tmp_path / "elsewhere"), (tmp_path / "elsewhere/log.txt").read_text()
    ends(["recut", run, "-k", "3"], 0)
    written = ["clusters.csv", "cluster_summary.csv", "metrics.json", "run.json", "report.html"]
    assert not any((run / name).is_symlink() for name in written)
    ends(["fit", photos, "-o", run, *small_fit("--rounds", "0"), "--overwrite"], 0)
    assert not any(path.is_symlink() for path in run.rglob("*"))
    assert contents(tmp_path / "elsewhere") == before and (tmp_path / "elsewhere/log.txt").read_text() == log


def test_a_link_in_place_of_the_model_is_refused(run, tmp_path, ends):
    shutil.move(run / "model", tmp_path / "elsewhere")
    (run / "model").symlink_to(tmp_path / "elsewhere")
    before = contents(tmp_path / "elsewhere")
    assert "symbolic link" in ends(["recut", run, "-k", "2"], 5)
    with pytest.raises(DiskError, match="symbolic link"):
        models.save(tiny_model(), run / "model")
    assert contents(tmp_path / "elsewhere") == before


def test_a_strangers_record_does_not_download(run, monkeypatch, tmp_path, ends):
    change_record(run, location="torchvision:CIFAR10")
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
    monkeypatch.setattr(whole, "scratch_name", lambda _: scratch)
    scratch.write_text("hello")  # the negative control: a plain write follows the link
    with pytest.raises(DiskError, match="File exists"):
        write_whole(tmp_path / "a", lambda file: file.write("other"))
    assert target.read_text() == "hello" and scratch.is_symlink() and not (tmp_path / "a").exists()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EIO])
def test_a_file_system_whose_folders_know_no_fsync(number, tmp_path, monkeypatch):
    """As some of SMB and FUSE; the same error of a file, or another one of a folder, is an error."""
    fsync, error = os.fsync, OSError(number, os.strerror(number))

    def refusing(descriptor, *, kind=stat.S_ISDIR):
        if kind(os.fstat(descriptor).st_mode):
            raise error
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refusing)
    with pytest.raises(DiskError, match=error.strerror) if number == errno.EIO else nullcontext():
        write_whole(tmp_path / "a", lambda file: file.write("new"))
    assert (tmp_path / "a").read_text() == "new"
    monkeypatch.setattr(os, "fsync", partial(refusing, kind=stat.S_ISREG))
    with pytest.raises(DiskError, match=error.strerror):
        write_whole(tmp_path / "b", lambda file: file.write("new"))
    assert not (tmp_path / "b").exists()
