"""Images by number: arrays, their files, data sets and lists of images."""

import itertools
import struct
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, StackDataset

from deepcluster.errors import DataError, OutOfMemoryError
from deepcluster.images import find, store
from deepcluster.images.arrays import picture
from deepcluster.images.decode import Undecodable
from deepcluster.images.own_features import are_features, column_of_paths
from deepcluster.images.store import read_once
from tests.helpers.image_files import BLUE, RED

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


@pytest.mark.parametrize(
    ("values", "labels"),
    [({"targets": [1, 0]}, ("b", "a")), ({"labels": [1, 0], "classes": None}, ("1", "0")),
     ({"_labels": [0, 0]}, ("a", "a")), ({"targets": [[0, 1], [1, 0]]}, None), ({}, None)],
)  # fmt: skip
def test_the_labels_of_a_data_set_of_torchvision(values, labels, tmp_path, monkeypatch):
    class Made(list):
        classes = ("a", "b")

        def __init__(self, root: str, download: bool) -> None:
            super().__init__([Image.new("L", (4, 4))] * 2)
            assert download and root == str(tmp_path / "SVHN")
            vars(self).update(values)

    monkeypatch.setenv("DEEPCLUSTER_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.SVHN", Made)
    assert find("torchvision:svhn").labels == labels


def test_a_data_set_of_torchvision_that_cannot_be_had(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPCLUSTER_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.SVHN.__init__", Mock(side_effect=OSError("no\nroute")))
    with pytest.raises(DataError, match=r"torchvision:SVHN .*no route"):
        find("torchvision:svhn")
    assert [path.name for path in tmp_path.iterdir()] == ["SVHN"]


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
    ("~/some*/*.png", "png"),
    ("imagenet:1k", "imagenet:1k"),
    ("sklearn:iris", "sklearn:iris"),
    ("torchvision:ImageFolder", "torchvision:ImageFolder"),
    ((), "list"),
    (("\ud800",), "ud800"),
    (None, "NoneType"),
    (b"photos", "bytes"),
    (3, "int"),
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
    ("files/large.npy", r"large\.npy .*89,478,485"),  # pixels: before an image is read, which would take 7.5 GB
]


def test_what_is_no_source_of_images_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = tmp_path / "files"
    files.mkdir()
    np.savez(files / "two.npz", a=COLOURS, b=COLOURS)
    np.save(files / "float.npy", COLOURS / 255)
    (files / "damaged.npy").write_bytes((files / "float.npy").read_bytes()[:200])
    with (files / "large.npy").open("wb") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": (4, 50_000, 50_000, 3)}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.truncate(stream.tell() + 4 * 50_000 * 50_000 * 3)
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
