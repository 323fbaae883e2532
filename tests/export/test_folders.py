import errno
import os
import re
import sys
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deepcluster.errors import DataError, DeepClusterWarning, DiskError, UsageError
from deepcluster.export import folders
from deepcluster.export.folders import WAYS as BY_MODE
from deepcluster.export.folders import Transfer
from deepcluster.export.plan import (
    INVENTORY,
    INVENTORY_COLUMNS,
    MAX_NAME_BYTES,
    cluster_folder,
    distinct,
    plain,
    read_run_images,
)
from deepcluster.images.decode import Undecodable
from deepcluster.storage.files import put_in_place
from deepcluster.storage.run_folder import RunFolder, read_table
from tests.helpers.drawings import pixels, write_image
from tests.helpers.runs import Said, originals, tree
from tests.helpers.tiny import hand_run, photos_run, writable, write_clusters


@pytest.fixture
def holiday(tmp_path):
    """Five images, two of one name, in two sub-folders, a third cluster of junk, and a file that is no image."""
    clusters = {"a.png": 0, "sea/a.png": 0, "sea/b.png": 1, "sky/A.PNG": 0, "sky/c.png": 2}
    run = photos_run(tmp_path, clusters, names={0: "be/ach"}, junk=[2], skipped=["notes.doc"])
    (tmp_path / "photos" / "notes.doc").write_text("no image")
    return run


@pytest.fixture
def beach(tmp_path):
    clusters = {"a.png": 0, "sea/a.png": 0, "sea/b.png": 1, "sky/c.png": 2}
    run = photos_run(tmp_path, clusters, names={0: "beach"})
    writable(run).write_rows("duplicates.csv", [])
    return run


def inventory(out):
    return [*read_table(out / "inventory.csv", INVENTORY_COLUMNS)]


@pytest.mark.parametrize("mode", [None, "symlink", "hardlink", "copy"])
def test_the_tree_in_every_mode(holiday, tmp_path, mode):
    images, out = tmp_path / "photos", tmp_path / "out"
    before = originals(images)
    rows = folders(holiday, out, mode=mode)
    assert tree(out) == [
        "000-be_ach/A-3.PNG", "000-be_ach/a-2.png", "000-be_ach/a.png", "001/b.png", "_junk/002/c.png", "inventory.csv",
    ]  # fmt: skip
    how = mode or "symlink"
    expected = [
        ("a.png", "0", "be/ach", "", "000-be_ach/a.png", how),
        ("sea/a.png", "0", "be/ach", "", "000-be_ach/a-2.png", how),
        ("sea/b.png", "1", "", "", "001/b.png", how),
        ("sky/A.PNG", "0", "be/ach", "", "000-be_ach/A-3.PNG", how),
        ("sky/c.png", "2", "", "", "_junk/002/c.png", how),
        ("notes.doc", "", "", "", "", "skipped"),
    ]
    assert [tuple(row.values()) for row in rows] == expected and inventory(out) == rows
    for row in rows[:5]:
        original, new = images / row["path"], out / row["exported_path"]
        assert new.read_bytes() == original.read_bytes()
        assert not new.is_symlink() if how != "symlink" else new.readlink() == original  # the tree can be moved
        assert new.lstat().st_ino == original.stat().st_ino or how != "hardlink"
        assert new.stat().st_mtime_ns == original.stat().st_mtime_ns
        assert how != "copy" or new.stat().st_ino != original.stat().st_ino
    assert originals(images) == before


def test_a_kind_is_one_folder_with_the_first_number_of_its_clusters(tmp_path):
    """The inventory has the number of each image's own cluster."""
    clusters = {"a.png": 2, "sea/a.png": 0, "b.png": 1, "c.png": 3, "d.png": 4, "e.png": 5}
    run = photos_run(tmp_path, clusters, names={0: "sun", 1: "sea", 2: "sun", 5: "sea"}, junk=[5])
    made = [(row["cluster"], row["exported_path"]) for row in folders(run, tmp_path / "out")]
    assert made == [
        ("2", "000-sun/a.png"), ("0", "000-sun/a-2.png"), ("1", "001-sea/b.png"), ("3", "003/c.png"),
        ("4", "004/d.png"), ("5", "_junk/001-sea/e.png"),
    ]  # fmt: skip


