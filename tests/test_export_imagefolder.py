import io
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from deepcluster.export import folders, imagefolder
from deepcluster.export.folders import SUFFIXES
from deepcluster.export.metadata import UnknownFormat, stripped
from deepcluster.images.decode import decode
from tests.exports import colour, hand_run, photos_run, state, tree, write_image
from tests.helpers.image_files import CANARY, talkative
from tests.helpers.runs import rows as read


def metadata(out):
    return read(out / "train" / "metadata.csv")


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
    assert ImageFolder(tmp_path / "out/train").targets == [0, 0, 1, 1]
    same = {"distance": "0.000000", "margin": "0.250000", "is_outlier": "0"}
    # A name that a spreadsheet would run has the same guard as in clusters.csv.
    assert metadata(tmp_path / "out")[0] == {
        "file_name": "000/a.png", "cluster": "0", "name": "'=beach", "junk": "0", **same, "label": "sand"
    }  # fmt: skip
    files = {row["file_name"]: row["junk"] for row in metadata(tmp_path / "out")}
    assert files == {"000/a.png": "0", "000/a-2.png": "0", "001/b.png": "1", "001/c.png": "1"}
    imagefolder(run, tmp_path / "left", outliers="leave")
    assert [row["file_name"] for row in metadata(tmp_path / "left")] == ["000/a.png", "001/b.png"]


# Each of them has a meaning for `datasets`, for fsspec below it, for pandas or for a file system.
HOSTILE = ["a.png", "sub/a.png", "test-1.png", "test/b.png", "val.png", "new\nline.png", "\udcff.png", "a::b.png",
           "[x].png", "*.png", "=1+1.png", "-.png", "__x.png", "n" * 251 + ".png", "e\u0301.png", "100%.png",
           "a#b?c.png", '"q".png', "comma,.png", "~.png", "null.png", "metadata.png", "{a,b}.png"]  # fmt: skip


def test_datasets_loads_hostile_names(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    import datasets

    for i, path in enumerate(HOSTILE):
        write_image(tmp_path / "test" / "photos" / path, i)
    clusters = {path: i % 3 for i, path in enumerate(HOSTILE)}
    names = {0: "test", 1: "../train/\n=x"}
    run = hand_run(tmp_path / "run", str(tmp_path / "test" / "photos"), clusters, names=names, skipped=["x.doc"])
    out = tmp_path / "test" / "val-out"
    imagefolder(run, out)
    loaded = datasets.load_dataset("imagefolder", data_dir=str(out), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    rows = {tuple(np.asarray(row["image"].convert("RGB"))[0, 0].tolist()): row for row in loaded["train"]}
    assert len(rows) == len(HOSTILE)
    for i in range(len(HOSTILE)):
        row = rows[colour(i)]
        assert row["image"].size == (4 + i % 3, 4)
        assert (row["cluster"], row["name"]) == (i % 3, names.get(i % 3))
        assert row["distance"] == pytest.approx(i / 7, abs=1e-6)
        assert (row["margin"], row["is_outlier"], row["junk"]) == (0.25, i % 2, 0)


def test_every_suffix_that_is_kept_is_known_to_datasets():
    module = pytest.importorskip("datasets.packaged_modules.imagefolder.imagefolder")
    assert set(module.IMAGE_EXTENSIONS) >= SUFFIXES


# ---- copies without metadata: no canary in any byte, the same pixels, still upright ----------------------------------


FILES = talkative()
JPEGS = [name for name in FILES if name.endswith(".jpg") and name != "odd.jpg"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name, data in FILES.items():
        (tmp_path / "photos" / name).write_bytes(data)
    return hand_run(tmp_path / "run", str(tmp_path / "photos"), dict.fromkeys(sorted(FILES), 0))


def exported(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", JPEGS)
def test_no_canary_is_left_and_every_pixel_is(name: str, tmp_path: Path) -> None:
    data = FILES[name]
    (tmp_path / name).write_bytes(data)
    found = stripped(tmp_path / name)
    assert CANARY not in found
    assert data[data.index(b"\xff\xda") : data.index(b"\xff\xd9")] in found  # the pixels are not compressed again
    assert np.array_equal(np.asarray(decode(io.BytesIO(found))), np.asarray(decode(io.BytesIO(data))))
    with Image.open(io.BytesIO(found)) as new, Image.open(io.BytesIO(data)) as old:
        assert (new.format, new.mode, new.size) == ("JPEG", old.mode, old.size)
        assert new.info.get("icc_profile") == old.info.get("icc_profile")
        assert new.getexif().get(0x0112, 1) == old.getexif().get(0x0112, 1)
        assert set(new.getexif()) <= {0x0112}
    if "turned" in name or "mirrored" in name:
        assert b"\x01\x12" in found


@pytest.mark.parametrize("name", JPEGS)
def test_a_file_that_ends_anywhere_is_never_copied_as_it_is(name: str, tmp_path: Path) -> None:
    data = FILES[name]
    for end in range(0, len(data) - 30, max(1, len(data) // 60)):
        (tmp_path / name).write_bytes(data[:end])
        with suppress(UnknownFormat):
            assert CANARY not in stripped(tmp_path / name)


def test_a_data_set_has_no_metadata_and_folders_have_unless_asked(run: Path, tmp_path: Path) -> None:
    imagefolder(run, tmp_path / "a")
    found = exported(tmp_path / "a")
    assert len(found) == len(FILES) + 2 and "label" not in metadata(tmp_path / "a")[0]  # no image has one
    assert found["y.JPG"] == found["plain.jpg"] == stripped(tmp_path / "photos/plain.jpg")
    assert not [name for name, data in found.items() if CANARY in data]
    pngs = [name for name, data in found.items() if data.startswith(b"\x89PNG")]
    assert sorted(pngs) == [
        "a.gif.png", "a.png", "a.ppm.png", "a.tif.png", "a.webp.png", "odd.jpg", "photo.png", "turned.png"
    ]  # fmt: skip
    for name in pngs:
        original = FILES[name if name in FILES else name.removesuffix(".png")]
        assert np.array_equal(*(np.asarray(decode(io.BytesIO(data))) for data in (found[name], original)))
    imagefolder(run, tmp_path / "b", strip_metadata=False)
    folders(run, tmp_path / "c", mode="copy")
    assert all(exported(tmp_path / name)["plain.jpg"] == FILES["plain.jpg"] for name in "bc")
    folders(run, tmp_path / "d", strip_metadata=True)
    assert not [name for name, data in exported(tmp_path / "d").items() if CANARY in data]
