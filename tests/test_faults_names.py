"""Names and texts from strangers: processed, given back exactly, run by no terminal, browser or spreadsheet."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deepcluster.cli import run_command
from deepcluster.images import files as image_files
from deepcluster.images import find
from deepcluster.images.store import read_once
from deepcluster.report.text import bare, inert, retold
from deepcluster.runtime.plain_files import guarded, unguarded
from deepcluster.storage import run_folder as files
from tests.helpers.report import Page
from tests.helpers.runs import small_fit
from tests.tiny import writable

NAMES = [
    *(b"plain.png", b"two words.png", b" lead.png", b"trail.png ", b"  ", b"two  spaces.png", b"dot.", b"no suffix"),
    *(b"quote'.png", b'quote".png', b'"whole".png', b"'=1.png", b"`tick`.png", b"$(touch x).png", b"back\\slash.png"),
    *(b"new\nline.png", b"\nfirst.png", b"cr\r.png", b"\rfirst.png", b"crlf\r\n.png", b"tab\t.png", b"\tfirst.png"),
    *(b"\x1b[31mred.png", b"\x1b]0;title\x07.png", b"bell\x07.png", b"back\x08\x08.png", b"del\x7f.png", b"\x01.png"),
    *(b"#.png", b"?x=1.png", b"100%.png", b"%2e%2e.png", b"a&b.png", b"&lt;.png", b"<>.png", b"*.png", b"a;b,c.png"),
    *(b"-rf.png", b"--overwrite", b"=1+1.png", b"+1.png", b"@SUM(A1).png", b"=cmd|' -C calc'!A0.png", b"~", b"CON"),
    *(b"<img src=x onerror=alert(1)>.png", b"{{ 7 * 7 }}.png", b"a.JPG", b"b.jPeG", b"aux.txt", b"n" * 255),
    *(b"latin-\xe9.png", b"\xff\xfe.png", b"half \xf0\x9f\x98.png", "n\u0303".encode() + b"\x80", b"\xc0\xaf.png"),
    *("caf\xe9.png".encode(), "cafe\u0301.png".encode(), "\u202egnp.exe".encode(), "שלום.png".encode()),
    *("\uff1d1+1.png".encode(), "\u2028.png".encode(), "👩\u200d🔬.png".encode(), "ﬁ\ufeff.png".encode()),
]
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


def command(*arguments: str, locale: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    root = Path(__file__).parents[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    environment |= {"LANG": locale, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "deepcluster", *arguments], capture_output=True, env=environment, cwd=folder
    )


def raw_rows(text: str) -> list[dict[str, str]]:
    """As any program reads it that knows nothing of this one."""
    return list(csv.DictReader(io.StringIO(text, newline="")))


def content(file: Path) -> str:
    return file.read_bytes().decode(errors="surrogateescape")


def printable(output: bytes) -> bool:
    return all(char.isprintable() or char == "\n" for char in output.decode())


@pytest.mark.parametrize("locale", ["C", pytest.param("C.UTF-8", marks=pytest.mark.slow)])
def test_every_name_through_the_command(corpus: Path, tmp_path: Path, locale: str) -> None:
    done = command("fit", str(corpus), *small_fit("-k", "4", "--rounds", "0")[:-1], locale=locale, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert printable(done.stdout) and printable(done.stderr)
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.isprintable() and run.name.isascii()

    # CSV: exact for this program, and a path that opens the file for every other one; no cell is a formula.
    good, bad = sorted(NAMES), sorted(b"bad/" + name for name in NAMES)
    folder = files.open_run(run)
    table = folder.read_rows("clusters.csv")
    assert [os.fsencode(row["path"]) for row in table] == good + bad
    assert [os.fsencode(row["path"]) for row in folder.read_rows("skipped.csv")] == bad
    seen = raw_rows(content(run / "clusters.csv"))
    assert {(corpus / row["path"]).stat().st_ino for row in seen} == {
        (corpus / os.fsdecode(name)).stat().st_ino for name in good + bad
    }
    assert not any(DANGEROUS.match(row["path"]) for row in seen)
    medoids = {os.fsencode(row["medoid_path"]) for row in folder.read_rows("cluster_summary.csv")}
    assert medoids <= set(NAMES)

    # JSON.
    record = json.loads((run / "run.json").read_text(encoding="ascii"))
    assert (record["images"], record["location"]) == (os.fsdecode(FOLDER), str(corpus))
    if locale != "C":
        assert shlex.split(record["command"])[2] == str(corpus)

    # HTML: what can be printed stands there exactly, the rest in a form that can be read.
    shown_page = Page((run / "report.html").read_text(encoding="utf-8"))
    cells = [text for tag, _, parts in shown_page.elements if tag == "td" for text in ["".join(parts)]]
    paths = [os.fsdecode(name) for name in bad]
    shown = dict(zip(paths, cells[-2 * len(bad) :: 2], strict=True))
    assert all(text == inert(path) for path, text in shown.items() if len(path) <= 160)
    assert sum(text == path for path, text in shown.items()) >= 40
    alts = {attributes["alt"] for attributes, _ in shown_page.all("img")}
    assert alts <= {inert(os.fsdecode(name)) for name in NAMES} | {alt for alt in alts if alt and "…" in alt}
    assert len(shown_page.all("script")) == 2  # its own, and the data
    assert not shown_page.all("iframe") and not shown_page.all("b")
    policy = [a["content"] for a, _ in shown_page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    allowed = r"default-src 'none'; img-src data: file:; style-src 'unsafe-inline'; script-src 'sha256-[\w+/]{43}='"
    assert re.fullmatch(allowed, *policy)

    # predict: rows on standard output, the model and the others on standard error, a line each.
    done = command("predict", str(run), str(corpus), locale=locale, folder=tmp_path)
    assert done.returncode == 0 and printable(done.stderr)
    assert done.stderr.count(b"\n") - 1 == done.stderr.count(b"skipped bad/") == len(NAMES)
    rows = raw_rows(done.stdout.decode(errors="surrogateescape"))
    assert [unguarded(row)["path"] for row in rows] == [row["path"] for row in table if row["status"] == "ok"]
    assert [row["cluster"] for row in rows] == [row["cluster"] for row in table if row["status"] == "ok"]


def test_a_terminal_without_the_letters(tmp_path: Path) -> None:
    image(tmp_path / "日本" / "a.png")
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "deepcluster", "fit", "日本", "--dry-run"],
        capture_output=True, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    images, *_ = done.stdout.decode("ascii").splitlines()
    assert images.startswith("Images    1 in ") and images.endswith("\\u65e5\\u672c")


@pytest.mark.parametrize(
    "words", [["fit", "{}", "--o\x1b[31mdd"], ["fit", "\x1b[31m{}"], ["f\x1b[31mt"], ["report", "\x1b[31m\n{}"]]
)
def test_no_control_character_of_an_argument_is_printed(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command([word.format(tmp_path) for word in words]) in (2, 3, 5)
    said = capsys.readouterr()
    assert (said.out + said.err).count("\n") == 1 and "\x1b" not in said.out + said.err


@pytest.mark.parametrize(
    ("name", "plain"),
    [("photos", "photos"), ("a\x1b\n\udce9b", "a___b"), ("é" * 255, "é" * 100), ("日本" * 60, ("日本" * 60)[:66])],
)
def test_a_run_folder_has_a_name_for_every_disk(name: str, plain: str) -> None:
    assert files.folder_name(name) == plain
    assert len(f"{plain}-20260101-120000".encode()) < 255


# CSV cells that a spreadsheet would run

FORMULAS = [
    *("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1+1", "\uff0b1", "\uff0d1", "\uff20x", "="),
    *("=cmd|' /C calc'!A0", '=HYPERLINK("http://x.invalid","y")', "-2+3+cmd|' /C calc'!A0", "@", "--x", "=\n=", "+\r"),
    *("=1,=2", '="a"', "'=1", "''=1", "./=1", "././-x", "'./=1", "./'=1"),
    *(" =1", "\u200b=1", "\ufeff\u00ad\xa0-1", "' =1", "./\u2066@x", "\u206a \u00ad\u3000+1", "\x1f=1", "  \t"),
]
HARMLESS = ["a.png", "'tis.png", "''", "./a.png", "././a", "a=1", " a=1", " '=1", "", ".=", "..", "./", "'", "1-1"]
HARMLESS += ["é", "/-x"]
TEXT_COLUMNS = ("path", "medoid_path", "name", "reason", "label", "source", "member")


def written(rows: list[dict[str, object]], columns: tuple[str, ...]) -> str:
    file = io.StringIO(newline="")
    files.write_csv(file, columns, rows)
    return file.getvalue()


@pytest.mark.parametrize("column", TEXT_COLUMNS)
def test_no_cell_of_text_is_a_formula_and_all_come_back(column: str, tmp_path: Path) -> None:
    folder = writable(tmp_path / "run")
    cells = FORMULAS + HARMLESS
    folder.write_rows("t.csv", (column, "distance"), [{column: cell, "distance": -1.5} for cell in cells])
    assert [row[column] for row in folder.read_rows("t.csv")] == cells
    seen = raw_rows(content(folder.path / "t.csv"))
    assert not any(DANGEROUS.match(row[column]) for row in seen)
    assert [row[column] for row in seen[len(FORMULAS) :]] == HARMLESS
    assert {row["distance"] for row in seen} == {"-1.5"}  # a number stays a number


def test_a_guarded_path_names_the_same_file() -> None:
    for cell in FORMULAS:
        assert os.path.normpath(str(guarded({"path": cell})["path"])) == os.path.normpath(cell)


def test_every_column_of_text_is_guarded() -> None:
    """Who adds a column of text has to think of this."""
    columns = {
        *files.CLUSTERS,
        *files.SUMMARY,
        *files.SKIPPED,
        *files.HISTORY,
        *files.PREDICTIONS,
        *files.ADDED_COLUMNS,
    }
    numbers = {"status", "cluster", "fine_cluster", "distance", "margin", "is_outlier", "size", "share", "junk"}
    numbers |= {"mean_distance", "nearest_cluster", *files.HISTORY, "sha256", "added"}
    assert columns - numbers == set(TEXT_COLUMNS)


names = st.binary(min_size=1, max_size=40).map(lambda raw: re.sub(b"[/\0]", b"=", raw)).map(os.fsdecode)
texts = st.one_of(names, st.text(st.sampled_from("./'=-+@\t\r\n\uff1d,;\"a \u200b"), max_size=8))


@given(st.lists(st.tuples(texts, texts), max_size=5))
@settings(derandomize=True, max_examples=150, deadline=None)
def test_any_text_comes_back_from_csv(cells: list[tuple[str, str]]) -> None:
    rows = [{"path": path, "label": label} for path, label in cells]
    seen = raw_rows(written(rows, ("path", "label")).encode(errors="surrogateescape").decode(errors="surrogateescape"))
    assert [unguarded(row) for row in seen] == rows
    assert not any(DANGEROUS.match(cell) for row in seen for cell in row.values())


# A real browser


# What a page tells of its owner's disk


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("/home/eve/photos", ".../photos"),
        ("/home/eve/photos/", ".../"),
        ("--out=/home/eve/run", "--out=.../run"),
        ("-o/home/eve/run", "-o.../run"),
        ("weights=/home/a=b/w.pt", "weights=.../w.pt"),
        ("/home/a=/b", ".../b"),
        ("/home/new\nline/x", ".../x"),
        ("cats/1.png", "cats/1.png"),
        ("https://host/x", "https://host/x"),
        ("-k", "-k"),
    ],
)
def test_absolute_paths_lose_their_folders(word: str, shown: str) -> None:
    assert bare(word) == shown


def test_a_command_is_retold() -> None:
    told = retold("deepcluster fit '/home/eve/my photos' -k 3 --set weights=/home/eve/w.pt")
    assert told == "deepcluster fit '.../my photos' -k 3 --set weights=.../w.pt"
    assert retold("it isn't closed") == "" and retold("") == ""


# Links and what is no file


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter (those of pytest are for one user)."""
    folder = Path(tempfile.mkdtemp(prefix="dc"))
    folder.chmod(0o755)
    yield folder
    for closed in folder.rglob("*"):
        if closed.is_dir() and not closed.is_symlink():
            closed.chmod(0o755)
    shutil.rmtree(folder)


