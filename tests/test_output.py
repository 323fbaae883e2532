"""Where a command writes what its user names with -o: nothing of the user's is replaced, unless that was asked for."""

import os
import shutil
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster.cli import run_command
from deepcluster.errors import DiskError, UsageError
from deepcluster.storage import atomic
from deepcluster.storage.destination import new_folder
from deepcluster.storage.output import check_apart, files_read, output
from deepcluster.storage.run_folder import ADDED_COLUMNS, RunFolder
from tests.helpers.runs import change_record, contents
from tests.tiny import tiny_run

Ends = Callable[..., str]
LONG = "x" * 300
ROW = b"path,cluster,name,distance,margin,is_outlier\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a run, two photographs, a list of them and an array; nothing in it may change."""
    monkeypatch.chdir(tmp_path)
    tiny_run(tmp_path / "run")
    change_record(tiny_run(tmp_path / "given"), backbone="features", location=str(tmp_path / "photos"))
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "photos" / f"{i}.png")
    np.save("photos.npy", pixels)
    Path("list.txt").write_text("photos/0.png\nphotos/1.png\n")
    return tmp_path


REFUSED = {
    "a file": (["predict", "run", "photos", "-o", "mine"], 5, "exists already"),
    "a link to a file": (["predict", "run", "photos", "-o", "link"], 5, "exists already"),
    "the .csv beside an array": (["embed", "run", "photos", "-o", "labels.npy"], 5, "labels.csv exists already"),
    "a .csv beside images": (["predict", "run", "photos.npy", "-o", "photos.csv"], 5, "photos.csv exists already"),
    "the paths of features": (["predict", "given", "photos.npy", "-o", "photos.csv"], 2, "files that are read"),
    "an image": (["predict", "run", "photos", "-o", "photos/0.png"], 2, "one of the files that are read"),
    "the image": (["predict", "run", "photos/0.png", "-o", "photos/0.png"], 2, "one of the files that are read"),
    "a hard link to an image": (["predict", "run", "list.txt", "-o", "hard.csv"], 2, "photos/0.png"),
    "the list": (["predict", "run", "list.txt", "-o", "./list.txt"], 2, "one of the files that are read"),
    "the array": (["embed", "run", "photos.npy", "-o", "photos.npy"], 2, "one of the files that are read"),
    "the run": (["predict", "run", "photos", "-o", "run/run.json"], 2, "one of the files that are read"),
    "the model": (["predict", "run", "photos", "-o", "run/model/config.json"], 2, "one of the files that are read"),
}  # fmt: skip


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_there_is_left_alone(
    place: Path, name: str, overwrite: bool, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mine").write_text("mine")
    Path("link").symlink_to("mine")
    Path("labels.csv").write_text("mine")
    Path("photos.csv").write_text("mine")
    Path("hard.csv").hardlink_to("photos/0.png")
    before = contents(place)
    arguments, code, said = REFUSED[name]
    if overwrite and code == 5:
        assert ends([*arguments, "--overwrite", "-q"], 0) == ""
        changed = {name for name, content in contents(place).items() if before.get(name) != content}
        assert changed == {Path(arguments[-1]).name} | ({"labels.csv"} if arguments[0] == "embed" else set())
        return
    # Before anything is computed.
    monkeypatch.setattr("deepcluster.runs.predict.predict", lambda *_, **__: pytest.fail("it went to work"))
    assert said in ends([*arguments, *["--overwrite"] * overwrite, "-q"], code)
    assert contents(place) == before


def test_an_image_on_standard_input_is_no_output(place: Path, ends: Ends, monkeypatch) -> None:
    before = contents(place)
    with Path("list.txt").open() as listed:
        monkeypatch.setattr("sys.stdin", listed)
        said = ends(["predict", "run", "-", "-o", "photos/1.png", "--overwrite", "-q"], 2)
    assert "one of the files that are read" in said
    assert contents(place) == before


def test_an_empty_file_may_be_filled(place: Path, ends: Ends) -> None:
    """What mktemp makes."""
    Path("new.csv").touch()
    ends(["predict", "run", "photos", "-o", "new.csv", "-q"], 0)
    assert Path("new.csv").read_bytes().startswith(ROW)


NO_FILE = {
    "nothing": "",
    "the current folder": ".",
    "the root": "/",
    "300 bytes": LONG,
    "a folder of 300 bytes": f"{LONG}/a.csv",
    "no folder": "none/a.csv",
    "a link to nowhere": "nowhere",
    "a link to itself": "round",
    "below a file": "list.txt/a.csv",
    "the system's": "/proc/a.csv",
    "a socket": "socket",
}


@pytest.mark.parametrize("out", NO_FILE.values(), ids=NO_FILE)
def test_a_place_where_no_file_can_be(place: Path, out: str, ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("nowhere").symlink_to("missing")
    Path("round").symlink_to("round")
    monkeypatch.setattr("deepcluster.runs.predict.predict", lambda *_, **__: pytest.fail("it went to work"))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        before = contents(place)
        assert ends(["predict", "run", "photos", "-o", out, "-q"], 5 if out else 2).startswith("error: ")
    assert contents(place) == before


def test_a_name_of_255_bytes(place: Path, ends: Ends) -> None:
    name = "x" * 251 + ".csv"
    ends(["predict", "run", "photos", "-o", name, "-q"], 0)
    assert Path(name).read_bytes().startswith(ROW)


@contextmanager
def read_from_fifo() -> Iterator[list[bytes]]:
    """Makes ``fifo``; at the end the list has what somebody wrote into it."""
    os.mkfifo("fifo")
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(Path("fifo").read_bytes()), daemon=True)
    reader.start()
    yield received
    reader.join(10)
    assert stat.S_ISFIFO(os.lstat("fifo").st_mode)


@pytest.mark.parametrize("name", ["fifo", "link"])
def test_a_fifo_is_written_into(place: Path, name: str, ends: Ends) -> None:
    Path("link").symlink_to("fifo")
    with read_from_fifo() as received:
        ends(["predict", "run", "photos", "-o", name, "-q"], 0)
    assert Path("link").is_symlink()
    assert received and received[0].startswith(ROW) and received[0].count(b"\n") == 3


def test_an_array_into_a_fifo(place: Path) -> None:
    """numpy would write to the number of a real file, and ask where in it it is."""
    array = np.arange(6.0)
    with read_from_fifo() as received:
        output(Path("fifo"), overwrite=False, inputs=tuple).write(lambda file: np.save(file, array), binary=True)
    np.save("file.npy", array)
    assert received == [Path("file.npy").read_bytes()]


def test_devices_are_written_into(place: Path, ends: Ends) -> None:
    """By a link, lest a failure of this test harms the machine."""
    Path("null").symlink_to("/dev/null")
    Path("full").symlink_to("/dev/full")
    ends(["predict", "run", "photos", "-o", "null", "-q"], 0)
    assert "cannot write full (No space left" in ends(["predict", "run", "photos", "-o", "full", "-q"], 5)
    assert Path("null").is_symlink() and Path("full").is_symlink()


def test_an_open_file_by_its_number_is_written_into(place: Path, ends: Ends) -> None:
    """As /dev/stdout is, which leads to a plain file where the output is redirected."""
    with Path("log").open("w") as log:
        log.write("a line\n")
        log.flush()
        Path("stdout").symlink_to(f"/proc/self/fd/{log.fileno()}")
        ends(["predict", "run", "photos", "-o", "stdout", "-q"], 0)
    assert Path("stdout").is_symlink()
    assert Path("log").read_bytes().startswith(b"a line\n" + ROW)


def test_a_folder_or_an_input_is_no_output(place: Path) -> None:
    with pytest.raises(DiskError, match="is a folder"):
        output(Path("photos"), overwrite=True, inputs=tuple)
    with pytest.raises(UsageError, match="one of the files"):
        output(Path("list.txt"), overwrite=True, inputs=lambda: [Path("missing"), Path("photos/../list.txt")])


def test_the_original_of_a_path_in_the_run_is_no_output(place: Path) -> None:
    """As `similar RUN 1.png` reads it, from any folder."""
    with pytest.raises(UsageError, match="one of the files"):
        for file in files_read(Path("given"), "1.png"):
            check_apart(Path("photos/1.png"), file)
    added = {"path": "more.npy#3", "source": str(place / "photos.npy"), "member": "3"}
    RunFolder(Path("given")).write_rows("added.csv", ADDED_COLUMNS, [added])
    with pytest.raises(UsageError, match="one of the files"):
        for file in files_read(Path("given"), "more.npy#3"):
            check_apart(Path("photos.npy"), file)


# ---- files that are written whole -----------------------------------------------------------------------------------


def test_scratch_names_come_once_and_are_short(tmp_path: Path) -> None:
    names = {atomic.scratch_name(tmp_path / LONG).name for _ in range(100)}
    assert len(names) == 100 and all(name.startswith(".deepcluster-") and len(name) < 64 for name in names)


def test_only_an_own_scratch_file_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of that name that is there already is another's, and a failure leaves it."""
    other = tmp_path / ".deepcluster-other.tmp"
    other.write_text("mine")
    monkeypatch.setattr(atomic, "scratch_name", lambda _: other)
    with pytest.raises(DiskError):
        atomic.write_whole(tmp_path / "a", lambda file: file.write("x"))
    assert other.read_text() == "mine"


def test_a_name_that_is_too_long_is_said(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"cannot write .*xxx \(File name too long"):
        atomic.write_whole(tmp_path / LONG, lambda file: file.write("x"))
    with pytest.raises(DiskError, match="File name too long"):
        atomic.write_whole(tmp_path / LONG / "a", lambda file: file.write("x"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    atomic.write_whole(tmp_path / "a", lambda file: file.write("x"))
    (tmp_path / "b").touch()
    with new_folder(tmp_path / "c"):
        pass
    (tmp_path / "d").mkdir()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "abcd"]
    assert modes[0] == modes[1] and modes[2] == modes[3]


def test_an_export_leaves_the_scratch_folder_of_another_alone(tmp_path: Path, finished: Path) -> None:
    """Process numbers come again in containers: a folder of the same number may be of one that runs."""
    other = tmp_path / f".deepcluster-export-{os.getpid()}.tmp"
    other.mkdir()
    (other / "half").touch()
    assert run_command(["export", str(finished), "--to", "parquet", "-o", str(tmp_path / "out.parquet"), "-q"]) == 0
    assert run_command(["export", str(finished), "--to", "folders", "-o", str(tmp_path / "sorted"), "-q"]) == 0
    assert (other / "half").exists()
    with pytest.raises(RuntimeError), new_folder(tmp_path / "new") as beside:
        shutil.copy(finished / "run.json", beside)
        raise RuntimeError
    assert {path.name for path in tmp_path.iterdir()} == {other.name, "out.parquet", "sorted"}
