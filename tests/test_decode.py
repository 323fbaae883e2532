"""decode(): pixels worked out by hand for every colour mode, and a short reason for everything that is no image."""

import io
import resource
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster.images import decode as decoding
from deepcluster.images.decode import (
    FORMATS,
    Undecodable,
    accepted_formats,
    as_rgb,
    decode,
    explain,
    one_line,
    pillow_limits,
    short_side,
)
from deepcluster.images.store import square
from tests.helpers import image_files
from tests.helpers.image_files import BLACK, BLUE, GREEN, RED, WHITE, files_of_all_modes, png


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


# Colour modes


def palette_image() -> Image.Image:
    image = of("P", 0, 1, 2)
    image.putpalette([*RED, *GREEN, *BLUE])
    return image


def test_alpha_modes_without_a_file_format() -> None:
    palette = palette_image().convert("PA")
    palette.putalpha(of("L", 255, 0, 255))
    assert palette.mode == "PA" and pixels(as_rgb(palette)) == [RED, WHITE, BLUE]
    assert pixels(as_rgb(of("RGBa", (0, 0, 0, 0), (*RED, 255)))) == [WHITE, RED]
    assert pixels(as_rgb(of("LA", (5, 255), (5, 0)).convert("La"))) == [(5, 5, 5), WHITE]


def test_transparent_colour_of_images_without_alpha() -> None:
    assert pixels(decode(stored(of("L", 5, 6), "PNG", transparency=5))) == [WHITE, (6, 6, 6)]
    assert pixels(decode(stored(of("RGB", RED, GREEN), "PNG", transparency=RED))) == [WHITE, GREEN]
    sixteen = Image.fromarray(np.array([[256, 512]], np.uint16))
    assert pixels(decode(stored(sixteen, "PNG", transparency=256))) == [WHITE, (2, 2, 2)]


def test_every_mode_in_every_format_and_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    files = files_of_all_modes()
    assert len(files) >= 70

    def wrong() -> set[str]:
        return {
            name
            for name, (data, right, tolerance) in files.items()
            if np.abs(np.asarray(decode(io.BytesIO(data))).astype(int) - right).max() > tolerance
        }

    assert wrong() == set()
    # A wrong turn would be seen. (Pillow itself turns TIFF.)
    monkeypatch.setattr(decoding, "_orientation", lambda image: 1)
    assert wrong() == {f"turned {turn}.{kind}" for turn in range(2, 9) for kind in ("JPEG", "PNG", "WEBP")}


def test_hsv() -> None:
    assert pixels(as_rgb(of("HSV", (0, 255, 255), (0, 0, 128)))) == [RED, (128, 128, 128)]


def test_grey_values_of_32_bits() -> None:
    assert pixels(decode(stored(of("I", 0, 256, 65535), "TIFF"))) == [BLACK, (1, 1, 1), WHITE]
    for image in (of("I", -1, 0), of("I", 0, 65536), of("F", 0.5, 1.0)):
        assert reason(stored(image, "TIFF").getvalue()).startswith("grey values of 32 bits, whose range nothing tells")


def test_lab_by_colour_management() -> None:
    neutral = of("LAB", (255, 128, 128), (0, 128, 128))
    assert np.abs(np.asarray(decode(stored(neutral, "TIFF"))).astype(int) - [[WHITE, BLACK]]).max() <= 1


# Orientation and frames

CUT_EXIF = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x0e\x01\x02\0\xff\0\0\0\xff\0\0\0"  # a text that would end beyond the file


@pytest.mark.parametrize(
    "exif", [CUT_EXIF, b"Exif\0\0garbage", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"]
)
def test_damaged_metadata_does_not_lose_the_image(exif: bytes) -> None:
    with pillow_limits():
        assert decode(stored(Image.new("RGB", (5, 4), RED), "JPEG", exif=exif)).size == (5, 4)


def test_metadata_does_not_come_along() -> None:
    image = decode(stored(Image.new("RGB", (4, 4)), "JPEG", comment=b"secret", exif=b"Exif\0\0"))
    assert image.info == {} and b"secret" not in stored(image, "JPEG").getvalue()


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_first_frame_only(kind: str) -> None:
    first, second = Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), BLUE)
    options = {"lossless": True} if kind == "WEBP" else {}
    file = stored(first, kind, save_all=True, append_images=[second], **options)
    assert set(pixels(decode(file))) == {RED}


# Reduced decoding


