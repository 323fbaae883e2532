"""find(), preview() and true_labels(): every kind of source, names as they come, nothing opened that is no file."""

import codecs
import contextlib
import gc
import hashlib
import io
import itertools
import os
import random
import re
import socket
import stat
import struct
import subprocess
import tarfile
import time
import tracemalloc
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, StackDataset

from deepcluster.errors import DataError, OutOfMemoryError, UsageError
from deepcluster.images import Source, find, store
from deepcluster.images import shards as tars
from deepcluster.images import source as sources
from deepcluster.images.arrays import picture
from deepcluster.images.decode import SMALL_FILE, Undecodable, decode
from deepcluster.images.files import from_table
from deepcluster.images.own_features import are_features, column_of_paths
from deepcluster.images.source import counted, joined
from deepcluster.images.store import preview, read_once
from deepcluster.images.true_labels import true_labels
from deepcluster.runtime import bounded, tables
from tests.helpers.image_files import stored
from tests.helpers.tiny import flipped

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


def bound(file: Path) -> None:
    with contextlib.chdir(file.parent), socket.socket(socket.AF_UNIX) as one:  # the address of a socket is short
        one.bind(file.name)


# A FIFO or a device that was opened would never end.
MAKE: dict[str, Callable[[Path], object]] = {
    "file": save,
    "link to a file": lambda file: file.symlink_to(save(file.with_name(".target"))),
    "link to a folder": lambda file: file.symlink_to(file.parent),
    "link to nothing": lambda file: file.symlink_to("nowhere"),
    "loop": lambda file: file.symlink_to(file.name),
    "null": lambda file: file.symlink_to("/dev/null"),
    "FIFO": os.mkfifo,
    "socket": bound,
    "device": lambda file: os.mknod(file, 0o600 | stat.S_IFCHR, os.makedev(1, 5)),  # for root alone
}
paths = st.lists(st.sampled_from(["a", "B", "10", "2", "a-b", "é", ".c", os.fsdecode(b"\xff")]), min_size=1, max_size=3)
trees = st.dictionaries(paths.map("/".join), st.just("file") | st.sampled_from([*MAKE]), max_size=12)


@settings(max_examples=60, derandomize=True)
@given(trees)
def test_a_folder_has_the_files_that_os_walk_lists_in_the_order_of_their_bytes(tree: dict[str, str]) -> None:
    with TemporaryDirectory() as name:
        top, link = Path(name, "in"), Path(name, "link")
        save(top / "a/x.png")
        link.symlink_to("in")  # of the folder itself it is followed
        for path, kind in tree.items():
            with contextlib.suppress(OSError):  # a file where a folder should be
                (top / path).parent.mkdir(parents=True, exist_ok=True)
                MAKE[kind](top / path)
        listed = list[Path]()
        for parent, folders, files in os.walk(top):
            links = [folder for folder in folders if Path(parent, folder).is_symlink()]
            folders[:] = [folder for folder in folders if not folder.startswith(".") and folder not in links]
            listed += [Path(parent, file).relative_to(top) for file in files + links if not file.startswith(".")]
        listed.sort(key=os.fsencode)
        used = [path for path in listed if stat.S_ISREG((top / path).lstat().st_mode)]
        for folder in (top, link):
            source = find(folder)
            assert source.paths == tuple(map(str, used))
            assert [path for path, _ in source.skipped] == [str(path) for path in listed if path not in used]
            assert source.labels == tuple(path.parent.name for path in used)
            assert (source.name, source.location) == (folder.name, str(folder))


def test_a_selection_reads_the_images_of_its_numbers(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / f"photos/{i}.png", (50 * i, 0, 0))
    array = np.zeros((4, 4, 4, 3), np.uint8)
    array[..., 0] = 50 * np.arange(4)[:, None, None]
    np.save(tmp_path / "a.npy", array)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "photos", ".")
    files = [*(tmp_path / "photos").iterdir()]
    on_disk = [tmp_path / "photos", sorted(files), [tmp_path / "photos"], tmp_path / "a.tar", tmp_path / "a.npy"]
    sources = [find(images) for images in (*on_disk, array, [*map(Image.fromarray, array)])]
    everything = joined(sources, "all", "python:paths")
    for number, source in enumerate(sources):
        of_all = everything.rows(range(4 * number, 4 * number + 4))
        for images in (source.rows([3, 2, 0]).rows([1, 2]), of_all.rows([2, 0])):
            assert [colour(images, i) for i in (0, 1)] == [(100, 0, 0), (0, 0, 0)]
            assert (images.paths[0], images.origin(0)) == (source.paths[2], source.origin(2))
            assert [*images.files()] == [file for file in sorted(files)[2::-2] if source.items.of_files]


