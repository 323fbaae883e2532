"""find() and preview(): every kind of source, names as they come, and nothing opened that is no file."""

import hashlib
import io
import os
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster.errors import DataError, OutOfMemoryError
from deepcluster.images import Source, find
from deepcluster.images import store as previewing
from deepcluster.images.decode import Undecodable
from deepcluster.images.store import preview
from deepcluster.runtime import machine

RED, BLUE = (255, 0, 0), (0, 0, 255)


def save(file: Path, colour: tuple[int, int, int] = RED, size: tuple[int, int] = (4, 3), kind: str = "PNG") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        Image.new("RGB", size, colour).save(stream, kind)
    return file


def colour(source: Source, i: int) -> object:
    image = source.read(i)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


# Folders


def test_a_folder_is_searched_in_the_order_of_the_bytes(tmp_path: Path) -> None:
    folder, link = tmp_path / "in", tmp_path / "link"
    for path in ("b/2.png", "b/10.png", "a-b.png", "Z.png", "é.png", ".DS_Store", ".hidden/b.png", "b/.c.png"):
        save(folder / path)
    save(folder / "a/x/1.png", BLUE)
    link.symlink_to(folder)  # of the folder itself it is followed
    for place in (folder, link):
        source = find(place)
        assert source.paths == ("Z.png", "a-b.png", "a/x/1.png", "b/10.png", "b/2.png", "é.png")
        assert source.labels == ("", "", "x", "b", "b", "")
        assert (source.name, source.location, source.skipped) == (place.name, str(place), ())
        assert [colour(source, 1), colour(source, 2)] == [RED, BLUE]
    assert find(str(folder / "b")).labels is None


def test_files_are_read_no_larger_than_needed(tmp_path: Path) -> None:
    save(tmp_path / "pics/a.jpg", RED, (320, 160), "JPEG")
    for source in (find(tmp_path), find(sorted((tmp_path / "pics").iterdir())), find(tmp_path / "pics/a.jpg")):
        assert (source.read(0).size, source.read(0, 20).size) == ((320, 160), (80, 40))
        assert source.short_side is not None and source.short_side(0) == 160


def test_nothing_to_find(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nothing")
    with pytest.raises(DataError, match=r"no files in .*; link: a symbolic link, not followed"):
        find(tmp_path)
    with pytest.raises(DataError, match=r"no such file: .*lost.* IMAGES is a folder"):
        find(tmp_path / "lost")
    with pytest.raises(DataError, match="no such file: new line"):
        find("new\nline")
    for odd in ("", "a\0b", "x" * 5000):
        with pytest.raises(DataError):
            find(odd) if odd else find([])
    with pytest.raises(DataError, match="unknown kind of images: imagenet:1k"):
        find("imagenet:1k")
    for wrong in (None, b"photos", 3, [1, 2], {"a": 1}):
        with pytest.raises(DataError, match=f"images cannot come from a (whole )?{type(wrong).__name__}"):
            find(wrong)  # type: ignore[arg-type]


# Lists


def test_a_list_in_its_own_order_without_duplicates(tmp_path: Path) -> None:
    save(tmp_path / "pics/cats/1.png", RED)
    save(tmp_path / "pics/dogs/2.png", BLUE)
    listing = tmp_path / "pics/some.txt"
    absolute = tmp_path / "pics/cats/1.png"
    listing.write_text(f"\ufeff# mine\ndogs/2.png\r\n\n   \ncats/1.png\n./dogs/2.png\n{absolute}\nlost.png\n")
    source = find(listing)
    assert source.paths == ("dogs/2.png", "cats/1.png", "lost.png")
    assert source.labels == ("dogs", "cats", "pics")
    assert (source.name, source.location) == ("some", str(listing))
    assert [colour(source, 0), colour(source, 1)] == [BLUE, RED]
    with pytest.raises(FileNotFoundError):
        source.read(2)


def test_a_list_is_known_by_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "here/a.png", BLUE)
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "list.lst").write_text("a.png\n" * 3)  # not beside the list, but in the current folder
    source = find(tmp_path / "list.lst")
    assert source.paths == ("a.png",) and colour(source, 0) == BLUE
    monkeypatch.setattr("sys.stdin", io.StringIO("a.png\n"))
    source = find("-")
    assert (source.name, source.location, source.paths) == ("stdin", "-", ("a.png",)) and colour(source, 0) == BLUE
    names = io.TextIOWrapper(io.BytesIO(b"new\nline.png\0latin-\xe9.png\0#a.png\0"))  # of find -print0
    monkeypatch.setattr("sys.stdin", names)
    assert [os.fsencode(path) for path in find("-").paths] == [
        b"new\nline.png",
        b"latin-\xe9.png",
        b"#a.png",
    ]
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(DataError, match=r"no paths in .*empty\.txt"):
        find(tmp_path / "empty.txt")
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    with pytest.raises(DataError, match="no paths in standard input"):
        find("-")


