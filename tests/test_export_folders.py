import errno
import importlib
import os
import resource
import tempfile
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deepcluster.cli import run_command
from deepcluster.errors import DataError, DeepClusterWarning, DiskError, UsageError
from deepcluster.export import folders
from deepcluster.export.folders import MAX_NAME_BYTES, cluster_folder, distinct, plain, read_run_images
from deepcluster.images import find
from deepcluster.storage.run_folder import RunFolder
from tests.exports import hand_run, photos_run, pixels, state, tree, write_clusters, write_image
from tests.helpers.runs import Said
from tests.tiny import writable

bringing = importlib.import_module("deepcluster.export.folders")

MODES = [None, "symlink", "hardlink", "copy"]


@pytest.fixture
def holiday(tmp_path):
    """Five images, two of one name, in two sub-folders, a third cluster of junk, and a file that is no image."""
    clusters = {"a.png": 0, "sea/a.png": 0, "sea/b.png": 1, "sky/A.PNG": 0, "sky/c.png": 2}
    run = photos_run(tmp_path, clusters, names={0: "be/ach"}, junk=[2], skipped=["notes.doc"])
    (tmp_path / "photos" / "notes.doc").write_text("no image")
    return run


def inventory(out):
    return RunFolder(out).read_rows("inventory.csv")


@pytest.mark.parametrize("mode", MODES)
def test_the_tree_in_every_mode(holiday, tmp_path, mode):
    images, out = tmp_path / "photos", tmp_path / "out"
    before = state(images)
    rows = folders(holiday, out, mode=mode)
    assert tree(out) == [
        "000-be_ach/A-3.PNG", "000-be_ach/a-2.png", "000-be_ach/a.png", "001/b.png", "_junk/002/c.png", "inventory.csv",
    ]  # fmt: skip
    how = mode or "symlink"
    expected = [
        ("a.png", "0", "be/ach", "000-be_ach/a.png", how),
        ("sea/a.png", "0", "be/ach", "000-be_ach/a-2.png", how),
        ("sea/b.png", "1", "", "001/b.png", how),
        ("sky/A.PNG", "0", "be/ach", "000-be_ach/A-3.PNG", how),
        ("sky/c.png", "2", "", "_junk/002/c.png", how),
        ("notes.doc", "", "", "", "skipped"),
    ]
    assert [tuple(row.values()) for row in rows] == expected
    assert [tuple(row.values()) for row in inventory(out)] == expected
    for row in rows[:5]:
        original, new = images / row["path"], out / row["exported_path"]
        assert new.read_bytes() == original.read_bytes()
        assert not new.is_symlink() if how != "symlink" else new.readlink() == original  # the tree can be moved
        assert new.lstat().st_ino == original.stat().st_ino or how != "hardlink"
        assert new.stat().st_mtime_ns == original.stat().st_mtime_ns
        assert how != "copy" or new.stat().st_ino != original.stat().st_ino
    assert state(images) == before


def refuse(way):
    def raise_as_windows(file, target):
        raise OSError(errno.EPERM, "A required privilege is not held by the client")

    return {**bringing.WAYS, way: raise_as_windows}


def test_symlinks_refused_become_hard_links(holiday, tmp_path, monkeypatch):
    monkeypatch.setattr(bringing, "WAYS", refuse("symlink"))
    said = Said()
    rows = folders(holiday, tmp_path / "out", display=said)
    assert {row["how"] for row in rows} == {"hardlink", "skipped"}
    assert said.lines == [
        f"Exported: 5 images to {tmp_path / 'out'}: 5 hard links; symbolic links are refused there (permission denied)"
    ]


@pytest.fixture
def other_disk(tmp_path):
    """A folder on another file system."""
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK) or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system")
    with tempfile.TemporaryDirectory(dir=shm) as folder:
        yield Path(folder)


def test_hard_links_to_another_disk_become_copies(holiday, tmp_path, other_disk, monkeypatch):
    """The kernel itself refuses these; a mode that is asked for is that mode or an error."""
    with pytest.raises(DiskError, match=r"hard links are refused there \(invalid cross-device link\): omit --mode"):
        folders(holiday, other_disk / "out", mode="hardlink")
    assert list(other_disk.iterdir()) == []
    monkeypatch.setattr(bringing, "WAYS", refuse("symlink"))
    said = Said()
    rows = folders(holiday, other_disk / "out", display=said)
    assert {row["how"] for row in rows} == {"copy", "skipped"}
    assert "5 copies;" in said.lines[0]
    assert "hard links are refused there (invalid cross-device link)" in said.lines[0]


