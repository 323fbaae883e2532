"""``export --overwrite`` and ``--duplicates first``: what is replaced, what stays, and which image stands for which."""

import os
import shutil
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster.errors import DataError, DiskError, UsageError
from deepcluster.export import folders
from deepcluster.export.replace import INVENTORY, replace_tree
from deepcluster.storage.run_folder import DUPLICATES, RunFolder
from tests.exports import hand_run, photos_run, state, tree, write_clusters
from tests.helpers.runs import Said
from tests.tiny import writable


@pytest.fixture
def holiday(tmp_path: Path) -> Path:
    return photos_run(tmp_path, {"a.png": 0, "sea/a.png": 0, "sea/b.png": 1, "sky/c.png": 2}, names={0: "beach"})


def corrected(run: Path) -> None:
    """a.png moves to cluster 1, and cluster 2 to 4."""
    moved = {"a.png": "1", "sky/c.png": "4"}
    rows = RunFolder(run).read_rows("clusters.csv")
    write_clusters(run, [{**row, "cluster": moved.get(row["path"], row["cluster"])} for row in rows])


WAYS = [
    {},
    {"mode": "hardlink"},
    {"mode": "copy"},
    {"mode": "copy", "strip_metadata": True},
    {"layout": "dataset"},
]


@pytest.mark.parametrize("options", WAYS)
def test_a_tree_is_replaced_and_the_files_of_others_stay(options, holiday, tmp_path):
    out, fresh, originals = tmp_path / "out", tmp_path / "fresh", state(tmp_path / "photos")
    folders(holiday, out, overwrite=True, **options)  # there is none yet
    mine = [] if "layout" in options else ["000-beach/mine.png", "notes.txt"]
    for name in mine:
        (out / name).write_text("mine")
    corrected(holiday)
    said = Said()
    rows = folders(holiday, out, overwrite=True, display=said, **options)
    assert rows == folders(holiday, fresh, **options)
    assert tree(out) == sorted([*tree(fresh), *mine])
    for name in tree(fresh):
        assert (out / name).read_bytes() == (fresh / name).read_bytes()
    assert not [folder for folder in out.rglob("*") if folder.is_dir() and not any(folder.iterdir())]
    assert [line for line in said.lines if line.startswith("Left")] == (
        ["Left: 2 files not made by the export, or the only copy: 000-beach/mine.png, notes.txt"] if mine else []
    )
    assert state(tmp_path / "photos") == originals


def test_another_folder_is_refused(holiday, tmp_path):
    for name, text in (("empty inventory", ""), ("other table", "path,label\n"), ("no table", None)):
        (tmp_path / name).mkdir()
        (tmp_path / name / ("mine" if text is None else "inventory.csv")).write_text(text or "")
        before = state(tmp_path / name)
        with pytest.raises(DiskError, match="so --overwrite leaves it as it is"):
            folders(holiday, tmp_path / name, overwrite=True)
        assert state(tmp_path / name) == before
    folders(holiday, tmp_path / "out")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(DiskError, match="exists already"):
        folders(holiday, tmp_path / "link", overwrite=True)


@pytest.mark.parametrize("options", [{"mode": "copy"}, {"layout": "dataset"}])
def test_a_changed_copy_is_never_lost(options, holiday, tmp_path):
    out = tmp_path / "out"
    copy = out / folders(holiday, out, **options)[0]["exported_path"]
    Image.new("RGB", (3, 3)).save(copy)
    before = state(out)
    with pytest.raises(DiskError, match=rf"{copy.name}\. Move them out, and export again"):
        folders(holiday, out, overwrite=True, **options)
    assert state(out) == before


def test_the_only_copy_of_an_image_is_never_lost(holiday, tmp_path):
    out = tmp_path / "out"
    folders(holiday, out, mode="copy")
    (tmp_path / "photos" / "sky" / "c.png").unlink()
    corrected(holiday)
    with pytest.warns(match="1 images no longer exist"):
        folders(holiday, out, overwrite=True)
    assert tree(out) == ["000-beach/a.png", "001-beach/a.png", "001/b.png", "002/c.png", "inventory.csv"]
    assert not (out / "002" / "c.png").is_symlink() and (out / "001" / "b.png").is_symlink()


