"""decode(): the right pixels for every colour mode, and a short reason for all that is no image; read_once()."""

import errno
import io
import os
import re
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from deepcluster.errors import DiskError
from deepcluster.export import folders
from deepcluster.images import Source, find, source
from deepcluster.images import decode as decoding
from deepcluster.images import store as storing
from deepcluster.images.decode import FORMATS, Undecodable, accepted_formats, as_rgb, decode, pillow_limits, sides
from deepcluster.images.source import Numbered
from deepcluster.images.store import read_once, square
from deepcluster.texts import one_line
from tests.helpers import image_files
from tests.helpers.image_files import BLUE, GREEN, RED, WHITE, png
from tests.helpers.tiny import hand_run


def stored(image: Image.Image, kind: str, **options: object) -> io.BytesIO:
    return io.BytesIO(image_files.stored(image, kind, **options))


def pixels(image: Image.Image) -> list[tuple[int, ...]]:
    assert image.mode == "RGB"
    return [tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()]


def of(mode: str, *values: object) -> Image.Image:
    """An image one pixel high."""
    image = Image.new(mode, (len(values), 1))
    image.putdata(values)
    return image


def reason(data: bytes, **options: int) -> str:
    with pytest.raises(Undecodable) as caught, pillow_limits():
        decode(io.BytesIO(data), **options)
    text = str(caught.value)
    assert text == one_line(text) and text
    return text


def test_modes_and_transparent_colours() -> None:
    palette = of("P", 0, 1, 2)
    palette.putpalette([*RED, *GREEN, *BLUE])
    palette = palette.convert("PA")
    palette.putalpha(of("L", 255, 0, 255))
    assert palette.mode == "PA" and pixels(as_rgb(palette)) == [RED, WHITE, BLUE]
    assert pixels(as_rgb(of("RGBa", (0, 0, 0, 0), (*RED, 255)))) == [WHITE, RED]
    assert pixels(as_rgb(of("LA", (5, 255), (5, 0)).convert("La"))) == [(5, 5, 5), WHITE]
    assert pixels(decode(stored(of("L", 5, 6), "PNG", transparency=5))) == [WHITE, (6, 6, 6)]
    assert pixels(decode(stored(of("RGB", RED, GREEN), "PNG", transparency=RED))) == [WHITE, GREEN]
    sixteen = Image.fromarray(np.array([[256, 512]], np.uint16))
    assert pixels(decode(stored(sixteen, "PNG", transparency=256))) == [WHITE, (2, 2, 2)]
    for image in (of("I", -1, 0), of("I", 0, 65536), of("F", 0.5, 1.0)):
        assert reason(stored(image, "TIFF").getvalue())


CUT_EXIF = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x0e\x01\x02\0\xff\0\0\0\xff\0\0\0"  # a text that would end beyond the file


@pytest.mark.parametrize(
    "exif", [CUT_EXIF, b"Exif\0\0garbage", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"]
)
def test_damaged_metadata_does_not_lose_the_image(exif: bytes) -> None:
    with pillow_limits():
        assert decode(stored(Image.new("RGB", (5, 4), RED), "JPEG", exif=exif)).size == (5, 4)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_only_the_first_frame_is_read(kind: str) -> None:
    first, second = Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), BLUE)
    options = {"lossless": True} if kind == "WEBP" else {}
    file = stored(first, kind, save_all=True, append_images=[second], **options)
    assert set(pixels(decode(file))) == {RED}


def waves(width: int = 480, height: int = 320) -> Image.Image:
    """Smooth colours: what a photograph is between its edges."""
    y, x = np.mgrid[:height, :width]
    bands = [127 + 120 * np.sin(x / 37 + 1), 127 + 120 * np.sin(y / 29), 127 + 120 * np.sin((x + y) / 53)]
    return Image.fromarray(np.stack(bands, 2).astype(np.uint8))


