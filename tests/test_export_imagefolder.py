import errno

import numpy as np
import pytest

from deepcluster.errors import UsageError
from deepcluster.export.folders import SUFFIXES, imagefolder
from tests.exports import colour, hand_run, photos_run, pixels, state, tree, write_image
from tests.helpers.runs import rows as read


def metadata(out):
    return read(out / "train" / "metadata.csv")


def loaded(out, tmp_path, monkeypatch):
    """What `datasets` makes of it, without a network."""
    pytest.importorskip("datasets")
    for name, value in {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)
    import datasets

    found = datasets.load_dataset("imagefolder", data_dir=str(out), cache_dir=str(tmp_path / "cache"))
    assert list(found) == ["train"]
    return found["train"]


def test_the_folder(tmp_path):
    clusters = {"a.png": 0, "sea/a.png": 0, "b.png": 1, "c.png": 1}
    run = photos_run(tmp_path, clusters, names={0: "=beach"}, junk=[1], labels={"a.png": "sand"})
    before = state(tmp_path / "photos")
    imagefolder(run, tmp_path / "out")
    assert state(tmp_path / "photos") == before
    assert tree(tmp_path / "out") == [
        "inventory.csv", "train/000/a-2.png", "train/000/a.png", "train/001/b.png", "train/001/c.png",
        "train/metadata.csv",
    ]  # fmt: skip
    assert not any((tmp_path / "out" / path).is_symlink() for path in tree(tmp_path / "out"))
    same = {"distance": "0.000000", "margin": "0.250000", "is_outlier": "0"}
    # A name that a spreadsheet would run has the same guard as in clusters.csv.
    assert metadata(tmp_path / "out")[0] == {
        "file_name": "000/a.png", "cluster": "0", "name": "'=beach", "junk": "0", **same, "label": "sand"
    }  # fmt: skip
    assert [row["file_name"] for row in metadata(tmp_path / "out")] == [
        "000/a.png", "000/a-2.png", "001/b.png", "001/c.png"
    ]  # fmt: skip
    assert [row["junk"] for row in metadata(tmp_path / "out")] == ["0", "0", "1", "1"]


@pytest.mark.parametrize(("outliers", "second"), [("keep", "000/b.png"), ("leave", "")])
def test_outliers(tmp_path, outliers, second):
    run = photos_run(tmp_path, {"a.png": 0, "b.png": 0})
    imagefolder(run, tmp_path / "out", outliers=outliers)
    assert [row["file_name"] for row in metadata(tmp_path / "out")] == ["000/a.png", *([second] if second else [])]
    assert (tmp_path / "out/train" / second).exists()
    assert "label" not in metadata(tmp_path / "out")[0]  # no image has one
    with pytest.raises(UsageError, match="Every folder of an image folder is a class"):
        imagefolder(run, tmp_path / "other", outliers="separate")


# Each of them has a meaning for `datasets`, for fsspec below it, for pandas or for a file system.
HOSTILE = ["a.png", "sub/a.png", "test-1.png", "test/b.png", "val.png", "new\nline.png", "\udcff.png", "a::b.png",
           "[x].png", "*.png", "=1+1.png", "-.png", "__x.png", "n" * 251 + ".png", "e\u0301.png", "100%.png",
           "a#b?c.png", '"q".png', "comma,.png", "~.png", "null.png", "metadata.png", "{a,b}.png"]  # fmt: skip


@pytest.mark.parametrize("mode", ["copy", pytest.param("symlink", marks=pytest.mark.slow)])
def test_datasets_loads_hostile_names(tmp_path, monkeypatch, mode):
    try:
        for i, path in enumerate(HOSTILE):
            write_image(tmp_path / "test" / "photos" / path, i)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG):
            raise
        pytest.skip("this file system does not take such names")
    clusters = {path: i % 3 for i, path in enumerate(HOSTILE)}
    names = {0: "test", 1: "../train/\n=x"}
    run = hand_run(tmp_path / "run", str(tmp_path / "test" / "photos"), clusters, names=names, skipped=["x.doc"])
    out = tmp_path / "test" / "val-out"
    imagefolder(run, out, mode=mode)
    rows = loaded(out, tmp_path, monkeypatch)
    found = {tuple(np.asarray(row["image"].convert("RGB"))[0, 0].tolist()): row for row in rows}
    assert len(rows) == len(HOSTILE)
    for i in range(len(HOSTILE)):
        row = found[colour(i)]
        assert row["image"].size == (4 + i % 3, 4)
        assert (row["cluster"], row["name"]) == (i % 3, names.get(i % 3))
        assert row["distance"] == pytest.approx(i / 7, abs=1e-6)
        assert (row["margin"], row["is_outlier"], row["junk"]) == (0.25, i % 2, 0)


def test_files_with_other_suffixes_are_converted(tmp_path, monkeypatch):
    for i, (name, kind) in enumerate([("photo", "JPEG"), ("scan.dat", "BMP"), ("x.eval", "PNG"), ("y.JPG", "JPEG")]):
        write_image(tmp_path / "photos" / name, i, kind)
    clusters = dict.fromkeys(["photo", "scan.dat", "x.eval", "y.JPG"], 0)
    run = hand_run(tmp_path / "run", str(tmp_path / "photos"), clusters)
    rows = imagefolder(run, tmp_path / "out")
    assert [(row["exported_path"], row["how"]) for row in rows] == [
        ("train/000/photo.png", "png"), ("train/000/scan.dat.png", "png"), ("train/000/x.eval.png", "png"),
        ("train/000/y.JPG", "copy"),
    ]  # fmt: skip
    assert np.array_equal(pixels(tmp_path / "out/train/000/scan.dat.png"), pixels(tmp_path / "photos" / "scan.dat"))
    assert len(loaded(tmp_path / "out", tmp_path, monkeypatch)) == 4


def test_every_suffix_that_is_kept_is_known_to_datasets():
    module = pytest.importorskip("datasets.packaged_modules.imagefolder.imagefolder")
    assert set(module.IMAGE_EXTENSIONS) >= SUFFIXES