def test_a_list_in_its_own_order_without_duplicates(tmp_path: Path) -> None:
    save(tmp_path / "pics/cats/1.png", RED)
    save(tmp_path / "pics/dogs/2.png", BLUE)
    listing = tmp_path / "pics/some.txt"
    absolute = tmp_path / "pics/cats/1.png"
    listing.write_text(f"\ufeff# mine\ndogs/2.png\r\n\n   \ncats/1.png\n./dogs/2.png\n{absolute}\nlost.png\n")
    source = find(listing)
    assert source.paths == ("dogs/2.png", "cats/1.png", "lost.png")
    assert source.labels == ("dogs", "cats", "")
    assert (source.name, source.location) == ("some", str(listing))
    assert [colour(source, 0), colour(source, 1)] == [BLUE, RED]
    with pytest.raises(FileNotFoundError):
        source.read(2)


def test_several_folders_images_and_patterns_are_one_collection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However they are named: the files of the folder that they share, each once."""
    for name in ("a/1.png", "a/x/2.png", "b/1.png", "c/3.png", "c/.4.png"):
        save(tmp_path / "in" / name)
    (tmp_path / "in/a/link.png").symlink_to("1.png")
    (tmp_path / "list.txt").write_text("in/b\nin/a\n")
    monkeypatch.chdir(tmp_path / "in")
    named = (("a", "b/1.png"), ("../in/b/", str(tmp_path / "in/a"), "a/x"), ("[ab]",), ("../list.txt",), (["b", "a"],))
    followed = (("a/*", "b/1.*"), ("a/link.png", "a", "b"), (["a", "a/link.png", "b"],))
    for texts in named + followed:
        source = find(*texts)
        has_link = texts in followed  # which is named
        assert source.paths == ("a/1.png", *["a/link.png"] * has_link, "a/x/2.png", "b/1.png")
        assert source.labels == ("a", *["a"] * has_link, "x", "b")
        assert source.skipped == (() if has_link else (("a/link.png", "a symbolic link, not followed"),))
        assert (source.name, source.location) == ("in", f"{tmp_path}/in")
        assert [*source.files()] == [tmp_path / "in" / path for path in source.paths]
    assert find("c/*.png").paths == find("c/3.png").paths == find("c/3.png", "c").paths == find("c").paths
    assert find("a/x", "/dev/null").paths == ("dev/null", f"{tmp_path}/in/a/x/2.png"[1:])
    (tmp_path / "empty").mkdir()
    assert find("../empty", "../empty", may_be_empty=True).paths == ()
    with tarfile.open(tmp_path / "empty/a.tar", "w") as tar:
        tar.add("a", ".")
    for wrong in ("../empty", "-", "sklearn:digits", "../list.txt", "d/*.png"):
        with pytest.raises(DataError, match=re.escape(wrong.strip("./"))):
            find("a", wrong)


TWO = "a.png\r\nä b.png\r\n"
LISTS: dict[str, tuple[bytes, list[str] | str]] = {  # the paths, or the words of the error
    "powershell.txt": (TWO.encode("utf-8-sig"), ["a.png", "ä b.png"]),
    "powershell 5.txt": (TWO.encode("utf-16"), ["a.png", "ä b.png"]),
    "other order.txt": (codecs.BOM_UTF16_BE + TWO.encode("utf-16-be"), ["a.png", "ä b.png"]),
    "half.txt": (codecs.BOM_UTF16_LE + b"\x00\xd8", "UTF-16"),
    # Quotes as a file manager puts them; a file whose name has quotes is still that file.
    "quoted.txt": ("'ä b.png'\n\"d.png\"\n'c'.png\n\"a.png\"\n".encode(), ["ä b.png", '"d.png"', "'c'.png", "a.png"]),
    "of find -print0.txt": (
        b"new\nline.png\0\xe9.png\0#a.png\0",
        ["new\nline.png", os.fsdecode(b"\xe9.png"), "#a.png"],
    ),
    "other suffix.lst": (b"a.png\n" * 3, ["a.png"]),
    "no suffix": (b"a.png\n", ["a.png"]),
    "list.csv": (TWO.encode(), ["a.png", "ä b.png"]),
    "comma.csv": (b"a,b.png\n", ["a,b.png"]),
    "table.csv": (b"path,label\na.png,x\n", "--labels"),
    "table.txt": (b'"label";"File"\nx;a.png\n', "--labels"),
    "no header.csv": (b"a.png,x\nb.png,y\n", "--labels"),
    "empty.txt": (b"# nothing\n", "empty.txt"),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_paths_is_read_in_every_form_or_refused(tmp_path: Path, name: str, monkeypatch: Any) -> None:
    """Its images lie in the current folder, and it lies elsewhere or comes on standard input."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    content, expected = LISTS[name]
    file = tmp_path / name
    file.write_bytes(content)
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            find(file)
        return
    for image in expected:
        save(Path(image))
    with file.open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        for source, location in ((find(file), str(file)), (find("-"), "standard input")):
            assert list(source.paths) == expected and [source.read(i).size for i in range(len(expected))]
            assert source.location == location
        with pytest.raises(DataError):
            find("-")  # it is at its end