def waves(width: int = 480, height: int = 320) -> Image.Image:
    """Smooth colours: what a photograph is between its edges."""
    y, x = np.mgrid[:height, :width]
    bands = [127 + 120 * np.sin(x / 37 + 1), 127 + 120 * np.sin(y / 29), 127 + 120 * np.sin((x + y) / 53)]
    return Image.fromarray(np.stack(bands, 2).astype(np.uint8))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (None, (480, 320)),
        (1000, (480, 320)),
        (108, (480, 320)),  # half of 320 is 160, and 1.5 * 108 = 162
        (107, (240, 160)),
        (54, (240, 160)),  # a quarter is 80, and 1.5 * 54 = 81
        (53, (120, 80)),
        (26, (60, 40)),  # an eighth is 40
        (1, (60, 40)),
    ],
)
def test_a_jpeg_is_decoded_at_the_smallest_size_that_will_do(size: int | None, expected: tuple[int, int]) -> None:
    file = stored(waves(), "JPEG", quality=95)
    image = decode(file, size=size)
    assert image.size == expected
    whole = decode(file)
    side = min(max(size or 64, 8), 107)
    difference = np.abs(square(image, side).astype(int) - square(whole, side)).mean()
    assert difference < 0.5 and (difference == 0) == (expected == whole.size)


@pytest.mark.parametrize("shape", [(97, 63), (63, 97), (255, 257), (16, 400), (400, 1), (9, 9), (1, 1)])
def test_it_is_never_reduced_below_what_is_needed(shape: tuple[int, int]) -> None:
    file = stored(Image.new("RGB", shape), "JPEG")
    for size in range(1, 70):
        side = min(decode(file, size=size).size)
        assert side >= min(*shape, size * 3 // 2)


def test_a_reduced_jpeg_is_turned_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (400, 200), BLACK)
    image.paste(WHITE, (0, 0, 200, 200))
    grey = np.asarray(decode(stored(image, "JPEG", exif=exif), size=30))
    assert grey.shape == (100, 50, 3) and grey[:48].min() > 240 and grey[52:].max() < 15


@pytest.mark.parametrize("mode", ["CMYK", "YCCK", "L"])
def test_colour_modes_of_reduced_jpegs(mode: str) -> None:
    image = waves().convert("CMYK" if mode == "YCCK" else mode)
    file = stored(image, "JPEG", quality=95)
    if mode == "YCCK":  # the last byte of Adobe's marker names the colour transform
        data = bytearray(file.getvalue())
        at = data.index(b"Adobe") + 11
        assert data[at] == 0
        data[at] = 2
        file = io.BytesIO(data)
    reduced, whole = decode(file, size=50), decode(file)
    assert reduced.size == (120, 80)
    assert np.abs(square(reduced, 50).astype(int) - square(whole, 50)).mean() < 0.5


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_damaged_jpegs_have_the_same_reasons_at_any_size(options: dict[str, object]) -> None:
    whole = stored(waves(), "JPEG", **options).getvalue()
    reasons = set()
    for part in (1, 2, 20, 300, len(whole) // 2, len(whole) - 300):
        reasons.add(reason(whole[:part]))
        assert reason(whole[:part]) == reason(whole[:part], size=20)
    assert any("image file is truncated" in text for text in reasons)


def test_the_limit_of_pixels_is_for_the_whole_image(monkeypatch: pytest.MonkeyPatch) -> None:
    file = stored(waves(), "JPEG")
    words = "too many pixels: 153600, more than the limit of 153599"
    monkeypatch.setattr(decoding, "MAX_PIXELS", 153_599)
    assert reason(file.getvalue(), size=8) == words
    monkeypatch.setattr(decoding, "MAX_PIXELS", 153_600)
    assert decode(file, size=8).size == (60, 40)


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "JPEG"])
def test_other_formats_come_as_they_are(kind: str) -> None:
    file = stored(waves(), kind)
    assert decode(file, size=8).tobytes() == decode(file).tobytes()