# The smallest size that will do: half of 320 px is 160, and 1.5 * 108 = 162; a quarter is 80, and 1.5 * 54 = 81.
SIZES = {None: 480, 1000: 480, 108: 480, 107: 240, 54: 240, 53: 120, 26: 60, 1: 60}


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
def test_a_jpeg_is_decoded_at_the_smallest_size_that_will_do(mode: str) -> None:
    file = stored(waves().convert(mode), "JPEG", quality=95)
    whole = decode(file)
    for size, width in SIZES.items():
        image = decode(file, size=size)
        assert image.size == (width, width * 2 // 3)
        side = min(max(size or 64, 8), 107)
        difference = np.abs(square(image, side).astype(int) - square(whole, side)).mean()
        assert difference < 0.5 and (difference == 0) == (width == 480)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_shorter_side_is_in_the_header(kind: str, tmp_path: Path) -> None:
    file = stored(waves(), kind)
    assert kind == "JPEG" or decode(file, size=8).tobytes() == decode(file).tobytes()  # only a JPEG is reduced
    (tmp_path / "a").write_bytes(file.getvalue())
    assert min(sides(tmp_path / "a")) == min(sides(file)) == 320
    if kind != "WEBP":  # its header is read by libwebp, which wants the whole file
        assert reason(file.getvalue()[:-1000]) and min(sides(io.BytesIO(file.getvalue()[:-1000]))) == 320


def test_the_limit_of_pixels_and_that_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb, said = png(30_000, 30_000, zlib.compress(bytes(100_000))), "900000000"
    assert said in reason(bomb)
    with pytest.raises(Undecodable, match=said):
        decode(io.BytesIO(bomb))  # Pillow's own limit speaks first
    file = stored(waves(), "JPEG")
    monkeypatch.setattr(decoding, "MAX_PIXELS", 153_599)
    assert re.search("153600.* 153599: save it smaller, or as a JPEG", reason(file.getvalue()))
    assert "153600" in reason(stored(waves(), "PNG").getvalue(), size=8)
    # Of a JPEG the pixels after its reduction count; but one of several scans is whole in memory before.
    assert decode(file, size=8).size == (60, 40) and min(sides(file)) == 320
    monkeypatch.setattr(decoding, "MAX_PIXELS", 153_600 * 6 // 16 + 60 * 40 * 4 // 16)
    assert decode(file, size=8).size == (60, 40)
    monkeypatch.setattr(decoding, "MAX_PIXELS", decoding.MAX_PIXELS - 1)
    assert "153600" in reason(file.getvalue(), size=8)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 153_600)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(Undecodable, match=" 20 "):
        decode(file)
    with pillow_limits():
        assert decode(file).size == (480, 320)
    assert Image.MAX_IMAGE_PIXELS == 10


FTYP = b"\0\0\0\x18ftyp"


@pytest.mark.parametrize("error", [MemoryError("all"), OSError(5, "Input/output error")])
def test_a_fault_of_the_machine_is_none_of_the_image(error, monkeypatch) -> None:
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", Mock(side_effect=error))
    with pytest.raises(type(error)):
        decode(stored(Image.new("RGB", (4, 4)), "PNG"))


def test_large_files_are_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8))
    image.save(tmp_path / "large.bmp")
    with (tmp_path / "film").open("wb") as film:
        film.truncate(1 << 40)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("it was read whole"))
    assert decode(tmp_path / "large.bmp").tobytes() == image.tobytes()
    with pytest.raises(Undecodable):
        decode(tmp_path / "film")


def test_pillow_limits_hide_what_pillow_and_libtiff_say(monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    # More pixels than Pillow's own limit, and a tag of which it warns.
    files = [stored(Image.new("RGB", (10, 10)), "PNG"), stored(Image.new("RGB", (2, 2)), "JPEG", exif=CUT_EXIF)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pillow_limits():
            assert all(map(decode, files))
        warnings.warn("mine", stacklevel=1)
        assert [str(one.message) for one in said] == ["mine"]
        assert all(map(decode, files)) and len(said) >= 3  # Pillow speaks again afterwards
    damaged = stored(Image.new("RGB", (7, 7)), "TIFF", compression="tiff_deflate").getvalue().replace(b"x\x9c", b"??")
    for limits in (pillow_limits(), nullcontext()):
        with limits, pytest.raises(Undecodable):
            decode(io.BytesIO(damaged))
        assert bool(capfd.readouterr().err) == isinstance(limits, nullcontext)


def test_a_large_image_comes_as_means_of_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (57, 41, 3), dtype=np.uint8))
    file = stored(image, "PNG")
    assert decode(file, size=9).size == (41, 57)
    monkeypatch.setattr(decoding, "BYTES_AT_ONCE", 16 * 41 * 57 - 1)
    small = decode(file, size=9)  # 41 px are 3 times 1.5 * 9
    assert np.array_equal(np.asarray(small), np.asarray(image.reduce(3)))
    assert decode(file).size == decode(file, size=21).size == (41, 57)