@pytest.mark.parametrize("mode", [None, "hardlink"])
def test_images_that_are_no_files_are_written_as_png(tmp_path, mode):
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 9, 3), dtype=np.uint8)
    run = hand_run(tmp_path / "run", "python:array", {"0": 0, "1": 1, "2": 0})
    with pytest.raises(DataError, match="say where they are now with --images"):
        folders(run, tmp_path / "out")
    said = Said()
    rows = folders(run, tmp_path / "out", mode=mode, images=images, display=said)
    assert tree(tmp_path / "out") == ["000/0.png", "000/2.png", "001/1.png", "inventory.csv"]
    for i, row in enumerate(rows):
        assert row["how"] == "png"
        assert np.array_equal(pixels(tmp_path / "out" / row["exported_path"]), images[i])
    assert "these images are not files" in said.lines[0]


def test_nothing_at_hand(holiday, tmp_path):
    (tmp_path / "photos").rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"none of the 5 images of .* is at hand") as caught:
        folders(holiday, tmp_path / "out")
    assert str(tmp_path / "photos") in str(caught.value)
    assert not (tmp_path / "out").exists()
    folders(holiday, tmp_path / "out", images=tmp_path / "moved")
    assert len(tree(tmp_path / "out")) == 6


def test_what_is_there_is_left_alone(holiday, tmp_path, monkeypatch):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "to_empty").symlink_to(tmp_path / "empty")
    for name in ("taken", "link", "file", "to_empty"):
        with pytest.raises(DiskError, match="exists already, and is left as it is"):
            folders(holiday, tmp_path / name)
    assert tree(taken) == ["mine"]
    (tmp_path / "x").symlink_to(tmp_path / "y")
    (tmp_path / "y").symlink_to(tmp_path / "x")
    with pytest.raises(DiskError, match="cannot write"):
        folders(holiday, tmp_path / "x" / "out")
    (tmp_path / "way").symlink_to(tmp_path / "photos")
    for out in (tmp_path / "photos" / "sorted", tmp_path / "way" / "sorted", tmp_path / "photos" / "sea" / ".." / "x"):
        with pytest.raises(UsageError, match="give an -o outside of it"):
            folders(holiday, out)
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(DiskError, match="name a new folder in it"):
        folders(holiday, Path())
    monkeypatch.chdir(tmp_path)
    folders(holiday, Path("empty"))
    assert len(tree(tmp_path / "empty")) == 6


def leftovers(folder):
    return [path.name for path in folder.iterdir() if path.name not in ("photos", "run")]


