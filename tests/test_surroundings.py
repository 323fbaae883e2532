"""Surroundings that are nobody's bug: full or closed streams, odd names, damaged files, no room."""

import codecs
import errno
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from PIL import Image

from deepcluster.cli import run_command
from deepcluster.errors import DataError, DiskError, UsageError
from deepcluster.images import find
from deepcluster.images.store import read_once
from deepcluster.storage import run_folder as files
from deepcluster.storage import state
from tests.helpers.runs import change_record, record, small_fit
from tests.tiny import RECORD, tiny_run

Ends = Callable[..., str]
LONG = "x" * 300
DIGITS = "9" * 5000
ONEDNN = "could not create a primitive"


@pytest.mark.parametrize("text", ["DefaultCPUAllocator: can't allocate memory", "CUDA out of memory. Tried", ONEDNN])
def test_every_way_to_say_that_there_is_no_memory(text: str, monkeypatch: pytest.MonkeyPatch, ends: Ends) -> None:
    def fails(run: Path) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr("deepcluster.cli._check_run", fails)
    assert "out of memory" in ends(["report", "run"], 6)


# ---- what is typed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "after"),
    [
        (["fit", ""], "argument after fit"),
        (["predict", "run", ""], "argument after run"),
        (["predict", "", "photos"], "argument after predict"),
        (["evaluate", "run", "", "--labels", "folders"], "argument after run"),
        (["fit", "photos", "-o", ""], "argument after -o"),
        (["fit", "photos", "--labels="], "value of --labels"),
    ],
)
def test_an_empty_argument_is_none(arguments: list[str], after: str, ends: Ends) -> None:
    """A variable that is not set: the current folder was clustered, or the option was not there."""
    assert f"the {after} is empty" in ends(arguments, 2)


def test_nor_is_one_from_python() -> None:
    with pytest.raises(UsageError, match="IMAGES is empty"):
        find("")


@pytest.mark.parametrize(
    "options",
    [["-k", DIGITS], ["--time-limit", DIGITS], ["--seed", DIGITS], ["--rounds", DIGITS], ["--set", f"epochs={DIGITS}"]],
    ids=lambda options: options[0],
)
def test_numbers_without_end(options: list[str], photos: Path, tmp_path: Path, ends: Ends) -> None:
    said = ends(["fit", photos, "-o", tmp_path / "run", *options, "-q"], 2)
    assert len(said) < 2100
    assert not (tmp_path / "run").exists()


