"""Images that come from a data set, one by one."""

import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from deepcluster.errors import DataError
from deepcluster.images import find, store
from deepcluster.images.arrays import PixelScale, picture, pixel_scale
from deepcluster.images.decode import Undecodable
from deepcluster.images.store import read_once

GREY = np.array([[0, 100], [200, 255]], np.uint8)
COLOUR = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3)


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (Image.fromarray(COLOUR), COLOUR),
        (COLOUR, COLOUR),
        (COLOUR.transpose(2, 0, 1), COLOUR),
        (torch.from_numpy(COLOUR).permute(2, 0, 1), COLOUR),
        ((COLOUR, 3), COLOUR),
        ([torch.from_numpy(COLOUR), "label"], COLOUR),
        (GREY, np.stack([GREY] * 3, 2)),
        (GREY[None], np.stack([GREY] * 3, 2)),
        (GREY[..., None], np.stack([GREY] * 3, 2)),
        (np.dstack([COLOUR, np.zeros((2, 5), np.uint8)]), np.full((2, 5, 3), 255)),  # transparent, over white
    ],
    ids=range(10),
)
def test_items(item, expected):
    image = picture(item)
    assert image.mode == "RGB" and np.array_equal(np.asarray(image), expected)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (
            torch.full((3, 4, 4), -1.0),
            r"float32 numbers from -1 to -1: pass uint8 or floats in \[0, 1\], without Normalize",
        ),
        (np.zeros((5, 4, 5), np.uint8), r"shape \(5, 4, 5\)"),
        (np.zeros((0, 4), np.uint8), r"shape \(0, 4\)"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
        ({"picture": GREY}, "a dict with the keys 'picture' and no 'image'"),
        ({"image": None}, "of type NoneType"),
        ((), "of type tuple"),
        (None, "of type NoneType"),
    ],
)
def test_items_that_are_no_images(item, reason):
    with pytest.raises(Undecodable, match=reason):
        picture(item)


def test_a_photograph_is_turned_as_its_file_would_be():
    turned = Image.fromarray(COLOUR)
    turned.getexif()[0x0112] = 6
    assert picture(turned).size == (2, 5)


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


def test_a_data_set_is_read_by_one_thread_and_its_broken_items_are_skipped(monkeypatch):
    monkeypatch.setattr(store, "cores", lambda: 4)
    source = find(Fragile())
    assert (source.name, source.location, source.labels) == ("dataset", "python:dataset", None)
    assert source.paths[:2] == ("0", "1")
    read = read_once(source, 4)
    assert read.skipped == (("2", "RuntimeError: the disk is full"),)
    assert read.images[:, 0, 0, 0].tolist() == [i for i in range(40) if i != 2]


def test_data_sets_that_cannot_be_counted():
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield GREY

    endless = {
        "Endless: .* a Dataset that has a length": Endless(),
        "DataLoader: pass X.dataset": DataLoader(Fragile()),
    }
    for words, images in endless.items():
        with pytest.raises(DataError, match=f"images cannot come from a {words}"):
            find(images)


# Tables


def test_a_table_by_hand():
    rows = np.array([[-1.0, 0.0, 1.0], [3.0, 2.0, -1.0]])
    scale = pixel_scale(rows, None)
    assert scale == PixelScale((2, 2), 3, -1.0, 3.0)
    # -1..3 is 0..255, and 1 is 63.75 of them; the fourth pixel has no number.
    assert scale.images(rows).tolist() == [[[0, 64], [128, 0]], [[255, 191], [0, 0]]]
    assert scale.images(np.array([[-9.0, 9.0, 1.0]])).tolist() == [[[0, 255], [128, 0]]]
    pixels = np.array([[7, 8, 9, 250, 1, 2]], np.uint8)  # as they are
    assert pixel_scale(pixels, (1, 2, 3)).images(pixels).tolist() == [[[[7, 8, 9], [250, 1, 2]]]]
    assert not pixel_scale(np.full((2, 4), 3.5), (2, 2)).images(np.full((2, 4), 3.5)).any()  # a constant is black


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.int64, bool])
def test_the_whole_range_of_a_type(dtype):
    rows = np.array([[0, 1]], bool)
    if dtype is not bool:
        limits = np.finfo(dtype) if np.dtype(dtype).kind == "f" else np.iinfo(dtype)
        rows = np.array([[limits.min, limits.max]], dtype)
    assert pixel_scale(rows, (1, 2)).images(rows).tolist() == [[[0, 255]]]


@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 2, 2), (0, 4), (-2, -2), (2.0, 2.0), (1, 1, 1, 4)])
def test_shapes_that_do_not_fit(shape):
    with pytest.raises(ValueError, match="image_shape="):
        pixel_scale(np.zeros((1, 4)), shape)


def test_a_data_set_of_the_hub_by_its_name(photos, tmp_path):
    """Its name may be a folder, too, so that nothing is downloaded here; a Hub that does not answer is asked once. In a
    process of its own, for its cache."""
    pytest.importorskip("datasets")
    script = (
        "import sys, numpy as np\nfrom deepcluster.images import find\n"
        "source = find('hf:' + sys.argv[1])\n"
        "print(len(source.paths), sorted(set(source.labels)), source.location == 'hf:' + sys.argv[1])\n"
        "print(np.asarray(source.read(0)).shape, source.labels[0], source.labels[47])\n"
        "try:\n    find('hf:nobody/nothing')\nexcept Exception as error:\n    print(type(error).__name__, error)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "HF_DATASETS_CACHE": str(tmp_path)}
    environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
    done = subprocess.run(
        [sys.executable, "-c", script, str(photos)], capture_output=True, text=True, env=environment, check=True
    )
    first, second, third = done.stdout.splitlines()
    assert first == "48 ['bars', 'blob', 'checks'] True"
    assert second == "(24, 24, 3) bars checks"
    assert re.match("DataError hf:nobody/nothing cannot be loaded: .*Connection refused.* Check the name", third)
    assert "Retry" not in done.stderr
