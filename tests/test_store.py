"""read_once(): every usable image once, in order, the same however it is done; and the central square by hand."""

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepcluster.errors import DataError, DiskError
from deepcluster.images import Source, find
from deepcluster.images import store as store_module
from deepcluster.images.decode import Undecodable
from deepcluster.images.store import read_once, square


def image_of(i: int) -> Image.Image:
    """A picture that nothing else looks like."""
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, (9 + i % 4, 8, 3), np.uint8))


def source_of(read: Callable[[int], Image.Image], count: int, skipped: tuple[tuple[str, str], ...] = ()) -> Source:
    paths = tuple(f"{i:05}" for i in range(count))
    return Source("test", "/place", paths, lambda i, size=None: read(i), None, skipped)


def failing_where(bad: dict[int, Exception]) -> Callable[[int], Image.Image]:
    def read(i: int) -> Image.Image:
        if i in bad:
            raise bad[i]
        return image_of(i)

    return read


# The square


def test_the_central_square_by_hand() -> None:
    wide = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3)
    assert (square(Image.fromarray(wide), 2) == wide[:, 1:3]).all()
    tall = np.arange(6 * 2 * 3, dtype=np.uint8).reshape(6, 2, 3)
    assert (square(Image.fromarray(tall), 2) == tall[2:4]).all()
    image = Image.new("RGB", (300, 100), "white")
    image.paste("red", (100, 0, 200, 100))
    assert (square(image, 7) == (255, 0, 0)).all()  # white beside the square does not bleed in
    assert square(Image.new("RGB", (10_000, 1), "red"), 4).tolist() == [[[255, 0, 0]] * 4] * 4


def test_it_is_antialiased() -> None:
    checks = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    grey = square(Image.fromarray(checks).convert("RGB"), 8)
    assert abs(int(grey.min()) - 127) <= 2 and abs(int(grey.max()) - 127) <= 2


# The store


def test_rows_are_the_squares_in_order() -> None:
    store = read_once(source_of(image_of, 30), 8)
    assert store.images.shape == (30, 3, 8, 8) and store.images.dtype == torch.uint8
    assert store.images.is_contiguous(memory_format=torch.channels_last)
    assert store.kept == tuple(range(30)) and store.skipped == ()
    for i in range(30):
        assert (store.images[i].permute(1, 2, 0).numpy() == square(image_of(i), 8)).all()


def test_unusable_images_are_left_out_and_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_BLOCK", 4)  # gaps close over many blocks
    bad: dict[int, Exception] = {
        0: Undecodable("empty file"),
        4: PermissionError(errno.EACCES, "Permission denied", "/abs/00004"),
        11: OSError(errno.EIO, "Input/output error", "/abs/00011"),
        12: KeyError("odd"),
        19: RecursionError("deep\nhole"),
    }
    store = read_once(source_of(failing_where(bad), 20, (("00001x", "a symbolic link, not followed"),)), 8)
    good = [i for i in range(20) if i not in bad]
    assert store.kept == tuple(good)
    assert store.skipped == (
        ("00000", "empty file"),
        ("00001x", "a symbolic link, not followed"),
        ("00004", "permission denied"),
        ("00011", "input/output error"),
        ("00012", "KeyError: 'odd'"),
        ("00019", "RecursionError: deep hole"),
    )
    alone = read_once(source_of(lambda i: image_of(good[i]), len(good)), 8)
    assert torch.equal(store.images, alone.images)


def test_the_size_is_passed_on(tmp_path: Path) -> None:
    y, x = np.mgrid[:256, :256]
    Image.fromarray(np.stack([x, y, (x + y) // 2], 2).astype(np.uint8)).save(tmp_path / "a.jpg", quality=95)
    reduced, whole = read_once(find(tmp_path), 20), square(find(tmp_path).read(0), 20)
    difference = np.abs(reduced.images[0].permute(1, 2, 0).numpy().astype(int) - whole).mean()
    assert 0 < difference < 0.8


@pytest.mark.parametrize("milliseconds", [0, 1])
def test_quick_images_are_read_by_this_thread_alone_and_others_by_all(
    monkeypatch: pytest.MonkeyPatch, milliseconds: int
) -> None:
    monkeypatch.setattr(store_module, "cores", lambda: 2)
    threads: list[int] = []
    done: list[int] = []

    def read(i: int) -> Image.Image:
        threads.append(threading.get_ident())
        time.sleep(milliseconds / 1000)
        return Image.new("RGB", (1, 1), (i, 0, 0)) if i not in (7, 60) else failing_where({i: Undecodable("bad")})(i)

    store = read_once(source_of(read, 100), 1, progress=lambda count, total: done.append(count))
    assert store.images[:, 0, 0, 0].tolist() == [*store.kept] == [i for i in range(100) if i not in (7, 60)]
    assert store.skipped == (("00007", "bad"), ("00060", "bad")) and done == list(range(1, 101))
    others = sum(thread != threading.get_ident() for thread in threads)
    assert others == (96 if milliseconds else 0)  # four were timed here


def test_a_mapped_file_holds_the_same(tmp_path: Path) -> None:
    source = source_of(failing_where({5: Undecodable("bad")}), 40)
    needed = 40 * 8 * 8 * 3
    inside = read_once(source, 8, folder=tmp_path, memory_budget=needed)
    assert not (tmp_path / "images.u8").exists()
    outside = read_once(source, 8, folder=tmp_path, memory_budget=needed - 1)
    assert (tmp_path / "images.u8").stat().st_size == needed
    assert torch.equal(inside.images, outside.images) and inside.kept == outside.kept
    assert outside.images.is_contiguous(memory_format=torch.channels_last)
    content = np.fromfile(tmp_path / "images.u8", np.uint8, 39 * 8 * 8 * 3).reshape(39, 8, 8, 3)
    assert (content == outside.images.permute(0, 2, 3, 1).numpy()).all()


def test_too_large_for_memory_and_nowhere_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(image_of, 40)
    with pytest.raises(DataError, match="need 7680 bytes, more than the memory budget of 7679: name a folder"):
        read_once(source, 8, memory_budget=7679)
    with pytest.raises(DiskError, match=r"cannot write 7680 bytes to .*images\.u8: no such file"):
        read_once(source, 8, folder=tmp_path / "lost", memory_budget=0)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiskError, match="no space left on device"):
        read_once(source, 8, folder=tmp_path, memory_budget=0)


def test_running_out_of_memory_is_not_a_bad_image() -> None:
    def read(i: int) -> Image.Image:
        raise MemoryError

    with pytest.raises(MemoryError):
        read_once(source_of(read, 5), 8)


def test_the_limit_of_pixels_is_ours_and_not_that_of_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.new("RGB", (10, 10)).save(tmp_path / "a.png")
    assert read_once(find(tmp_path), 4).kept == (0,)