@pytest.mark.parametrize("kind", FORMATS)
def test_the_shorter_side_is_in_the_header(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = stored(waves(), kind)
    assert short_side(file) == 320
    (tmp_path / "a").write_bytes(file.getvalue())
    assert short_side(tmp_path / "a") == 320
    if kind != "WEBP":  # its header is read by libwebp, which wants the whole file
        assert reason(file.getvalue()[:-1000]) and short_side(io.BytesIO(file.getvalue()[:-1000])) == 320
    with pytest.raises(Undecodable, match="not an image"):
        short_side(io.BytesIO(b"hello"))
    monkeypatch.setattr(decoding, "MAX_PIXELS", 153_599)
    with pytest.raises(Undecodable, match="too many pixels: 153600"):
        short_side(file)


# What is no image


def test_too_many_pixels_are_refused_by_the_header() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bomb = png(30_000, 30_000, zlib.compress(bytes(100_000)))
    assert len(bomb) < 1000
    assert reason(bomb) == "too many pixels: 900000000, more than the limit of 89478485"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_the_same_reason_without_pillow_limits() -> None:
    with pytest.raises(Undecodable, match="too many pixels: 900000000, more than the limit of 89478485"):
        decode(io.BytesIO(png(30_000, 30_000, b"")))


def test_the_limit_of_pixels_and_that_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    file = stored(Image.new("RGB", (10, 10)), "PNG")
    monkeypatch.setattr(decoding, "MAX_PIXELS", 99)
    assert reason(file.getvalue()) == "too many pixels: 100, more than the limit of 99"
    monkeypatch.setattr(decoding, "MAX_PIXELS", 100)
    assert decode(file).size == (10, 10)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(Undecodable, match="exceeds limit of 20 pixels"):
        decode(file)
    with pillow_limits():
        assert decode(file).size == (10, 10)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_words_for_damage() -> None:
    whole = stored(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)), "PNG").getvalue()
    assert reason(whole[:-500]).startswith("cannot be decoded: image file is truncated")
    assert reason(b"") == "empty file"


@pytest.mark.parametrize(
    "data",
    [b"hello", b"<html><img src='a.png'></html>", b"\0" * 1000, b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG\r\n\x1a\n"],
)
def test_not_an_image(data: bytes) -> None:
    assert reason(data) == f"not an image in an accepted format ({', '.join(accepted_formats())})"


def test_formats_off_the_list_are_refused() -> None:
    assert reason(stored(Image.new("RGB", (4, 4)), "ICO").getvalue()).startswith("not an image")
    assert reason(stored(Image.new("RGB", (4, 4)), "TGA").getvalue()).startswith("not an image")


def test_the_bytes_decide_not_the_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(stored(of("RGB", RED, BLUE), "PNG").getvalue())
    (tmp_path / "b").write_bytes(stored(of("RGB", RED, BLUE), "BMP").getvalue())
    assert pixels(decode(tmp_path / "a.jpg")) == pixels(decode(tmp_path / "b")) == [RED, BLUE]


def test_any_exception_of_a_plugin_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    file = stored(Image.new("RGB", (4, 4)), "PNG")

    def failing(error: BaseException) -> None:
        def load(self: object) -> None:
            raise error

        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)

    failing(RecursionError("too\ndeep \x1b[31m"))
    assert reason(file.getvalue()) == "cannot be decoded: RecursionError: too deep [31m"
    failing(KeyError())
    assert reason(file.getvalue()) == "cannot be decoded: KeyError"
    failing(MemoryError())
    with pytest.raises(MemoryError):
        decode(file)
    failing(OSError(5, "Input/output error"))
    with pytest.raises(OSError, match="Input/output"):
        decode(file)


def test_reasons_are_alike_in_every_folder(tmp_path: Path) -> None:
    reasons = set()
    for folder in (tmp_path / "a", tmp_path / "b\nc"):
        folder.mkdir()
        (folder / "bad.png").write_bytes(png(9, 9, zlib.compress(bytes(20)))[:-20])
        with pytest.raises(Undecodable) as caught:
            decode(folder / "bad.png")
        reasons.add(str(caught.value))
    assert len(reasons) == 1 and str(tmp_path) not in reasons.pop()


def test_large_files_are_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8))
    image.save(tmp_path / "large.bmp")
    image.crop((0, 0, 30, 20)).save(tmp_path / "small.bmp")
    with (tmp_path / "film").open("wb") as film:
        film.truncate(1 << 40)
    read: list[str] = []
    whole = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read.append(path.name), whole(path))[1])
    assert decode(tmp_path / "large.bmp").tobytes() == image.tobytes()
    assert decode(tmp_path / "small.bmp").tobytes() == image.crop((0, 0, 30, 20)).tobytes()
    with pytest.raises(Undecodable, match="not an image"):
        decode(tmp_path / "film")
    assert read == ["small.bmp"]


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    for path, words in [
        (tmp_path, "is a folder"),
        (tmp_path / "x", "no such file"),
        (tmp_path / "x/y", "no such file"),
    ]:
        with pytest.raises(OSError) as caught:
            decode(path)
        assert explain(caught.value) == words
    assert explain(PermissionError(13, "Permission denied", "/secret/place")) == "permission denied"
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(OSError) as caught:
        decode(loop)
    assert explain(caught.value) == "a symbolic link that leads to itself"