def test_links_that_are_refused_become_hard_links_or_copies(holiday, tmp_path, other_disk, monkeypatch):
    """The kernel itself refuses hard links to another disk; a mode that is asked for is that mode or an error."""
    with pytest.raises(DiskError, match="--mode"):
        folders(holiday, other_disk / "out", mode="hardlink")
    assert list(other_disk.iterdir()) == []

    def as_windows(file, target):
        raise OSError(errno.EPERM, "A required privilege is not held by the client")

    monkeypatch.setitem(BY_MODE, "symlink", as_windows)
    said = Said()
    for place, how in ((tmp_path, "hardlink"), (other_disk, "copy")):
        assert {row["how"] for row in folders(holiday, place / "out", display=said)} == {how, "skipped"}
    assert " 5 " in said.lines[0] and "permission" in said.lines[0]  # the reason


@pytest.fixture
def other_disk(tmp_path):
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK) or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system")
    with tempfile.TemporaryDirectory(dir=shm) as folder:
        yield Path(folder)


def test_images_that_are_no_files_are_written_as_png(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 9, 3), dtype=np.uint8)
    run = hand_run(tmp_path / "run", "python:array", {"0": 0, "1": 1, "2": 0})
    with pytest.raises(DataError, match="--images"):
        folders(run, tmp_path / "out")
    rows = folders(run, tmp_path / "out", mode="hardlink", images=images)
    assert tree(tmp_path / "out") == ["000/0.png", "000/2.png", "001/1.png", "inventory.csv"]
    for row, image in zip(rows, images, strict=True):
        assert row["how"] == "png" and np.array_equal(pixels(tmp_path / "out" / row["exported_path"]), image)


