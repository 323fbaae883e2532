"""Folders that a person sorted in the file manager, and `teach` takes over."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from deepcluster.errors import DiskError
from deepcluster.export import folders
from deepcluster.export.read_back import ReadBack, read_back
from deepcluster.images import find, read_once
from deepcluster.runs.apply import apply
from deepcluster.runs.change import undo
from deepcluster.runs.images import pixel_digests
from deepcluster.runs.recut import recut
from deepcluster.runs.run import read_run
from deepcluster.runs.teach import Answer
from deepcluster.runs.update import update
from deepcluster.storage.content import IMAGES
from deepcluster.storage.edits_file import Edits
from deepcluster.storage.run_folder import open_run
from tests.helpers.drawings import save_drawings, write_image
from tests.helpers.runs import change_record, without_page
from tests.helpers.tiny import SIZE, photos_run, writable


@pytest.fixture
def run(five_clusters, photos, tmp_path: Path) -> Path:
    """A copy of a run with five clusters, two of them with names, and of its images."""
    change_record(five_clusters, base=str(shutil.copytree(photos, tmp_path / "photos")))
    apply(five_clusters, Edits(names={0: "one/1", 3: "three"}))
    return without_page(five_clusters)


def kinds(run: Path) -> dict[str, str]:
    """The names or numbers of the clusters of all images."""
    now = read_run(open_run(run))
    clusters = zip(now.rows.paths, now.placement.cluster.tolist(), strict=True)
    return {path: now.model.names[number] or str(number) for path, number in clusters}


def folders_of(run: Path, out: Path, **options: str) -> dict[str, str]:
    """The folders in which an export puts the images."""
    return {row["path"]: row["exported_path"].rpartition("/")[0] for row in folders(run, out, **options)}


def words(run: Path, out: Path) -> ReadBack:
    return read_back(out, read_run(open_run(run)))


@pytest.mark.parametrize("mode", ["symlink", "hardlink", "copy"])
def test_the_next_export_is_the_tree_as_it_was_left(run, tmp_path, mode, prints):
    """But for the images that follow. A renamed folder is a name, without answers about its images."""
    out, first = tmp_path / "out", kinds(run)
    place = {row["path"]: out / row["exported_path"] for row in folders(run, out, mode=mode)}
    moved = {
        next(path for path in place if place[path].parent.name == old): new
        for old, new in (("001", "000-one_1"), ("002", "lilies"), ("004", "001"))
    }
    (out / "lilies").mkdir()
    for path, to in moved.items():
        place[path].rename(out / to / "moved.png")
    (out / "004").rename(out / "tulips")
    left = {path: moved.get(path, "tulips" if first[path] == "4" else file.parent.name) for path, file in place.items()}
    if mode == "symlink":  # of which a new export would lose what it has not read
        with pytest.raises(DiskError, match=f"teach {run} {out}"):
            folders(run, out, overwrite=True)
    dry = json.loads(prints("teach", run, out, "--dry-run", "--json"))
    assert kinds(run) == first
    done = json.loads(prints("teach", run, out, "--json"))
    assert done["changed"] == dry["changed"] > 0
    said = read_run(open_run(run)).model.said
    assert {read_run(open_run(run)).rows.paths[one.row] for one in said} == {*moved}
    made = folders_of(run, out if mode == "symlink" else tmp_path / "again", overwrite=mode == "symlink")
    numbered = {"tulips": "004-tulips", "lilies": "005-lilies"}
    follow = [path for path in place if made[path] != numbered.get(left[path], left[path])]
    assert len(follow) == done["changed"] - len(moved) and not moved.keys() & {*follow}
    assert not words(run, out).answers and not words(run, out).names  # it has read them
    undo(run)
    assert kinds(run) == first


@pytest.mark.parametrize(
    "change",
    [
        lambda run, more: apply(run, Edits(merge=((0, 1),), names={0: "other", 2: "two"}, junk=(3,))),
        lambda run, more: recut(run, 4),
        lambda run, more: update(run, str(more)),
        lambda run, more: undo(run),
    ],
)
def test_links_that_nobody_moved_say_nothing_whatever_happened_since(run, tmp_path, change):
    folders(run, tmp_path / "out")
    change(run, save_drawings(tmp_path / "more", 4, seed=11))
    assert words(run, tmp_path / "out") == ReadBack([], {}, [], [])


@pytest.mark.parametrize("place", ["photos", "sorted"])
def test_a_folder_that_is_sorted_in_part_teaches_the_rest(run, tmp_path, place, prints, photos):
    """The images themselves, or copies, by their pixels. The first names of clusters come from them."""
    apply(run, Edits(names={0: "", 3: ""}))
    folder, photos = tmp_path / place, tmp_path / "photos"
    if place == "sorted":
        for kind in ("bars", "blob"):
            (folder / kind).mkdir(parents=True)
            for file in sorted((photos / kind).iterdir())[:6]:
                Image.open(file).save(folder / kind / f"copy of {file.name}")
        write_image(folder / "bars/new.png", 1)
        (folder / "bars/notes.txt").write_text("mine")
    text = prints("teach", run, folder)
    assert {path: kind for path, kind in kinds(run).items() if (folder / path).exists()}.items() <= {
        path: path.partition("/")[0] for path in kinds(run)
    }.items()
    if place == "sorted":
        assert f"bars/new.png. To add them: deepcluster update {run} {folder}" in text and "bars/notes.txt" in text
        assert all(
            now == path[:4] for path, now in kinds(run).items() if path[:4] in ("bars", "blob") and path[5:] < "06"
        )
    else:
        assert "nothing" in prints("teach", run, folder)


@pytest.fixture
def by_hand(tmp_path) -> Path:
    """Two clusters of one name, one of which has two equal images, one of junk, and one without a name."""
    clusters = {"a.png": 0, "sea/a.png": 0, "b.png": 1, "c.png": 2, "d.png": 3, "e.png": 3}
    run = photos_run(tmp_path, clusters, names={0: "sun", 1: "sun"}, junk=[2])
    shutil.copy(tmp_path / "photos/a.png", tmp_path / "photos/sea/a.png")
    digests = pixel_digests(read_once(find([str(tmp_path / "photos" / path) for path in clusters]), SIZE))
    images = [{**row, "sha256": one} for row, one in zip(open_run(run).read_images().rows, digests, strict=True)]
    writable(run).write_rows(IMAGES, images)
    return run


@pytest.mark.parametrize(
    ("old", "new", "answers", "names", "others"),
    [
        # Of equal images the one that is gone.
        ("_outliers/000-sun/a.png", "003/x.png", [("sea/a.png", 3, "")], {}, []),
        ("000-sun/b.png", "003/b.png", [("b.png", 3, "")], {}, []),
        ("003/d.png", "000-sun/d.png", [("d.png", 0, "sun")], {}, []),
        ("003/d.png", "_junk/002/d.png", [("d.png", 2, "")], {}, []),
        ("003/d.png", "004-be_ach/d.png", [("d.png", None, "be_ach")], {}, []),
        ("_outliers/003/e.png", "003/e.png", [], {}, []),
        ("003/d.png", "d.png", [], {}, ["d.png"]),
        ("003/d.png", "_junk/d.png", [], {}, ["d.png"]),
        ("000-sun", "sea", [], {0: "sea", 1: "sea"}, []),
        ("_junk/002", "_junk/dark", [], {2: "dark"}, []),
        ("003", "000-sun/003", [], {}, []),
    ],
)
def test_a_move_by_hand(by_hand, tmp_path, old, new, answers, names, others):
    """Equal images, clusters of one name, junk, outliers, and places that are the folder of no cluster."""
    out = tmp_path / "out"
    folders(by_hand, out, mode="copy", outliers="separate")
    (out / new).parent.mkdir(exist_ok=True)
    (out / old).rename(out / new)
    run = read_run(open_run(by_hand))
    expected = [Answer(run.rows.paths.index(path), *about, apart=True) for path, *about in answers]
    assert read_back(out, run) == ReadBack(expected, names, [], others)


def test_folders_that_cannot_be_read_back(by_hand, tmp_path, ends):
    out = tmp_path / "out"
    folders(by_hand, out)
    (out / "inventory.csv").write_text("path\n")
    for folder, code, said in (
        (out, 3, "inventory.csv"),
        (tmp_path / "run", 2, "no image"),
        (tmp_path / "none", 2, "none"),
    ):
        assert said in ends(["teach", by_hand, folder], code)
