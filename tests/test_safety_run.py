"""A run folder that is damaged or a stranger's: an error with 4 or 5, no traceback, and nothing written elsewhere."""

import csv
import errno
import json
import os
import random
import shutil
import stat
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from deepcluster.cli import run_command
from deepcluster.errors import DataError, DiskError
from deepcluster.images.files import LIBRARIES
from deepcluster.runs import at_hand
from deepcluster.runs import page as run_report
from deepcluster.runtime import plain_files
from deepcluster.storage import files as whole
from deepcluster.storage import model_files as models
from deepcluster.storage import run_folder as files
from deepcluster.storage import safe_read as reading
from deepcluster.storage.files import write_whole
from deepcluster.storage.state import MODEL, NAMES
from tests.helpers.runs import change_record, contents, rows, small_fit
from tests.tiny import change_config, change_groups, tiny_run, writable


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy in a folder of its own, whose images are nowhere: a report without pictures takes no time."""
    run = Path(shutil.copytree(finished, tmp_path / "here" / "run"))
    change_record(run, location="python:array")
    return run


@pytest.fixture
def ends_well(ends):
    """Runs a command, which must end with one of the codes and at most one line for a person."""

    def run_to_its_end(arguments: list[object], *codes: int) -> str:
        said = ends(arguments, *codes)
        assert said.count("\n") <= 1
        return said

    return run_to_its_end


def commands(run: Path) -> list[list[str]]:
    return [["report", run], ["recut", run, "-k", "3"]]


# ---- damage ---------------------------------------------------------------------------------------------------------


def npy(array: np.ndarray, *, pickled: bool = False) -> bytes:
    file = BytesIO()
    np.save(file, array, allow_pickle=pickled)
    return file.getvalue()


def claiming(shape: str, descr: str = "<f4", data: bytes = bytes(64)) -> bytes:
    """An .npy file whose header says something else than what is in it."""
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (117 - len(header)) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


class Unpickled:
    """Ends the test when somebody unpickles it."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


FEATURES = {
    "empty": b"",
    "no array": b"hello",
    "the start of one": npy(np.zeros((48, 4), np.float32))[:90],
    "too few rows": npy(np.zeros((47, 4), np.float32)),
    "no rows": npy(np.zeros((0, 4), np.float32)),
    "float64": npy(np.zeros((48, 4))),
    "one axis": npy(np.zeros(48, np.float32)),
    "no axis": npy(np.float32(1)),
    "a pickle": npy(np.array([Unpickled()], dtype=object), pickled=True),
    "an archive": b"PK\x05\x06" + bytes(18),
    "10^18 numbers": claiming("(1000000000, 1000000000)"),
    "a negative shape": claiming("(-1, 4)"),
    "a shape that is a program": claiming("(__import__('os').getpid(), 4)"),
    "an unknown type": claiming("(4, 4)", "hello"),
    "a deep header": claiming("(" * 50 + ")" * 50),
}