NAMES = {
    "fit": "fit PHOTOS -k 2 -o LONG", "resume": "fit PHOTOS -k 2 -o LONG --resume", "predict": "predict LONG PHOTOS",
    "recut": "recut LONG -k 2", "report": "report LONG", "evaluate": "evaluate LONG --labels folders",
    "export": "export LONG --to parquet -o a", "onto": "export RUN --to parquet -o LONG", "folders":
    "export RUN --to folders -o LONG", "apply": "apply LONG edits.json",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_of_300_bytes(
    name: str, finished: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: Ends
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("edits.json").write_text('{"schema_version": 1}')
    values = {"LONG": LONG, "PHOTOS": str(photos), "RUN": str(finished)}
    said = ends([values.get(word, word) for word in shlex.split(NAMES[name])], 5)
    assert "too long" in said


def test_a_time_zone_that_python_does_not_know(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: Ends
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TZ", "XXX-24:59:59")
    time.tzset()
    try:
        assert ends(["fit", photos, *small_fit()], 0) == ""
    finally:
        monkeypatch.undo()
        time.tzset()
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith(f"{photos.name}-2") and (run / "clusters.csv").exists()


# ---- standard streams -----------------------------------------------------------------------------------------------


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Return a function that puts standard output on a full disk. (Pytest sets the streams before the test.)"""
    with Path("/dev/full").open("w") as stream:
        yield lambda: monkeypatch.setattr("sys.stdout", stream)
        with suppress(OSError):
            stream.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_recut_that_cannot_be_told(options: list[str], run: Path, ends: Ends, full: Callable[[], None]) -> None:
    """It is done; nothing is wrong with the run, and nobody is advised to replace it."""
    full()
    said = ends(["recut", run, "-k", "2", *options], 5)
    *before, last = said.splitlines()
    assert last == "error: cannot write to standard output (No space left on device): send it elsewhere"
    assert [line.split()[0] for line in before] == (["Done"] if options else [])  # with --json to standard error
    assert record(run)["clusters"] == 2


@pytest.mark.parametrize(
    "command",
    [["recipes", "v1"], ["doctor"], ["predict", "RUN", "PHOTOS"], ["fit", "PHOTOS", "-o", "OUT", *small_fit()[:-1]]],
)
def test_what_cannot_be_told_fails(
    command: list[str], finished: Path, photos: Path, tmp_path: Path, ends: Ends, full: Callable[[], None]
) -> None:
    full()
    values = {"RUN": finished, "PHOTOS": photos, "OUT": tmp_path / "run"}
    assert "cannot write to standard output" in ends([values.get(word, word) for word in command], 5)
    assert command[0] != "fit" or record(tmp_path / "run")["status"] == "done"


def test_a_fit_whose_reader_has_gone(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: Ends) -> None:
    """Its results are in files: it goes on to its end, and this is no error."""
    reader, writer = os.pipe()
    os.close(reader)
    with suppress(BrokenPipeError), os.fdopen(writer, "w", buffering=1) as stream:  # of its end
        monkeypatch.setattr("sys.stdout", stream)
        assert ends(["fit", photos, "-o", tmp_path / "run", *small_fit()[:-1]], 0) == ""
    assert record(tmp_path / "run")["status"] == "done"


class Failing(io.RawIOBase):
    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_standard_input_that_is_closed_or_cannot_be_read(finished: Path, monkeypatch: Any, ends: Ends) -> None:
    for command in (["predict", finished, "-"], ["fit", "-"]):
        monkeypatch.setattr("sys.stdin", None)
        assert "standard input is closed" in ends(command, 3)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(Failing())))
        assert "cannot read standard input" in ends(command, 3)


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("recipes >&-", 5, "cannot write to standard output (Bad file descriptor)"),
        ("recipes 2>&- <&-", 0, ""),
        ("recipes nothing 2>&-", 2, ""),
        ("recipes 2>/dev/full >/dev/full", 5, ""),
        ("recipes | true", 0, ""),
        ("fit --help >/dev/null", 0, ""),
    ],
)
def test_real_streams(line: str, code: int, said: str) -> None:
    command = f"set -o pipefail; export COLUMNS=0; {shlex.quote(sys.executable)} -m deepcluster {line}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == code
    assert said in done.stderr and "Traceback" not in done.stderr and "ignored" not in done.stderr


# ---- arrays that change while they are read -------------------------------------------------------------------------


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", [(3, 8, 9), (3, 8, 9, 1), (3, 8, 9, 3), (3, 8, 9, 4), (3, 3, 8, 9), (3, 1, 8, 9)])
def test_rows_of_an_array(shape: tuple[int, ...], tmp_path: Path) -> None:
    for array in (pixels(*shape), np.asfortranarray(pixels(*shape))):
        np.save(tmp_path / "a.npy", array)
        one, other = find(tmp_path / "a.npy"), find(array)
        assert one.paths == other.paths and all(np.array_equal(one.read(i), other.read(i)) for i in range(3))


def test_an_array_that_shrinks(tmp_path: Path) -> None:
    """An error says so: the process died of SIGBUS."""
    np.save(tmp_path / "a.npy", pixels(600, 16, 16, 3))
    source = find(tmp_path / "a.npy")
    assert source.read(599).size == (16, 16)
    os.truncate(tmp_path / "a.npy", 200)
    with pytest.raises(DataError, match=r"a\.npy became shorter while it was read"):
        source.read(599)
    with pytest.raises(DataError, match="became shorter"):  # and is no image that is left out
        read_once(source, 16)


# ---- lists of paths -------------------------------------------------------------------------------------------------


TWO = "a.png\r\nä b.png\r\n"
LISTS: dict[str, tuple[bytes, list[str] | str]] = {  # the paths, or the words of the error
    "powershell.txt": (TWO.encode("utf-8-sig"), ["a.png", "ä b.png"]),
    "powershell 5.txt": (TWO.encode("utf-16"), ["a.png", "ä b.png"]),
    "other order.txt": (codecs.BOM_UTF16_BE + TWO.encode("utf-16-be"), ["a.png", "ä b.png"]),
    "half.txt": (codecs.BOM_UTF16_LE + b"\x00\xd8", "UTF-8"),
    # Quotes as a file manager puts them; a file whose name has quotes is still that file.
    "quoted.txt": ("'ä b.png'\n\"d.png\"\n'c'.png\n\"a.png\"\n".encode(), ["ä b.png", '"d.png"', "'c'.png", "a.png"]),
    "list.csv": (TWO.encode(), ["a.png", "ä b.png"]),
    "comma.csv": (b"a,b.png\n", ["a,b.png"]),
    "table.csv": (b"path,label\na.png,x\n", "is a table, .* --labels"),
    "table.txt": (b'"label";"File"\nx;a.png\n', "is a table, .* --labels"),
    "no header.csv": (b"a.png,x\nb.png,y\n", "is a table, .* --labels"),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_paths(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for image in ("a.png", "ä b.png", "'c'.png", '"d.png"', "a,b.png"):
        Image.new("RGB", (8, 8)).save(image, format="PNG")
    content, expected = LISTS[name]
    Path(name).write_bytes(content)
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            find(name)
        return
    with Path(name).open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        for source in (find(name), find("-")):
            assert list(source.paths) == expected and [source.read(i).size for i in range(len(expected))]


# ---- run folders ----------------------------------------------------------------------------------------------------


def test_a_byte_order_mark_is_no_damage(run: Path, ends: Ends) -> None:
    for name in ("clusters.csv", "run.json"):
        (run / name).write_bytes(codecs.BOM_UTF8 + (run / name).read_bytes())
    ends(["recut", run, "-k", "2", "-q"], 0)


@pytest.mark.parametrize(
    "command", [["report"], ["recut", "-k", "2"], ["evaluate", "--labels", "folders"], ["apply", "edits.json"]]
)
def test_a_run_that_cannot_be_written_to(
    command: list[str], run: Path, monkeypatch: pytest.MonkeyPatch, ends: Ends
) -> None:
    """A command without -o does not advise to give another one."""
    monkeypatch.chdir(run.parent)
    Path("edits.json").write_text('{"schema_version": 1}')

    def read_only(path: Path) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(state, "hold", read_only)
    said = ends([command[0], run, *command[1:]], 5)
    assert "cannot write" in said and "copy of the run" in said and " -o" not in said


def test_a_current_folder_that_is_gone(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: Ends) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    ends(["recut", run, "-k", "2"], 0)


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(file: BinaryIO) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(state, "_lock", unknown)
    with pytest.raises(DiskError, match=r"on a file system without locks .*: .* local disk"), files.locked(tmp_path):
        pass


@pytest.mark.parametrize(("rounds", "shown"), [(["x"], "x"), ([], "of none"), (["1"], "1")])
def test_a_history_of_other_rounds(
    rounds: list[str], shown: str, fitted: Callable[..., Path], tmp_path: Path, photos: Path, ends: Ends
) -> None:
    run = Path(shutil.copytree(fitted("--rounds", "2", "--keep-checkpoints"), tmp_path / "run"))
    change_record(run, status="stopped")
    rows = [round + ",1" * (len(files.HISTORY) - 1) for round in rounds]
    (run / "history.csv").write_text("\n".join([",".join(files.HISTORY), *rows, ""]))
    said = ends(["fit", photos, "-o", run, "--resume", *small_fit("--rounds", "2")], 5)
    assert f"history.csv has the rounds {shown}, and the checkpoint comes after 2" in said


@pytest.mark.parametrize("name", ["model", "checkpoints"])
def test_a_file_where_a_folder_should_be(name: str, photos: Path, tmp_path: Path, ends: Ends) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps(RECORD | {"status": "stopped"}))
    (run / name).write_text("mine")
    said = ends(["fit", photos, "-o", run, "--resume", *small_fit()], 5)
    assert name in said
    assert (run / name).read_text() == "mine"


def test_predict_needs_no_temporary_folder(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that is read-only."""

    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    run = tiny_run(tmp_path / "run")
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._get_default_tempdir", none)
    assert run_command(["predict", str(run), str(photos), "-o", str(tmp_path / "out.csv")]) == 0
