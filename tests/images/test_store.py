"""read_once(): every usable image once, in order, the same however it is done; and the central square by hand."""

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from deepcluster.errors import DiskError
from deepcluster.images import find
from deepcluster.images import source as sources
from deepcluster.images import store as storing
from deepcluster.images.decode import Undecodable, decode
from deepcluster.images.store import read_once, square, survey
from tests.helpers.image_files import RED, coloured_png, save, save_tar, source_of


def image_of(i: int) -> Image.Image:
    """A picture that nothing else looks like."""
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, (9 + i % 4, 8, 3), np.uint8))


def failing_where(bad: dict[int, Exception]) -> Callable[[int], Image.Image]:
    def read(i: int) -> Image.Image:
        if i in bad:
            raise bad[i]
        return image_of(i)

    return read


def test_the_central_square_by_hand() -> None:
    wide = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3)
    assert (square(Image.fromarray(wide), 2) == wide[:, 1:3]).all()
    tall = np.arange(6 * 2 * 3, dtype=np.uint8).reshape(6, 2, 3)
    assert (square(Image.fromarray(tall), 2) == tall[2:4]).all()
    image = Image.new("RGB", (300, 100), "white")
    image.paste("red", (100, 0, 200, 100))
    assert (square(image, 7) == (255, 0, 0)).all()  # white beside the square does not bleed in
    assert square(Image.new("RGB", (10_000, 1), "red"), 4).tolist() == [[[255, 0, 0]] * 4] * 4
    checks = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    assert np.abs(square(Image.fromarray(checks).convert("RGB"), 8).astype(int) - 127).max() <= 2  # antialiased


def test_rows_are_the_squares_of_the_usable_images_and_the_others_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "_BLOCK_ROWS", 4)  # gaps close over many blocks
    bad = {
        0: Undecodable("empty file"),
        4: PermissionError(errno.EACCES, "Permission denied", "/abs/00004"),
        11: OSError(errno.EIO, "Input/output error", "/abs/00011"),
        12: KeyError("odd"),
        19: RecursionError("deep\nhole"),
    }
    store = read_once(source_of(failing_where(bad), 20, (("00001x", "a symbolic link, not followed"),)), 8)
    good = [i for i in range(20) if i not in bad]
    assert store.usable == tuple(good)
    assert [path for path, _ in store.skipped] == sorted([*(f"{i:05}" for i in bad), "00001x"])
    assert all(reason.isprintable() and "/abs" not in reason for _, reason in store.skipped)
    assert store.images.shape == (15, 3, 8, 8) and store.images.dtype == torch.uint8
    assert store.images.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(store.images.permute(0, 2, 3, 1), [square(image_of(i), 8) for i in good])