def test_paths_from_python(tmp_path: Path) -> None:
    files = [save(tmp_path / "b.png", BLUE), save(tmp_path / "a.png", RED)]
    for given in (files, tuple(map(str, files)), np.array([str(file) for file in files])):
        source = find(given)
        assert source.paths == tuple(map(str, files)) and colour(source, 1) == RED
    with pytest.raises(DataError, match="not a possible file name"):
        find(["\ud800"])


@pytest.mark.parametrize("name", ["photo.jpg", "photo", "photo.dat"])
def test_a_single_file(tmp_path: Path, name: str) -> None:
    source = find(save(tmp_path / name, BLUE, kind="PNG"))
    assert source.paths == (name,) and colour(source, 0) == BLUE
    assert find(source.location).paths == source.paths
    (tmp_path / name).write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(Undecodable):
        find(tmp_path / name).read(0)


# Arrays

COLOURS = np.array([[[RED, BLUE, (1, 2, 3)]] * 2] * 11, np.uint8)  # 11 x 2 x 3 pixels


def test_layouts_of_arrays() -> None:
    wide = np.concatenate([COLOURS, COLOURS], axis=2)[:, :, :5]  # N x 3 x 2 x 5 when channels come first
    for array in (wide, wide.transpose(0, 3, 1, 2), (wide / 255).astype(np.float32)):
        source = find(array)
        assert (np.asarray(source.read(10)) == wide[10]).all()
        assert (np.asarray(source.read(10, 1)) == wide[10]).all() and source.short_side is None
    assert source.paths == tuple(map(str, range(11)))
    assert (source.name, source.location, source.labels) == ("array", "python:array", None)
    grey = wide[..., 0]
    for array in (grey, grey[..., None], grey[:, None]):
        assert (np.asarray(find(array).read(1)) == grey[1][..., None]).all()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((2, 4, 4), 2, np.float32), r"float32 numbers from 2 to 2: pass X / 255$"),
        (np.full((2, 4, 4), 300.0), r"float64 numbers from 300 to 300: pass uint8 or floats in \[0, 1\]$"),
        (np.full((2, 4, 4), np.nan), r"float64 numbers from nan to nan: pass uint8 or floats"),
        (np.full((2, 4, 4), 256, np.uint16), "uint16 numbers from 256 to 256: pass X / 65535$"),
        (np.zeros((2, 4, 4), bool), "bool numbers: pass X / 1$"),
        (np.zeros((4, 4), np.uint8), r"shape \(4, 4\)"),
        (np.zeros((2, 5, 5, 2), np.uint8), r"shape \(2, 5, 5, 2\)"),
        (np.zeros((0, 4, 4), np.uint8), r"shape \(0, 4, 4\)"),
        (np.zeros((1, 1, 1, 1, 1), np.uint8), "shape"),
    ],
)
def test_arrays_that_are_no_images(array: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        find(array)


def test_a_home_folder_and_a_part_of_a_mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "few.npy", COLOURS)
    assert find("~/few.npy").location == str(tmp_path / "few.npy")
    photo, _ = save(tmp_path / "some/b.jpg", RED), save(tmp_path / "some/a.jpg", BLUE)
    assert list(find(["~/some/b.jpg"]).files()) == [photo]
    for pattern in ("~/some/*.jpg", "~/**/[a-b].jp*"):
        assert [path.name for path in find(pattern).files()] == ["a.jpg", "b.jpg"]
    with pytest.raises(DataError, match=r"no such file: .*png. IMAGES is .* a pattern such as photos/"):
        find("~/some*/*.png")
    with pytest.raises(DataError, match=r"a whole dict: pass one part of it: X\['train'\], X\['test'\]"):
        find({"train": COLOURS, "test": COLOURS})