def test_after_a_stop_or_on_a_full_disk_nothing_is_left(holiday, tmp_path):
    class Impatient(Said):
        def progress(self, phase, done, total):
            if done == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folders(holiday, tmp_path / "out", display=Impatient())
    assert leftovers(tmp_path) == []
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photos" / "sea" / "b.png")
    before = state(tmp_path / "photos")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # fails in the same place
    try:
        with pytest.raises(DiskError, match=r"cannot write .*out \(File too large; .* MB are free\): make room"):
            folders(holiday, tmp_path / "out", mode="copy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert leftovers(tmp_path) == []
    assert state(tmp_path / "photos") == before


def test_a_table_that_somebody_changed(holiday, tmp_path):
    """It can neither bring other files in nor write anywhere else."""
    rows = RunFolder(holiday).read_rows("clusters.csv")
    (tmp_path / "secret").write_text("secret")
    rows[0]["path"] = "../secret"
    rows[1]["path"] = "/"
    write_clusters(holiday, rows)
    with pytest.warns(DeepClusterWarning, match="2 images no longer exist"):
        folders(holiday, tmp_path / "out")
    assert tree(tmp_path / "out") == ["000-be_ach/A.PNG", "001/b.png", "_junk/002/c.png", "inventory.csv"]
    rows[2]["cluster"] = "../../x"
    write_clusters(holiday, rows)
    with pytest.raises(DiskError, match="is damaged"):
        folders(holiday, tmp_path / "out2")


def test_images_outside_of_the_folders_of_the_run_are_left_out(tmp_path):
    """Images of an update are brought from their origin; a link is judged by its target."""
    for i, name in enumerate(["private.png", "more/b.png"]):
        write_image(tmp_path / name, i)
    write_image(tmp_path / "photos" / "a.png", 0)
    paths = ["a.png", "../more/b.png", "../private.png", "link.png"]
    run = hand_run(tmp_path / "run", str(tmp_path / "photos"), dict.fromkeys(paths, 0))
    columns = ("path", "label", "source", "member", "sha256", "added")
    added = [{"path": "../more/b.png", "source": str(tmp_path / "more" / "b.png")}]
    added += [{"path": "../private.png", "source": str(tmp_path / "none.png")}]
    writable(run).write_rows("added.csv", columns, added)
    images = read_run_images(run, None)
    assert images.roots == {str(tmp_path / name) for name in ("photos", "more/b.png")}
    (tmp_path / "photos" / "link.png").symlink_to(tmp_path / "private.png")
    named = replace(images, source=find([tmp_path / "photos" / "link.png"]), index={"link.png": 0})
    with pytest.raises(bringing.Unavailable, match="outside of the folders of the run's images"):
        named.file("link.png")
    assert replace(named, roots=frozenset([str(tmp_path)])).file("link.png")
    with pytest.warns(DeepClusterWarning, match=r"2 images .* left out: \.\./private.png"):
        folders(run, tmp_path / "out")
    assert tree(tmp_path / "out") == ["000/a.png", "000/b.png", "inventory.csv"]


@pytest.mark.parametrize("mode", [None, "hardlink", "copy"])
def test_a_list_may_name_any_image_and_nothing_else(tmp_path, monkeypatch, mode):
    """A stranger's run may name any file: only what has the header of an image comes along; a FIFO would block."""
    for i, name in enumerate(["a.png", "b.png", "gone.png", "fifo.png"]):
        write_image(tmp_path / name, i)
    (tmp_path / "notes.txt").write_text("secret")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    names = ["b.png", "gone.png", "fifo.png", "notes.txt", "link.png"]
    paths = ["../a.png", *(str(tmp_path / name) for name in names)]
    run = hand_run(tmp_path / "run", "-", dict.fromkeys(paths, 0))
    for name in ("gone.png", "fifo.png"):
        (tmp_path / name).unlink()
    os.mkfifo(tmp_path / "fifo.png")
    with pytest.warns(DeepClusterWarning, match=r"3 images .* cannot be used, .*notes.txt \(not an image"):
        rows = folders(run, tmp_path / "out", mode=mode)
    way = mode or "symlink"
    reasons = ["missing: no such file", "missing: a FIFO, not a file", "missing: not an image"]
    assert [row["path"] for row in rows] == paths
    assert [row["how"][: len(how)] for row, how in zip(rows, [way, way, *reasons, way], strict=True)] == [
        way, way, *reasons, way
    ]  # fmt: skip
    assert tree(tmp_path / "out") == ["000/a.png", "000/b.png", "000/link.png", "inventory.csv"]
    if mode == "hardlink":  # one to the image, not to the link
        assert (tmp_path / "out/000/link.png").lstat().st_ino == (tmp_path / "a.png").stat().st_ino


def test_dry_run(holiday, tmp_path):
    said = Said()
    assert folders(holiday, tmp_path / "out", dry_run=True, display=said) == ()
    assert leftovers(tmp_path) == []
    out = tmp_path / "out"
    assert said.lines == [
        f"Folder: {out}/000-be_ach: 3 images",
        f"Folder: {out}/001: 1 image",
        f"Folder: {out}/_junk/002: 1 image",
        "Would do: 5 images as symbolic links, else hard links, else copies; nothing is written now",
    ]


@pytest.mark.parametrize(
    ("outliers", "a", "b"),
    [
        ("keep", "000-be_ach/a-2.png", "000-be_ach/A-3.PNG"),
        ("separate", "_outliers/000-be_ach/a.png", "_outliers/000-be_ach/A-2.PNG"),
        ("leave", "outlier", "outlier"),
    ],
)
def test_outliers(holiday, tmp_path, outliers, a, b):
    """Every second image of ``hand_run`` is one; those of junk are junk."""
    rows = RunFolder(holiday).read_rows("clusters.csv")
    write_clusters(holiday, [{**row, "is_outlier": "1"} if row["cluster"] == "2" else row for row in rows])
    folders(holiday, tmp_path / "out", outliers=outliers)
    places = {row["path"]: row["exported_path"] or row["how"] for row in inventory(tmp_path / "out")}
    assert places == {
        "a.png": "000-be_ach/a.png", "sea/a.png": a, "sea/b.png": "001/b.png", "sky/A.PNG": b,
        "sky/c.png": "_junk/002/c.png", "notes.doc": "skipped",
    }  # fmt: skip


def test_nothing_but_outliers(holiday, tmp_path):
    rows = RunFolder(holiday).read_rows("clusters.csv")
    write_clusters(holiday, [{**row, "is_outlier": "1"} for row in rows if row["cluster"] != "2"])
    for options, error, message in [
        ({"outliers": "leave"}, DataError, "all images are outliers"),
        ({"outliers": "move"}, UsageError, "keep or separate or leave"),
        ({"mode": "move", "dry_run": True}, UsageError, "choose symlink, hardlink, copy"),
    ]:
        with pytest.raises(error, match=message):
            folders(holiday, tmp_path / "out", **options)
    assert leftovers(tmp_path) == []


def test_command(holiday, tmp_path, ends, prints):
    out = tmp_path / "out"
    assert "5 symbolic links\n" in prints("export", holiday, "--to", "folders", "-o", out)
    for arguments, code, said in [
        (["--to", "folders", "-o", str(out)], 5, "exists already"),
        (["--to", "parquet", "-o", str(tmp_path / "x"), "--mode", "copy"], 2, "leave out --mode"),
        (["--to", "onnx", "-o", str(tmp_path / "x"), "--dry-run"], 2, "leave out --dry-run"),
        (["--to", "parquet", "-o", str(tmp_path / "x"), "--outliers", "keep"], 2, "leave out --outliers"),
        (["--to", "onnx", "-o", str(tmp_path / "x"), "--overwrite"], 2, "leave out --overwrite"),
        (["--to", "nowhere", "-o", str(tmp_path / "x")], 2, "nowhere"),
        (["--to", "folders", "-o", str(tmp_path / "x"), "--mode", "move"], 2, "move"),
        (["--to", "folders", "-o", str(tmp_path / "x"), "--images", str(tmp_path / "none")], 3, "no such file"),
        (["--to", "folders"], 2, "-o requires"),
    ]:
        assert said in ends(["export", holiday, *arguments], code)
    assert run_command(["export", str(tmp_path), "--to", "folders", "-o", str(tmp_path / "x")]) == 5
    assert leftovers(tmp_path) == ["out"]


# ---- names of files and folders --------------------------------------------------------------------------------------


# What the name of a file can be: bytes that are no UTF-8 are surrogates from DC80 to DCFF, others cannot be written.
LETTERS = st.characters(exclude_characters="/\0", exclude_categories=["Cs"]) | st.characters(
    min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=["Cs"]
)
NAMES = st.text(LETTERS, min_size=1, max_size=60)


def caseless(name: str) -> str:
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("", "003"),
        ("Strand & Meer", "003-Strand & Meer"),
        ("../../etc", "003-_.._etc"),
        ('<>:"\\|?*', "003-________"),
        ("two\nlines\x1b[31m", "003-two_lines_[31m"),
        ("dots...  ", "003-dots"),
        ("..", "003"),
        ("\udcff", "003-_"),
        ("e\u0301", "003-\u00e9"),
        ("ü" * 300, "003-" + "ü" * 50),
    ],
)
def test_folder_of_a_cluster(name, folder):
    assert cluster_folder(3, name) == folder
    assert cluster_folder(1000, name) == folder.replace("003", "1000")