@pytest.mark.parametrize(
    ("kind", "options", "pixels", "most"),
    [
        ("PNG", {}, 480_000, 1),
        ("JPEG", {"progressive": True}, 480_000, 1),
        ("JPEG", {}, 480_000, 3),
        ("JPEG", {}, 479_999, 1),
    ],
)
def test_large_images_are_decoded_one_at_a_time(kind, options, pixels, most, monkeypatch) -> None:
    """A plain JPEG of MAX_PIXELS is reduced while it is decoded, so three go at a time, which a barrier sees."""
    monkeypatch.setattr(decoding, "BYTES_AT_ONCE", 6 * 800 * 600)
    monkeypatch.setattr(decoding, "MAX_PIXELS", pixels)
    data = stored(waves(800, 600), kind, **options).getvalue()
    under_way, seen, meeting = list[int](), list[int](), threading.Barrier(most)

    def counted(image: Image.Image) -> Image.Image:
        under_way.append(1)
        meeting.wait(60)
        time.sleep(0.05)  # another one would come in between
        seen.append(len(under_way))
        under_way.pop()
        return as_rgb(image)

    monkeypatch.setattr(decoding, "as_rgb", counted)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: decode(io.BytesIO(data), size=60), range(3)))
    assert len(seen) == 3 and max(seen) == most


def close(image: Image.Image, other: Image.Image) -> bool:
    return image.size == other.size and np.abs(np.asarray(image, int) - np.asarray(other, int)).mean() < 6


def avif(kind: str, turn: int = 0) -> bytes:
    image, exif = waves(64, 96), Image.Exif()
    if kind == "clear":
        image = image.convert("RGBA")
        image.putalpha(0)
    exif[0x0112] = {0: 1, 180: 3, 270: 6, 90: 8}[turn]
    return image_files.stored(image, "AVIF", quality=95, exif=exif.tobytes())