@pytest.mark.parametrize("content", FEATURES.values(), ids=FEATURES)
def test_damaged_features(run, ends_well, content):
    (run / "features.npy").write_bytes(content)
    assert "features.npy" in ends_well(["recut", run, "-k", "2"], 5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite(run, ends_well, value):
    features = np.load(run / "features.npy", allow_pickle=False)
    features[5, 0] = value
    np.save(run / "features.npy", features)
    assert "not finite" in ends_well(["recut", run, "-k", "2"], 5)


def test_features_of_another_model(run, ends_well):
    features = np.load(run / "features.npy", allow_pickle=False)
    np.save(run / "features.npy", features[:, :2])
    assert "(48, 2) instead of" in ends_well(["recut", run, "-k", "2"], 5)


RECORDS = {
    "empty": b"",
    "a list": b"[]",
    "nothing in it": b"{}",
    "deep": b'{"a":' * 100_000,
    "NaN": b'{"seed": NaN}',
    "a key twice": b'{"seed": 0, "seed": 1}',
    "no UTF-8": b'{"images": "\xff"}',
    "location is a number": b'{"images": "a", "location": 1, "seed": 0, "rounds": 0}',
    "seed is a text": b'{"images": "a", "location": "-", "seed": "0", "rounds": 0}',
    "seed is a truth": b'{"images": "a", "location": "-", "seed": true, "rounds": 0}',
    "too large": b'{"a": "' + b" " * reading.MOST_JSON + b'"}',
}


@pytest.mark.parametrize("content", RECORDS.values(), ids=RECORDS)
def test_a_damaged_record(run, ends_well, content):
    (run / "run.json").write_bytes(content)
    for arguments in commands(run):
        assert "run.json is damaged" in ends_well(arguments, 5)


@pytest.mark.parametrize(
    "changes",
    [
        {"seconds": "long"}, {"seconds": 10**400}, {"seconds": [1]}, {"verdict": {"a": 1}}, {"command": 5},
        {"images_count": None}, {"clusters": {"a": [1]}}, {"location": "\0"}, {"location": "a" * 10_000},
        {"images": "x" * 100_000},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_a_record_with_odd_values(run, ends_well, changes):
    change_record(run, **changes)
    ends_well(["report", run], 0, 5)


TABLES = {
    "empty": b"",
    "another header": b"a,b\n1,2\n",
    "a short row": ",".join(files.CLUSTERS).encode() + b"\nx.png,ok\n",
    "a long row": ",".join(files.CLUSTERS).encode() + b"\n" + b"1," * 20 + b"\n",
    "a column twice": ",".join((*files.CLUSTERS, "path")).encode() + b"\n" + b"1," * 9 + b"1\n",
    "an open quote": ",".join(files.CLUSTERS).encode() + b'\n"x.png,ok,0,,0,0,0,0,\n',
    "a huge cell": ",".join(files.CLUSTERS).encode() + b"\n" + b"x" * 1_000_000 + b",ok,0,,0,0,0,0,\n",
    "zeros": bytes(1000),
    "an unknown cluster": ",".join(files.CLUSTERS).encode() + b"\nx.png,ok,77,,0,0,0,0,\n",
}


@pytest.mark.parametrize("content", TABLES.values(), ids=TABLES)
def test_a_damaged_table(run, ends_well, content):
    (run / "clusters.csv").write_bytes(content)
    for arguments in commands(run):
        ends_well(arguments, 5)


@pytest.mark.parametrize("name", ["clusters.csv", "cluster_summary.csv", "history.csv", "skipped.csv"])
def test_cells_that_are_not_what_they_should_be(run, ends_well, name):
    with (run / name).open(newline="") as file:
        header, *cells = csv.reader(file)
    cells = cells or [["x"] * len(header)]
    odd = ["", "-1", "nan", "1e999", "5e-324", "9" * 5000, "²", "\0", "=1+1", "\U0001d7d8", "\udcff", "x" * 100_000]
    for column in range(len(header)):
        for value in odd[column % 3 :: 3]:
            changed = [header, [*cells[0][:column], value, *cells[0][column + 1 :]], *cells[1:]]
            with (run / name).open("w", newline="", errors="surrogateescape") as file:
                csv.writer(file).writerows(changed)
            folder = files.open_run(run)
            try:
                with folder.as_disk_errors():
                    run_report.write_page(folder, None, run_report.read_tables(folder), None)
            except DiskError as error:
                assert str(run) in str(error) or name in str(error)


def test_120_random_changes_end_without_a_traceback(run, ends_well):
    """They are not all found, for these files have no digest; what is not found must do no harm."""
    chance = random.Random(4)
    names = ["clusters.csv", "cluster_summary.csv", "history.csv", "skipped.csv", "run.json", "metrics.json"]
    kept = {name: (run / name).read_bytes() for name in names}
    refused = 0
    for i in range(120):
        name = names[i % len(names)]
        content, place = kept[name], chance.randrange(len(kept[name]))
        changed = content[:place] + bytes([chance.randrange(256)]) * (i % 2) + content[place + 1 :]
        (run / name).write_bytes(changed if i % 5 else content[:place])
        refused += ends_well(["report", run], 0, 5) != ""
        (run / name).write_bytes(content)
    assert refused > 30


@pytest.mark.parametrize("name", ["clusters.csv", "features.npy", "history.csv"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["fifo", "device"])
def test_what_is_no_file_is_not_waited_for(run, name, make, ends_well):
    (run / name).unlink()
    make(run / name)
    ends_well(["report", run] if name == "history.csv" else ["recut", run, "-k", "3"], 5)


def test_without_their_guards_they_are_bugs(run, ends_well, capsys, monkeypatch):
    """The negative control of the tests above."""
    change_record(run, seconds="long")
    ends_well(["report", run], 5)
    monkeypatch.setattr(files.RunFolder, "as_disk_errors", lambda self: nullcontext())
    assert run_command(["report", str(run)]) == 1
    assert "bug" in capsys.readouterr().err


@pytest.mark.parametrize("most", ["MOST_CSV", "MOST_SMALL_CSV"])
def test_a_table_above_the_limit(run, ends_well, monkeypatch, most):
    with (run / "history.csv").open("a") as file:
        file.write("0,,,,,,,,,,,,,\n" * 100)
    monkeypatch.setattr(files, most, 1000)
    said = ends_well(["report", run], 5)
    assert "more than the 1,000 that are read" in said and ("history.csv" in said) is (most == "MOST_SMALL_CSV")


def test_a_line_above_the_limit(run, ends_well, monkeypatch):
    """A sparse file of zeros is one line, which is not read to its end."""
    monkeypatch.setattr(plain_files, "LONGEST_LINE", 1000)
    with (run / "skipped.csv").open("a") as file:
        file.truncate(2000)
    assert "skipped.csv is damaged (a line of more than 1,000 characters)" in ends_well(["report", run], 5)


def test_a_recipe_above_the_limit(run, ends_well):
    with (run / "recipe.toml").open("a") as file:
        file.write("#" * (1 << 20))
    assert "more than the 1,048,576 that are read" in ends_well(["recut", run, "-k", "3"], 2)


# ---- nothing is written elsewhere -----------------------------------------------------------------------------------

PATHS = [
    "../x", "../../x", "..", ".", "/", "/etc/x", "//x", "~/x", "$HOME/x", "a/../../x", "./../x", "..\\x", "C:\\x",
    "C:/x", "C:x", "\\\\host\\share\\x", "file:///tmp/x", "/dev/stdout", "/proc/self/cwd/x", "x\0y", "x\ny", "-o",
    "--overwrite", "|touch x", "$(touch x)", "`touch x`", "%2e%2e/x", "..%2fx", "\uff0e\uff0e/x", "CON",
]  # fmt: skip


@pytest.fixture
def outside(run, tmp_path) -> Iterator[Path]:
    """A folder around the run with a file that must not change, and where nothing may appear."""
    around = run.parents[1]
    (around / "x").write_text("mine")
    (around / "here" / "x").write_text("mine")
    yield around
    assert {path.relative_to(around).parts[0] for path in around.iterdir()} == {"x", "here"}
    assert {path.name for path in (around / "here").iterdir()} <= {"x", "run", "out.csv", "out.npy"}
    assert (around / "x").read_text() == (around / "here" / "x").read_text() == "mine"
    assert {path.name for path in run.iterdir()} <= {*NAMES, "model", "checkpoints", ".deepcluster"}
    assert {f"model/{path.name}" for path in (run / "model").iterdir()} == MODEL - {"model/table.json"}


def test_30_paths_as_the_place_of_the_images(run, outside, monkeypatch, ends_well):
    assert len(PATHS) == 30
    monkeypatch.chdir(run.parent)
    monkeypatch.setattr(at_hand, "find", lambda location: None)  # "/" would be searched
    for path in PATHS:
        change_record(run, location=path, images=path, command=path)
        ends_well(["report", run], 0)


def test_30_paths_as_names_of_images_and_clusters(run, outside, photos, monkeypatch, ends_well):
    monkeypatch.chdir(run.parent)
    table = rows(run / "clusters.csv")
    for row, path in zip(table, PATHS, strict=False):
        row["path"] = row["label"] = path
    writable(run).write_rows("clusters.csv", files.CLUSTERS, table)
    change_record(run, rows=files.rows_sha256(table))
    for path in PATHS[:2]:
        change_groups(run / "model", names=[path, path, path])
        ends_well(["predict", run, photos, "-o", "out.csv", "--overwrite"], 0)
        ends_well(["embed", run, photos, "-o", "out.npy", "--overwrite"], 0)
    ends_well(["recut", run, "-k", "3"], 0)


def test_30_paths_as_the_backbone(run, outside, photos, monkeypatch, ends_well):
    monkeypatch.chdir(run.parent)
    for path in PATHS:
        for name in (path, f"timm:{path}"):
            change_config(run / "model", architecture={"name": name, "image_size": 16, "sobel": False})
            ends_well(["predict", run, photos], 4)


READ = ("recipe.toml", files.ADDED)  # where a recut finds them
LINKED = [name for name in sorted(NAMES) if "/" not in name and name not in READ]


def linked(run: Path, target: Path, names: list[str]) -> None:
    """Each file of the run moved to ``target``, and a link to it in its place."""
    target.mkdir()
    for name in names:
        if (run / name).exists():
            shutil.move(run / name, target / name)
        else:
            (target / name).write_text("mine")
        (run / name).symlink_to(target / name)


def test_links_in_a_run_are_replaced_and_not_followed(run, tmp_path, ends_well):
    linked(run, tmp_path / "elsewhere", LINKED)
    before = contents(tmp_path / "elsewhere")
    ends_well(["recut", run, "-k", "3"], 0)
    assert contents(tmp_path / "elsewhere") == before
    written = ["clusters.csv", "cluster_summary.csv", "metrics.json", "run.json", "report.html"]
    assert not any((run / name).is_symlink() for name in written)


def test_a_plain_write_would_follow_them(run, tmp_path):
    """The negative control: the link works, and it is the new file and the rename that leave its target alone."""
    target = tmp_path / "target"
    (tmp_path / "a").symlink_to(target)
    (tmp_path / "a").write_text("hello")
    assert target.read_text() == "hello"
    write_whole(tmp_path / "a", lambda file: file.write("other"))
    assert target.read_text() == "hello" and (tmp_path / "a").read_text() == "other"


def test_a_scratch_file_is_never_the_target_of_a_link(tmp_path, monkeypatch):
    """Nobody can foresee its name; and if somebody did, it is made as a new file or not at all."""
    target, scratch = tmp_path / "target", tmp_path / ".scratch"
    scratch.symlink_to(target)
    monkeypatch.setattr(whole, "scratch_name", lambda _: scratch)
    scratch.write_text("hello")  # the negative control: a plain write follows the link
    with pytest.raises(DiskError, match="File exists"):
        whole.write_whole(tmp_path / "a", lambda file: file.write("other"))
    assert target.read_text() == "hello" and scratch.is_symlink() and not (tmp_path / "a").exists()


def test_a_link_in_place_of_the_model_is_refused(run, tmp_path, ends_well):
    shutil.move(run / "model", tmp_path / "elsewhere")
    (run / "model").symlink_to(tmp_path / "elsewhere")
    before = contents(tmp_path / "elsewhere")
    assert "symbolic link" in ends_well(["recut", run, "-k", "2"], 5)
    assert contents(tmp_path / "elsewhere") == before


def test_overwrite_removes_links_and_not_what_they_lead_to(run, photos, tmp_path, ends_well):
    target = tmp_path / "elsewhere"
    target.mkdir()
    (target / "keep").write_text("mine")
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints")
    for name in sorted(NAMES):
        if name != "run.json" and "/" not in name:
            (run / name).unlink(missing_ok=True)
            (run / name).symlink_to(target / name)
    ends_well(["fit", photos, "-o", run, *small_fit("--rounds", "0"), "--overwrite"], 0)
    assert [path.name for path in target.iterdir()] == ["keep"]
    assert not any(path.is_symlink() for path in run.rglob("*"))


def test_results_named_by_a_link_replace_the_link(tmp_path, photos, ends_well):
    run = tiny_run(tmp_path / "run")
    for name in ("out.csv", "out.npy"):
        (tmp_path / f"{name}.real").write_text("mine")
        (tmp_path / name).symlink_to(tmp_path / f"{name}.real")
    ends_well(["predict", run, photos, "-o", str(tmp_path / "out.csv"), "--overwrite"], 0)
    ends_well(["embed", run, photos, "-o", str(tmp_path / "out.npy"), "--overwrite"], 0)
    assert all((tmp_path / f"{name}.real").read_text() == "mine" for name in ("out.csv", "out.npy"))


# ---- no network -----------------------------------------------------------------------------------------------------


def test_a_strangers_record_does_not_download(run, monkeypatch, tmp_path, ends_well):
    change_record(run, location="torchvision:CIFAR10")
    monkeypatch.setenv("DEEPCLUSTER_CACHE_DIR", str(tmp_path / "cache"))
    asked: list[str] = []

    def download(name: str) -> None:
        asked.append(name)
        raise DataError("no connection")

    monkeypatch.setitem(LIBRARIES, "torchvision", download)
    ends_well(["report", run], 0)
    assert asked == []
    (tmp_path / "cache" / "CIFAR10").mkdir(parents=True)  # somebody asked for it before
    ends_well(["report", run], 0)
    assert asked == ["CIFAR10"]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), UnicodeEncodeError),
        (OSError(28, "No space left on device"), DiskError),
    ],
)
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error, raised):
    def fails(file) -> None:
        file.write("half")
        raise error

    (tmp_path / "a").write_text("old")
    with pytest.raises(raised, match=r"surrogates|No space left"):
        write_whole(tmp_path / "a", fails)
    assert contents(tmp_path) == {"a": b"old"}


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