def test_distinct():
    """A name of its own is kept, and a number fits into the length of a name."""
    long = "n" * 251 + ".png"
    given = ["a.jpg", "A.JPG", "a-2.jpg", "a.tar.gz", "a.tar.gz", "\u00e9", "e\u0301", "\udcff", "\udcff", long, long]
    made = ["a.jpg", "A-3.JPG", "a-2.jpg", "a.tar.gz", "a.tar-2.gz", "\u00e9", "e\u0301-2", "\udcff", "\udcff-2", long]
    assert distinct(given) == [*made, "n" * 249 + "-2.png"]


@given(st.lists(NAMES, max_size=12), st.integers(0, 3))
def test_distinct_is_distinct_whatever_comes(names, repeated):
    names = names + names[: len(names) * repeated // 2]
    made = distinct(names)
    assert len({caseless(name) for name in made}) == len(names)
    assert made == distinct(names)
    first = {caseless(name): i for i, name in reversed(list(enumerate(names)))}
    assert all(made[i] == names[i] for i in first.values())


def test_many_equal_names_take_no_time():
    made = distinct(["a.jpg"] * 20_000)
    assert (made[0], made[-1], len(set(made))) == ("a.jpg", "a-20000.jpg", 20_000)


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("a b-c_(1).jpg", "a b-c_(1).jpg"),
        ("a::b*[x]?.png", "a__b__x__.png"),
        ("__MACOSX.png", "MACOSX.png"),
        ("\udcff.png", "image.png"),
        ("हिन्दी.png", "हिन्दी.png"),
        ("#!$.png", "image.png"),
    ],
)
def test_plain(name, made):
    assert plain(name) == made


@given(NAMES)
def test_plain_names_are_utf8_and_fit(name):
    made = plain(name)
    assert 0 < len(made.encode()) <= MAX_NAME_BYTES
    assert not made.startswith((".", "_"))
    assert not set(made) & set('/*?[]<>:"|\\\n')
    assert os.fsencode(made) == made.encode()