def heic(kind: str, turn: int = 270) -> bytes:
    """Return a file; ``turned`` has a box that turns it by 270 degrees, of which another turn takes the place."""
    return image_files.HEIC[kind].replace(b"irot\3", b"irot" + bytes([turn // 90]))


needs_avif = pytest.mark.skipif("AVIF" not in accepted_formats(), reason="a Pillow without AVIF")


@pytest.mark.parametrize("file_of", [heic, pytest.param(avif, marks=needs_avif)])
def test_images_of_phones(file_of: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    image, whole = waves(64, 96), file_of("plain")
    file = io.BytesIO(whole)
    assert close(decode(file), image) and decode(file).info == {"short_side": 64} and min(sides(file)) == 64
    for turn in (0, 90, 180, 270):
        assert close(decode(io.BytesIO(file_of("turned", turn))), image.rotate(turn, expand=True))
    assert close(decode(io.BytesIO(file_of("clear"))), Image.new("RGB", (64, 96), "white"))
    for part in range(1, len(whole) - 1, max(1, len(whole) // 40)):
        assert reason(whole[:part])
    monkeypatch.setattr(decoding, "MAX_PIXELS", 64 * 96 - 1)
    assert reason(whole).count("6144") == 1


def test_a_file_that_declares_fewer_pixels_than_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = heic("plain")
    declared = whole.index(b"ispe") + 8
    monkeypatch.setattr(decoding, "MAX_PIXELS", 1000)
    reason(whole[:declared] + (8).to_bytes(4) + (8).to_bytes(4) + whole[declared + 8 :])


# ---- read_once(): every usable image once, in order, the same however it is done; and the central square by hand ---


def image_of(i: int) -> Image.Image:
    """A picture that nothing else looks like."""
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, (9 + i % 4, 8, 3), np.uint8))


@dataclass(frozen=True)
class Made(Numbered):
    image: Callable[[int], Image.Image]

    def read(self, i: int, size: int | None = None) -> Image.Image:
        return self.image(i)


def source_of(read: Callable[[int], Image.Image], count: int, skipped: tuple[tuple[str, str], ...] = ()) -> Source:
    paths = tuple(f"{i:05}" for i in range(count))
    return Source("test", "/place", paths, Made("/place", read), None, skipped)


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
    monkeypatch.setattr(storing, "_BLOCK", 4)  # gaps close over many blocks
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
    monkeypatch.setattr("deepcluster.images.store.available", lambda: 3.4 * needed)
    inside = read_once(source, 8, folder=tmp_path)
    assert not (tmp_path / "images.u8").exists()
    monkeypatch.setattr("deepcluster.images.store.available", lambda: 3.3 * needed)
    outside = read_once(source, 8, folder=tmp_path)
    assert (tmp_path / "images.u8").stat().st_size == needed
    assert torch.equal(inside.images, outside.images) and inside.usable == outside.usable
    assert outside.images.is_contiguous(memory_format=torch.channels_last)
    content = np.fromfile(tmp_path / "images.u8", np.uint8, 39 * 8 * 8 * 3).reshape(39, 8, 8, 3)
    assert (content == outside.images.permute(0, 2, 3, 1).numpy()).all()


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


# ---- RAW files of cameras: by their previews with rawpy, named without it, exported as they are ----------------------

needs_rawpy = pytest.mark.skipif(not decoding.reads_raw(), reason="needs rawpy, of the extra [raw]")
SENSOR = 32  # px, each side
PREVIEW = 2000 + 2 * SENSOR**2  # the preview's place in its file, at the end
NUMBERS = {1: "B", 3: "H", 4: "L", 10: "l"}  # of numbers in a TIFF
IDENTITY = [number for row in np.eye(3, dtype=int).tolist() for number in (row[0], 1, row[1], 1, row[2], 1)]


def directory(at: int, tags: dict[int, tuple[int, list[int]]]) -> bytes:
    """A directory of a TIFF that begins at ``at``, and its values behind it."""
    entries, values = b"", b""
    behind = at + 6 + 12 * len(tags)
    for tag, (kind, numbers) in sorted(tags.items()):
        data = struct.pack(f"<{len(numbers)}{NUMBERS[kind]}", *numbers)
        count = len(numbers) // (2 if kind == 10 else 1)  # of rationals
        cell = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<L", behind + len(values))
        values += data if len(data) > 4 else b""
        entries += struct.pack("<HHL", tag, kind, count) + cell
    return struct.pack("<H", len(tags)) + entries + bytes(4) + values


def dng(preview: Image.Image, *, jpeg: bool = True, orientation: int = 1) -> bytes:
    """A DNG with a small sensor and a preview, a JPEG or plain colours."""
    data = image_files.stored(preview, "JPEG", quality=95) if jpeg else preview.tobytes()
    sensor = bytes(2 * SENSOR * SENSOR)
    about = {
        254: (4, [1]), 256: (4, [preview.width]), 257: (4, [preview.height]), 258: (3, [8, 8, 8]),
        259: (3, [7 if jpeg else 1]), 262: (3, [6 if jpeg else 2]), 271: (1, [*b"Made\0"]), 273: (4, [PREVIEW]),
        274: (3, [orientation]), 277: (3, [3]), 278: (4, [preview.height]), 279: (4, [len(data)]), 330: (4, [1000]),
        50706: (1, [1, 4, 0, 0]), 50721: (10, IDENTITY),
    }  # fmt: skip
    raw = {
        254: (4, [0]), 256: (4, [SENSOR]), 257: (4, [SENSOR]), 258: (3, [16]), 259: (3, [1]), 262: (3, [32803]),
        273: (4, [2000]), 277: (3, [1]), 278: (4, [SENSOR]), 279: (4, [len(sensor)]), 33421: (3, [2, 2]),
        33422: (1, [0, 1, 1, 2]),
    }  # fmt: skip
    head = (b"II*\0" + struct.pack("<L", 8) + directory(8, about)).ljust(1000, b"\0")
    return (head + directory(1000, raw)).ljust(2000, b"\0") + sensor + data


@pytest.fixture
def picture() -> Image.Image:
    """A landscape, dark at the left."""
    return Image.fromarray(np.linspace(0, 255, 120, dtype=np.uint8)[None, :, None].repeat(80, 0).repeat(3, 2))


def test_without_the_extra_a_raw_file_is_named_and_not_taken_for_its_thumbnail(picture, monkeypatch):
    monkeypatch.setattr(decoding, "reads_raw", lambda: False)
    monkeypatch.setattr(source, "reads_raw", lambda: False)
    starts = [
        dng(picture, jpeg=False),
        b"II*\0\x10\0\0\0CR\2\0",
        b"\0\0\0\x18ftypcrx \0\0\0\1",
        b"FUJIFILMCCD-RAW 0201",
    ]
    for data in starts:
        with pytest.raises(Undecodable, match=r"RAW.*rawpy"):
            decode(io.BytesIO(data.ljust(100, b"\0")))
    kinds = {"a.NEF": decoding.RAW, "a.xmp": decoding.OTHER, "a.MOV": decoding.OTHER, "b": decoding.DAMAGED, "c": ""}
    skipped = [(path, decoding.Reason("some words: and more", kind)) for path, kind in kinds.items()]
    counts = r"1 RAW \(pip install rawpy,.*\), 1 sidecar, 1 video, 1 damaged, 1 some words"
    assert re.fullmatch(counts, source.counted(skipped))


@needs_rawpy
@pytest.mark.parametrize("jpeg", [True, False])
@pytest.mark.parametrize(
    ("orientation", "turn"), [(1, None), (3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_270)]
)
def test_a_raw_file_is_its_preview_upright(picture, jpeg, orientation, turn):
    file = io.BytesIO(dng(picture, jpeg=jpeg, orientation=orientation))
    upright = picture if turn is None else picture.transpose(turn)
    image = decode(file)
    assert image.size == upright.size and image.mode == "RGB" and min(sides(file)) == 80
    assert np.abs(np.asarray(image, float) - np.asarray(upright, float)).mean() < 2


@needs_rawpy
def test_hostile_raw_files_meet_the_limits(picture, monkeypatch):
    data = dng(picture)
    for end in (1100, 2000, PREVIEW):  # without the directory of the sensor, the sensor, or a preview
        with pytest.raises(Undecodable):
            decode(io.BytesIO(data[:end]))
    limits = {"MAX_PIXELS": 120 * 80, "MAX_RAW_BYTES": len(data), "MAX_PREVIEW_BYTES": len(data) - PREVIEW}
    for name, limit in limits.items():
        with monkeypatch.context() as patch, pytest.raises(Undecodable):
            patch.setattr(decoding, name, limit - 1)
            decode(io.BytesIO(data))


@needs_rawpy
@pytest.mark.parametrize("size", [0, 1000])
def test_libraw_reads_large_files_one_at_a_time(picture, monkeypatch, size):
    import rawpy

    data = dng(picture)
    locked = []
    monkeypatch.setattr(decoding, "MAX_PREVIEW_BYTES", len(data) - size)
    read = rawpy.imread
    monkeypatch.setattr(rawpy, "imread", lambda file: [locked.append(decoding._ALONE.locked()), read(file)][1])
    decode(io.BytesIO(data))
    assert locked == [size > 0] and not decoding._ALONE.locked()


@needs_rawpy
@pytest.mark.parametrize("jpeg", [True, False])
@pytest.mark.parametrize("missing", [1, 100, 9000, 16000])
def test_a_preview_is_used_only_if_all_of_it_is_in_its_file(jpeg, missing):
    """LibRaw completes one that is cut off with memory of the process, here bytes that are in the file, too."""
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    data = dng(Image.fromarray(noise), jpeg=jpeg)
    assert decode(io.BytesIO(data)).size == (160, 120) and len(data) - PREVIEW > 16000
    for _ in range(2):
        memory = [bytearray(size) for size in (5000, 12000, 30000) for _ in range(30)]
        del memory
        with pytest.raises(Undecodable, match="copy it again"):
            decode(io.BytesIO(data[:-missing]))


def test_bytes_are_found_wherever_they_lie():
    file = io.BytesIO(bytes((1 << 20) - 2) + b"abcd" + bytes(1 << 20))
    assert decoding._contains(file, b"abcd")  # in two blocks
    assert decoding._contains(file, b"d\0\0")
    assert not decoding._contains(file, b"abcde")


@needs_rawpy
def test_an_export_takes_a_raw_file_itself(picture, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/0.dng").write_bytes(dng(picture))
    assert read_once(find(tmp_path / "raw"), 32).usable == (0,)
    folders(hand_run(tmp_path / "run", str(tmp_path / "raw"), {"0.dng": 0}), tmp_path / "sorted", mode="copy")
    assert (tmp_path / "sorted/000/0.dng").read_bytes() == dng(picture)