def test_an_inventory_or_a_folder_that_somebody_changed_reaches_nothing_outside(holiday, tmp_path):
    """Not even files that equal their originals."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    rows = [dict(row) for row in folders(holiday, out, mode="copy")]
    shutil.copytree(tmp_path / "photos", elsewhere)
    rows[0]["exported_path"] = "../elsewhere/a.png"
    rows[1]["exported_path"] = str(elsewhere / "sea" / "a.png")
    writable(out).write_rows("inventory.csv", [*rows[0]], rows)
    shutil.rmtree(out / "002")
    (elsewhere / "sky" / "mine").write_text("mine")
    (out / "002").symlink_to(elsewhere / "sky")
    before = state(elsewhere)
    with pytest.raises(DiskError, match=r"000-beach/a-2.png, 000-beach/a.png, 002, 002/c.png\. Move"):
        folders(holiday, out, overwrite=True)
    assert state(elsewhere) == before


def test_an_original_by_another_way_into_the_folder_is_no_copy(tmp_path):
    """As through a mount, or a name in another case: both paths are one file, and it has no second link."""
    out, new = tmp_path / "out", tmp_path / "new"
    for folder, text in ((out, "mine"), (new, "new")):
        (folder / "000").mkdir(parents=True)
        (folder / "000/a.png").write_text(text)
        (folder / INVENTORY).write_text("")
    row = {"path": "a.png", "cluster": "0", "name": "", "exported_path": "000/a.png", "how": "copy"}
    before = state(out)
    with pytest.raises(DiskError, match=r"000/a\.png"):
        replace_tree(out, new, [row], [row], lambda path: out / "000/a.png", alone=False)
    assert state(out) == before


def test_the_metadata_of_a_folder_export_is_the_user_s(holiday, tmp_path):
    out = tmp_path / "out"
    folders(holiday, out, mode="copy")
    (out / "train").mkdir()
    (out / "train/metadata.csv").write_text("mine")
    os.utime(out / "train/metadata.csv", (0, 0))  # as a copy that keeps its time
    folders(holiday, out, mode="copy", overwrite=True)
    assert (out / "train/metadata.csv").read_text() == "mine"


def test_the_images_of_the_run_are_never_replaced(holiday, tmp_path):
    out = tmp_path / "out"
    folders(holiday, out, mode="copy")
    run = hand_run(tmp_path / "second", "-", {str(out / "001" / "b.png"): 0})
    before = state(out)
    with pytest.raises(UsageError, match="an image of the run, lies in -o"):
        folders(run, out, overwrite=True)
    assert state(out) == before


@pytest.mark.parametrize("options", [{"mode": "copy"}, {"layout": "dataset"}])
def test_after_a_kill_the_next_export_replaces_the_tree(options, holiday, tmp_path, monkeypatch):
    """An exception at each change of the tree leaves what a kill would leave; one stop after the other."""
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    folders(holiday, tmp_path / "old", **options)
    corrected(holiday)
    folders(holiday, fresh, **options)
    left = 0

    def stopping(name):
        method = getattr(Path, name)

        def changed(path, *rest, **options):
            nonlocal left
            if any(Path(place).is_relative_to(out) for place in (path, *rest)):
                left -= 1
                if left < 0:
                    raise KeyboardInterrupt
            return method(path, *rest, **options)

        return changed

    for stop in count():
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(tmp_path / "old", out)
        left = stop
        with monkeypatch.context() as patch:
            for name in ("unlink", "rename", "replace"):
                patch.setattr(Path, name, stopping(name))
            try:
                folders(holiday, out, overwrite=True, **options)
                break
            except KeyboardInterrupt:
                pass
        folders(holiday, out, overwrite=True, **options)
        assert tree(out) == tree(fresh)
    assert stop > 6 and tree(out) == tree(fresh)


def test_the_best_of_nearly_identical_images_is_kept(tmp_path):
    """The largest, then the sharpest; of equal ones the first. An image that is left out stands for none."""
    sharp = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    blurred = sharp // 2 + 60
    pictures = {
        "small.png": sharp[:6, :6],
        "blurred.png": blurred,
        "sharp.png": sharp,
        "same.png": sharp,
        "x.png": sharp,
    }
    run = photos_run(tmp_path, {"alone.png": 0})
    for name, picture in pictures.items():
        Image.fromarray(picture).save(tmp_path / "photos" / name)
    clusters = dict.fromkeys(pictures, 0)
    run = hand_run(tmp_path / "second", str(tmp_path / "photos"), {"alone.png": 0, **clusters, "gone.png": 0})
    with pytest.raises(DataError, match=r"has no duplicates\.csv"):
        folders(run, tmp_path / "out", duplicates="first")
    alike = ["gone.png", "small.png", "blurred.png", "sharp.png", "same.png"]
    writable(run).write_rows(
        "duplicates.csv", DUPLICATES, [{"group": 0, "path": path, "distance": 0} for path in alike]
    )
    (tmp_path / "photos" / "gone.png").write_text("no image")
    said = Said()
    with pytest.warns(match="1 images no longer exist or cannot be used"):
        rows = folders(run, tmp_path / "out", duplicates="first", display=said)
    how = {row["path"]: row["how"] for row in rows if row["how"] != "symlink"}
    assert how.pop("gone.png").startswith("missing")
    assert how == {
        "small.png": "duplicate of sharp.png, which is larger",
        "blurred.png": "duplicate of sharp.png, which is sharper",
        "same.png": "duplicate of sharp.png, which is the same",
    }
    assert tree(tmp_path / "out") == ["000/alone.png", "000/sharp.png", "000/x.png", "inventory.csv"]
    assert said.lines[0] == ("Alike: 3 nearly identical images left out: see inventory.csv")
    # Outliers are left out here, so they stand for none.
    write_clusters(
        run,
        [
            {**row, "is_outlier": str(int(row["path"] in ("sharp.png", "same.png")))}
            for row in RunFolder(run).read_rows("clusters.csv")
        ],
    )
    with pytest.warns(match="1 images"):
        rows = folders(run, tmp_path / "out", duplicates="first", outliers="leave", overwrite=True)
    how = {row["path"]: row["how"] for row in rows}
    assert (how["small.png"], how["blurred.png"]) == ("duplicate of blurred.png, which is larger", "symlink")