def test_what_is_there_is_left_alone(holiday, tmp_path, monkeypatch):
    for name in ("taken", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "taken/mine").write_text("mine")
    for name, target in {"link": "nowhere", "to_empty": "empty", "x": "y", "y": "x", "way": "photos"}.items():
        (tmp_path / name).symlink_to(tmp_path / target)
    for name in ("taken", "link", "taken/mine", "to_empty"):
        with pytest.raises(DiskError):
            folders(holiday, tmp_path / name)
    assert tree(tmp_path / "taken") == ["mine"]
    with pytest.raises(DiskError):
        folders(holiday, tmp_path / "x" / "out")
    for name in ("photos/sorted", "way/sorted", "photos/sea/../x"):
        with pytest.raises(UsageError, match="-o"):
            folders(holiday, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    folders(holiday, Path("empty"))
    assert len(tree(tmp_path / "empty")) == 6


def leftovers(folder):
    return [path.name for path in folder.iterdir() if path.name not in ("photos", "run")]


def test_a_list_may_name_any_image_and_nothing_else(tmp_path, monkeypatch):
    """Only a file with the header of an image comes along; a FIFO would block."""
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
    with pytest.warns(DeepClusterWarning, match=r"3 .*notes\.txt"):
        rows = folders(run, tmp_path / "out", mode="hardlink")
    ways = ["hardlink"] * 2 + ["missing: no such image"] * 2 + ["missing: not an image", "hardlink"]
    assert [row["path"] for row in rows] == paths
    assert all(row["how"].startswith(way) for row, way in zip(rows, ways, strict=True))
    # It is a link to the image, not to the link.
    assert (tmp_path / "out/000/link.png").lstat().st_ino == (tmp_path / "a.png").stat().st_ino


def test_dry_run(holiday, tmp_path):
    said = Said()
    assert folders(holiday, tmp_path / "out", dry_run=True, display=said) == ()
    assert leftovers(tmp_path) == []
    assert f"{tmp_path / 'out'}/000-be_ach: 3 " in said.lines[0] and len(said.lines) == 4


def mark_outliers(run, chosen):
    rows = RunFolder(run).read_rows("clusters.csv")
    write_clusters(run, [{**row, "is_outlier": str(int(chosen(row)))} for row in rows])


@pytest.mark.parametrize(
    ("outliers", "a", "b"),
    [
        ("keep", "000-be_ach/a-2.png", "000-be_ach/A-3.PNG"),
        ("separate", "_outliers/000-be_ach/a.png", "_outliers/000-be_ach/A-2.PNG"),
        ("leave", "outlier", "outlier"),
    ],
)
def test_outliers(holiday, tmp_path, outliers, a, b):
    """Outliers in junk are junk."""
    mark_outliers(holiday, lambda row: row["path"] in ("sea/a.png", "sky/A.PNG", "sky/c.png"))
    folders(holiday, tmp_path / "out", outliers=outliers)
    places = {row["path"]: row["exported_path"] or row["how"] for row in inventory(tmp_path / "out")}
    assert places == {
        "a.png": "000-be_ach/a.png", "sea/a.png": a, "sea/b.png": "001/b.png", "sky/A.PNG": b,
        "sky/c.png": "_junk/002/c.png", "notes.doc": "skipped",
    }  # fmt: skip


def test_nothing_but_outliers_and_unknown_choices(beach, tmp_path):
    mark_outliers(beach, lambda row: True)
    for options, error, message in [
        ({"outliers": "leave"}, DataError, "outliers"),
        ({"outliers": "move"}, UsageError, "keep, separate, leave"),
        ({"mode": "move", "dry_run": True}, UsageError, "symlink, hardlink, copy"),
        ({"is_dataset": True, "outliers": "separate"}, UsageError, "outliers"),
    ]:
        with pytest.raises(error, match=message):
            folders(beach, tmp_path / "out", **options)
    assert leftovers(tmp_path) == []


def test_command(holiday, tmp_path, ends, prints):
    out, other = tmp_path / "out", tmp_path / "x"
    assert " 5 " in prints("export", holiday, "--to", "folders", "-o", out)
    for arguments, code, said in [
        (["folders", "-o", out], 5, "out"),
        (["parquet", "-o", other, "--mode", "copy"], 2, "--mode"),
        (["onnx", "-o", other, "--overwrite"], 2, "--overwrite"),
        (["parquet", "-o", other, "-n", "5"], 2, "leave out -n"),
        (["folders", "-o", other, "--images", tmp_path / "none"], 3, "none"),
        (["folders"], 2, "-o"),
    ]:
        assert said in ends(["export", holiday, "--to", *arguments], code)
    assert leftovers(tmp_path) == ["out"]
    images = (tmp_path / "photos").rename(tmp_path / "moved")
    assert f"{tmp_path}/photos" in ends(["export", holiday, "--to", "folders", "-o", other], 3)
    assert " 5 " in prints("export", holiday, "--to", "folders", "-o", other, "--images", images)


# ---- --overwrite and --duplicates: what is replaced, and which image stands for which ---


def corrected(run):
    """a.png moves to cluster 1, and cluster 2 to 4."""
    rows = RunFolder(run).read_rows("clusters.csv")
    write_clusters(run, [{**row, "cluster": cluster} for row, cluster in zip(rows, "1014", strict=True)])


def test_a_tree_of_links_is_replaced_whatever_became_of_it(beach, tmp_path):
    """A link is no original: it may have moved, be gone or lead elsewhere. File managers leave files of their own."""
    out, fresh, before = tmp_path / "out", tmp_path / "fresh", originals(tmp_path / "photos")
    folders(beach, out, overwrite=True)  # there is none yet
    (out / "000-beach/a.png").rename(out / "000-beach/mine.png")
    (out / "002/c.png").unlink()
    (out / "002/c.png").symlink_to(tmp_path)
    (out / "001/.DS_Store").touch()
    corrected(beach)
    assert folders(beach, out, overwrite=True) == folders(beach, fresh)
    assert tree(out) == tree(fresh) and originals(tmp_path / "photos") == before
    assert sorted(leftovers(tmp_path)) == ["fresh", "out"]


@pytest.mark.parametrize("options", [{"mode": "hardlink"}, {"mode": "copy"}, {"is_dataset": True}, {}])
def test_a_tree_with_a_file_is_never_replaced(options, beach, tmp_path):
    """Nor is a folder that no export made, or a file that comes during an export."""
    out = tmp_path / "out"
    folders(beach, out, **options)

    class Meanwhile(Said):
        def progress(self, phase, done, total):
            (out / "002/mine").write_text("mine")

    before = tree(out)
    with pytest.raises(DiskError, match=r"files, such as \S+, .*-o"):
        folders(beach, out, overwrite=True, display=Meanwhile())
    assert tree(out) == sorted({*before, *(["002/mine"] if not options else [])})
    assert leftovers(tmp_path) == ["out"]
    (out / INVENTORY).unlink()
    (tmp_path / "link").symlink_to(out)
    for place in (out, tmp_path / "link"):
        with pytest.raises(DiskError, match=INVENTORY):
            folders(beach, place, overwrite=True)


def test_a_file_that_comes_as_a_tree_is_replaced_is_not_removed(beach, tmp_path, monkeypatch):
    out = tmp_path / "out"
    folders(beach, out)

    def at_the_last_moment(new, place, old):
        (place / "001/mine").write_text("mine")
        put_in_place(new, place, old)

    monkeypatch.setattr("deepcluster.storage.files.put_in_place", at_the_last_moment)
    with pytest.raises(DiskError, match="001/mine") as error:
        folders(beach, out, overwrite=True)
    (file,) = tmp_path.glob(".deepcluster-*/001/mine")
    assert file.read_text() == "mine" and file.parts[-3] in str(error.value)


def test_the_best_of_nearly_identical_images_is_kept(tmp_path, prints):
    """The largest, then the sharpest; of equal ones the first. An image that is left out stands for none."""
    sharp = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    pictures = {"small.png": sharp[:6, :6], "blurred.png": sharp // 2 + 60}
    pictures |= dict.fromkeys(("alone.png", "sharp.png", "same.png", "x.png"), sharp)
    (tmp_path / "photos").mkdir()
    for name, picture in pictures.items():
        Image.fromarray(picture).save(tmp_path / "photos" / name)
    run = hand_run(tmp_path / "run", str(tmp_path / "photos"), dict.fromkeys([*pictures, "gone.png"], 0))
    with pytest.raises(DataError, match=r"duplicates\.csv"):
        folders(run, tmp_path / "out", duplicates="first")
    alike = ["gone.png", "small.png", "blurred.png", "sharp.png", "same.png"]
    groups = [{"set": 0, "path": path, "distance": 0} for path in alike]
    writable(run).write_rows("duplicates.csv", groups)
    (tmp_path / "photos" / "gone.png").write_text("no image")
    with pytest.warns(DeepClusterWarning):
        rows = folders(run, tmp_path / "out", duplicates="first")
    how = {row["path"]: row["how"] for row in rows if row["how"] != "symlink"}
    assert how.pop("gone.png").startswith("missing")
    assert how == {
        "small.png": "duplicate of sharp.png, which is larger",
        "blurred.png": "duplicate of sharp.png, which is sharper",
        "same.png": "duplicate of sharp.png, which is the same",
    }
    assert tree(tmp_path / "out") == ["000/alone.png", "000/sharp.png", "000/x.png", "inventory.csv"]
    command = ("export", run, "--to", "folders", "-o", tmp_path / "other", "--duplicates", "first")
    assert re.search(f" 3 .*{INVENTORY}", prints(*command))
    # Outliers are left out here, so they stand for none.
    mark_outliers(run, lambda row: row["path"] in ("sharp.png", "same.png"))
    with pytest.warns(DeepClusterWarning):
        rows = folders(run, tmp_path / "out", duplicates="first", outliers="leave", overwrite=True)
    how = {row["path"]: row["how"] for row in rows}
    assert (how["small.png"], how["blurred.png"]) == ("duplicate of blurred.png, which is larger", "symlink")


def test_a_jpeg_too_large_to_be_decoded_whole_may_be_the_best(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["deepcluster.images.decode"], "MAX_PIXELS", 100_000)
    monkeypatch.setattr("deepcluster.export.plan.COMPARED_SIDE", 8)
    (tmp_path / "photos").mkdir()
    for name, size in (("large.jpg", (480, 320)), ("small.png", (60, 40))):
        Image.new("RGB", size).save(tmp_path / "photos" / name)
    run = hand_run(tmp_path / "run", str(tmp_path / "photos"), {"small.png": 0, "large.jpg": 0})
    alike = [{"set": 0, "path": path, "distance": 0} for path in ("small.png", "large.jpg")]
    writable(run).write_rows("duplicates.csv", alike)
    how = {row["path"]: row["how"] for row in folders(run, tmp_path / "out", duplicates="first")}
    assert how == {"small.png": "duplicate of large.jpg, which is larger", "large.jpg": "symlink"}


def test_a_copy_never_overwrites(beach, tmp_path):
    """As it would an original by a link."""
    (tmp_path / "a.png").symlink_to(tmp_path / "photos/sea/b.png")
    before = originals(tmp_path / "photos")
    with pytest.raises(Undecodable):
        Transfer(read_run_images(beach, None), ["copy"])("a.png", tmp_path / "a.png")
    assert originals(tmp_path / "photos") == before


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
        ("../../etc", "003-_.._etc"),
        ('<>:"\\|?*', "003-________"),
        ("two\nlines\x1b[31m", "003-two_lines_[31m"),
        ("dots...  ", "003-dots"),
        ("\udcff", "003-_"),
        ("e\u0301", "003-\u00e9"),
        ("ü" * 300, "003-" + "ü" * 50),
        ("\u0645\u06cc\u200c\u0631\u0648\u062f", "003-\u0645\u06cc\u200c\u0631\u0648\u062f"),
    ],
)
def test_folder_of_a_cluster(name, folder):
    assert cluster_folder(3, name) == folder