@pytest.mark.parametrize("name", ["photo.jpg", "photo", "photo.dat", "logo.svg"])
def test_a_single_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("<svg>\n</svg>")
    if name.endswith((".dat", ".svg")):  # text of this name is no list
        assert find(tmp_path / name).paths == (name,)
    source = find(save(tmp_path / name, BLUE, kind="PNG"))
    assert source.paths == (name,) and colour(source, 0) == BLUE
    assert find(source.location).paths == source.paths
    (tmp_path / name).write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(Undecodable):
        find(tmp_path / name).read(0)


COLOURS = np.array([[[RED, BLUE, (1, 2, 3)]] * 2] * 11, np.uint8)  # 11 x 2 x 3 pixels


WIDE = np.concatenate([COLOURS, COLOURS], axis=2)[:, :, :5]  # N x 3 x 2 x 5 when channels come first
GREY = WIDE[..., 0]
FLOATS = (WIDE / 255).astype(np.float32)


@pytest.mark.parametrize(
    "array", [WIDE, WIDE.transpose(0, 3, 1, 2), FLOATS, GREY, GREY[..., None], GREY[:, None]], ids=range(6)
)
def test_an_image_is_the_same_in_every_layout(array: np.ndarray, tmp_path: Path) -> None:
    """In an array, in a file of one and as an item of a data set, whatever the order of its bytes."""
    shown = WIDE if array.size == WIDE.size else GREY[..., None].repeat(3, -1)
    for same in (array, np.asfortranarray(array)):
        np.save(tmp_path / "a.npy", same)
        for source in (find(same), *([] if array is FLOATS else [find(tmp_path / "a.npy")])):
            assert source.paths == tuple(map(str, range(11)))
            assert (np.asarray(source.read(10, 1)) == shown[10]).all()
        for item in (same[10], torch.from_numpy(same)[10], (same[10], 3), [torch.from_numpy(same[10]), "label"]):
            assert picture(item).mode == "RGB" and np.array_equal(np.asarray(picture(item)), shown[10])
    assert (find(array).name, find(array).location, find(array).labels) == ("array", "the array", None)


@settings(derandomize=True, max_examples=200)
@given(st.lists(st.integers(0, 7), max_size=5))
def test_an_array_of_any_shape_is_images_or_refused(shape: list[int]) -> None:
    array = np.zeros(shape, np.uint8)
    try:
        source = find(array)
    except DataError as error:
        assert "shape" in str(error)
    else:
        assert len(source.paths) == shape[0] and source.read(0).size in itertools.permutations(shape, 2)


def test_a_home_folder_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "few.npy", COLOURS)
    assert find("~/few.npy").location == str(tmp_path / "few.npy")
    photo, _ = save(tmp_path / "some/b.jpg", RED), save(tmp_path / "some/a.jpg", BLUE)
    assert list(find(["~/some/b.jpg"]).files()) == [photo]
    for pattern in ("~/some/*.jpg", "~/**/[a-b].jp*"):
        assert [path.name for path in find(pattern).files()] == ["a.jpg", "b.jpg"]


def test_the_digits_of_scikit_learn() -> None:
    source = find("sklearn:digits")
    assert (source.name, source.location, len(source.paths)) == ("digits", "sklearn:digits", 1797)
    assert source.paths[:2] == ("0", "1") and source.labels is not None
    assert source.labels[:10] == tuple("0123456789") and set(source.labels) == set("0123456789")
    image = np.asarray(source.read(0))
    # The first row of the first digit is 0 0 5 13 9 1 0 0, in 0..16.
    assert image.shape == (8, 8, 3) and image[0, :, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]


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


def test_a_download_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPCLUSTER_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.SVHN.__init__", Mock(side_effect=OSError("no\nroute")))
    with pytest.raises(DataError, match=r"torchvision:SVHN .*no route"):
        find("torchvision:svhn")


def test_a_preview_knows_the_size_of_the_whole(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (1600, 1201), RED).save(tmp_path / "a.jpg", exif=exif)
    Image.new("RGB", (1203, 1300), RED).save(tmp_path / "b.jpg")
    save(tmp_path / "c.png", RED, (90, 1300))
    assert preview(find(tmp_path)) == (1201, False)
    assert preview(find(np.zeros((3, 90, 100), np.uint8))) == (90, True)
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"picture": [str(tmp_path / "a.jpg")]})
    assert preview(find(table.cast_column("picture", datasets.Image()))) == (1201, False)


def test_grey_within_the_noise_of_a_jpeg() -> None:
    images = np.full((20, 4, 4, 3), (100, 102, 101), np.uint8)
    for coloured, grey in ((0, True), (1, True), (2, False)):  # 19 of 20 are still grey
        images[:coloured, :, :, 1] = 103
        assert preview(find(images))[1] is grey