def test_pillow_limits_hide_what_pillow_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pillow_limits():
            decode(stored(Image.new("RGB", (10, 10)), "PNG"))  # more pixels than Pillow's own limit
            decode(stored(Image.new("RGB", (2, 2)), "JPEG", exif=CUT_EXIF))  # one about the tag
        warnings.warn("mine", stacklevel=1)
        assert [str(one.message) for one in said] == ["mine"]
        decode(stored(Image.new("RGB", (10, 10)), "PNG"))
        decode(stored(Image.new("RGB", (2, 2)), "JPEG", exif=CUT_EXIF))
        assert len(said) >= 3  # Pillow speaks again afterwards


# In strips, and one at a time


def random_images() -> dict[str, Image.Image]:
    """41 x 57 px in every mode, with whatever marks pixels as transparent."""
    random = np.random.default_rng(0)
    shape = (57, 41)
    colours = Image.fromarray(random.integers(0, 256, (*shape, 4), dtype=np.uint8), "RGBA")
    found = {mode: colours.convert("RGB").convert(mode) for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV")}
    found |= {mode: colours.convert(mode) for mode in ("RGBA", "LA", "RGBa")}
    found["La"] = found["LA"].convert("La")
    found["LAB"] = Image.frombytes("LAB", shape[::-1], random.bytes(3 * 57 * 41))
    for mode, transparency in (("P", bytes(range(256))), ("P", 3), ("L", 7), ("RGB", found["RGB"].getpixel((3, 50)))):
        image = found[mode].copy()
        image.info["transparency"] = transparency
        found[f"{mode} {type(transparency).__name__}"] = image
    found["I;16"] = Image.fromarray(random.integers(0, 65536, shape).astype(np.uint16))
    found["I;16 int"] = found["I;16"].copy()
    found["I;16 int"].info["transparency"] = found["I;16"].getpixel((5, 40))
    found["I;16B"] = Image.frombytes("I;16B", shape[::-1], random.bytes(2 * 57 * 41))
    found["I"] = Image.fromarray(random.integers(0, 65536, shape).astype(np.int32))
    return found


@pytest.mark.parametrize("strip", [1, 41, 333])
def test_strips_give_the_pixels_of_the_whole(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_images()
    whole = {name: np.asarray(as_rgb(image)) for name, image in images.items()}
    monkeypatch.setattr(decoding, "STRIP", strip)
    for name, image in images.items():
        assert np.array_equal(np.asarray(as_rgb(image)), whole[name]), name


def test_a_large_image_comes_as_means_of_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    image = random_images()["RGB"]
    monkeypatch.setattr(decoding, "STRIP", 300)
    file = stored(image, "PNG")
    assert decode(file, size=9).size == (41, 57)
    monkeypatch.setattr(decoding, "AT_ONCE", 12 * 41 * 57 - 1)
    small = decode(file, size=9)  # 41 px are 3 times 1.5 * 9
    assert np.array_equal(np.asarray(small), np.asarray(image.reduce(3)))
    assert decode(file).size == decode(file, size=21).size == (41, 57)


@pytest.mark.parametrize(
    ("kind", "options", "most"), [("PNG", {}, 1), ("JPEG", {"progressive": True}, 1), ("JPEG", {}, 3)]
)
def test_large_images_are_decoded_one_at_a_time(
    kind: str, options: dict[str, bool], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain JPEG is never large: it is reduced while it is decoded. A barrier sees that three go at a time."""
    monkeypatch.setattr(decoding, "AT_ONCE", 12 * 800 * 600 - 1)
    data = stored(waves(800, 600), kind, **options).getvalue()
    under_way, seen, lock, meeting = 0, 0, threading.Lock(), threading.Barrier(most)
    convert = decoding.as_rgb

    def counted(image: Image.Image, factor: int = 1) -> Image.Image:
        nonlocal under_way, seen
        with lock:
            under_way += 1
            seen = max(seen, under_way)
        meeting.wait(60)
        found = convert(image, factor)
        with lock:
            under_way -= 1
        return found

    monkeypatch.setattr(decoding, "as_rgb", counted)
    threads = [threading.Thread(target=lambda: decode(io.BytesIO(data), size=60)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == most
