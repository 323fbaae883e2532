"""Outputs that the user names with -o: none of the user's files is replaced unasked."""

import errno
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster.storage import files as whole
from deepcluster.storage.files import check_no_folder, new_folder
from deepcluster.storage.run_folder import open_run
from tests.helpers.drawings import pack, save_drawings
from tests.helpers.runs import bystanders, change_record, contents, small_fit, state_of
from tests.helpers.tiny import tiny_run

Ends = Callable[..., str]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a run, two photographs, a list of them and an array; nothing in it may change."""
    monkeypatch.chdir(tmp_path)
    tiny_run(tmp_path / "run")
    change_record(tiny_run(tmp_path / "given"), backbone="features", base=str(tmp_path / "photos"))
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "photos" / f"{i}.png")
    np.save("photos.npy", pixels)
    Path("list.txt").write_text("photos/0.png\nphotos/1.png\n")
    pack(Path("s0.tar"), {"photos/0.png": Path("photos/0.png")})
    return tmp_path


# What is there already is refused, and replaced with --overwrite; what is read is refused with it, too.
THERE = {
    "a file": "predict run photos -o mine",
    "a link to a file": "predict run photos -o link",
    "the .csv beside an array": "embed run photos -o labels.npy",
    "a .csv beside images": "predict run photos.npy -o photos.csv",
}
READ = {
    "the paths of features": "predict given photos.npy -o photos.csv",
    "an image on standard input": "predict run - -o photos/1.png",
    "an image": "predict run photos -o photos/0.png",
    "a hard link to an image": "predict run list.txt -o hard.csv",
    "the list": "predict run list.txt -o ./list.txt",
    "a shard": "predict run s{0..0}.tar -o s0.tar",
    "the array": "embed run photos.npy -o photos.npy",
    "the run": "predict run photos -o run/run.json",
    "the model": "predict run photos -o run/model/config.json",
}


@pytest.fixture
def before(place: Path) -> dict[str, bytes | Path]:
    """Return the content of ``place``, with some files of the user's."""
    for name in ("mine", "labels.csv", "photos.csv"):
        Path(name).write_text("mine")
    Path("link").symlink_to("mine")
    Path("hard.csv").hardlink_to("photos/0.png")
    return contents(place)


@pytest.mark.parametrize("name", THERE | READ)
def test_what_is_there_is_replaced_by_overwrite_alone_and_what_is_read_never(place, before, name, ends, monkeypatch):
    arguments = (THERE | READ)[name].split()
    with monkeypatch.context() as patch:  # it is refused before anything is computed
        if name != "an image on standard input":  # whose paths are known when the work has begun
            patch.setattr("deepcluster.runs.predict.predict", lambda *_, **__: pytest.fail("it went to work"))
        for options, code in (([], 5), (["--overwrite"], 2)) if name in READ else (([], 5),):
            patch.setattr("sys.stdin", io.StringIO("photos/0.png\nphotos/1.png\n"))
            assert (Path(arguments[-1]).name if options else "--overwrite") in ends([*arguments, *options, "-q"], code)
    assert contents(place) == before
    if name in THERE:
        assert ends([*arguments, "--overwrite", "-q"], 0) == ""
        changed = {name for name, content in contents(place).items() if before.get(name) != content}
        assert changed == {arguments[-1]} | ({"labels.csv"} if arguments[0] == "embed" else set())


@pytest.mark.parametrize("out", ["", "/", "none/a.csv", "list.txt/a.csv"])
def test_a_place_where_no_file_can_be(place, out, ends, monkeypatch):
    monkeypatch.setattr("deepcluster.runs.predict.predict", lambda *_, **__: pytest.fail("it went to work"))
    before = contents(place)
    assert ends(["predict", "run", "photos", "-o", out, "-q"], 5 if out else 2).startswith("error: ")
    assert contents(place) == before


def test_empty_files_and_devices_may_be_outputs(place, ends):
    """An empty file (of mktemp), and devices by links, lest a failure of this test harms the machine."""
    Path("empty.csv").touch()
    for device in ("null", "full"):
        Path(device).symlink_to(f"/dev/{device}")
    for out, code in (("empty.csv", 0), ("null", 0), ("full", 5)):
        assert (os.strerror(errno.ENOSPC) if code else "") in ends(["predict", "run", "photos", "-o", out, "-q"], code)
    assert Path("null").is_symlink() and Path("full").is_symlink()
    assert Path("empty.csv").read_bytes().startswith(b"path,cluster,name,distance,margin,is_outlier\n")


def test_a_file_has_the_permissions_of_any_other(tmp_path):
    whole.write_whole(tmp_path / "a", lambda file: file.write("x"))
    (tmp_path / "b").touch()
    with new_folder(tmp_path / "c", check_no_folder):
        pass
    (tmp_path / "d").mkdir()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "abcd"]
    assert modes[0] == modes[1] and modes[2] == modes[3]


def test_overwrite_leaves_files_that_are_not_of_the_run(run, ends):
    """Also the images that are clustered, in the run folder."""
    mine = bystanders(run, write=True)
    images = save_drawings(run / "images-originals", 8, 16)
    before = contents(images)
    ends(["fit", images, "-o", run, *small_fit("-k", "2", "--rounds", "0"), "--overwrite"], 0)
    assert contents(images) == before and state_of(run)["clusters"] == 2 and not (run / "metrics.json").exists()
    assert bystanders(run) == mine


def test_images_that_would_be_removed_are_refused(run, photos, tmp_path, ends):
    """IMAGES inside the files that --overwrite replaces."""
    before, images = contents(run), tmp_path / "list.txt"
    (tmp_path / "a link.png").symlink_to(run / "thumbnails.webp")
    for image in (run / "thumbnails.webp", tmp_path / "a link.png"):
        images.write_text(f"{image}\n{photos}/bars/00.png\n")
        assert "IMAGES" in ends(["fit", images, "-o", run, "-k", "2", "-q", "--overwrite"], 2)
        assert contents(run) == before


def test_run_folders_are_no_images(tmp_path, ends):
    """`cd photos; deepcluster fit .` twice."""
    images = save_drawings(tmp_path / "in", 8, 16)
    for name in ("a", "b"):
        ends(["fit", images, "-o", images / "runs" / name, *small_fit("--rounds", "0")], 0)
    one, other = ([*open_run(images / "runs" / name).read_rows("clusters.csv")] for name in ("a", "b"))
    assert one == other and len(one) == len([*images.glob("*/*.png")])
    ends(["fit", images / "runs" / "a", "-o", tmp_path / "r", "-q"], 3)