def test_the_size_is_passed_on_and_the_limit_of_pixels_is_not_that_of_pillow(tmp_path: Path, monkeypatch) -> None:
    y, x = np.mgrid[:256, :256]
    Image.fromarray(np.stack([x, y, (x + y) // 2], 2).astype(np.uint8)).save(tmp_path / "a.jpg", quality=95)
    whole = square(find(tmp_path).read(0), 20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    difference = np.abs(read_once(find(tmp_path), 20).images[0].permute(1, 2, 0).numpy().astype(int) - whole).mean()
    assert 0 < difference < 0.8


def test_threads_keep_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "cores", lambda: 2)
    threads, done = list[int](), list[int]()

    def read(i: int) -> Image.Image:
        threads.append(threading.get_ident())
        time.sleep(0.001)
        if i in (7, 60):
            raise Undecodable("bad")
        return Image.new("RGB", (1, 1), (i, 0, 0))

    store = read_once(source_of(read, 100), 1, progress=lambda count, total: done.append(count))
    assert store.images[:, 0, 0, 0].tolist() == [*store.usable] == [i for i in range(100) if i not in (7, 60)]
    assert store.skipped == (("00007", "bad"), ("00060", "bad")) and done == list(range(1, 101))
    assert sum(thread != threading.get_ident() for thread in threads) == 96  # four were timed here


def test_a_mapped_file_holds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(failing_where({5: Undecodable("bad")}), 40)
    needed = 40 * 8 * 8 * 3
    monkeypatch.setattr("deepcluster.images.store.available", lambda: 3.4 * needed)  # of which three tenths suffice
    inside = read_once(source, 8, folder=tmp_path)
    assert not (tmp_path / "images.u8").exists()
    monkeypatch.setattr("deepcluster.images.store.available", lambda: 3.3 * needed)
    outside = read_once(source, 8, folder=tmp_path)
    assert (tmp_path / "images.u8").stat().st_size == needed
    assert torch.equal(inside.images, outside.images) and inside.usable == outside.usable
    assert outside.images.is_contiguous(memory_format=torch.channels_last)
    content = np.fromfile(tmp_path / "images.u8", np.uint8, 39 * 8 * 8 * 3).reshape(39, 8, 8, 3)
    assert (content == outside.images.permute(0, 2, 3, 1).numpy()).all()


def test_images_take_4_gib_of_memory_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "available", lambda: 1e15)
    assert storing.store_budget() == 4 << 30


def test_too_large_for_memory_and_nowhere_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(image_of, 40)
    monkeypatch.setattr("deepcluster.images.store.available", lambda: 0)
    with pytest.raises(DiskError, match=r"images\.u8"):
        read_once(source, 8, folder=tmp_path / "lost")
    monkeypatch.setattr(os, "posix_fallocate", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(DiskError, match=os.strerror(errno.ENOSPC).lower()):
        read_once(source, 8, folder=tmp_path)
    with pytest.raises(MemoryError):  # is not a bad image
        read_once(source_of(Mock(side_effect=MemoryError), 5), 8)


# ---- survey(): the size of the images, and if they have colour ---


def test_a_preview_knows_the_size_of_the_whole(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (1600, 1201), RED).save(tmp_path / "a.jpg", exif=exif)
    Image.new("RGB", (1203, 1300), RED).save(tmp_path / "b.jpg")
    save(tmp_path / "c.png", RED, (90, 1300))
    assert survey(find(tmp_path)) == (1201, False)
    assert survey(find(np.zeros((3, 90, 100), np.uint8))) == (90, True)
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"picture": [str(tmp_path / "a.jpg")]})
    assert survey(find(table.cast_column("picture", datasets.Image()))) == (1201, False)


def test_grey_within_the_noise_of_a_jpeg() -> None:
    images = np.full((20, 4, 4, 3), (100, 102, 101), np.uint8)
    for coloured, grey in ((0, True), (1, True), (2, False)):  # 19 of 20 are still grey
        images[:coloured, :, :, 1] = 103
        assert survey(find(images))[1] is grey


def test_a_preview_reads_the_sides_of_many_and_decodes_a_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(60):
        save(tmp_path / f"{i}.png", RED, (20 + i, 90))
    save_tar(tmp_path / "0.tar", [(f"{i}.png", coloured_png(side=20, height=90)) for i in range(60)])
    monkeypatch.setattr(storing, "cores", lambda: 2)
    for place, side in ((tmp_path / "*.png", 49), (tmp_path / "0.tar", 20)):
        monkeypatch.setattr(sources, "decode", decoded := Mock(side_effect=decode))
        assert survey(find(place)) == (side, False)
        assert storing.COLOURS <= decoded.call_count <= storing.COLOURS + 2 * 2


def test_unusable_files_do_not_change_a_preview(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "SIDES", 10)
    sides = {f"good{i}.png": 1 + i for i in range(40)}
    for name, side in sides.items():
        save(tmp_path / name, size=(side, side))
    names = sorted(sides, key=lambda path: hashlib.sha256(path.encode()).digest())
    for _ in range(2):
        assert survey(find(tmp_path))[0] == int(np.median([sides[name] for name in names[:10]]))
        for i in range(40):
            (tmp_path / f"bad{i}.png").write_text("no image")