def test_npz_and_its_labels(tmp_path: Path) -> None:
    labels = np.arange(11)
    for members in (
        {"images": COLOURS, "labels": labels, "other": labels},
        {"x": COLOURS, "y": labels[:, None]},
        {"anything": COLOURS, "y": labels},
        {"images": COLOURS, "labels": labels.astype("U2")},
    ):
        np.savez(tmp_path / "a.npz", **members)
        source = find(tmp_path / "a.npz")
        assert source.labels == tuple(map(str, range(11)))
        assert (np.asarray(source.read(3)) == COLOURS[3]).all()
    np.savez(tmp_path / "a.npz", COLOURS)
    assert find(tmp_path / "a.npz").labels is None
    np.save(tmp_path / "a.npy", COLOURS)
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.write(tmp_path / "a.npy", "images")  # without a suffix
    assert len(find(tmp_path / "b.npz").paths) == 11


def test_array_files_that_cannot_be_used(tmp_path: Path) -> None:
    def words(name: str) -> str:
        with pytest.raises(DataError) as caught:
            find(tmp_path / name)
        return str(caught.value)

    np.savez(tmp_path / "two.npz", a=COLOURS, b=COLOURS)
    assert "Call it 'images'; there are: a, b" in words("two.npz")
    np.savez(tmp_path / "short.npz", images=COLOURS, labels=[1, 2])
    assert "2 labels for 11 images" in words("short.npz")
    np.save(tmp_path / "float.npy", COLOURS / 255)
    assert "dtype float64, not uint8" in words("float.npy")
    (tmp_path / "damaged.npz").write_bytes((tmp_path / "two.npz").read_bytes()[:200])
    assert "cannot read the array" in words("damaged.npz")


# Data sets by name


def test_the_digits_of_scikit_learn() -> None:
    source = find("sklearn:digits")
    assert (source.name, source.location, len(source.paths)) == ("digits", "sklearn:digits", 1797)
    assert source.paths[:2] == ("0", "1") and source.labels is not None
    assert source.labels[:10] == tuple("0123456789") and set(source.labels) == set("0123456789")
    image = np.asarray(source.read(0))
    # The first row of the first digit is 0 0 5 13 9 1 0 0, in 0..16.
    assert image.shape == (8, 8, 3) and image[0, :, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    with pytest.raises(DataError, match="unknown data set sklearn:iris"):
        find("sklearn:iris")


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_a_data_set_of_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPCLUSTER_CACHE_DIR", str(tmp_path))
    raw = tmp_path / "MNIST/MNIST/raw"
    raw.mkdir(parents=True)
    digits = np.arange(3 * 28 * 28).reshape(3, 28, 28).astype(np.uint8)
    for part, images in (("train", digits), ("t10k", digits[:1])):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(len(images), dtype=np.uint8)))
    source = find("torchvision:mnist")
    assert (source.name, source.location, source.paths) == ("MNIST", "torchvision:MNIST", ("0", "1", "2"))
    assert source.labels == ("0 - zero", "1 - one", "2 - two")
    assert (np.asarray(source.read(1, 8)) == digits[1][..., None]).all()