def image(file: Path) -> None:
    file.parent.mkdir(exist_ok=True, parents=True)
    Image.new("RGB", (4, 4), "red").save(file)


def make_traps(folder: Path) -> dict[str, str]:
    """One image among everything that is none; the reasons by path."""
    image(folder / "in" / "a.png")
    image(folder / "out" / "secret.png")
    link = "a symbolic link, not followed"
    inside = folder / "in"
    for name, target in {
        "b-file": inside / "a.png", "c-folder": inside, "d-loop": inside / "d-loop", "e-broken": folder / "none",
        "f-outside": folder / "out", "g-outside.png": folder / "out/secret.png", "h-null": Path("/dev/null"),
    }.items():  # fmt: skip
        (inside / name).symlink_to(target)
    os.mkfifo(inside / "i-fifo.png")
    here = Path.cwd()
    os.chdir(inside)  # the address of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind("j-socket.png")
    finally:
        os.chdir(here)
    reasons = dict.fromkeys(("b-file", "c-folder", "d-loop", "e-broken", "f-outside", "g-outside.png", "h-null"), link)
    reasons |= {"i-fifo.png": "a FIFO, not a file", "j-socket.png": "a socket, not a file"}
    try:
        os.mknod(inside / "k-device", 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero
        reasons["k-device"] = "a device, not a file"
    except (OSError, AttributeError):  # for root alone, and not in every container
        pass
    return reasons


def test_nothing_is_followed_opened_or_counted_twice(open_folder: Path) -> None:
    """A FIFO or a device that was opened would never end."""
    reasons = make_traps(open_folder)
    store = read_once(find(open_folder / "in"), 4)
    assert len(store.kept) == 1 and dict(store.skipped) == reasons


class Gone:
    """An entry of a folder whose file is gone before anybody looks at it."""

    def __init__(self, entry: os.DirEntry[str]) -> None:
        self.name = entry.name

    def is_symlink(self) -> bool:
        raise FileNotFoundError(2, "No such file or directory")


def test_a_file_that_is_gone_before_it_was_looked_at_is_listed(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image(open_folder / "a.png")
    image(open_folder / "gone.png")
    scandir = os.scandir

    class Scan:
        def __init__(self, folder: Path) -> None:
            with scandir(folder) as entries:
                self.entries = [Gone(entry) if entry.name == "gone.png" else entry for entry in entries]

        def __enter__(self) -> list[Any]:
            return self.entries

        def __exit__(self, *_: object) -> None: ...

        close = __exit__

    monkeypatch.setattr(image_files.os, "scandir", Scan)
    source = find(open_folder)
    assert source.paths == ("a.png",) and source.skipped == (("gone.png", "no such file"),)


@pytest.mark.skipif(not hasattr(os, "setuid") or os.geteuid() != 0, reason="only root can become another user")
def test_what_another_user_may_not_read_is_listed(open_folder: Path) -> None:
    for name in ("a.png", "b.png", "closed/c.png", "listed/d.png"):
        image(open_folder / name)
    (open_folder / "b.png").chmod(0)
    (open_folder / "closed").chmod(0)
    (open_folder / "listed").chmod(0o644)  # its names can be read, its files cannot
    code = (
        "import json, os, sys\nfrom PIL import Image\nfrom deepcluster.images import find\n"
        "from deepcluster.images.store import read_once\nImage.init()\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "store = read_once(find(sys.argv[1]), 4)\nprint(json.dumps([len(store.kept), dict(store.skipped)]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(open_folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    denied = "permission denied"
    assert json.loads(done.stdout) == [1, {"b.png": denied, "closed": denied, "listed/d.png": denied}]