def test_distinct():
    """A name of its own is kept, and a number fits into the length of a name."""
    long = "n" * 251 + ".png"
    given = ["a.jpg", "A.JPG", "a-2.jpg", "a.tar.gz", "a.tar.gz", "\u00e9", "e\u0301", "\udcff", "\udcff", long, long]
    made = ["a.jpg", "A-3.JPG", "a-2.jpg", "a.tar.gz", "a.tar-2.gz", "\u00e9", "e\u0301-2", "\udcff", "\udcff-2", long]
    assert distinct(given) == [*made, "n" * 249 + "-2.png"]
    assert distinct(["a.jpg"] * 20_000)[-1] == "a-20000.jpg"  # in no time


@given(st.lists(NAMES, max_size=12), st.integers(0, 3))
def test_distinct_is_distinct_whatever_comes(names, repeated):
    names = names + names[: len(names) * repeated // 2]
    made = distinct(names)
    assert len({caseless(name) for name in made}) == len(names)
    first = {caseless(name): i for i, name in reversed(list(enumerate(names)))}
    assert all(made[i] == names[i] for i in first.values())


@given(NAMES)
def test_plain_names_are_utf8_and_fit(name):
    made = plain(name)
    assert 0 < len(made.encode()) <= MAX_NAME_BYTES
    assert not made.startswith((".", "_"))
    assert not set(made) & set('/*?[]<>:"|\\\n')
    assert os.fsencode(made) == made.encode()