def test_torchvision_names_and_downloads_that_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    monkeypatch.setenv("DEEPCLUSTER_CACHE_DIR", str(tmp_path))
    with pytest.raises(DataError, match="did you mean torchvision:CIFAR10"):
        find("torchvision:cifra10")
    with pytest.raises(DataError, match="unknown data set torchvision:ImageFolder"):
        find("torchvision:ImageFolder")

    class Offline:
        def __init__(self, root: str, split: str = "test", download: bool = False) -> None:
            assert (root, split, download) == (str(tmp_path / "SVHN"), "train", True)
            raise OSError("no\nroute")

    monkeypatch.setattr(datasets, "SVHN", Offline)
    with pytest.raises(DataError, match=r"torchvision:SVHN cannot be downloaded into .*SVHN: no route\. Check"):
        find("torchvision:svhn")


# Preview


def test_preview_decodes_little_and_knows_the_size_of_the_whole(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (1600, 1201), RED).save(tmp_path / "a.jpg", exif=exif)
    Image.new("RGB", (1203, 1300), RED).save(tmp_path / "b.jpg")
    save(tmp_path / "c.png", RED, (90, 1300))
    source = find(tmp_path)
    seen: list[tuple[int, ...]] = []

    def read(i: int, size: int | None = None) -> Image.Image:
        image = source.read(i, size)
        seen.append(image.size)
        return image

    assert preview(replace(source, read=read)) == (1201, False)
    assert sorted(seen) == [(90, 1300), (151, 163), (151, 200)]
    assert preview(find(np.zeros((3, 90, 100), np.uint8))) == (90, True)


def test_grey_within_the_noise_of_a_jpeg() -> None:
    images = np.full((20, 4, 4, 3), (100, 102, 101), np.uint8)
    for coloured, grey in ((0, True), (1, True), (2, False)):  # 19 of 20 are still grey
        images[:coloured, :, :, 1] = 103
        assert preview(find(images))[1] is grey


def test_unusable_files_do_not_change_a_preview(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(previewing, "COUNT", 10)

    def sampled() -> list[str]:
        source, read = find(tmp_path), list[str]()
        spied = replace(source, read=lambda i, size=None: (read.append(source.paths[i]), source.read(i, size))[1])
        assert preview(spied)[0] == 3
        return sorted(path for path in read if path.startswith("good"))

    for i in range(40):
        save(tmp_path / f"good{i}.png")
    names = sorted(find(tmp_path).paths, key=lambda path: hashlib.sha256(path.encode()).digest())
    assert sampled() == sorted(names[:10])
    for i in range(40):
        (tmp_path / f"bad{i}.png").write_text("no image")
    assert sampled() == sorted(names[:10])


def test_an_npz_is_unpacked_only_where_its_headers_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kilobyte of it may be a megabyte, and a megabyte a gigabyte."""
    images = np.zeros((6, 8, 8), np.uint8)
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda self, name: pytest.fail("it was unpacked"))
    monkeypatch.setattr(machine, "available", lambda: 1e6)
    for members in (
        {"images": np.zeros((6, 700, 700), np.uint8)},
        {"images": images, "labels": np.zeros(6, "U100000")},
    ):
        np.savez_compressed(tmp_path / "bomb.npz", **members)
        with pytest.raises(OutOfMemoryError, match=r"unpacking .*bomb.npz takes 0.0 GB"):
            find(tmp_path / "bomb.npz")


@pytest.mark.parametrize("name", ["a", "a.txt", "a.npy", "a.npz", "a.tar", "a.png"])
def test_what_is_empty_is_never_opened(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So do the endless files of /proc look, such as /proc/kmsg."""
    (tmp_path / name).touch()

    def trap(file: object, *_: object, **__: object) -> None:
        assert str(tmp_path) not in str(file), "it was opened"

    for place, method in ((Path, "open"), (Path, "read_bytes"), (io, "FileIO"), (np, "load")):
        monkeypatch.setattr(place, method, trap)
    try:
        source = find(tmp_path / name)
    except DataError:
        return
    with pytest.raises(Undecodable, match="empty file"):
        source.read(0)