def test_a_preview_reads_the_sides_of_many_and_decodes_a_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(60):
        save(tmp_path / f"{i}.png", RED, (20 + i, 90))
    write(tmp_path / "0.tar", [(f"{i}.png", png(side=20, height=90)) for i in range(60)])
    monkeypatch.setattr(store, "cores", lambda: 2)
    for place, side in ((tmp_path / "*.png", 49), (tmp_path / "0.tar", 20)):
        monkeypatch.setattr(sources, "decode", decoded := Mock(side_effect=decode))
        assert preview(find(place)) == (side, False)
        assert store.COLOURS <= decoded.call_count <= store.COLOURS + 2 * 2


def test_unusable_files_do_not_change_a_preview(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SIDES", 10)
    sides = {f"good{i}.png": 1 + i for i in range(40)}
    for name, side in sides.items():
        save(tmp_path / name, size=(side, side))
    names = sorted(sides, key=lambda path: hashlib.sha256(path.encode()).digest())
    for _ in range(2):
        assert preview(find(tmp_path))[0] == int(np.median([sides[name] for name in names[:10]]))
        for i in range(40):
            (tmp_path / f"bad{i}.png").write_text("no image")


def test_images_of_an_array_may_have_as_many_pixels_as_those_of_files(tmp_path):
    """Before one is read: here it would take 7.5 GB."""
    file = tmp_path / "large.npy"
    with file.open("wb") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": (4, 50_000, 50_000, 3)}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.truncate(stream.tell() + 4 * 50_000 * 50_000 * 3)
    with pytest.raises(DataError, match=r"large\.npy .*89,478,485"):
        find(file)


@pytest.mark.parametrize("name", ["a", "a.txt", "a.npy", "a.npz", "a.tar", "a.png"])
def test_an_empty_file_is_never_opened(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So do the endless files of /proc look, such as /proc/kmsg."""
    (tmp_path / name).touch()
    for place, method in ((Path, "open"), (Path, "read_bytes"), (io, "FileIO"), (np, "load")):
        monkeypatch.setattr(place, method, lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises((DataError, Undecodable)):
        find(tmp_path / name).read(0)


# ---- data sets and tables from Python -------

PIXELS = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (np.zeros((5, 4, 5), np.uint8), r"shape \(5, 4, 5\)"),
        (np.zeros((0, 4), np.uint8), r"shape \(0, 4\)"),
        ({"picture": GREY}, "'picture' .*'image'"),
        ({"image": None}, "NoneType"),
        ((), "tuple"),
        ("a.png", "str"),
        (torch.full((3, 8, 8), torch.nan), "float32 .*nan.*Normalize"),
        (Image.new("RGB", (0, 0)), "0 x 0"),
    ],
)
def test_items_that_are_no_images(item, reason):
    with pytest.raises(Undecodable, match=reason):
        picture(item)


def test_floats_of_another_scale_are_an_error_for_all_images_because_a_dark_one_seems_to_fit():
    images = [None, np.zeros((4, 4), np.float32), np.full((4, 4), 200, np.float32)]
    assert not are_features(images)
    with pytest.raises(DataError, match="200: pass X / 255, without Normalize"):
        read_once(find(images), 4)
    assert read_once(find(images[:2]), 4).usable == (1,)
    table = pd.DataFrame({"n": [1], "photo": [Image.new("RGB", (4, 4))]})
    assert column_of_paths(table) == "photo"


def test_a_photograph_is_turned_as_its_file_would_be_and_over_white_where_it_is_transparent():
    turned = Image.fromarray(PIXELS)
    assert np.array_equal(np.asarray(picture(turned)), PIXELS)
    turned.getexif()[0x0112] = 6
    assert picture(turned).size == (2, 5)
    assert (np.asarray(picture(np.dstack([PIXELS, np.zeros((2, 5), np.uint8)]))) == 255).all()


class Fragile(torch.utils.data.Dataset):
    """One reader at a time, and the third item is broken."""

    busy = False

    def __len__(self):
        return 40

    def __getitem__(self, i):
        assert not self.busy
        self.busy = True
        time.sleep(0.001)  # for another thread to come in between, if it can
        self.busy = False
        if i == 2:
            raise RuntimeError("the disk is\nfull")
        return np.full((4, 4), i, np.uint8), i


class Endless(torch.utils.data.IterableDataset):
    __iter__ = None


class Large(torch.utils.data.Dataset):
    def __len__(self):
        return 10**12


NO_IMAGES: list[tuple[object, str]] = [
    ("empty", "link"),
    ("lost", "lost"),
    ("new\nline", "new line"),
    ("a\0b", "null"),
    ("x" * 5000, "x"),
    ("~/some*/*.png", "png"),
    ("imagenet:1k", "imagenet:1k"),
    ("sklearn:iris", "sklearn:iris"),
    ("torchvision:ImageFolder", "torchvision:ImageFolder"),
    ((), "list"),
    (("\ud800",), "ud800"),
    (None, "NoneType"),
    (b"photos", "bytes"),
    (3, "int"),
    ((1, 2), "tuple"),
    (StackDataset([], []), "StackDataset"),
    (Endless(), "Endless"),
    (DataLoader(Fragile()), "X.dataset"),
    ({"train": COLOURS, "test": COLOURS}, r"X\['train'\], X\['test'\]"),
    (np.ma.masked_array(GREY, True), "X.filled"),
    (torch.empty(4, 3, 8, 8, device="meta"), "meta"),
    (np.full((2, 4, 4), 2, np.float32), "float32 .*2: pass X / 255$"),
    (np.full((2, 4, 4), 300.0), r"float64 .*300: .*uint8 .*\[0, 1\]$"),
    (np.full((2, 4, 4), np.nan), "float64 .*nan"),
    (np.full((2, 4, 4), 256, np.uint16), "uint16 .*256: pass X / 65535$"),
    (np.zeros((2, 4, 4), bool), "bool .*pass X / 1$"),
    ("files/two.npz", r"two\.npz: .*np\.save"),
    ("files/float.npy", "float64, .*uint8"),
    ("files/damaged.npy", "damaged.npy"),
]


def test_what_is_no_source_of_images_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = tmp_path / "files"
    files.mkdir()
    np.savez(files / "two.npz", a=COLOURS, b=COLOURS)
    np.save(files / "float.npy", COLOURS / 255)
    (files / "damaged.npy").write_bytes((files / "float.npy").read_bytes()[:200])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/link").symlink_to("nothing")
    for images, words in NO_IMAGES:
        with pytest.raises(DataError, match=words):
            find(images)  # type: ignore[arg-type]
    with pytest.raises(OutOfMemoryError, match="1,000,000,000,000"):
        find(Large())


def test_a_data_set_is_read_by_one_thread_and_its_broken_items_are_skipped(monkeypatch):
    monkeypatch.setattr(store, "cores", lambda: 4)
    source = find(Fragile())
    assert (source.name, source.location, source.labels) == ("dataset", "the data set", None)
    assert source.paths[:2] == ("0", "1")
    read = read_once(source, 4)
    assert read.skipped == (("2", "RuntimeError: the disk is full"),)
    assert read.images[:, 0, 0, 0].tolist() == [i for i in range(40) if i != 2]


# ---- labels ----------------------------------------------------------------------------------------------------------


def test_the_labels_of_a_table_go_by_paths(photos, tmp_path):
    """The guards of clusters.csv are removed, and blanks around a label."""
    file = tmp_path / "labels.csv"
    file.write_text('File_Name,Class\n"./bars/00.png",stripes\nblob/01.png, round \nnowhere.png,x\nbars/01.png,\'=l0\n')
    source = find(photos)
    labels = dict(zip(source.paths, true_labels(str(file), source), strict=True))
    named = {"bars/00.png": "stripes", "blob/01.png": "round", "bars/01.png": "=l0"}
    assert labels == dict.fromkeys(source.paths, "") | named


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("path;label\nä.png;Käfer\n", "utf-8-sig"), ("path\tlabel\nä.png\tKäfer\n", "utf-16"),
        ("path;label\nä.png;Käfer\n", "cp1252"), ("path,label\nä.png,\nä.png,Käfer\nä.png,\n", "utf-8"),
        ("path,label\nHERE/ä.png,Käfer\n", "utf-8"),
    ],
)  # fmt: skip
def test_a_table_of_labels_from_a_spreadsheet(tmp_path, text, encoding):
    save(tmp_path / "images/ä.png")
    (tmp_path / "labels.csv").write_text(text.replace("HERE", str(tmp_path / "images")), encoding)
    assert true_labels(str(tmp_path / "labels.csv"), find(tmp_path / "images")) == ["Käfer"]


def test_the_labels_of_files_are_those_of_their_folder_however_they_are_named(tmp_path):
    for top, labels in ((tmp_path / "flat", None), (tmp_path / "tree", ("", "x")), (tmp_path / "kinds", ("x", "y"))):
        files = [save(top / label / f"{i}.png") for i, label in enumerate(labels or ("", ""))]
        (tmp_path / "list.txt").write_text("\n".join(map(str, files)))
        for images in (top, files, tmp_path / "list.txt", f"{top}/**/*.png"):
            assert find(images).labels == labels
        table = from_table([*map(str, files)], "", [tmp_path])
        assert table is not None and table.labels == labels


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("path,label\nnowhere.png,x\n", DataError, "nowhere.png"),
        ("a,b\n1,2\n", DataError, "path,label.* a,b"),
        ("path,label\na.png,x\na.png,x\n./a.png,y\n", DataError, r"a\.png .*'x' .*2 .*'y' .*4"),
        ("", DataError, "labels.csv"),
        ("path,label\n" + "x" * 101, DataError, "100 "),
        ("path,label\n" + "a,b\n" * 50, DataError, " 200 "),
        (None, UsageError, "labels.csv"),
    ],
)
def test_a_wrong_table_of_labels_is_refused_with_its_place(photos, tmp_path, text, error, message, monkeypatch):
    monkeypatch.setattr(bounded, "LONGEST_LINE", 100)
    monkeypatch.setattr(tables, "MAX_TEXT", 200)
    file = tmp_path / "labels.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(error, match=message):
        true_labels(str(file), find(photos))


# ---- tar shards ------------------------------------------------------------------------------------------------------

Member = tuple[str | tarfile.TarInfo, bytes]


def png(level: int = 0, side: int = 4, height: int = 5) -> bytes:
    return stored(Image.new("RGB", (side, height), (level, 0, 255 - level)), "PNG")


def write(file: Path, members: Iterable[Member], form: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(file, "w", format=form) as tar:
        for what, content in members:
            member = tarfile.TarInfo(what) if isinstance(what, str) else what
            if member.type == tarfile.REGTYPE:
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


@pytest.fixture(scope="module")
def shards(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos as 3 shards, their folders in the names of the members."""
    folder = tmp_path_factory.mktemp("data") / "shards"
    folder.mkdir()
    files = sorted(photos.rglob("*.png"), key=os.fsencode)
    for n in range(3):
        part = [(str(file.relative_to(photos)), file.read_bytes()) for file in files[16 * n : 16 * n + 16]]
        write(folder / f"train-{n:03}.tar", part)
    return folder


def test_the_pixels_are_those_of_the_folder(photos: Path, shards: Path):
    ours, theirs = find(shards), find(photos)
    assert ours.paths == tuple(f"train-{i // 16:03}.tar/{path}" for i, path in enumerate(theirs.paths))
    assert ours.labels == theirs.labels and ours.skipped == () and [*ours.files()] == []
    assert (ours.name, ours.location) == ("shards", str(shards))
    assert torch.equal(read_once(ours, 24).images, read_once(theirs, 24).images)
    assert preview(ours) == preview(theirs)


def test_one_shard_and_patterns(shards: Path, tmp_path: Path, monkeypatch):
    one = find(shards / "train-001.tar")
    assert (one.name, one.location) == ("train-001", str(shards / "train-001.tar"))
    assert one.paths[0].startswith("train-001.tar/") and len(one.paths) == 16
    monkeypatch.chdir(shards.parent)
    some = find("shards/train-{001..002}.tar")
    assert (some.name, some.location) == ("train", str(shards / "train-{001..002}.tar"))
    assert some.paths == find(shards).paths[16:] == find(some.location).paths
    for place in ("1", "2"):
        (tmp_path / place).mkdir()
        write(tmp_path / place / "a-0.tar", [("x.png", png(int(place)))])
    over_folders = find(tmp_path / "{1..2}" / "a-{0..0}.tar")
    assert over_folders.paths == ("1/a-0.tar/x.png", "2/a-0.tar/x.png") and over_folders.labels is None
    assert [colour(over_folders, i)[0] for i in range(2)] == [1, 2]
    write(tmp_path / "111.tar", [("x.png", png())])
    assert len(find(tmp_path / "1{1..1}{1..1}.tar").paths) == 1
    write(tmp_path / "b-{0..1}.tar", [("x.png", png())])  # the name of a file comes first
    assert find(tmp_path / "b-{0..1}.tar").paths == ("b-{0..1}.tar/x.png",)


@pytest.mark.parametrize("pattern", ["a-{000..12}", "a-{8..11}", "a-{3..1}", "a-{08..11}", "{1..2}/{0..1}", "{9..010}"])
def test_patterns_are_those_of_bash(pattern: str):
    done = subprocess.run(["bash", "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True, check=True)
    assert list(tars.expand(pattern)) == done.stdout.split()


def test_a_missing_shard_is_named(shards: Path):
    os.mkfifo(shards.parent / "pipe-0.tar")
    for name, missing in {
        "shards/train-{000..146}.tar": "train-003.tar",
        "shards/train-{000..999999999999999999}.tar": "train-",  # at once, and not after as many names
        "pipe-{0..0}.tar": "pipe-0.tar",
    }.items():
        with pytest.raises(DataError, match=missing):
            find(shards.parent / name)


def test_files_beside_the_shards_and_shards_without_images_are_listed(tmp_path: Path):
    write(tmp_path / "0.tar", [("x.png", png(5))])
    write(tmp_path / "0.tar", [("x.png", png(5)), ("b.NEF", b"II*"), ("c.mp4", b"film"), ("@eaDir/x.png", png())])
    beside = ["0_stats.json", "README", "Thumbs.db"]
    for name in beside:
        (tmp_path / name).write_text("{}")
    (tmp_path / "1.tar").write_bytes(bytes(10240))
    (tmp_path / "2.tar").write_bytes(b"text" * 400)
    source = find(tmp_path)
    listed = ["0.tar/b.NEF", "0.tar/c.mp4", beside[0], "1.tar", "2.tar", *beside[1:]]
    assert source.paths == ("0.tar/x.png",) and [*dict(source.skipped)] == listed
    assert re.search(r"3 beside the shards, 1 RAW .*, 1 video, ", counted(source.skipped))
    for shard in ("1.tar", "2.tar"):
        with pytest.raises(DataError, match=shard):
            find(tmp_path / shard)
    (tmp_path / "y.png").write_bytes(png(6))  # now it is a folder of images
    save(tmp_path / "@eaDir/y.png/SYNOPHOTO_THUMB_M.jpg")  # the thumbnails of a NAS
    save(tmp_path / "$Recycle.Bin/y.png")
    assert find(tmp_path).paths == ("0.tar", "0_stats.json", "1.tar", "2.tar", "README", "Thumbs.db", "y.png")


@pytest.mark.parametrize(("kind", "suffix"), [("bz2", ".tar.bz2"), ("xz", ".txz"), ("gz", ".tar")])
def test_a_compressed_shard_is_skipped(tmp_path: Path, kind: str, suffix: str):
    file = tmp_path / f"a{suffix}"
    with tarfile.open(file, f"w:{kind}") as tar:
        tar.addfile(tarfile.TarInfo("x.png"))
    for place in (file, tmp_path):
        with pytest.raises(DataError, match=r"\w+ -dc") as caught:
            find(place)
    program = str(caught.value).partition(" -dc")[0].rpartition(" ")[2]
    subprocess.run(f"{program} -dc {file.name} > plain.tar", shell=True, cwd=tmp_path, check=True)
    assert find(tmp_path).paths == ("plain.tar/x.png",)


TYPES = (
    tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.BLKTYPE, tarfile.CHRTYPE,
    tarfile.GNUTYPE_SPARSE,
)  # fmt: skip
PARTS = ["a", "b", "..", ".", "", ".hidden", "caf\u00e9 \u2603 '\n\x1b[31m", os.fsdecode(b"\xff"), "x" * 150, "d/" * 90]
SUFFIXES = [".png", ".PNG", ".seg.jpg", ".tar", ".txt", ".json", ""]
names = st.tuples(st.lists(st.sampled_from(PARTS), min_size=1, max_size=3).map("/".join), st.sampled_from(SUFFIXES))
names = names.map("".join).filter(lambda name: name.strip("/"))
drawn_members = st.lists(st.tuples(names, st.none() | st.none() | st.sampled_from(TYPES)), max_size=8)


def by_tarfile(file: Path) -> tuple[dict[str, bytes], int, bool]:
    """Return the images that tarfile lists, the number of other members that a user would miss, and True for damage."""
    content, images, missed, end = file.read_bytes(), dict[str, bytes](), 0, 0
    with suppress(tarfile.TarError), tarfile.open(file, "r:") as tar:
        for member in tar:
            if member.isreg() and member.offset_data + member.size > len(content):
                break
            end = tar.offset
            name = "/".join(part for part in member.name.split("/") if part not in ("", "."))
            is_ignored = member.isdir() or any(part.startswith(".") and part != ".." for part in name.split("/"))
            if is_ignored or not name.lower().endswith((".png", ".jpg", ".tar")):
                continue
            if not member.isreg() or member.issparse() or name in images or name.endswith(".tar"):
                missed += 1
            else:
                images[name] = content[member.offset_data : member.offset_data + member.size]
    return images, missed, end >= len(content) or any(content[end:])


@settings(max_examples=60, derandomize=True)
@given(
    members=drawn_members,
    form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    harm=st.none() | st.tuples(st.sampled_from(["cut", "flip", "twice"]), st.floats(0, 1, exclude_max=True)),
)
def test_an_archive_has_the_images_that_tarfile_lists_up_to_the_first_damage(members, form, harm):
    with TemporaryDirectory() as folder:
        place = Path(folder, "in")
        place.mkdir()
        content = [special(name, kind, "a.png") if kind else (name, png(i)) for i, (name, kind) in enumerate(members)]
        file = write(place / "s.tar", content, form)
        whole = file.read_bytes()
        if harm:
            kind, share = harm
            headers = [at for at in range(0, len(whole), 512) if whole[at + 257 : at + 262] == b"ustar"] or [0]
            bad_header = flipped(whole, headers[int(share * len(headers))] + 3, 0)
            file.write_bytes({"cut": whole[: int(share * len(whole))], "flip": bad_header, "twice": 2 * whole}[kind])
        images, missed, is_damaged = by_tarfile(file)
        if not images:
            with pytest.raises(DataError, match=r"s\.tar"):
                find(file)
            return
        source = find(file)
        assert source.paths == tuple(f"s.tar/{name}" for name in images)
        pictures = [Image.open(io.BytesIO(content)) for content in images.values()]
        assert [colour(source, i)[0] for i in range(len(images))] == [image.getpixel((0, 0))[0] for image in pictures]
        skipped = dict(source.skipped)  # a row of clusters.csv each
        assert len(skipped) == len(source.skipped) == missed + is_damaged and ("s.tar" in skipped) == is_damaged
        assert [path.name for path in Path(folder).rglob("*")] == ["in", "s.tar"]  # nothing was extracted


def test_impossible_names_are_skipped(tmp_path: Path):
    null = tarfile.TarInfo("x.png")
    null.pax_headers = {"path": "a\0b.png"}
    members: list[Member] = [(null, png()), ("y" * 5000 + ".png", png()), ("a.png", png())]
    source = find(write(tmp_path / "s.tar", members, tarfile.PAX_FORMAT))
    assert source.paths == ("s.tar/a.png",) and len(source.skipped) == 2
    assert all(len(path) < 1100 and "\0" not in path for path, _ in source.skipped)


def test_labels_by_cls_and_json(tmp_path: Path):
    deep = b'{"label":' + b"[" * 30_000
    members: list[Member] = [
        ("d/1.cls", b"7\n"), ("d/1.jpg", png()), ("d/1.seg.png", png()),  # before and behind
        ("d/2.jpg", png()), ("d/2.json", b'{"label": "cat", "x": 1}'),
        ("d/3.cls", b"9"), ("d/3.jpg", png()), ("d/3.json", b'{"label": 8}'),  # .cls comes first
        ("d/4.jpg", png()), ("d/4.json", b'{"caption": "a"}'),
        ("d/5.jpg", png()), ("d/5.json", deep), ("d/6.jpg", png()), ("d/6.json", b'{"label": [1]}'),
        ("d/7.jpg", png()), ("d/7.json", b'{"label"'), ("d/8.jpg", png()), ("d/8.json", b'["label"]'),
        ("e/1.jpg", png()), ("e/2.jpg", png()), ("e/2.json", b'{"label": 8}'), ("e/2.cls", b"3"),
    ]  # fmt: skip
    source = find(write(tmp_path / "s.tar", members))
    assert source.labels == ("7", "7", "cat", "9", "", "", "", "", "", "", "3")


def traced(work: Callable[[], Any]) -> tuple[Any, int]:
    """The result, and the most memory that it took."""
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"S", b"Z"])
@pytest.mark.parametrize("size", [-1, -512, 1 << 80])  # -512: the same header again
def test_a_size_that_lies_costs_neither_time_nor_memory(tmp_path: Path, kind: bytes, size: int):
    """No endless loop (CVE-2025-8194), and no memory for what a header claims."""
    file = write(tmp_path / "a.tar", [("1.png", png()), ("2.png", png()), ("3.png", png())])
    content = file.read_bytes()
    at = content.index(b"2.png")  # a header begins with the name
    # A size beyond octal digits, or below 0, as GNU tar writes it.
    number = (b"\x80" if size >= 0 else b"\xff") + size.to_bytes(11, "big", signed=True)
    header = bytearray(content[at : at + 512])
    header[124:136] = number
    header[156:157] = kind
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)  # the checksum that belongs to it
    file.write_bytes(content[:at] + header + content[at + 512 :])
    source, peak = traced(lambda: find(file))
    assert source.paths[0] == "a.tar/1.png" and colour(source, 0)[0] == 0 and peak < 20 << 20


def test_large_members_are_read_as_files(tmp_path: Path):
    """A decoder takes the bytes that it needs; a film under the name of an image is not read into memory."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 800, 3), dtype=np.uint8))
    members = [(f"a.{kind}", stored(noise, kind)) for kind in ("BMP", "PNG", "TIFF")]
    assert all(len(content) > SMALL_FILE for _, content in members)
    cut = ("cut.bmp", members[0][1][:-9])
    source = find(write(tmp_path / "a.tar", [*members, cut, ("film.jpg", bytes(30 << 20))]))
    for i in range(3):
        assert (np.asarray(source.read(i)) == np.asarray(noise)).all()
    with pytest.raises(Undecodable):  # what follows it in the archive is not taken for its end
        source.read(3)

    def film() -> None:
        with pytest.raises(Undecodable):
            source.read(4)

    assert traced(film)[1] < 5 << 20


def open_files(folder: Path) -> int:
    """The number of files of ``folder`` that this process has open."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed by now, as the one that this loop reads from
            count += link.readlink().is_relative_to(folder)
    return count


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files by /proc")
def test_threads_share_no_place_and_files_are_closed(tmp_path: Path):
    for n in range(40):
        write(tmp_path / f"{n:02}.tar", [(f"{i}.png", png(0, 3 + i, 4 + n)) for i in range(5)])
    source = find(tmp_path)
    assert open_files(tmp_path) == 0
    order = random.Random(0).choices(range(200), k=1000)
    with ThreadPoolExecutor(8) as pool:
        sizes = [image.size for image in pool.map(source.read, order)]
        counts = list(pool.map(lambda _: open_files(tmp_path), order[:100]))
    assert sizes == [(3 + i % 5, 4 + i // 5) for i in order]
    assert 1 <= max(counts) <= 2 * 8  # one a thread, and one more while it changes over
    del source
    gc.collect()
    assert open_files(tmp_path) == 0
