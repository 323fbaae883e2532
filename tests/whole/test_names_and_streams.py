"""Names and texts from strangers, and surroundings that are nobody's bug: closed streams, odd folders, no room."""

import contextlib
import csv
import errno
import io
import json
import os
import re
import shlex
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deepcluster.errors import DataError, UsageError
from deepcluster.images import files as image_files
from deepcluster.images import find
from deepcluster.runtime.tables import unguarded, write_csv
from deepcluster.storage import lock, run_folder
from deepcluster.storage.content import COLUMNS, FILES
from deepcluster.texts import retold
from tests.helpers.drawings import write_image
from tests.helpers.names import FORMULAS, HARMLESS, NAMES
from tests.helpers.pages import ROOT
from tests.helpers.runs import record, result, rows, small_fit

FOLDER = b"odd \x1b[31m\n \xe9 <b>"
INVISIBLE = "".join(char for char in map(chr, range(0x30000)) if char.isspace() or unicodedata.category(char) == "Cf")
DANGEROUS = re.compile(f"[{INVISIBLE}]*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 and more images with the names, and as many empty files in the folder ``bad``."""
    assert len(set(NAMES)) == len(NAMES) >= 60 and max(map(len, NAMES)) == 255
    folder = tmp_path_factory.mktemp("names") / os.fsdecode(FOLDER)
    (folder / "bad").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in NAMES:
        with (folder / os.fsdecode(name)).open("wb") as file:
            Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(file, "PNG")
        (folder / "bad" / os.fsdecode(name)).touch()
    return folder


def command(*arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(
        [sys.executable, "-m", "deepcluster", *arguments], capture_output=True, env=environment, cwd=folder
    )


def raw_rows(text: str) -> list[dict[str, str]]:
    """As any program reads it that knows nothing of this one."""
    return list(csv.DictReader(io.StringIO(text, newline="")))


def printable(output: bytes) -> bool:
    return all(char.isprintable() or char == "\n" for char in output.decode())


def test_every_name_through_the_command(corpus: Path, tmp_path: Path) -> None:
    """In the locale of POSIX, which knows ASCII alone."""
    done = command("fit", str(corpus), *small_fit("-k", "4", "--rounds", "0")[:-1], LANG="C", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert printable(done.stdout) and printable(done.stderr)
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.isprintable() and run.name.isascii()

    # CSV: exact for this program, and a path that opens the file for every other one; no cell is a formula.
    good, bad = sorted(NAMES), sorted(b"bad/" + name for name in NAMES)
    folder = run_folder.open_run(run)
    table = folder.read_rows("clusters.csv")
    assert [os.fsencode(row["path"]) for row in table] == good + bad
    assert [os.fsencode(row["path"]) for row in folder.read_rows("skipped.csv")] == bad
    seen = rows(run / "clusters.csv")
    assert {(corpus / row["path"]).stat().st_ino for row in seen} == {
        (corpus / os.fsdecode(name)).stat().st_ino for name in good + bad
    }
    assert not any(DANGEROUS.match(row["path"]) for row in seen)
    medoids = {os.fsencode(row["medoid_path"]) for row in folder.read_rows("cluster_summary.csv")}
    assert medoids <= set(NAMES)

    # JSON.
    record = json.loads((run / "run.json").read_text(encoding="ascii"))
    assert (record["images"], record["base"]) == (os.fsdecode(FOLDER), str(corpus))

    # predict: rows on standard output, the model and the others on standard error, a line each.
    done = command("predict", str(run), str(corpus), LANG="C", folder=tmp_path)
    assert done.returncode == 0 and printable(done.stderr)
    assert done.stderr.count(b"\n") - 1 == done.stderr.count(b"skipped bad/") == len(NAMES)
    printed = raw_rows(done.stdout.decode(errors="surrogateescape"))
    used = [row for row in table if row["status"] == "ok"]
    assert [unguarded("path", row["path"]) for row in printed] == [row["path"] for row in used]
    assert [row["cluster"] for row in printed] == [row["cluster"] for row in used]


@pytest.mark.parametrize(("name", "plain"), [("a\x1b\n\udce9b", "a___b"), ("日本" * 60, ("日本" * 60)[:66])])
def test_a_run_folder_has_a_name_for_every_disk(name: str, plain: str) -> None:
    assert run_folder.folder_name(name) == plain
    assert len(f"{plain}-20260101-120000".encode()) < 255


TEXT_COLUMNS = ("path", "medoid_path", "name", "reason", "label", "source", "member")


names = st.binary(min_size=1, max_size=40).map(lambda raw: re.sub(b"[/\0]", b"=", raw)).map(os.fsdecode)
texts = names | st.text(st.sampled_from("./'=-+@\t\r\n\uff1d,;\"a \u200b"), max_size=8)


@given(cells=st.lists(texts, max_size=10))
@settings(derandomize=True, max_examples=100)
def test_no_cell_of_text_is_a_formula_and_all_come_back(cells: list[str]) -> None:
    file, cells, columns = io.StringIO(newline=""), HARMLESS + FORMULAS + cells, (*TEXT_COLUMNS, "now")
    write_csv(file, (*columns, "distance"), [dict.fromkeys(columns, cell) | {"distance": -1.5} for cell in cells])
    seen = raw_rows(file.getvalue().encode(errors="surrogateescape").decode(errors="surrogateescape"))
    for column in columns:
        assert [unguarded(column, row[column]) for row in seen] == cells
        assert not any(DANGEROUS.match(row[column]) for row in seen)
        assert [row[column] for row in seen[: len(HARMLESS)]] == HARMLESS
    assert {row["distance"] for row in seen} == {"-1.5"}  # a number stays a number


def test_every_column_of_text_is_guarded() -> None:
    """Who adds a column of text has to think of this."""
    tables = ("cluster_summary.csv", "clusters.csv", "images.csv", "skipped.csv")
    columns = {column for name in tables for column in FILES[name].columns}
    numbers = {"status", "by", "size", "share", "junk", *(column.name for column in COLUMNS if column.type is not str)}
    assert columns - numbers - {"mean_distance", "nearest_cluster", "sha256", "added"} == set(TEXT_COLUMNS)


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("'/home/eve/my photos'", "'.../my photos'"),
        ("/home/eve/photos/", ".../"),
        ("--out=/home/eve/run", "--out=.../run"),
        ("-o/home/eve/run", "-o.../run"),
        ("weights=/home/a=b/w.pt", "weights=.../w.pt"),
        ("'/home/new\nline/x'", ".../x"),
        ("https://host/x", "https://host/x"),
    ],
)
def test_absolute_paths_of_a_command_lose_their_folders(word: str, shown: str) -> None:
    assert retold(f"deepcluster fit {word} -k 3") == f"deepcluster fit {shown} -k 3"
    assert retold("it isn't closed") == retold("") == ""


@pytest.mark.parametrize("closed", ["closed", "closed/00.png"])
def test_a_folder_or_file_that_another_user_has_closed_is_listed(closed: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Root, as which tests may run, may read everything: what scandir refuses is refused by a substitute."""
    for name in ("00.png", "closed/00.png"):
        write_image(tmp_path / name, 0)
    scan = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        if Path(path).name != "closed":
            return scan(path)
        entry = Mock(**{"is_symlink.side_effect": PermissionError(errno.EACCES, "Permission denied")})
        entry.name = "00.png"
        return MagicMock(**{"__enter__.return_value": [entry]})

    monkeypatch.setattr(image_files.os, "scandir", scandir)
    source = find(tmp_path)
    assert source.paths == ("00.png",) and [path for path, _ in source.skipped] == [closed]


# ---- surroundings ----------------------------------------------------------------------------------------------------

Ends = Callable[..., str]
ONEDNN = "could not create a primitive"
MMAP = "unable to mmap 1675492 bytes from file <model.safetensors>: Cannot allocate memory (12)"
SEGMENT = "libtorch_cpu.so: failed to map segment from shared object"


@pytest.mark.parametrize(
    "text", ["DefaultCPUAllocator: can't allocate memory", "CUDA out of memory. Tried", ONEDNN, MMAP, SEGMENT]
)
def test_every_way_to_say_that_there_is_no_memory(text: str, monkeypatch: pytest.MonkeyPatch, ends: Ends) -> None:
    monkeypatch.setattr("deepcluster.commands.make.check_run", Mock(side_effect=RuntimeError(text)))
    ends(["report", "run"], 6)


@pytest.mark.parametrize("line", ["fit ", "predict run ", "fit photos -o ", "fit photos --labels="])
def test_an_empty_argument_is_none(line: str, ends: Ends) -> None:
    """A variable that is not set: the current folder was clustered, or the option was not there."""
    assert f" {line.rstrip(' =').rpartition(' ')[2]} " in ends(line.split(" "), 2)
    with pytest.raises(UsageError, match="IMAGES"):
        find("")


# A command whose output cannot be written, and its exit code: 5 if the disk is full, 0 if the reader has gone.
@pytest.mark.parametrize(("line", "code"), [("doctor", 5), ("recut RUN -k 2 --json", 5), ("fit PHOTOS -o OUT", 0)])
def test_a_result_that_cannot_be_printed(line: str, code: int, run, photos, tmp_path, ends, monkeypatch) -> None:
    """The work is done; nothing is wrong with the run, and nobody is advised to replace it."""
    values = {"RUN": run, "PHOTOS": photos, "OUT": tmp_path / "out"}
    given = [values.get(word, word) for word in line.split()]
    reader, writer = os.pipe()
    os.close(reader)
    with contextlib.suppress(OSError), Path("/dev/full").open("w") as full, os.fdopen(writer, "w", 1) as pipe:
        monkeypatch.setattr("sys.stdout", full if code else pipe)
        said = ends([*given, *(small_fit("--rounds", "0")[:-1] if "fit" in line else [])], code)
    assert said == "" if code == 0 else os.strerror(errno.ENOSPC) in said.splitlines()[-1]
    if "fit" in line:
        assert record(tmp_path / "out")["status"] == "done"
    if "recut" in line:
        assert result(run)["clusters"] == 2 and said.startswith("Done")  # to standard error


def test_standard_input_that_is_closed_or_cannot_be_read(finished: Path, monkeypatch: Any, ends: Ends) -> None:
    failing = Mock(
        **{"isatty.return_value": False, "buffer.read.side_effect": OSError(errno.EIO, "Input/output error")}
    )
    for command in (["predict", finished, "-"], ["fit", "-"]):
        for stdin in (None, failing):
            monkeypatch.setattr("sys.stdin", stdin)
            ends(command, 3)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("recipes 2>/dev/full >/dev/full", 5),
        (r"fit 日.png --dry-run | grep -F '\u65e5.png'", 0),  # a terminal that lacks the letter
    ],
)
def test_odd_streams_end_a_command_as_they_should(line: str, code: int, tmp_path: Path) -> None:
    write_image(tmp_path / "日.png", 0)
    program = f"set -o pipefail; {shlex.quote(sys.executable)} -m deepcluster {line}"
    odd = {"COLUMNS": "0", "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, cwd=tmp_path, env=os.environ | odd)
    assert done.returncode == code
    assert "Traceback" not in done.stderr and "ignored" not in done.stderr


def test_a_current_folder_that_is_gone_is_named(photos, tmp_path, monkeypatch, ends):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    assert "current folder" in ends(["fit", photos, "-o", tmp_path / "new"], 5)  # torch asks for it in the first round
    with pytest.raises(DataError, match="current folder"):
        find("a.png")


def test_a_run_that_cannot_be_written_to(run: Path, monkeypatch, ends: Ends) -> None:
    """A command without -o does not advise to give another one."""
    monkeypatch.setattr(lock, "hold", Mock(side_effect=OSError(30, "Read-only file system", str(run))))
    assert " -o" not in ends(["recut", run, "-k", "2"], 5)