def test_features_come_back(tmp_path):
    folder = writable(tmp_path / "run")
    features = torch.randn(7, 3, generator=torch.Generator().manual_seed(1)).numpy()
    folder.write_array("features.npy", features)
    assert np.array_equal(folder.read_array("features.npy", 7, 3), features)


def test_a_model_has_neither_paths_nor_metadata(finished, photos):
    """What may be passed on has no path of the images, and nothing but the known keys and tensors."""
    config = json.loads((finished / "model" / "config.json").read_text())
    assert set(config) == models.Config.__dataclass_fields__.keys()
    texts = json.dumps(config)
    for name in ("model.safetensors", "groups.safetensors"):
        with (finished / "model" / name).open("rb") as file:
            header = file.read(int.from_bytes(file.read(8), "little")).decode()
        assert "__metadata__" not in header
        texts += header
    about = json.loads(load_file(finished / "model" / "groups.safetensors")["about"].numpy().tobytes())
    assert set(about) == {"names", "junk"}
    for word in (str(photos), photos.name, str(finished), finished.parent.name, ".png"):
        assert word not in texts + json.dumps(about), word


def test_a_recipe_that_is_nested_too_deeply(tmp_path, photos, ends_well):
    (tmp_path / "recipe.toml").write_text("lr = " + "[" * 100_000)
    arguments = ["fit", photos, "--recipe", str(tmp_path / "recipe.toml"), "-o", str(tmp_path / "run")]
    assert "recipe.toml cannot be read" in ends_well(arguments, 2)
