"""decode(): the right pixels for every colour mode, and a short reason for all that is no image."""

import io
import re
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from deepcluster.images import decode as decoding
from deepcluster.images import find
from deepcluster.images.decode import (
    FORMATS,
    Undecodable,
    accepted_formats,
    as_rgb,
    decode,
    decoders,
    pillow_limits,
    sides,
)
from deepcluster.images.store import read_once, square
from deepcluster.texts import one_line
from tests.helpers import image_files
from tests.helpers.image_files import BLUE, GREEN, RED, WHITE, png


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


def test_every_mode_format_and_turn_has_the_right_pixels() -> None:
    for name, (data, right, off) in image_files.files_of_all_modes().items():
        image = decode(io.BytesIO(data))
        assert image.mode == "RGB" and np.abs(np.asarray(image, int) - right).max() <= off, name


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


def test_a_format_of_ones_own_is_a_function_by_the_suffix_of_its_files(tmp_path: Path, monkeypatch: Any) -> None:
    def read_text(file: Path) -> Image.Image:
        rows = [[*map(int, line.split())] for line in file.read_text().splitlines()]
        return Image.fromarray(np.array(rows, np.uint8))

    (tmp_path / "a.GRID").write_text("0 9\n9 9\n9 9\n")
    (tmp_path / "b.grid").write_text("no number")
    with pytest.raises(Undecodable, match="not an image"):
        decode(tmp_path / "a.GRID")
    monkeypatch.setitem(decoders, ".grid", read_text)
    assert pixels(decode(tmp_path / "a.GRID"))[:2] == [(0, 0, 0), (9, 9, 9)] and sides(tmp_path / "a.GRID") == (2, 3)
    assert read_once(find(tmp_path), 2).skipped[0][1].startswith("cannot be decoded: invalid literal")
    monkeypatch.setattr(decoding, "MAX_PIXELS", 5)
    with pytest.raises(Undecodable, match="too many pixels"):
        decode(tmp_path / "a.GRID")


def test_an_unusable_file_is_counted_by_its_category_whatever_the_words() -> None:
    whole = png(30_000, 30_000, zlib.compress(bytes(100_000)))
    categories = {b"": "empty", b"text": "other file", whole[:-20]: "too large", b"FUJIFILMCCD-RAW" + bytes(90): "RAW"}
    categories |= {stored(waves(), "PNG").getvalue()[:-1000]: "damaged"}
    for content, category in categories.items():
        with pytest.raises(Undecodable) as caught, pillow_limits():
            decode(io.BytesIO(content))
        assert caught.value.reason.category == category


def test_a_heic_file_is_neither_its_thumbnail_nor_decoded_by_many_threads() -> None:
    import pi_heif

    accepted_formats()
    assert (pi_heif.options.THUMBNAILS, pi_heif.options.DECODE_THREADS) == (False, 1)


def test_a_file_that_declares_fewer_pixels_than_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = heic("plain")
    declared = whole.index(b"ispe") + 8
    monkeypatch.setattr(decoding, "MAX_PIXELS", 1000)
    reason(whole[:declared] + (8).to_bytes(4) + (8).to_bytes(4) + whole[declared + 8 :])
